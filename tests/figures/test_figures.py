"""Pictures of a registration: orientation, scale, whole-or-nothing files."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, as_image
from regnet_itk.errors import OutputError
from regnet_itk.figures.overview import draw_registration
from regnet_itk.figures.slices import choose_planes

GRID = Grid((8, 6, 5), (2.0, 3.0, 4.0), (-11.0, 5.0, 20.0))
TURNED = replace(GRID, direction=((0.6, -0.8, 0.0), (0.64, 0.48, -0.6), (0.48, 0.36, 0.8)))
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]


def blob(grid: Grid, low: float = -1000.0, shift: float = 0.0) -> Image:
    at = (grid.points() - grid.centre() - (shift, 0, 0)) / (6, 5, 5)
    return Image(low + 1000 * np.exp(-(at**2).sum(axis=-1)), grid)


def linear_field(grid: Grid) -> DisplacementField:
    matrix = np.array([[0.1, 0.05, 0.0], [0.0, -0.08, 0.02], [0.03, 0.0, 0.1]])
    return DisplacementField((grid.points() - (-5.0, 10.0, 25.0)) @ matrix.T, grid)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(matplotlib.image.imread(path), dtype=float)[..., :3]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_planes_look_the_same_however_the_axes_run(code: str) -> None:
    array = np.arange(np.prod(GRID.shape), dtype=float).reshape(GRID.shape)
    mask = np.zeros(GRID.shape)
    mask[1:4, 2:5, 2:7] = 1  # middle (2, 3, 4): the same voxel from both ends
    turned = as_image(sitk.DICOMOrient(Image(array, GRID).to_sitk(), code))
    turned_mask = as_image(sitk.DICOMOrient(Image(mask, GRID).to_sitk(), code))
    axial, coronal, sagittal = choose_planes(turned.grid, turned_mask)
    np.testing.assert_array_equal(axial.slice(turned.array), array[2])  # anterior up, the patient's right at left
    np.testing.assert_array_equal(coronal.slice(turned.array), array[::-1, 3])  # head up
    np.testing.assert_array_equal(sagittal.slice(turned.array), array[::-1, :, 4])  # head up, anterior at left
    assert axial.size_mm == pytest.approx((16.0, 18.0))
    assert coronal.size_mm == pytest.approx((16.0, 20.0))
    assert sagittal.size_mm == pytest.approx((18.0, 20.0))
    for plane, points in zip((axial, coronal, sagittal), (p.points() for p in (axial, coronal, sagittal)), strict=True):
        spots, off = plane.place(points)
        rows, columns = points.shape[:2]
        width, height = plane.size_mm
        np.testing.assert_allclose(off, 0, atol=1e-9)
        np.testing.assert_allclose(spots.reshape(rows, columns, 2)[0, 0], (width / columns / 2, height / rows / 2))
        np.testing.assert_allclose(spots[-1], (width * (1 - 0.5 / columns), height * (1 - 0.5 / rows)))


def test_edge_letters() -> None:
    axial, coronal, sagittal = choose_planes(GRID)
    assert axial.view.edge_letters == ("R", "L", "A", "P")
    assert coronal.view.edge_letters == ("R", "L", "H", "F")
    assert sagittal.view.edge_letters == ("A", "P", "H", "F")


def test_planes_go_through_the_lungs_not_between_them() -> None:
    mask = np.zeros(GRID.shape)
    mask[:, :, :2] = 1
    mask[:, :, 6:] = 1
    _, _, sagittal = choose_planes(GRID, Image(mask, GRID))
    assert sagittal.index in (1, 6)
    assert choose_planes(GRID, Image(0 * mask, GRID))[0].index == 2


def test_figure_is_drawn_with_and_without_moving(tmp_path: Path) -> None:
    fixed, moving, field = blob(GRID), blob(GRID, shift=3.0), linear_field(GRID)
    mask = Image((fixed.array > -700).astype(np.uint8), GRID)
    points = GRID.centre()[None]
    draw_registration(fixed, moving, fixed, field, tmp_path / "a.png", title="A", mask=mask, landmarks=points)
    draw_registration(fixed, None, fixed, field, tmp_path / "b.png")
    a, b = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert a.shape[1] > 1.4 * b.shape[1]
    assert a.std() > 0.1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_field_and_images_on_other_grids_are_put_on_the_fixed_grid(tmp_path: Path) -> None:
    wide = GRID.pad((4, 4, 4), (4, 4, 4))
    fixed = blob(GRID)
    draw_registration(fixed, fixed, fixed, linear_field(GRID), tmp_path / "same.png")
    draw_registration(
        fixed, Image(blob(wide).array, wide), Image(blob(wide).array, wide), linear_field(wide.every(2)),
        tmp_path / "wide.png",
    )  # fmt: skip
    draw_registration(fixed, fixed, fixed, linear_field(GRID.crop((1, 1, 1), GRID.size)), tmp_path / "off.png")
    same, other, off = (pixels(tmp_path / f"{name}.png") for name in ("same", "wide", "off"))
    assert np.abs(same - other).max() < 0.05
    assert np.abs(same - off).max() > 0.3


@pytest.mark.parametrize(("grid", "of_the_other"), [(GRID, GRID), (TURNED, TURNED), (TURNED, GRID)])
def test_large_images_are_compared_on_a_lattice_and_shown_as_they_are(
    grid: Grid, of_the_other: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the correlations above the pictures is the same; a mask that the lattice misses counts all the same."""
    fixed, moving = blob(grid), blob(of_the_other, shift=2.0)
    draw_registration(fixed, moving, fixed, linear_field(grid), tmp_path / "all.png")
    monkeypatch.setattr("regnet_itk.figures.overview._COMPARED", fixed.array.size // 20)
    draw_registration(fixed, moving, fixed, linear_field(grid), tmp_path / "some.png")
    whole, some = (pixels(tmp_path / f"{name}.png") for name in ("all", "some"))
    different = np.abs(whole - some).max(axis=-1) > 0.02
    assert not different[len(different) // 4 : -len(different) // 5].any()
    assert not different[:, : different.shape[1] // 3].any()
    small = np.zeros(grid.shape)
    small[1:3, 1, 1] = 1
    draw_registration(fixed, moving, fixed, linear_field(grid), tmp_path / "mask.png", mask=Image(small, grid))


@pytest.mark.parametrize("low", [0.0, -1000.0])
def test_constant_images_and_no_motion_are_drawn(tmp_path: Path, low: float) -> None:
    flat = Image(np.full(GRID.shape, low), GRID)
    still = DisplacementField(np.zeros((*GRID.shape, 3)), GRID)
    draw_registration(flat, flat, flat, still, tmp_path / "flat.png", mask=Image(np.ones(GRID.shape), GRID))
    assert (tmp_path / "flat.png").stat().st_size > 1000


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    image, field = blob(GRID), linear_field(GRID)
    with pytest.raises(OutputError, match=r"\.png"):
        draw_registration(image, None, image, field, tmp_path / "a.bmpx")
    with pytest.raises(OutputError, match="cannot write"):
        draw_registration(image, None, image, field, tmp_path / "missing" / "a.png")
    assert not list(tmp_path.iterdir())


def test_pyplot_is_not_touched(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from regnet_itk.data.grid import Grid\nfrom regnet_itk.data.image import Image\n"
        "from regnet_itk.data.field import DisplacementField\n"
        "from regnet_itk.figures.overview import draw_registration\n"
        "assert 'matplotlib' not in sys.modules\n"
        "g = Grid((4, 4, 4)); i = Image(np.random.rand(4, 4, 4), g)\n"
        "draw_registration(i, i, i, DisplacementField(np.ones((4, 4, 4, 3)), g), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, timeout=120)
