"""The comparison: its pairs, steps, tables and figures, against numbers worked by hand, scipy and transformix."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from listening import Heard
from scipy import stats
from shifted_pairs import GRID, TRUE, make_pairs, runs, shift

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.comparison import pair_steps as comparison_module
from regnet_itk.comparison.figures import write_figures
from regnet_itk.comparison.methods import Method, read_methods
from regnet_itk.comparison.outputs import write_comparison
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.step import StepSettings, peak_memory, run_step
from regnet_itk.comparison.tables import (
    collect_error_rows,
    compare_methods,
    format_measures_csv,
    tabulate_errors,
    tabulate_failures,
    tabulate_quality,
    tabulate_verdicts,
)
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.data.landmarks import Landmarks, read_landmarks, write_landmarks
from regnet_itk.errors import ParameterError, RegistrationError, RegNetItkError
from regnet_itk.events import Events
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registry import register_metric, unregister_metric
from regnet_itk.networks.model import find_model
from regnet_itk.pairs import check_pairs, read_pairs, write_pairs
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.report.table_text import format_latex
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.trust.prediction import find_error_map


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def method(name, *stages):
    return Method(name, stages, tuple(f"s{n}" for n in range(len(stages))))


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "data")


class Shown(Events):
    """Tells a function how far a step is."""

    def __init__(self, show):
        self.show = show

    def progress(self, now):
        self.show(now)


def run_here(step, show):
    try:
        run_step(step, Shown(show))
    except RegNetItkError as error:
        raise RegistrationError(str(error)) from None


@pytest.fixture
def here(monkeypatch):
    """Run the steps in this process, which takes a tenth of the time; some tests and the command's have true ones."""
    monkeypatch.setattr(comparison_module, "_run_apart", run_here)


def rows_of(comparison):
    return {(row.measure, row.method, row.data): row for row in collect_error_rows(comparison)}


# Measures and tables


def test_the_table_by_hand(pairs, log, tmp_path, here):
    first, rest = shift(log, 3.0, 0, 0), shift(log, 0, -4.0, 2.0)
    found = compare(pairs, [method("first", first), method("both", first, rest)], tmp_path / "out", capture_range=4.2)
    assert not found.failures
    table = rows_of(found)
    # left over: before (-3, 4, -1), first (0, 4, -1), both (0, 0, 1); and 1 more in x for the landmarks of p1
    for name, expected in (("before", (-3, 4, -1)), ("first", (0, 4, -1)), ("both", (0, 0, 1))):
        e = np.array(expected, float)
        length, other = np.linalg.norm(e), np.linalg.norm(e - (1, 0, 0))
        for data in ("near", "far", "all"):
            assert table["EPE", name, data].means == pytest.approx((length, *np.abs(e)), abs=1e-5)
            assert table["MAE", name, data].means[0] == pytest.approx(np.abs(e).sum(), abs=1e-5)
            assert table["EPE", name, data].sds == pytest.approx((0, 0, 0, 0), abs=1e-3)
        assert table["EPE", name, "all"].count == 2 * 6 * 8 * 9
        assert table["TRE", name, "near"].means == pytest.approx((length, *np.abs(e)), abs=1e-6)
        assert table["TRE", name, "far"].means == pytest.approx((other, *np.abs(e - (1, 0, 0))), abs=1e-6)
        both = np.repeat([length, other], 12)
        row = table["TRE", name, "all"]
        assert (row.means[0], row.sds[0]) == pytest.approx((both.mean(), both.std(ddof=1)), abs=1e-6)
        assert (row.median, row.p95) == pytest.approx((np.median(both), np.percentile(both, 95)), abs=1e-6)
        assert (row.above_2mm, row.above_5mm) == ((both > 2).mean(), (both > 5).mean())
        assert (row.count, row.pairs) == (24, 2)
    # after "first" p0's landmarks are 4.12 mm off and p1's 4.24: only p0's are within 4.2 mm, for every method
    assert table["TRE'", "both", "all"].count == 12
    assert table["TRE'", "both", "all"].means[0] == pytest.approx(1.0, abs=1e-6)
    assert ("TRE'", "both", "far") not in table
    assert rows_of(dataclasses.replace(found, capture_range=4.5))["TRE'", "both", "all"].count == 24


