"""Many pairs: each folder is what `run` writes, what is finished is kept, and nothing stops the rest."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from batch_program import start, wait_for
from command import call
from listening import Heard
from quick_stages import AFFINE
from shifted_pairs import TRUE, make_pairs, runs, shift

from regnet_itk import registration
from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.batch import run as run_module
from regnet_itk.batch.facts import PairFacts
from regnet_itk.batch.many_pairs import register_pairs
from regnet_itk.batch.outputs import FAILED_SHOWN, SHOWN, sort_worst_first, write_batch
from regnet_itk.batch.records import FileMark, PairRecord
from regnet_itk.batch.run import Batch, collect_batch, plan_batch, run_batch
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.batch.work import run_pair
from regnet_itk.child_processes import Done, Failed, failure_of
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.errors import ImageError, OutputError, ParameterError
from regnet_itk.events import Events
from regnet_itk.pairs import Pair, read_pairs, write_pairs
from regnet_itk.stages.choice import StageChoice
from regnet_itk.trust import prediction


class HereEngine:
    """Registers in the test's own process, which takes a tenth of the time."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, work, tasks, hear):
        for task in tasks:
            try:
                yield task, Done(work(task, Events()))
            except OutputError as error:
                yield task, Failed(failure_of(error))


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


@pytest.fixture
def pairs(tmp_path):
    """Two pairs, of which the second has a mask."""
    first, second = make_pairs(tmp_path / "data")
    return [replace(first, fixed_mask=None), second]


def moved(log, **more):
    return BatchSettings((shift(log, *TRUE, **more),))


@pytest.fixture
def no_pictures(monkeypatch):
    """Write an empty picture: drawing takes most of the time of so small a registration."""
    monkeypatch.setattr("regnet_itk.figures.overview.draw_registration", lambda *given, **_: given[4].touch())


def batch_here(pairs, out, settings):
    return run_batch(plan_batch(pairs, out, settings), HereEngine())


def rows_of(out):
    with (out / "batch.csv").open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


# What is written


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A list of three pairs of phantoms, of which one is not there, and a quick stage."""
    folder = tmp_path_factory.mktemp("phantoms")
    found = []
    for number in range(2):
        data = folder / f"p{number}"
        write_phantom(make_phantom(5 + number, spacing=(5.0, 4.6, 5.4), extent=(160.0, 140.0, 130.0)), data)
        points = data / "fixed_points.txt", data / "moving_points.txt"
        found.append(
            Pair(f"p{number}", data / "fixed.mha", data / "moving.mha", data / "fixed_mask.mha", None, *points)
        )
    found.append(Pair("gone", folder / "gone" / "fixed.mha", folder / "gone" / "moving.mha"))
    write_pairs(found, folder / "pairs.csv")
    (folder / "affine.txt").write_text(AFFINE.to_text())
    return folder


def computed(folder):
    """Return the contents of a registration's files, but for times and paths."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name == "registration.json":
            content = json.loads(file.read_text())
            found[file.name] = [{k: v for k, v in stage.items() if k != "seconds"} for stage in content["stages"]]
        elif file.name == "TransformParameters.0.txt":
            found[file.name] = re.sub(r'"/.*/', '"', file.read_text())
        elif file.suffix in (".mha", ".png"):
            found[file.name] = file.read_bytes()
        else:  # those with times in them
            found[file.name] = file.stat().st_size > 0
    return found


