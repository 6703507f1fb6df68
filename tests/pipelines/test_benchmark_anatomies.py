"""pipelines/benchmark_anatomies.py: its pairs are what they are called, and its table tells what was measured."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation
from training_cases import load_pipeline

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.networks.model import read_model_header, shipped_models

benchmark = load_pipeline("benchmark_anatomies")

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()))
GRID = Grid((36, 34, 24), (4.0, 4.5, 6.0), (-30.0, 50.0, 200.0), TURNED)


@pytest.fixture(scope="module")
def organ(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something bright with a texture, in a dark surround, on an oblique grid."""
    middle = np.asarray(GRID.index_to_point([(n - 1) / 2 for n in GRID.size]))
    inside = np.linalg.norm((GRID.points() - middle) / [52.0, 56.0, 50.0], axis=-1) < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=GRID.shape), 1.0)
    path = tmp_path_factory.mktemp("organ") / "organ.nii.gz"
    write_image(Image(np.where(inside, 600 + 120 * texture / texture.std(), 5.0).astype(np.float32), GRID), path)
    return path


def test_images_are_deformed_and_shown_in_every_contrast(organ: Path, tmp_path: Path) -> None:
    pairs = list(benchmark.deformed_pairs(tmp_path, [organ], [9.0], ["same", "inverted", "other"]))
    assert [pair.group for pair in pairs] == [f"organ, 9 mm, {name}" for name in ("same", "inverted", "other")]
    correlations = []
    for pair in pairs:
        truth = sitk.ReadImage(pair.displacement)
        field = sitk.GetArrayFromImage(truth)
        along = np.abs(field @ np.asarray(TURNED)).max()  # mm along the axes that the waves were drawn on
        assert 6.0 < along < 9.1
        fixed, moving = sitk.ReadImage(pair.fixed), sitk.ReadImage(pair.moving)
        transform = sitk.DisplacementFieldTransform(sitk.Cast(truth, sitk.sitkVectorFloat64))
        moved = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkBSpline3))
        there = ndimage.binary_erosion(sitk.GetArrayFromImage(sitk.ReadImage(pair.fixed_mask)) > 0, iterations=3)
        assert there.sum() > 1000
        correlations.append(np.corrcoef(moved[there], sitk.GetArrayFromImage(fixed)[there])[0, 1])
    assert correlations[0] > 0.95
    assert correlations[1] < -0.9
    assert abs(correlations[2]) < 0.9


def test_the_table(
    organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (pair,) = benchmark.deformed_pairs(tmp_path / "images", [organ], [9.0], ["same"])
    labels = sitk.Cast(sitk.ReadImage(pair.fixed_mask), sitk.sitkUInt8)
    sitk.WriteImage(labels, tmp_path / "labels.mha")
    row = f"real,{pair.fixed},{pair.fixed},{tmp_path / 'labels.mha'},{tmp_path / 'labels.mha'}"
    (tmp_path / "pairs.csv").write_text(f"name,fixed,moving,fixed_labels,moving_labels\n{row}\n")
    monkeypatch.setattr(benchmark, "START", "rigid")
    words = ["--out", tmp_path, "--images", organ, "--amplitudes", "9", "--contrasts", "same", "--threads", "1"]
    words += ["--pairs", tmp_path / "pairs.csv", "--methods", "regnet_general_oneshot", "--peers"]
    model = shutil.copy(shipped_models()["regnet_general"], tmp_path / "regnet_general_oneshot.safetensors")
    words += ["--record", model]
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, words)])
    assert benchmark.main() == 0
    text = (tmp_path / "anatomies.md").read_text()
    assert text in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "organ" in line]
    assert [row[1] for row in cells] == ["before", "rigid", "regnet_general_oneshot"]
    truth = sitk.GetArrayFromImage(sitk.ReadImage(pair.displacement))
    inside = sitk.GetArrayFromImage(sitk.ReadImage(pair.fixed_mask)) > 0
    assert float(cells[0][2]) == pytest.approx(np.linalg.norm(truth, axis=-1)[inside].mean(), abs=0.02)
    assert float(cells[2][2]) < 0.6 * float(cells[1][2])
    recorded = read_model_header(Path(model))[0].accuracy["by_anatomy_and_contrast"]
    assert recorded["organ, 9 mm, same"]["error_in_the_end"] == pytest.approx(float(cells[2][2]), abs=0.006)
    assert recorded["organ, 9 mm, same"]["error_after_rigid"] == pytest.approx(float(cells[1][2]), abs=0.006)
    assert recorded["real"]["dice_after_rigid"] == pytest.approx(1.0, abs=0.02)
    unmoved = next(line for line in text.splitlines() if line.startswith("| real | before |"))
    assert unmoved.split("|")[5].strip() == "1.000"