def test_groups(pairs, log, tmp_path, here):
    for names, expected in (
        (("", ""), {"all"}),
        (("x", "x"), {"x"}),
        (("x", ""), {"all", "x", "no group"}),
        (("all", "y"), {"all pairs", "all", "y"}),
    ):
        grouped = [dataclasses.replace(pair, group=name) for pair, name in zip(pairs, names, strict=True)]
        rows = rows_of(compare(grouped, [method("a", shift(log))], tmp_path / "out"))
        assert {data for _, _, data in rows} == expected
        assert max(row.count for row in rows.values()) == 2 * 6 * 8 * 9


def test_the_other_measures(pairs, log, tmp_path, here):
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:8, 4:8, 4:8] = 5
    moved = dataclasses.replace(GRID, origin=tuple(np.array(GRID.origin) + TRUE))
    write_image(Image(labels, GRID), tmp_path / "a.mha")
    write_image(Image(labels, moved), tmp_path / "b.mha")
    labelled = dataclasses.replace(pairs[0], fixed_labels=tmp_path / "a.mha", moving_labels=tmp_path / "b.mha")
    right, wrong = method("right", shift(log, *TRUE)), Method("wrong", (shift(log, 9, 9, 9),), ("w",))
    found = compare([labelled], [right, wrong], tmp_path / "out")
    measures = {m.name: found.outcome(labelled, m).last.measures for m in found.methods}
    right_ones, wrong_ones = measures["right"].metrics, measures["wrong"].metrics
    assert right_ones["correlation"] == pytest.approx(1.0, abs=1e-3)
    assert wrong_ones["correlation"] < 0.9
    assert right_ones["dice"] == {"5": 1.0}
    assert wrong_ones["dice"]["5"] < 0.5
    assert right_ones["folding"] == 0.0
    assert right_ones["log_jacobian_sd"] == pytest.approx(0.0, abs=1e-4)
    outcome = found.outcome(labelled, right)
    assert outcome.seconds == 1.25
    assert 20 < outcome.last.peak_mb <= max(2000, peak_memory())
    assert outcome.last.details["of"] == "a test"
    cells = {row[0]: row for row in tabulate_quality(found).rows}
    assert cells["right"][6].text == "1.2"
    assert cells["before"][6] is None


def test_differences_are_scipys(pairs, log, tmp_path, here):
    many = [dataclasses.replace(pairs[n % 2], name=f"p{n}") for n in range(4)]
    good, bad = method("good", shift(log, *TRUE)), Method("bad", (shift(log, 0, 0, 0),), ("b",))
    found = compare(many, [good, bad], tmp_path / "out")
    rows = {row.measure: row for row in compare_methods(found)}
    values = [
        [np.linalg.norm(found.differences(pair, m), axis=1).mean() for pair in many] for m in found.methods[1:]
    ]  # fmt: skip
    row = rows["TRE, mm"]
    assert (row.first, row.second, row.difference.count) == ("good", "bad", 4)
    assert row.difference.mean == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert row.difference.p_value == pytest.approx(stats.wilcoxon(*values).pvalue)
    assert row.difference.low <= row.difference.mean <= row.difference.high < 0
    assert "Dice" not in rows  # there are neither labels nor moving masks


def brightest(pair):
    """A share: of voxels of the warped image above -600."""
    return float((pair.warped.array > -600).mean())


def landmark_count(pair):
    return {"fixed": len(pair.fixed_landmarks), "moving": len(pair.moving_landmarks) + 1.0}


def broken(pair):
    raise ZeroDivisionError("a mistake")


@pytest.fixture
def added():
    """Makes metrics known until the test has ended."""
    known = []

    def add(*arguments, **more):
        register_metric(metric := Metric(*arguments, **more))
        known.append(metric.name)

    yield add
    for name in known:
        unregister_metric(name)


