"""Lists of pairs with guides and with judges of their own: who sees which, in batches and in comparisons."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from shifted_pairs import GRID, TRUE, Shift, make_pairs, runs, shift

from regnet_itk.batch.outputs import write_batch
from regnet_itk.batch.records import FileMark
from regnet_itk.batch.run import collect_batch, plan_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.batch.work import PairTask, run_pair
from regnet_itk.comparison import pair_steps as comparison_module
from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.step import run_step
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.errors import ParameterError
from regnet_itk.events import Events
from regnet_itk.pairs import check_pairs, read_pairs, write_pairs


@dataclasses.dataclass(frozen=True)
class Guided(Shift):
    """A stage that tells how many landmarks and labels guide it, and is off by as many millimetres as there are."""

    @property
    def follows(self):
        return frozenset({"label"})

    @property
    def guided_by_landmarks(self):
        return True

    def run(self, pair, initial, options):
        found = super().run(pair, initial, options)
        landmarks = 0 if pair.fixed_landmarks is None else len(pair.fixed_landmarks)
        labels = 0 if pair.fixed_guides.label is None else int(pair.fixed_guides.label.array.max())
        return dataclasses.replace(found, details={"landmarks": landmarks, "labels": labels})


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


@pytest.fixture
def pair(tmp_path):
    """A pair with 12 landmarks that are right, and labels 1 to 3."""
    (found, _) = make_pairs(tmp_path / "data")
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:8, 4:8, 4:8] = 3
    files = {role: tmp_path / "data" / f"{role}_labels.mha" for role in ("fixed", "moving")}
    moving = dataclasses.replace(GRID, origin=tuple(np.array(GRID.origin) + TRUE))
    for grid, path in ((GRID, files["fixed"]), (moving, files["moving"])):
        write_image(Image(labels, grid), path)
    return dataclasses.replace(found, fixed_labels=files["fixed"], moving_labels=files["moving"])


@pytest.fixture
def judged(pair, tmp_path):
    """The same with 5 landmarks that judge, and are 2 mm off, and labels that judge and lie elsewhere."""
    points = GRID.index_to_point(np.random.default_rng(3).uniform((4, 4, 4), (11, 9, 8), (5, 3)))
    files = {}
    for role, moved in (("fixed", points), ("moving", points + TRUE + [0.0, 2.0, 0.0])):
        files[f"{role}_judge_landmarks"] = tmp_path / "data" / f"{role}_judges.csv"
        write_landmarks(Landmarks(moved), files[f"{role}_judge_landmarks"])
    return dataclasses.replace(
        pair, **files, fixed_judge_labels=pair.fixed_labels, moving_judge_labels=pair.moving_labels
    )


def stage(log):
    return Guided(shift(log, *TRUE).parameters)


@pytest.fixture
def compared(log, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_module, "_run_apart", lambda step, show: run_step(step, Events()))
    method = Method("guided", (stage(log),), ("guided",))
    return lambda *pairs: compare(pairs, [method], tmp_path / "compared")


def last_record(comparison, pair):
    return comparison.outcome(pair, comparison.methods[-1]).records[-1]


def test_a_comparison_guides_only_where_there_are_judges(pair, judged, compared):
    found = last_record(compared(pair), pair)
    assert (found.details["landmarks"], found.details["labels"]) == (0, 0)
    assert len(found.measures.differences) == 12
    found = last_record(compared(judged), judged)
    assert (found.details["landmarks"], found.details["labels"]) == (12, 3)
    np.testing.assert_allclose(found.measures.differences, np.tile([0.0, -2.0, 0.0], (5, 1)), atol=1e-4)
    assert found.measures.metrics["dice"] == pytest.approx({"3": 1.0})


def test_new_guides_register_again_and_new_judges_measure_again(judged, compared, log):
    compared(judged)
    compared(judged)
    assert runs(log) == 1
    write_landmarks(Landmarks(GRID.index_to_point([[5.0, 5.0, 5.0]])), judged.fixed_judge_landmarks)
    write_landmarks(Landmarks(GRID.index_to_point([[5.0, 5.0, 5.0]]) + TRUE), judged.moving_judge_landmarks)
    assert np.abs(last_record(compared(judged), judged).measures.differences).max() < 1e-4
    assert runs(log) == 1
    for path, moved in ((judged.fixed_landmarks, 0.0), (judged.moving_landmarks, TRUE)):
        write_landmarks(Landmarks(GRID.index_to_point([[6.0, 6.0, 6.0]]) + moved), path)
    assert last_record(compared(judged), judged).details["landmarks"] == 1
    assert runs(log) == 2


def row_of(task):
    batch = collect_batch(plan_batch([task.pair], task.out, task.settings))
    write_batch(batch, task.out)
    with (task.out / "batch.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return row


def test_a_batch_is_guided_and_says_if_its_tre_is_of_the_guides(pair, judged, log, tmp_path):
    settings = BatchSettings((stage(log),))
    tasks = [PairTask(one, tmp_path / name, settings) for one, name in ((pair, "a"), (judged, "b"))]
    for task in tasks:
        record = run_pair(task, Events())
        assert record.status == "done", record.reason
    rows = [row_of(task) for task in tasks]
    assert [row["tre_of_guides"] for row in rows] == ["yes", ""]
    assert [float(row["tre_after_mm"]) for row in rows] == pytest.approx([0.0, 2.0], abs=1e-3)
    pages = [(task.out / "batch.html").read_text(encoding="utf-8") for task in tasks]
    assert ["no measure of it" in page for page in pages] == [True, False]
    # every file that guides or judges counts
    fingerprint = settings.fingerprint()
    assert tasks[1].find_finished(fingerprint, FileMark.is_same) is not None
    for path in (judged.moving_judge_landmarks, judged.fixed_labels):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert tasks[1].find_finished(fingerprint, FileMark.is_same) is None
        path.write_bytes(content)


def test_a_stage_that_knows_no_labels_is_not_given_any_in_a_batch(pair, log, tmp_path):
    record = run_pair(PairTask(pair, tmp_path / "out", BatchSettings((shift(log, *TRUE),))), Events())
    assert record.status == "done", record.reason
    assert not record.facts.guided


def test_lists_hold_judges_and_check_them(judged, tmp_path):
    path = tmp_path / "pairs.csv"
    write_pairs([judged], path)
    (again,) = read_pairs(path)
    assert dataclasses.replace(again, where="") == judged
    write_landmarks(Landmarks(GRID.index_to_point([[500.0, 5.0, 5.0]])), judged.fixed_judge_landmarks)
    write_landmarks(Landmarks(GRID.index_to_point([[5.0, 5.0, 5.0]])), judged.moving_judge_landmarks)
    with pytest.raises(ParameterError, match=r"row 2: .*lie outside"):
        check_pairs([again])
    text = path.read_text(encoding="utf-8").replace("moving_judge_labels", "group")
    path.write_text(text.replace(",group", ",", 1) if text.count("group") > 1 else text)
    with pytest.raises(ParameterError, match="'fixed_judge_labels' is given and 'moving_judge_labels' is not"):
        read_pairs(path)
