"""``regnet-itk judge``: transforms of other programs, as files of SimpleITK, on a turned anisotropic grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.trust.error_map import read_error_map

TURN = Rotation.from_euler("xyz", (12, -20, 35), degrees=True).as_matrix()
SHIFT = np.array([40.0, -25.0, 300.0])


def turned(grid: Grid) -> Grid:
    origin = TURN @ np.array(grid.origin) + SHIFT
    direction = TURN @ grid.direction_matrix
    return replace(grid, origin=tuple(origin), direction=tuple(map(tuple, direction)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a phantom whose patient lies turned in space, and the true displacement as SimpleITK's image of vectors."""
    folder = tmp_path_factory.mktemp("pair")
    made = make_phantom(4, spacing=(3.6, 4.0, 4.4))
    for name in ("fixed", "moving"):
        image = getattr(made, name)
        write_image(Image(image.array, turned(image.grid)), folder / f"{name}.mha")
        points = getattr(made, f"{name}_landmarks") @ TURN.T + SHIFT
        write_landmarks(Landmarks(points), folder / f"{name}.txt")
    grid = turned(made.displacement.grid)
    field = sitk.GetImageFromArray(made.displacement.vectors.astype(float) @ TURN.T, isVector=True)
    field.SetOrigin(grid.origin)
    field.SetSpacing(grid.spacing)
    field.SetDirection(grid.direction_matrix.ravel())
    sitk.WriteImage(field, str(folder / "truth.nii.gz"))
    truth = sitk.DisplacementFieldTransform(field)
    for name, shift in (("off", (9.0, 0.0, 0.0)), ("away", (0.0, 70.0, 0.0))):
        both = sitk.CompositeTransform([sitk.TranslationTransform(3, shift), truth])
        sitk.WriteTransform(both, str(folder / f"{name}.h5"))
    return folder


def judged(files: Path, transform: str, out: Path, *more: str | Path) -> tuple[int, dict]:
    images = ("-f", files / "fixed.mha", "-m", files / "moving.mha", "-tp", files / transform)
    status = call("judge", *images, "-out", out, *more)
    return status, json.loads((out / "judged.json").read_text(encoding="utf-8"))


def test_the_truth_is_good_and_what_is_off_is_told_where(files, tmp_path, capfd):
    points = ("-fp", files / "fixed.txt", "-mp", files / "moving.txt")
    status, truth = judged(files, "truth.nii.gz", tmp_path / "truth", *points)
    assert status == 0
    assert truth["verdict"]["word"] == "good"
    assert truth["tre_mm"]["mean"] < 0.3
    assert "verdict: good" in capfd.readouterr().err
    _, off = judged(files, "off.h5", tmp_path / "off", *points)
    assert off["verdict"]["word"] != "good"
    assert off["tre_mm"]["mean"] == pytest.approx(9.0, abs=0.5)
    assert off["expected_error"]["mean_mm"] > 3 * truth["expected_error"]["mean_mm"]
    assert read_error_map(tmp_path / "off" / "errorMap.mha").mean == pytest.approx(
        off["expected_error"]["mean_mm"], rel=0.01
    )
    assert (tmp_path / "off" / "judged.png").stat().st_size > 10_000


def test_strict_tells_what_failed_by_the_exit_status(files, tmp_path):
    status, away = judged(files, "away.h5", tmp_path / "away", "--strict")
    assert (status, away["verdict"]["word"]) == (4, "failed")


def test_nothing_is_written_if_something_is_wrong(files, tmp_path, capfd):
    images = ("-f", files / "fixed.mha", "-m", files / "moving.mha")
    out = tmp_path / "out"
    assert call("judge", *images, "-tp", tmp_path / "no.h5", "-out", out) == 1
    assert call("judge", *images, "-tp", files / "off.h5", "-out", out, "-fp", files / "fixed.txt") == 1
    assert "-mp" in capfd.readouterr().err
    assert not out.exists()
