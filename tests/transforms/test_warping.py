"""Images and segmentations through chains, judged by scipy's interpolation at the points that T maps to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from transform_cases import CHAINS, FIXED, MOVING, bspline, moving_image, plain, smooth_field

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.warping import warp_image, warp_labels

SUM = TransformChain((plain(bspline()), Link(smooth_field(3), "add"), Link(smooth_field(), "innermost")))
ALL = {**CHAINS, "a sum, which ITK cannot express": SUM}


def reached(chain):
    """Return the indices (3, z, y, x), z first, in the moving image of the fixed voxels, and which lie in it."""
    index = MOVING.point_to_index(chain.map_points(FIXED.points()))
    inside = ((index >= -0.5) & (index < np.asarray(MOVING.size) - 0.5)).all(axis=-1)
    assert 0.2 < inside.mean() < 1
    return np.moveaxis(index[..., ::-1], -1, 0), inside


@pytest.mark.parametrize("name", ALL)
def test_images_are_interpolated_where_the_transform_leads(name):
    index, inside = reached(ALL[name])
    warped = warp_image(moving_image(), ALL[name], FIXED, order="linear", default=-9.0)
    expected = ndimage.map_coordinates(moving_image().array.astype(float), index, order=1, mode="nearest")
    np.testing.assert_allclose(warped.array, np.where(inside, expected, -9.0), atol=1e-2)


@pytest.fixture(scope="module")
def labels():
    blurred = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=MOVING.shape), 1.5)
    ranks = np.searchsorted(np.quantile(blurred, [0.2, 0.5, 0.7, 0.9]), blurred)
    return Image(np.array([0, 3, 7, 200, 11], np.uint8)[ranks], MOVING)


@pytest.mark.parametrize("name", ALL)
def test_segmentations_get_the_nearest_or_the_heaviest_label(name, labels):
    index, inside = reached(ALL[name])
    nearest = ndimage.map_coordinates(labels.array, index, order=0, mode="nearest")
    found = warp_labels(labels, ALL[name], FIXED)
    assert found.array.dtype == np.uint8
    assert (found.array != np.where(inside, nearest, 0)).mean() < 1e-3  # ties
    kinds = np.unique(labels.array)
    shares = np.array([
        ndimage.map_coordinates((labels.array == kind).astype(float), index, order=1, mode="nearest") for kind in kinds
    ])  # fmt: skip
    heaviest = np.where(inside, kinds[shares.argmax(axis=0)], 0)
    linear = warp_labels(labels, ALL[name], FIXED, linear=True)
    assert (linear.array != heaviest).mean() < 1e-3
    assert (linear.array != found.array).mean() > 0.01


def test_the_smallest_of_equal_labels_is_taken():
    grid = Grid((2, 1, 1))
    half = TransformChain((Link(MatrixTransform(np.eye(3), translation=[0.5, 0.0, 0.0])),))
    for values in ((9, 4), (4, 9)):
        labels = Image(np.array([[values]], np.int16), grid)
        assert warp_labels(labels, half, Grid((1, 1, 1)), linear=True).array.item() == 4


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, np.float32])
def test_segmentations_of_all_types_keep_it(kind):
    grid = Grid((4, 3, 2))
    labels = Image(np.full(grid.shape, 100).astype(kind), grid)
    for linear in (False, True):
        found = warp_labels(labels, TransformChain(), grid, linear)
        assert found.array.dtype == kind
        np.testing.assert_array_equal(found.array, labels.array)


def test_what_is_no_segmentation_is_refused():
    grid = Grid((4, 3, 2))
    with pytest.raises(ImageError, match="not whole numbers"):
        warp_labels(Image(np.full(grid.shape, 0.5, np.float32), grid), TransformChain(), grid)


LARGE = {
    "int32": [0, 614454277, -614454278, 2**31 - 1],
    "uint32": [0, 614454277, 2**32 - 1],
    "int64": [0, 614454277, 2**53 + 1, 2**63 - 1, -(2**63)],
    "uint64": [0, 2**53 + 1, 2**64 - 1, 2**32],
    "float64": [0, 614454277, 2**53 - 1],
}


@pytest.mark.parametrize("name", ["affine, field", "a sum, which ITK cannot express"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_labels_stay_exact(name, kind, labels):
    chain = ALL[name]
    numbers = np.array(LARGE[kind], dtype=kind)
    large = Image(numbers[np.searchsorted(np.unique(labels.array), labels.array) % len(numbers)], MOVING)
    index, inside = reached(chain)
    nearest = np.stack(np.rint(index)).astype(int)
    at = tuple(np.clip(nearest, 0, np.array(MOVING.shape)[:, None, None, None] - 1))
    expected = np.where(inside, large.array[at], numbers.dtype.type(0))
    for found in (
        warp_labels(large, chain, FIXED),
        warp_image(large, chain, FIXED, order=0, pixel_type="double" if kind == "float64" else kind),
    ):
        assert found.array.dtype == kind
        assert (found.array != expected).mean() < 1e-3  # ties
        assert set(np.unique(found.array).tolist()) <= set(LARGE[kind])
    if kind != "float64":
        linear = warp_labels(large, chain, FIXED, linear=True)
        assert linear.array.dtype == kind
        assert set(np.unique(linear.array).tolist()) == set(np.unique(large.array).tolist())
        assert (linear.array == expected).mean() > 0.5


def test_the_nearest_voxel_of_large_numbers_in_another_type(labels):
    grid = Grid((4, 3, 2))
    large = Image(np.full(grid.shape, 614454277, np.int32), grid)
    aside = TransformChain((Link(MatrixTransform(np.eye(3), translation=[2.0, 0.0, 0.0])),))
    found = warp_image(large, aside, grid, order=0, default=-7, pixel_type="long")
    assert found.array[0, 0].tolist() == [614454277, 614454277, -7, -7]
    assert warp_image(large, aside, grid, order=0, pixel_type="double").array[0, 0].tolist()[:2] == [614454277.0] * 2
    assert warp_image(large, aside, grid, order=0, pixel_type="short").array[0, 0, 0] == 2**15 - 1
    with pytest.raises(ImageError, match="up to 614454277, and the type 'float' changes those above 16777216"):
        warp_image(large, aside, grid, order=0, pixel_type="float")


def test_voxels_that_are_nan_do_not_spread():
    grid = Grid((8, 7, 6), (1.0, 1.5, 2.0))
    values = np.random.default_rng(0).normal(0, 100, grid.shape).astype(np.float32)
    clean = Image(values.copy(), grid)
    values[3, 3, 3] = np.nan
    holed = Image(values, grid)
    aside = TransformChain((Link(MatrixTransform(np.eye(3), translation=[0.5, 0.0, 0.0])),))
    for order in (0, 1, "linear"):
        found = warp_image(holed, aside, grid, order=order).array
        assert 1 <= np.isnan(found).sum() <= 8  # the neighbours
        expected = warp_image(clean, aside, grid, order=order).array
        np.testing.assert_array_equal(found[~np.isnan(found)], expected[~np.isnan(found)])
        with pytest.raises(ImageError, match="1 voxels that are NaN or infinite; the type 'short' cannot hold them"):
            warp_image(holed, aside, grid, order=order, pixel_type="short")
    for order in (2, 3, 5):
        with pytest.raises(ImageError, match="1 voxels that are NaN or infinite; splines would spread them"):
            warp_image(holed, aside, grid, order=order)
    values[3, 3, 3] = np.inf
    with pytest.raises(ImageError, match="splines would spread them"):
        warp_image(holed, aside, grid)