@pytest.fixture(scope="module")
def two_jobs(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("two_jobs")
    stage = ("-p", phantoms / "affine.txt")
    assert call("batch", phantoms / "pairs.csv", "-out", out, *stage, "-threads", 1, "--jobs", 2) == 1
    return out


def test_each_folder_is_what_run_writes_for_any_number_of_jobs(phantoms, two_jobs, tmp_path, capfd):
    stage = ("-p", phantoms / "affine.txt")
    assert call("batch", phantoms / "pairs.csv", "-out", tmp_path / "one", *stage, "-threads", 1) == 1
    told = capfd.readouterr().err
    assert f"error: gone: fixed image '{phantoms}/gone/fixed.mha' does not exist\n" in told
    assert "3 pairs, 2 of them done, 1 failed" in told
    pair = read_pairs(phantoms / "pairs.csv", check_files=False)[1]
    landmarks = ("-fp", pair.fixed_landmarks, "-mp", pair.moving_landmarks)
    images = ("-f", pair.fixed, "-m", pair.moving, "-fMask", pair.fixed_mask, *landmarks)
    assert call("run", *images, *stage, "-threads", 1, "-out", tmp_path / "run") == 0
    by_run = computed(tmp_path / "run")
    assert {"result.0.mha", "TransformParameters.0.txt", "registration.png", "regnet-itk.log"} < by_run.keys()
    for out in (two_jobs, tmp_path / "one"):
        (out / "pairs" / "p1" / "batch.json").rename(tmp_path / "batch.json")
        by_batch = computed(out / "pairs" / "p1")
        assert [name for name in by_run if by_batch.pop(name, None) != by_run[name]] == []
        assert not by_batch
        (tmp_path / "batch.json").rename(out / "pairs" / "p1" / "batch.json")
        logged = (out / "pairs" / "p1" / "regnet-itk.log").read_text()
        assert "stage 0" in logged
        assert "before: TRE" in logged
    assert not (two_jobs / "claims").exists()


def test_the_table_and_the_page(two_jobs):
    rows = rows_of(two_jobs)
    assert [row["status"] for row in rows.values()] == ["done", "done", "failed"]
    record = json.loads((two_jobs / "pairs" / "p0" / "registration.json").read_text())
    stage, row = record["stages"][0], rows["p0"]
    assert float(row["similarity_after"]) == pytest.approx(stage["similarity_after"], abs=1e-4)
    assert float(row["tre_before_mm"]) == pytest.approx(record["landmarks_before"]["mean"], abs=1e-5)
    assert float(row["tre_after_mm"]) == pytest.approx(stage["landmarks"]["mean"], abs=1e-5)
    assert float(row["folding"]) == record["folding"]["share_det_jacobian_not_positive"]
    assert (two_jobs / row["folder"] / "result.0.mha").is_file()
    assert rows["gone"]["reason"].endswith("does not exist")
    page = (two_jobs / "batch.html").read_text(encoding="utf-8")
    assert page.index("gone</th>") < page.index('<a href="pairs/p')
    assert (two_jobs / re.search(r'<a href="([^"]*)">p0', page)[1]).is_file()
    assert page.count("<img") == 3
    assert json.loads((two_jobs / "batch.json").read_text())["failed"] == 1


def test_stages_that_nobody_names_are_chosen_for_each_pair(pairs, tmp_path, monkeypatch):
    chosen = []

    def choose(fixed, moving):
        chosen.append(fixed)
        return StageChoice((str(tmp_path / "quick.txt"),), "a test says so")

    quick = AFFINE.with_(NumberOfResolutions=1, ImagePyramidSchedule=[2, 2, 2], NumberOfSpatialSamples=100)
    (tmp_path / "quick.txt").write_text(quick.to_text())
    monkeypatch.setattr(registration, "choose_stages", choose)
    assert not batch_here(pairs, tmp_path / "out", BatchSettings()).failed
    record = json.loads((tmp_path / "out" / "pairs" / "p1" / "registration.json").read_text())
    assert record["settings"]["stages_chosen_as"] == "a test says so"
    assert len(chosen) == 2


# What is kept


def test_what_is_finished_is_kept_until_something_changes(pairs, log, tmp_path, no_pictures):
    out = tmp_path / "out"

    def again(pairs=pairs, settings=None):
        before = runs(log)
        batch = batch_here(pairs, out, settings or moved(log))
        assert not batch.failed
        assert not batch.missing
        return runs(log) - before

    assert again() == 2
    assert again() == 0
    assert again(settings=replace(moved(log), threads=1, device="cpu", priority="idle")) == 0
    os.utime(pairs[0].moving)
    assert again() == 0
    assert again([replace(pairs[0], displacement=None), pairs[1]]) == 0  # which a registration does not use
    image = read_image(pairs[0].moving)
    write_image(Image(image.array + np.int16(1), image.grid), pairs[0].moving)
    assert again() == 1
    assert again([pairs[0], replace(pairs[1], fixed_mask=None)]) == 1
    assert again() == 1
    assert again(settings=BatchSettings((shift(log, 1, 2, 3),))) == 2
    assert again() == 2
    assert again(settings=replace(moved(log), seed=3)) == 2
    assert again() == 2
    shutil.rmtree(out / "pairs" / "p0")
    assert again() == 1
    record = out / "pairs" / "p1" / "registration.json"
    record.write_text(record.read_text() + "\n")
    assert again() == 1
    (out / "pairs" / "p1" / "batch.json").write_text("{")
    assert again() == 1


def test_a_copied_folder_is_kept(pairs, log, tmp_path, no_pictures):
    batch_here(pairs, tmp_path / "out", moved(log))
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copy)
    for file in (tmp_path / "copy").rglob("*.json"):
        os.utime(file, (0, 0))
    assert not batch_here(pairs, tmp_path / "copy", moved(log)).failed
    assert runs(log) == 2


def test_results_of_other_settings_do_not_stay_beside_a_failure(pairs, log, tmp_path, no_pictures):
    batch_here(pairs, tmp_path / "out", replace(moved(log), both_ways=True))
    assert (tmp_path / "out" / "pairs" / "p1" / "backward" / "registration.json").is_file()
    assert batch_here(pairs, tmp_path / "out", moved(log, What="fail")).failed
    left = [file.name for file in (tmp_path / "out" / "pairs" / "p1").rglob("*") if file.is_file()]
    assert left == ["batch.json"]
    assert len(collect_batch(plan_batch(pairs, tmp_path / "out", moved(log))).missing) == 0