def test_tables_follow_a_new_metric(pairs, log, tmp_path, here, added):
    added("bright", "bright share", brightest, "%", digits=1, factor=100.0, before=False)
    added("count", "landmarks there", landmark_count, needs=("landmarks",), column="n", compared=False)
    bare = dataclasses.replace(pairs[1], name="bare", fixed_landmarks=None, moving_landmarks=None)
    found = compare([pairs[0], bare], [method("a", shift(log, *TRUE)), method("b", shift(log))], tmp_path / "out")
    value = found.outcome(pairs[0], found.methods[1]).last.measures.metrics["bright"]
    assert 0 < value < 1
    table = tabulate_quality(found)
    names = [column.name for column in table.columns]
    assert names[2:8] == ["correlation", "Dice", "det J <= 0", "SD log det J", "bright share", "landmarks there"]
    before, after = table.rows[:2]
    assert before[6] is None
    assert after[6].number == pytest.approx(
        100 * np.mean([found.outcome(pair, found.methods[1]).last.measures.metrics["bright"] for pair in found.pairs])
    )
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", after[6].text)
    assert [row[7].text for row in (before, after)] == ["12.500", "12.500"]  # the mean of 12 and 13, of one pair
    measures = [row.measure for row in compare_methods(found)]
    assert "bright share, %" in measures and "landmarks there" not in measures
    rows = list(csv.DictReader(format_measures_csv(found).splitlines()))
    assert float(rows[1]["bright"]) == pytest.approx(value, abs=1e-6)
    assert [row["n"] for row in rows] == ["12.5"] * 3 + [""] * 3
    assert list(rows[0]).index("seconds") == list(rows[0]).index("n") + 1


def test_how_far_each_result_is_to_be_trusted(pairs, log, tmp_path, here):
    found = compare(pairs[:1], [method("right", shift(log, *TRUE)), method("wrong", shift(log))], tmp_path / "out")
    rows = {row["method"]: row for row in csv.DictReader(format_measures_csv(found).splitlines())}
    pair = found.pairs[0]
    fixed, moving, mask = (read_image(path) for path in (pair.fixed, pair.moving, pair.fixed_mask))
    truth = sitk.DisplacementFieldTransform(sitk.ReadImage(str(pair.displacement), sitk.sitkVectorFloat64))
    for which in found.methods[1:]:
        outcome, row = found.outcome(pair, which), rows[which.name]
        chain = outcome.chain()
        errors = find_error_map(fixed, moving, chain, mask)
        expected, radius = errors.values[errors.known].T
        points, transform = errors.grid.points()[errors.known], chain.to_sitk(fixed.grid)
        true = [np.linalg.norm(np.subtract(transform.TransformPoint(p), truth.TransformPoint(p))) for p in points]
        assert len(true) > 10
        assert float(row["expected_error_mm"]) == pytest.approx(expected.mean(), rel=1e-3)
        assert float(row["expected_error_off_mm"]) == pytest.approx(np.abs(expected - true).mean(), rel=1e-3)
        assert float(row["share_within_radius"]) == pytest.approx((true <= radius).mean(), abs=0.01)
        assert row["verdict"] in ("good", "look", "failed")
    doubted = tabulate_verdicts(found)
    assert [row[:3] for row in doubted.rows] == [
        [pair.name, name, rows[name]["verdict"]] for name in ("wrong", "right") if rows[name]["verdict"] != "good"
    ]


def test_a_new_metric_is_measured_without_registering_again(pairs, log, tmp_path, here, added):
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    added("bright", "bright share", brightest)
    found = compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    assert runs(log) == 1
    assert found.outcome(pairs[0], found.methods[1]).last.measures.metrics["bright"] > 0


def test_metrics_that_cannot_be_used(pairs, log, tmp_path, here, added):
    added("bad", "bad", broken)
    found = compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    assert found.failures[0][2] == "the metric 'bad' failed: ZeroDivisionError: a mistake"
    added("typed", "typed in", lambda pair: 1.0)
    with pytest.raises(ParameterError, match="the metric 'typed' cannot be handed to another process; make its"):
        compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")


