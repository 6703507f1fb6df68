"""The foreground of any image: an ellipsoid on an oblique, anisotropic grid, in several contrasts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.foreground import foreground_mask
from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (15, -25, 40), degrees=True).as_matrix()))
GRID = Grid((70, 60, 36), (2.0, 2.5, 4.0), (-40.0, 120.0, 33.0), TURNED)
MIDDLE = np.asarray(GRID.index_to_point([(n - 1) / 2 for n in GRID.size]))


def distance(radii: tuple[float, float, float], at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """1 on an ellipsoid that stands straight in physical space."""
    return np.linalg.norm((GRID.points() - MIDDLE - at) / radii, axis=-1)


BODY = distance((50.0, 45.0, 40.0)) < 1


def picture(inside: float, organ: float, outside: float, noise: float) -> Image:
    values = np.where(BODY, inside, outside)
    values = np.where(distance((18.0, 16.0, 20.0), (8.0, 5.0, 0.0)) < 1, organ, values)
    return Image((values + noise * np.random.default_rng(0).normal(size=values.shape)).astype(np.float32), GRID)


def overlap(found: np.ndarray) -> float:
    return 2 * (found & BODY).sum() / (found.sum() + BODY.sum())


@pytest.mark.parametrize(
    ("inside", "organ", "outside", "noise"),
    [(400.0, 900.0, 0.0, 20.0), (0.8, 0.1, 0.02, 0.02), (-3000.0, -2000.0, -5000.0, 100.0), (300.0, 20.0, 10.0, 8.0)],
    ids=["bright organ", "dark organ", "far from zero", "organ as dark as air"],
)
def test_a_body_stands_out_with_what_it_encloses(inside: float, organ: float, outside: float, noise: float) -> None:
    found = foreground_mask(picture(inside, organ, outside, noise))
    assert found.grid == GRID
    assert overlap(found.array) > 0.93


def test_a_couch_and_specks_are_left_out() -> None:
    image = picture(400.0, 900.0, 0.0, 5.0)
    image.array[:, 1:2, :] = 300.0
    image.array[2:4, 30:32, 3:5] = 900.0
    assert overlap(foreground_mask(image).array) > 0.93


def test_a_gain_changes_nothing_and_the_grid_can_be_chosen() -> None:
    grid = Grid((30, 30, 30), (4.0, 4.0, 4.0), tuple(MIDDLE - 58.0))
    first, second = (foreground_mask(picture(400.0 * gain, 900.0 * gain, 0.0, gain), grid) for gain in (1.0, 0.003))
    assert first.grid == grid
    assert first.array.any()
    np.testing.assert_array_equal(first.array, second.array)


def test_an_image_of_one_value_has_no_foreground() -> None:
    with pytest.raises(ImageError, match="alike"):
        foreground_mask(Image(np.full(GRID.shape, 7.0, dtype=np.float32), GRID))


def test_the_region_of_that_name_knows_hounsfield_units() -> None:
    """Of a CT it is the body, lungs included, although they are as dark as air."""
    found = Scan(picture(40.0, -850.0, -1000.0, 10.0)).find("foreground")
    assert overlap(found.array) > 0.93
    found = Scan(picture(400.0, 100.0, 0.0, 10.0)).find("foreground")
    assert overlap(found.array) > 0.93