def test_files_of_another_program_are_not_overwritten(pairs, log, tmp_path, no_pictures):
    other = tmp_path / "out" / "pairs" / "p0" / "TransformParameters.0.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    for _ in range(2):
        [(pair, reason)] = batch_here(pairs, tmp_path / "out", moved(log)).failed
        assert pair.name == "p0"
        assert "which is of another program" in reason
        assert other.read_text() == "mine"


def test_images_among_the_results_are_refused(pairs, log, tmp_path):
    inside = tmp_path / "out" / "pairs" / "p0" / "moving.mha"
    inside.parent.mkdir(parents=True)
    shutil.copy(pairs[0].moving, inside)
    (tmp_path / "link.mha").symlink_to(inside)
    for path in (inside, tmp_path / "link.mha"):
        with pytest.raises(OutputError, match="where earlier results are removed"):
            plan_batch([replace(pairs[0], moving=path)], tmp_path / "out")


# What fails


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("fail", "it does not converge"),
        ("crash", "ZeroDivisionError: a mistake"),
        ("die", "its process ended with the status 7"),
    ],
)
def test_what_fails_does_not_stop_the_rest(pairs, log, tmp_path, what, reason):
    settings = moved(log, What=what, MaskedOnly="true")
    plan = plan_batch([*reversed(pairs), replace(pairs[0], name="p2")], tmp_path / "out", settings)
    batch = run_batch(plan, LocalEngine(1))
    assert [(pair.name, why) for pair, why in batch.failed] == [("p1", reason)]
    statuses = {name: record.status for name, record in batch.records.items()}
    assert statuses == {"p0": "done", "p1": "failed", "p2": "done"}
    gathered = collect_batch(plan)
    assert gathered.records["p0"] == batch.records["p0"]
    if what == "die":  # nobody was there to write why
        assert [pair.name for pair in gathered.missing] == ["p1"]
    else:
        assert [(pair.name, why) for pair, why in gathered.failed] == [("p1", reason)]


# Workers that are killed


def test_a_pair_is_whole_or_not_finished_whenever_its_process_dies(pairs, log, tmp_path, no_pictures, monkeypatch):
    def nothing_to_say(*_, **__):
        raise ImageError("compiled loops do not bear a fork")

    monkeypatch.setattr(prediction, "find_error_map", nothing_to_say)
    plan = plan_batch(pairs[1:], tmp_path / "out", moved(log))
    moves, replace_file = 0, os.replace

    def die_at(last):
        def move(*arguments):
            nonlocal moves
            moves += 1
            if moves > last:
                os.kill(os.getpid(), signal.SIGKILL)
            replace_file(*arguments)

        monkeypatch.setattr(os, "replace", move)
        run_pair(plan.tasks[0], Events())

    for last in range(40):
        child = multiprocessing.get_context("fork").Process(target=die_at, args=(last,))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert collect_batch(plan).missing
    assert last > 5
    folder = plan.tasks[0].folder
    assert not collect_batch(plan).missing
    assert not [file for file in folder.iterdir() if file.name.startswith(".part-")]
    assert runs(log) == last  # the first time it died before the stage ran


def test_the_next_start_does_what_a_killed_one_left(pairs, tmp_path):
    write_pairs(pairs, tmp_path / "data" / "pairs.csv")
    killed = start(tmp_path, 60)
    wait_for(lambda: runs(tmp_path / "log") == 2)
    assert len(list((tmp_path / "out" / "claims").iterdir())) == 2
    killed.kill()
    killed.wait()
    plan = plan_batch(pairs, tmp_path / "out", moved(tmp_path / "log", Wait=60, Warp="true"))
    assert len(collect_batch(plan).missing) == 2
    assert start(tmp_path, 0).wait() == 0
    assert runs(tmp_path / "log") == 4
    assert not (tmp_path / "out" / "claims").exists()
    batch = collect_batch(plan_batch(pairs, tmp_path / "out", moved(str(tmp_path / "log"), Wait=0, Warp="true")))
    assert not batch.missing


def test_two_at_a_time_share_the_work(pairs, tmp_path):
    write_pairs(pairs, tmp_path / "data" / "pairs.csv")
    both = [start(tmp_path, 1.0), start(tmp_path, 1.0)]
    assert [one.wait() for one in both] == [0, 0]
    assert runs(tmp_path / "log") == 2


# What is told