# Steps


def test_what_chains_share_runs_once_and_what_is_finished_is_kept(pairs, log, tmp_path, here):
    common = shift(log, 1, 0, 0)
    methods = [method("a", common), method("b", common, shift(log, 2, 0, 0)), method("c", common, shift(log, 2, -4, 1))]
    out, heard = tmp_path / "out", Heard()
    # two different stages are both called s1
    found = compare(pairs, methods, out, events=heard)
    assert runs(log) == 2 * 3
    assert len(heard.lines) == 2 * 4
    shares = [now.fraction for now in heard.progresses]
    assert shares == sorted(shares)
    assert min(shares) >= 0 and max(shares) <= 1
    assert {m.name for m in found.methods} == {"before", "a", "b", "c"}
    assert rows_of(found)["EPE", "c", "all"].means[0] == pytest.approx(0, abs=1e-5)
    assert rows_of(found)["EPE", "b", "all"].means[0] == pytest.approx(17**0.5, abs=1e-5)

    again = compare(pairs, methods, out, events=heard)
    assert runs(log) == 6
    assert [line.endswith("kept") for line in heard.lines[8:]] == [True] * 8
    assert collect_error_rows(again) == collect_error_rows(found)

    # new landmarks: measured again, not registered again
    higher = read_landmarks(pairs[0].moving_landmarks).points + np.array([0, 0, 2])
    write_landmarks(Landmarks(higher), pairs[0].moving_landmarks)
    measured = compare(pairs, methods, out)
    assert runs(log) == 6
    assert rows_of(measured)["TRE", "c", "near"].means[0] == pytest.approx(2.0, abs=1e-6)
    assert measured.outcome(pairs[0], methods[0]).seconds == 1.25

    # another image, another parameter, another seed: registered again, and only what depends on it
    write_image(Image(np.full(GRID.shape, 3, np.int16) + np.eye(14, 16, dtype=np.int16), GRID), pairs[1].fixed)
    compare(pairs, methods, out)
    assert runs(log) == 6 + 3
    changed = [*methods[:2], method("c", common, shift(log, 2, -4, 2))]
    compare(pairs, changed, out)
    assert runs(log) == 9 + 2
    compare(pairs, changed, out, StepSettings(seed=3))
    assert runs(log) == 11 + 6


def test_other_versions_are_not_the_same(pairs, log, tmp_path, here, monkeypatch):
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    monkeypatch.setattr(comparison_module, "package_versions", lambda: {"regnet-itk": "99"})
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    assert runs(log) == 2


def test_a_model_that_changes_meanwhile_is_told(pairs, log, tmp_path, here):
    model = tmp_path / "mine.safetensors"
    shutil.copy(find_model("regnet"), model)
    keys = {"Registration": ("RegNetRegistration",), "RegNetModel": (str(model),)}
    stages = (shift(log), RegNetStage(ParameterMap(keys)))

    class OtherModelAfterTheFirstStage(Heard):
        def progress(self, now):
            if "s0: measuring" in now.text:
                shutil.copy(find_model("regnet_1scale"), model)

    with pytest.raises(ParameterError, match="the model of 'RegNet mine' has changed meanwhile; start the comparison"):
        compare(pairs[:1], [method("a", *stages)], tmp_path / "out", events=OtherModelAfterTheFirstStage())


def test_masks_guide_unless_they_only_measure(pairs, log, tmp_path, here):
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out", StepSettings(masks_guide=False))
    assert log.read_text(encoding="utf-8").split() == ["Shift", "masked", "Shift", "unmasked"]


def test_names_of_files_do_not_get_into_each_others_way(pairs, log, tmp_path, here):
    methods = [
        Method("one", (shift(log, 1, 0, 0),), ("before",)),  # a stage's file may be called before.txt
        Method("two", (shift(log, 2, 0, 0),), ("before",)),
    ]
    found = compare(pairs[:1], methods, tmp_path / "out")
    table = rows_of(found)
    for name, left in (("before", 26), ("one", 21), ("two", 18)):
        assert table["EPE", name, "near"].means[0] == pytest.approx(left**0.5, abs=1e-5)
    assert len({found.outcome(pairs[0], m).folder for m in found.methods}) == 3
    (tmp_path / "a+b.txt").write_text(read_parameter_map("affine").to_text())
    assert read_methods([], [f"x={tmp_path / 'a+b.txt'}"])[0].labels == ("a_b",)


