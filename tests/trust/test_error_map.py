"""The expected error lies where the error is, on oblique anisotropic grids, and is read as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.trust.error_map import ErrorMap, read_error_map
from regnet_itk.trust.prediction import find_error_map

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (10, -20, 30), degrees=True).as_matrix()))
GRID = Grid((60, 56, 40), (2.0, 2.2, 3.0), (-30.0, 50.0, 200.0), TURNED)
MIDDLE = np.asarray(GRID.index_to_point([(n - 1) / 2 for n in GRID.size]))


def organ(seed: int = 1) -> Image:
    """Something bright with a texture, in a dark surround."""
    inside = np.linalg.norm((GRID.points() - MIDDLE) / [52.0, 54.0, 50.0], axis=-1) < 1
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=GRID.shape), (1.2, 1.6, 1.8))
    noise = rng.normal(size=GRID.shape)
    return Image(np.where(inside, 600 + 120 * texture / texture.std(), 5.0) + 4 * noise, GRID)


def bump(place: np.ndarray, length: float, width: float = 14.0) -> TransformChain:
    """A transform that is wrong by up to `length` mm around a place, along an oblique direction."""
    weight = np.exp(-0.5 * (np.linalg.norm(GRID.points() - place, axis=-1) / width) ** 2)
    direction = np.array([0.6, -0.5, 0.62])
    u = length * weight[..., None] * direction / np.linalg.norm(direction)
    return TransformChain((Link(DisplacementField(u.astype(np.float32), GRID)),))


PLACE = MIDDLE + np.array([18.0, -14.0, 12.0])


@pytest.fixture(scope="module")
def locally_wrong() -> ErrorMap:
    return find_error_map(organ(), organ(), bump(PLACE, 9.0))


def test_the_error_is_expected_where_it_is(locally_wrong: ErrorMap) -> None:
    points = locally_wrong.grid.points()
    near = np.linalg.norm(points - PLACE, axis=-1) < 8.0
    far = (np.linalg.norm(points - PLACE, axis=-1) > 45.0) & locally_wrong.known
    assert near.sum() > 5
    assert far.sum() > 50
    there, elsewhere = (
        np.median(locally_wrong.expected[near & locally_wrong.known]),
        np.median(locally_wrong.expected[far]),
    )
    assert there > 4 * elsewhere
    assert there > 2.0
    worst = np.array(locally_wrong.worst_places(1)[0]["point"])
    assert np.linalg.norm(worst - PLACE) < 20.0


def test_a_larger_error_is_told_as_larger() -> None:
    means = [
        float(np.nanmean(find_error_map(organ(), organ(), bump(MIDDLE, length, 60.0)).expected))
        for length in (0.5, 3.0, 12.0)
    ]
    assert means[0] < means[1] < means[2]


def test_the_radius_is_at_least_the_expected_error_and_unknown_outside(locally_wrong: ErrorMap) -> None:
    known = locally_wrong.known
    assert (locally_wrong.radius[known] >= locally_wrong.expected[known]).all()
    outside = np.linalg.norm(locally_wrong.grid.points() - MIDDLE, axis=-1) > 62.0
    assert outside.any()
    assert not known[outside].any()
    assert np.isnan(locally_wrong.values[~known]).all()


def test_nothing_is_known_where_the_moving_image_has_ended() -> None:
    moving = organ()
    half = Image(moving.array[20:], Grid((60, 56, 20), GRID.spacing, tuple(GRID.index_to_point((0, 0, 20))), TURNED))
    found = find_error_map(organ(), half, TransformChain())
    heights = found.grid.point_to_index(found.grid.points())  # of its own grid, whose axes are those of the image
    z = GRID.point_to_index(found.grid.points().reshape(-1, 3))[:, 2].reshape(found.grid.shape)
    assert heights.shape[:3] == found.grid.shape
    assert not found.known[z < 19].any()
    assert found.known[z > 25].mean() > 0.2


def test_a_mask_says_where() -> None:
    mask = Image((np.linalg.norm(GRID.points() - PLACE, axis=-1) < 16.0).astype(np.uint8), GRID)
    found = find_error_map(organ(), organ(), TransformChain(), mask)
    distances = np.linalg.norm(found.grid.points() - PLACE, axis=-1)
    assert not found.known[distances > 20.0].any()
    assert found.known[distances < 12.0].all()


def test_it_is_read_as_it_was_written_and_sampled_as_simpleitk_samples_it(
    locally_wrong: ErrorMap, tmp_path: Path
) -> None:
    locally_wrong.write(tmp_path / "errorMap.1.mha")
    again = read_error_map(tmp_path / "errorMap.1.mha")
    np.testing.assert_array_equal(again.values, locally_wrong.values)
    points = MIDDLE + np.random.default_rng(0).uniform(-20, 20, (50, 3))
    image = sitk.ReadImage(str(tmp_path / "errorMap.1.mha"))
    for point, pair in zip(points, again.at(points), strict=True):
        wanted = [
            sitk.VectorIndexSelectionCast(image, k).EvaluateAtPhysicalPoint(point.tolist(), sitk.sitkLinear)
            for k in range(2)
        ]
        np.testing.assert_allclose(pair, wanted, rtol=1e-4)
    assert np.isnan(again.at([MIDDLE + 500.0])).all()


def test_where_nothing_is_known_no_error_is_told() -> None:
    grid = Grid((3, 3, 3), (4.0, 4.0, 4.0))
    told = ErrorMap(np.full((*grid.shape, 2), np.nan, np.float32), grid)
    assert told.mean is None
    assert told.summary("foreground") == {"region": "foreground", "known_share": 0.0}


def test_what_is_no_error_map_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkFloat32), str(tmp_path / "errorMap.1.mha"))
    with pytest.raises(ImageError, match="no error map"):
        read_error_map(tmp_path / "errorMap.1.mha")
