"""Images through transforms by compiled cubic splines, judged by SimpleITK and by the voxels themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from transform_cases import CHAINS, FIXED

from regnet_itk.data.cubic_splines import CubicSplines
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.resampling import resample_through

MOVING = Grid((44, 37, 31), (2.0, 1.7, 2.9), FIXED.index_to_point((2.0, -3.0, 1.0)), FIXED.direction)
FINE = Grid((192, 160, 140), (0.45, 0.4, 0.6), FIXED.index_to_point((-3.0, -2.0, -3.0)), FIXED.direction)


def noise(grid, seed=0):
    return Image(np.random.default_rng(seed).normal(0, 300, grid.shape).astype(np.float32), grid)


def by_itk(image, chain, grid, default):
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image.to_sitk(), grid.size, chain.to_sitk(grid), sitk.sitkBSpline3, grid.origin, grid.spacing,
            grid.direction_matrix.ravel().tolist(), default, sitk.sitkFloat32,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_many_voxels_are_resampled_as_by_itk_inside_and_outside(name):
    image = noise(MOVING)
    found = resample_through(image, CHAINS[name], FINE, 3, default=-777.0)
    expected = by_itk(image, CHAINS[name], FINE, -777.0)
    assert found.array.dtype == np.float32
    inside = expected != -777.0
    assert 0.05 < inside.mean() < 0.95
    border = inside != (found.array != -777.0)
    assert border.mean() < 1e-5  # points within rounding of the border
    np.testing.assert_allclose(found.array[~border], expected[~border], rtol=0, atol=5e-3)


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 23, 4), (24, 4, 7)])
@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8, bool])
def test_thin_images_are_mirrored_at_their_border_as_by_itk(size, dtype):
    grid = Grid(size, MOVING.spacing, MOVING.origin, MOVING.direction)
    image = Image((noise(grid).array > 0).astype(dtype) * dtype(1), grid)
    points = grid.index_to_point(np.random.default_rng(1).uniform(-0.7, np.asarray(size) - 0.3, (300, 3)))
    with ThreadPoolExecutor(2) as threads:
        found = CubicSplines(image, threads).at(points, 9.0)
    along = Grid((len(points), 1, 1))
    field = sitk.DisplacementFieldTransform(
        sitk.GetImageFromArray((points - along.points().reshape(-1, 3))[None, None], isVector=True)
    )
    expected = sitk.GetArrayFromImage(
        sitk.Resample(sitk.Cast(image.to_sitk(), sitk.sitkFloat64), along.size, field, sitk.sitkBSpline3,
                      along.origin, along.spacing, np.eye(3).ravel().tolist(), 9.0, sitk.sitkFloat64)
    ).ravel()  # fmt: skip
    assert 0.3 < (expected != 9.0).mean() < 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_voxels_keep_their_values():
    image = noise(MOVING)
    with ThreadPoolExecutor(2) as threads:
        found = CubicSplines(image, threads).at(MOVING.points().reshape(-1, 3), 0.0)
    np.testing.assert_allclose(found, image.array.ravel(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads_change_nothing(threads):
    image = noise(MOVING)
    np.testing.assert_array_equal(
        resample_through(image, CHAINS["affine"], FINE, threads=threads).array,
        resample_through(image, CHAINS["affine"], FINE, 3).array,
    )


def test_points_that_are_not_finite_are_outside():
    image = noise(MOVING)
    points = MOVING.points().reshape(-1, 3)[:5].copy()
    points[0], points[1] = np.nan, np.inf
    with ThreadPoolExecutor(1) as threads:
        found = CubicSplines(image, threads).at(points, -1.0)
    np.testing.assert_array_equal(found[:2], -1.0)
    assert (found[2:] != -1.0).all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_other_orders_and_no_numba_are_left_to_itk(order, monkeypatch):
    image, chain = noise(MOVING), TransformChain()
    expected = image.resampled(FINE, None, order, 5.0).array
    np.testing.assert_array_equal(resample_through(image, chain, FINE, order, 5.0).array, expected)
    monkeypatch.setattr("regnet_itk.transforms.resampling.find_kernels", lambda _: None)
    np.testing.assert_array_equal(
        resample_through(image, chain, FINE, 3, 5.0).array, image.resampled(FINE, None, 3, 5.0).array
    )