def test_a_file_that_vanishes_fails_its_pair_only(pairs, log, tmp_path, here):
    pairs[0].displacement.unlink()
    found = compare(pairs, [method("a", shift(log))], tmp_path / "out")
    assert {pair.name for pair, *_ in found.failures} == {"p0"}
    assert "displacement.mha': No such file" in found.failures[0][2]


def test_a_transform_that_was_removed_is_made_again(pairs, log, tmp_path, here):
    found = compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    found.outcome(pairs[0], found.methods[1]).transform.unlink()
    compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    assert runs(log) == 2


def test_a_mask_that_misses_what_is_measured_is_told(pairs, log, tmp_path, here):
    far = dataclasses.replace(GRID, origin=(500.0, 0.0, 0.0))
    DisplacementField(np.zeros((*GRID.shape, 3)), far).write(pairs[0].displacement)
    found = compare(pairs[:1], [method("a", shift(log))], tmp_path / "out")
    assert "lies elsewhere than the true displacement field" in found.failures[0][2]


def test_failures_are_told_and_do_not_stop_the_rest(pairs, log, tmp_path):
    broken = dataclasses.replace(pairs[1], name="broken", fixed=tmp_path / "flat.mha")
    write_image(Image(np.zeros(GRID.shape, np.int16), GRID), broken.fixed)
    start = shift(log, *TRUE)
    methods = [  # in processes of their own
        method("good", start),
        Method("stuck", (start, shift(log, What="fail"), shift(log)), ("s0", "stuck", "after")),
        Method("dead", (start, shift(log, What="die")), ("s0", "dead")),
        Method("wrong", (start, shift(log, What="crash")), ("s0", "wrong")),
    ]
    found = compare([broken, pairs[0]], methods, tmp_path / "out")
    reasons = {(pair.name, m.name): reason for pair, m, reason in found.failures}
    assert all("constant" in reasons["broken", m.name] for m in found.methods)
    assert reasons["p0", "stuck"] == "it does not converge"
    assert "status 7" in reasons["p0", "dead"]
    assert reasons["p0", "wrong"] == "ZeroDivisionError: a mistake"
    assert len(found.failures) == 5 + 3
    assert rows_of(found)["TRE", "good", "all"].pairs == 1
    assert ("TRE", "stuck", "all") not in rows_of(found)
    before = runs(log)
    compare([broken, pairs[0]], methods, tmp_path / "out")  # what failed is tried again
    assert runs(log) == before + 3
    assert tabulate_failures(found).rows[-3:][0] == ["p0", "stuck", "it does not converge"]
    assert "it does not converge" in format_measures_csv(found)


