"""pipelines/benchmark.py: its pairs are what they are called, and its table tells what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from training_cases import load_pipeline, write_chests

benchmark = load_pipeline("benchmark")

SMALL = ["--spacing", "8", "--extent", "320", "260", "280", "--threads", "1", "--peers"]


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "METHODS", ("regnet_multistage_oneshot",))
    names = ["regnet_multistage_oneshot", "regnet_multistage_oneshot+regnet_multistage_oneshot"]
    monkeypatch.setattr(sys, "argv", ["b", "--out", str(tmp_path), "--amplitudes", "15", "--methods", *names, *SMALL])
    assert benchmark.main() == 0
    text = (tmp_path / "benchmark.md").read_text()
    assert text in capsys.readouterr().out
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| phantom")]
    rows = {cells[1].strip(): [cell.strip() for cell in cells] for cells in lines}
    assert list(rows) == ["before", "affine", *names]

    (pair,) = (tmp_path / "images").iterdir()
    u = sitk.GetArrayFromImage(sitk.ReadImage(pair / "true_displacement.mha"))
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(pair / "fixed_mask.mha")) > 0
    lengths = np.linalg.norm(u, axis=-1)
    assert 13 < lengths.max() < 19
    every = np.s_[::3, ::3, ::3]
    assert float(rows["before"][2]) == pytest.approx(lengths[every][lungs[every]].mean(), abs=0.02)

    seconds = {name: float(rows[name][5]) for name in names}
    assert rows[names[0]][6] == "1.000"
    assert float(rows[names[1]][6]) > 1.2  # both of its stages count
    assert seconds[names[1]] > seconds[names[0]] > 0
    assert rows["before"][5:8] == ["", "", ""]
    assert not list((tmp_path / "pairs").rglob("result*"))


def test_cts_are_deformed_by_the_amplitude_on_cubic_voxels(tmp_path: Path) -> None:
    images = {"one": write_chests(tmp_path, "one.mha") / "one.mha"}
    pairs = list(benchmark.image_pairs(tmp_path / "out", images, [8.0, 40.0], 6.0))
    assert [pair.group for pair in pairs] == ["CT 8 mm", "CT 40 mm"]
    for pair, amplitude in zip(pairs, (8.0, 40.0), strict=True):
        truth = sitk.ReadImage(pair.displacement)
        assert truth.GetSpacing() == pytest.approx((6.0, 6.0, 6.0))
        u = sitk.GetArrayFromImage(truth)
        assert np.abs(u).max() == pytest.approx(amplitude, rel=0.1)  # drawn a little beyond the image too
        fixed, moving = sitk.ReadImage(pair.fixed), sitk.ReadImage(pair.moving)
        transform = sitk.DisplacementFieldTransform(sitk.Cast(truth, sitk.sitkVectorFloat64))
        moved = sitk.Resample(moving, fixed, transform, sitk.sitkBSpline3, -1000.0)
        difference = sitk.GetArrayFromImage(moved) - sitk.GetArrayFromImage(fixed)
        assert np.abs(difference)[4:-4, 4:-4, 4:-4].mean() < 12  # the noise of both
    before = pairs[0].fixed.stat().st_mtime_ns
    list(benchmark.image_pairs(tmp_path / "out", images, [8.0, 40.0], 6.0))
    assert pairs[0].fixed.stat().st_mtime_ns == before  # made once


@pytest.mark.parametrize("wrong", [["--names", "one"], ["--images", "."]])
def test_images_and_names_belong_together(wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(tmp_path), *wrong])
    with pytest.raises(SystemExit) as caught:
        benchmark.main()
    assert caught.value.code == 2


def test_an_unknown_method_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["b", "--out", str(tmp_path), "--methods", "bspline_4r", *SMALL])
    with pytest.raises(SystemExit, match=r"error: there is no method 'bspline_4r'.*bspline_3r"):
        benchmark.main()
