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
    with pytest.raises(ImageError, match="labels above"):
        warp_labels(Image(np.full(grid.shape, 2**60, np.int64), grid), TransformChain(), grid)