def test_a_child_does_not_outlive_an_interrupted_comparison(pairs, log, tmp_path):
    class Interrupts(Events):
        def progress(self, now):
            if now.text.endswith("half"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(pairs[:1], [method("slow", shift(log, Wait=3600.0))], tmp_path / "out", events=Interrupts())
    assert multiprocessing.active_children() == []
    assert not [p for p in (tmp_path / "out" / "pairs" / "p0").iterdir() if p.name != "before"]


# What is written


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two pairs and two methods, written."""
    folder = tmp_path_factory.mktemp("written")
    pairs, log = make_pairs(folder / "data"), folder / "log.txt"
    methods = [method("first_one", shift(log, 3, 0, 0)), method("b&c", shift(log, 3, 0, 0), shift(log, 0, -4, 2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_module, "_run_apart", run_here)
        found = compare(pairs, methods, folder / "out")
    write_comparison(found, folder / "out", "A <title>")
    return found, folder / "out"


def test_the_files(written):
    found, out = written
    names = {file.name for file in out.iterdir()}
    figures = ("fig2_displacement", "fig3_landmarks", "fig4_capture_range", "fig5_images")
    assert names == {
        "pairs", "table.csv", "table.md", "table.tex", "quality.csv", "differences.csv", "measures.csv",
        "comparison.json", "report.html", *(f"{f}.{suffix}" for f in figures for suffix in ("png", "svg")),
    }  # fmt: skip
    with (out / "table.csv").open() as file:
        rows = {(r["evaluation"], r["method"], r["data"]): r for r in csv.DictReader(file)}
    for row in collect_error_rows(found):
        cells = rows[row.measure, row.method, row.data]
        assert float(cells["mean_mm"]) == pytest.approx(row.means[0], abs=1e-5)
        assert float(cells["sd_z_mm"]) == pytest.approx(row.sds[3], abs=1e-5)
        assert (cells["median_mm"] == "") == (row.measure in ("MAE", "EPE"))
    with (out / "measures.csv").open() as file:
        each = {(r["pair"], r["method"]): r for r in csv.DictReader(file)}
    assert float(each["p1", "b&c"]["tre_mm"]) == pytest.approx(2**0.5, abs=1e-5)
    assert each["p1", "b&c"]["seconds_of_stages"] == "s0 1.25 + s1 1.25"
    assert Path(each["p0", "b&c"]["transform"]).is_file()
    assert each["p0", "before"]["transform"] == ""
    facts = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert facts["methods"]["b&c"] == "s0, then s1"
    assert facts["settings"]["capture_range_mm"] == 8.0
    for figure in figures:
        assert (out / f"{figure}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (out / f"{figure}.svg").read_text(encoding="utf-8")[:2000]
    assert "A &lt;title&gt;" in (out / "report.html").read_text(encoding="utf-8")


def test_figures_of_what_is_hardly_there(written, tmp_path):
    """No landmark in the capture range, one method, no mask, no truth."""
    found, _ = written
    bare = [dataclasses.replace(pair, fixed_mask=None, displacement=None) for pair in found.pairs]
    for what in (
        dataclasses.replace(found, capture_range=0.01),
        dataclasses.replace(found, methods=found.methods[:2]),
        dataclasses.replace(found, pairs=tuple(bare), methods=(found.methods[0], found.methods[2])),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = write_figures(what, tmp_path)
        assert all(figure.png.stat().st_size > 5000 for figure in drawn)
        assert len(drawn) == (3 if len(what.methods) == 2 and what.methods[1].labels == ("s0",) else 4)


def test_the_layout_of_table_1(written):
    found, out = written
    table = tabulate_errors(found)
    assert [column.name for column in table.columns[:7]] == ["Evaluation", "Method", "Data", "Measure", "x", "y", "z"]
    lines = (out / "table.md").read_text(encoding="utf-8").splitlines()
    spreads = " | ".join(f"{value} ± 0.00" for value in ("1.00", "0.00", "0.00", "1.00"))
    assert f"| TRE | b&c | near | {spreads} | 1.00 | 1.00 | 0.0 | 0.0 | 12 | 1 |" in lines
    latex = format_latex(table)
    assert r"b\&c & near & 1.00 $\pm$ 0.00 &" in latex
    assert r"first\_one" in latex
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(table.columns) - 1}
    assert latex.count("{") == latex.count("}")
    assert re.search(r"^TRE &", latex, re.MULTILINE)
    assert len(re.findall(r"^TRE &", latex, re.MULTILINE)) == 1  # named once, as in the paper


# Lists of pairs


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pairs_are_written_and_read(pairs, tmp_path):
    path = tmp_path / "data" / "PAIRS.csv"
    write_pairs(pairs, path)
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == (
        "name,fixed,moving,fixed_mask,fixed_landmarks,moving_landmarks,displacement,group"
    )  # fmt: skip
    assert str(tmp_path) not in text
    again = read_pairs(path)
    assert [dataclasses.replace(pair, where="") for pair in again] == pairs
    assert again[1].where.endswith("PAIRS.csv, row 3")
    path.write_text(text.replace(",", ";"))
    assert len(read_pairs(path)) == 2
    check_pairs(again)


def test_names_and_rows(tmp_path):
    (tmp_path / "a.mha").touch()
    path = write_csv(tmp_path / "p.csv", "Fixed, Moving", "a.mha,a.mha", "", f"{tmp_path / 'a.mha'},a.mha")
    assert [pair.name for pair in read_pairs(path)] == ["pair-1", "pair-3"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["fixed,group", "a.mha,x"], "row 1: the column 'moving' is missing"),
        (["fixed,moving,fixedmask", "a.mha,a.mha,"], "there is no column 'fixedmask'; did you mean 'fixed_mask'"),
        (["fixed,moving,fixed", "a.mha,a.mha,a.mha"], "named twice"),
        (["fixed,moving", "a.mha,a.mha", "a.mha,b.mha"], "row 3: the moving '.*b.mha' does not exist"),
        (["fixed,moving,fixed_mask", "a.mha,a.mha,m.mha"], "row 2: the fixed mask '.*m.mha' does not exist"),
        (["fixed,moving", "a.mha,"], "row 2: the moving image is not given"),
        (["fixed,moving", "a.mha,a.mha,a.mha"], "row 2: 3 cells for 2 columns"),
        (["fixed,moving,fixed_landmarks", "a.mha,a.mha,a.mha"], "is given and 'moving_landmarks' is not"),
        (["fixed,moving,fixed_labels,moving_labels", "a.mha,a.mha,,a.mha"], "is given and 'fixed_labels' is not"),
        (["name,fixed,moving", "x,a.mha,a.mha", "x,a.mha,a.mha"], "2 pairs are called 'x'"),
        (["fixed,moving"], "holds no pair"),
        ([""], "row 1: the column 'fixed' is missing"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(tmp_path, lines, told):
    (tmp_path / "a.mha").touch()
    path = write_csv(tmp_path / "p.csv", *lines)
    with pytest.raises(ParameterError, match=told):
        read_pairs(path)


def test_landmarks_are_checked_before_anything_runs(pairs, tmp_path, capsys):
    folder = tmp_path / "data"
    points = read_landmarks(pairs[1].moving_landmarks)
    for changed, told in (
        (points.points[:5], "12 fixed and 5 moving landmarks"),
        (points.points * (-1, -1, 1), "they look like RAS"),
        (points.points + 500, "12 of 12 moving landmarks lie outside"),
    ):
        write_landmarks(Landmarks(changed), pairs[1].moving_landmarks)
        write_pairs(pairs, folder / "PAIRS.csv")
        assert call("compare", folder / "PAIRS.csv", "-out", tmp_path / "out", "--methods", "affine") == 1
        error = capsys.readouterr().err
        assert "row 3" in error and told in error
    pairs[0].fixed.write_bytes(b"no image")
    assert call("compare", folder / "PAIRS.csv", "-out", tmp_path / "out", "--methods", "affine") == 1
    assert "row 2: fixed image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# The command


def test_methods():
    names = ["affine", "bspline_1r", "affine+bspline_3r"]
    chains = {m.name: m.labels for m in read_methods(names, ["mine=affine, bspline_refine"])}
    assert chains == {
        "affine": ("affine",),
        "bspline_1r": ("affine", "bspline_1r"),
        "affine+bspline_3r": ("affine", "bspline_3r"),
        "mine": ("affine", "bspline_refine"),
    }
    parameters = [stage.parameters for m in read_methods(["bspline_1r", "bspline_3r"]) for stage in m.stages]
    paper = read_parameter_map("affine_paper")
    assert paper.get_ints("MaximumNumberOfIterations")[0] == 1000
    assert paper.get_int("NumberOfResolutions") == 5
    assert (parameters[1].get_int("NumberOfResolutions"), parameters[3].get_int("NumberOfResolutions")) == (1, 3)


@pytest.mark.parametrize(
    ("names", "chains", "told"),
    [
        (["bspline3r"], [], "there is no method 'bspline3r'; did you mean 'bspline_3r'"),
        (["regnet_multistage+bspline_refin"], [], "did you mean 'bspline_refine'"),
        (["xyz"], [], "known are affine"),
        ([], ["mine"], "NAME=FILE"),
        ([], ["=affine"], "NAME=FILE"),
        ([], ["mine=afine"], "did you mean 'affine'"),
        (["affine"], ["affine=bspline_1r"], None),
        (["affine", "affine"], [], "'affine' is taken"),
        ([], [], "no method was given"),
        ([], ["before=affine"], "'before' is taken"),
    ],
)
def test_methods_that_are_wrong(names, chains, told):
    if told is None:  # a chain of one's own stands for the shipped one
        (found,) = read_methods(names, chains)
        assert found.labels == ("bspline_1r",)
        return
    with pytest.raises(ParameterError, match=re.escape(told)):
        read_methods(names, chains)


@pytest.fixture(scope="module")
def phantom_folder(tmp_path_factory):
    """A phantom pair with quick stages, and a pair that cannot be registered."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0)), folder)
    quick = read_parameter_map("affine").with_(
        NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=40
    )
    (folder / "quick.txt").write_text(quick.to_text())
    write_image(Image(np.zeros(GRID.shape, np.int16), GRID), folder / "flat.mha")
    write_csv(
        folder / "PAIRS.csv",
        "name,fixed,moving,fixed_mask,moving_mask,fixed_landmarks,moving_landmarks,displacement",
        "breath,fixed.mha,moving.mha,fixed_mask.mha,moving_mask.mha,fixed_points.txt,moving_points.txt,"
        "true_displacement.mha",
        "flat,flat.mha,moving.mha,,,,,",
    )
    return folder


@pytest.fixture(scope="module")
def compared(phantom_folder):
    """The command's status, and what it wrote."""
    out = phantom_folder / "out"
    quick = phantom_folder / "quick.txt"
    status = call("compare", phantom_folder / "PAIRS.csv", "-out", out, "--methods", "", "--masks-only-measure",
                  "--method", f"affine={quick}", "--method", f"deep={quick},regnet_multistage", "--device", "cpu",
                  "--capture-range", 6, "-threads", 1, "--title", "Ours")  # fmt: skip
    return status, out


def test_the_command(compared):
    status, out = compared
    assert status == 1  # one pair failed
    rows = list(csv.DictReader((out / "measures.csv").open()))
    deep = next(row for row in rows if (row["pair"], row["method"]) == ("breath", "deep"))
    affine = next(row for row in rows if (row["pair"], row["method"]) == ("breath", "affine"))
    assert float(deep["tre_mm"]) < float(affine["tre_mm"])
    assert float(deep["epe_mm"]) < float(affine["epe_mm"])
    assert 0.5 < float(deep["correlation"]) <= 1
    assert 0.8 < float(deep["dice"]) <= 1
    assert 0 < int(deep["landmarks_in_capture_range"]) <= int(deep["landmarks"])
    assert all("constant" in row["error"] for row in rows if row["pair"] == "flat")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Ours" in report and "the fixed image is constant" in report
    assert "the fixed image is constant" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("transformix") is None, reason="needs the program transformix")
@pytest.mark.parametrize("method", ["affine", "deep"])
def test_the_error_is_that_of_transformix(compared, phantom_folder, tmp_path, method):
    _, out = compared
    row = next(
        r for r in csv.DictReader((out / "measures.csv").open()) if (r["pair"], r["method"]) == ("breath", method)
    )
    command = ["transformix", "-tp", row["transform"], "-def", phantom_folder / "fixed_points.txt", "-out", tmp_path]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    text = (tmp_path / "outputpoints.txt").read_text(encoding="utf-8")
    mapped = np.array([m.split() for m in re.findall(r"OutputPoint = \[ (.*?) \]", text)], dtype=float)
    moving = np.loadtxt(phantom_folder / "moving_points.txt", skiprows=2)
    distances = np.linalg.norm(mapped - moving, axis=1)
    assert len(distances) == int(row["landmarks"])
    assert float(row["tre_mm"]) == pytest.approx(distances.mean(), abs=2e-5)