def test_progress_with_the_time_that_is_left(pairs, log, tmp_path, monkeypatch):
    heard = Heard()
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    run_batch(plan_batch(pairs, tmp_path / "out", moved(log)), LocalEngine(1), heard)
    shares = [now.fraction for now in heard.progresses]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    texts = [now.text for now in heard.progresses]
    assert texts[-1] == "2 of 2 pairs done"
    assert texts[0] == "0 of 2 pairs done, about 2 min left, p0: Shift: half"  # 30 s for half a pair, 1.5 are left
    assert [re.sub(r"\d+\.\d s(, verdict \w+)?", "..", line) for line in heard.lines] == [
        f"p{number}: .., similarity {_similarity(tmp_path / 'out', number)}, TRE {before} -> {number}.00 mm"
        for number, before in enumerate(("5.10", "5.74"))
    ]


def _similarity(out, number):
    stage = json.loads((out / "pairs" / f"p{number}" / "registration.json").read_text())["stages"][0]
    return f"{stage['similarity_before']:.2f} -> {stage['similarity_after']:.2f}"


# The worst first


def made(count, **facts):
    return PairRecord("done", "", result=FileMark("", ""), facts=PairFacts(similarity_after=0.5, **facts))


def test_the_worst_come_first(tmp_path):
    alike = replace(made(0).facts, similarity_after=0.9)
    records = {
        "good": replace(made(0), facts=alike),
        "unlike": made(0),
        "folds": made(0, verdict="good", folding=0.001),
        "off": made(0, verdict="look", expected_error=2.0),
        "more off": made(0, verdict="look", expected_error=4.0),
        "not to be used": made(0, verdict="failed", expected_error=1.0),
        "failed": PairRecord("failed", "", reason="why"),
    }
    pairs = tuple(Pair(name, Path("f"), Path("m")) for name in (*records, "missing"))
    batch = Batch(tmp_path, BatchSettings(), pairs, records)
    assert [pair.name for pair in sort_worst_first(batch)] == [
        "failed", "missing", "not to be used", "more off", "off", "folds", "unlike", "good",
    ]  # fmt: skip
    write_batch(batch, tmp_path)
    page = (tmp_path / "batch.html").read_text(encoding="utf-8")
    assert (
        "8 pairs, 6 of them done, 1 failed, 1 not registered yet. Verdicts: 1 good, 2 look, 1 failed. With folding: 1."
        in page
    )


def test_the_page_of_many_pairs_is_short_and_the_table_whole(tmp_path):
    pairs = tuple(Pair(f"n{number}", Path("f"), Path("m")) for number in range(3 * SHOWN))
    records = {
        pair.name: PairRecord("failed", "", reason=f"'{pair.name}' is bad") if number % 2 else made(0)
        for number, pair in enumerate(pairs)
    }
    write_batch(Batch(tmp_path, BatchSettings(), pairs, records), tmp_path)
    page = (tmp_path / "batch.html").read_text(encoding="utf-8")
    half = 3 * SHOWN // 2
    assert f"The worst {SHOWN} of {half}; batch.csv has all." in page
    assert f"{FAILED_SHOWN} of {half}; batch.csv has all." in page
    assert page.count("<tr>") == (1 + 1) + (1 + FAILED_SHOWN) + (1 + SHOWN)  # with the headings
    assert f'data-value="{half}.0">{half}</th>' in page  # so many failed for one reason
    assert len(rows_of(tmp_path)) == 3 * SHOWN


# By one call


def test_one_call_registers_keeps_and_writes(pairs, log, tmp_path):
    out = tmp_path / "out"
    gone = Pair("gone", tmp_path / "no.mha", tmp_path / "no.mha")
    heard = Heard()
    batch = register_pairs([*pairs, gone], out, shift(log, *TRUE), engine=HereEngine(), title="Mine", events=heard)
    assert [pair.name for pair, _ in batch.failed] == ["gone"]
    assert batch.records[pairs[0].name].status == "done"
    assert {name: row["status"] for name, row in rows_of(out).items()}[pairs[1].name] == "done"
    assert "Mine" in (out / "batch.html").read_text(encoding="utf-8")
    before = runs(log)
    register_pairs(pairs, out, shift(log, *TRUE), engine=HereEngine())
    assert runs(log) == before


def test_one_call_refuses_unknown_stages_before_anything_runs(pairs, tmp_path):
    with pytest.raises(ParameterError, match="regnet_multistge"):
        register_pairs(pairs, tmp_path / "out", "regnet_multistge", engine=HereEngine())
    assert not (tmp_path / "out").exists()


def test_one_call_refuses_what_cannot_be_done(pairs, tmp_path):
    with pytest.raises(ParameterError, match="two pairs are called"):
        register_pairs([pairs[0], pairs[0]], tmp_path / "out", engine=HereEngine())
    with pytest.raises(ParameterError, match="`jobs` is 0"):
        register_pairs(pairs, tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()
