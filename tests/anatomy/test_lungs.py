"""Body and lung masks, judged by the masks that the phantom knows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from regnet_itk.anatomy.lungs import body_mask, lung_mask
from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError


@cache
def phantom(seed: int = 2) -> Phantom:
    return make_phantom(seed, spacing=(4.0, 3.6, 4.4), noise=30.0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def part(image: Image, start: tuple[int, int, int], size: tuple[int, int, int]) -> Image:
    spans = tuple(slice(s, s + n) for s, n in zip(reversed(start), reversed(size), strict=True))
    return Image(image.array[spans], image.grid.crop(start, size))


@pytest.mark.parametrize("seed", [2, 5])
def test_lungs_are_the_phantom_s(seed: int) -> None:
    made = phantom(seed)
    for image, truth in ((made.fixed, made.fixed_mask), (made.moving, made.moving_mask)):
        found = lung_mask(image)
        assert found.grid == image.grid
        assert found.array.dtype == bool
        assert dice(found.array, truth.array > 0) > 0.9


def test_the_body_holds_the_lungs_but_not_the_air_around_it() -> None:
    made = phantom()
    body = body_mask(made.fixed).array
    lungs = made.fixed_mask.array > 0
    assert body[lungs].mean() > 0.995
    assert body[made.fixed.array > 0].mean() > 0.98
    outside = np.zeros(body.shape, dtype=bool)
    outside[:, :4, :4] = outside[:, :4, -4:] = True  # the corners of a section
    assert not body[outside & (made.fixed.array < -900)].any()
    assert lung_mask(made.fixed).array[~body].mean() < 0.001


@pytest.mark.parametrize("side", ["left", "front", "both sides"])
def test_a_field_of_view_that_cuts_the_body(side: str) -> None:
    made = phantom()
    nx, ny, nz = made.fixed.grid.size
    lung_x = np.flatnonzero((made.fixed_mask.array > 0).any(axis=(0, 1)))
    lung_y = np.flatnonzero((made.fixed_mask.array > 0).any(axis=(0, 2)))
    start, size = {
        "left": ((lung_x[0] + 6, 0, 0), (nx - lung_x[0] - 6, ny, nz)),  # through a lung
        "front": ((0, lung_y[0] + 5, 0), (nx, ny - lung_y[0] - 5, nz)),
        "both sides": ((lung_x[0] + 3, 0, 10), (lung_x[-1] - lung_x[0] - 6, ny, nz - 25)),
    }[side]
    start, size = (tuple(int(v) for v in values) for values in (start, size))
    image, truth = (part(i, start, size) for i in (made.fixed, made.fixed_mask))
    assert dice(lung_mask(image).array, truth.array > 0) > 0.93
    assert body_mask(image).array[truth.array > 0].mean() > 0.95


def test_a_hole_in_a_thin_chest_wall_does_not_cost_the_section() -> None:
    made = phantom()
    values, lungs = made.fixed.array.copy(), made.fixed_mask.array > 0
    middle = lungs.shape[0] // 2
    x = int(np.flatnonzero(lungs[middle].any(axis=0))[8])
    front = int(np.flatnonzero(lungs[middle, :, x])[0])
    values[middle - 2 : middle + 3, : front + 3, x - 2 : x + 3] = -1000  # 22 mm high, 20 mm wide, from the air inwards
    found = lung_mask(Image(values, made.fixed.grid)).array
    assert dice(found, lungs) > 0.9
    sections = found[middle - 2 : middle + 3].sum(axis=(1, 2))
    assert sections.min() > 0.85 * lungs[middle - 2 : middle + 3].sum(axis=(1, 2)).max()


def test_axes_and_spacing_of_the_image_do_not_matter() -> None:
    """The same voxels on a turned grid give the same mask."""
    made = phantom()
    turned = Grid(made.fixed.grid.size, made.fixed.grid.spacing, (1.0, 2.0, 3.0), ((0, -1, 0), (1, 0, 0), (0, 0, 1)))
    np.testing.assert_array_equal(lung_mask(Image(made.fixed.array, turned)).array, lung_mask(made.fixed).array)


def test_a_couch_is_not_the_body() -> None:
    grid = Grid((60, 60, 30), (3.0, 3.0, 3.0))
    x, y = (grid.points()[..., axis] - grid.centre()[axis] for axis in (0, 1))
    values = np.where((x / 60) ** 2 + (y / 45) ** 2 < 1, 30.0, -1000.0)
    patient = body_mask(Image(values.astype(np.float32), grid)).array
    couch = values.copy()
    couch[:, 54] = 200.0  # 3 mm thick, 30 mm away
    found = body_mask(Image(couch.astype(np.float32), grid)).array
    np.testing.assert_array_equal(found, patient)
    assert dice(found, values > 0) > 0.97


def test_what_is_no_chest_ct_is_refused() -> None:
    grid = Grid((40, 40, 40), (4.0, 4.0, 4.0))
    rng = np.random.default_rng(0)
    air = Image(np.full(grid.shape, -1000.0, dtype=np.float32), grid)
    magnetic = Image(rng.uniform(0, 800, grid.shape).astype(np.float32), grid)
    for mask in (body_mask, lung_mask):
        with pytest.raises(ImageError, match="every voxel is air"):
            mask(air)
    with pytest.raises(ImageError, match="no lung was found"):
        lung_mask(magnetic)
    small = np.full(grid.shape, 40.0, dtype=np.float32)
    small[18:21, 18:21, 18:21] = -800.0  # a bubble of gas
    with pytest.raises(ImageError, match="Hounsfield"):
        lung_mask(Image(small, grid))
