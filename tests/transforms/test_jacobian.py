"""The Jacobian of chains on any grid, judged by differences of mapped points and by known determinants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transform_cases import FIXED, affine, bspline, plain, smooth_field

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.jacobian import jacobian_determinant_on, jacobian_matrices_on, summarise_folding


def differences(chain, points, axes):
    """Return dT/dx (n, 3, 3) by central differences over the columns of `axes`."""
    ends = [np.stack([chain.map_points(points + s * axis) for axis in axes.T], axis=-1) for s in (0.5, -0.5)]
    return (ends[0] - ends[1]) @ np.linalg.inv(axes)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_bsplines_are_differentiated_exactly(order):
    spline = BSplineTransform(bspline().coefficients, bspline().grid, order)
    chain = TransformChain((plain(affine()), Link(spline), Link(affine(), "innermost")))
    points = FIXED.index_to_point(np.random.default_rng(0).uniform(3, 12, (300, 3)))
    _, found = chain.sampler().map_with_jacobian(torch.from_numpy(points))
    difference = np.abs(found.permute(2, 0, 1).numpy() - differences(chain, points, 1e-4 * np.eye(3))).max(axis=(1, 2))
    assert np.percentile(difference, 99) < 1e-5  # at a knot of order 1 the slope jumps


def test_a_field_is_differentiated_over_one_voxel_of_its_own():
    coarse = Grid((9, 8, 7), (5.0, 6.0, 8.0), tuple(FIXED.index_to_point((1, 1, 1))), FIXED.direction)
    chain = TransformChain((Link(smooth_field(grid=coarse)),))
    points = coarse.index_to_point(np.random.default_rng(0).uniform(1.0, (7.0, 6.0, 5.0), (300, 3)))
    _, found = chain.sampler().map_with_jacobian(torch.from_numpy(points))
    expected = differences(chain, points, 2 * coarse.index_to_point_matrix)
    np.testing.assert_allclose(found.permute(2, 0, 1).numpy(), expected, atol=1e-5)
    outside = torch.from_numpy(coarse.index_to_point([[-0.6, 3, 3], [3, 3, 6.7], [40, 3, 3]]))
    np.testing.assert_array_equal(chain.sampler().map_with_jacobian(outside)[1][:, :, 1], np.eye(3))


def test_the_linear_field_has_its_matrix_everywhere_up_to_the_border():
    matrix = np.array([[1.2, 0.1, -0.2], [0.0, 0.9, 0.3], [0.1, -0.1, 1.1]])
    points = FIXED.points()
    field = DisplacementField(points @ (matrix - np.eye(3)).T, FIXED)
    chain = TransformChain((Link(field), plain(affine())))
    expected = affine().matrix @ matrix
    found = jacobian_matrices_on(chain, FIXED)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2e-4)
    np.testing.assert_allclose(jacobian_determinant_on(chain, FIXED).array, np.linalg.det(expected), atol=5e-4)
    np.testing.assert_allclose(jacobian_determinant_on(TransformChain((Link(field),)), FIXED).array,
                               np.linalg.det(matrix), atol=5e-4)  # fmt: skip


@pytest.mark.parametrize("size", [(22, 20, 16), (5, 1, 9), (1, 4, 30)])
def test_a_field_on_its_own_grid_is_differentiated_as_by_numpy(size):
    grid = Grid(size, FIXED.spacing, FIXED.origin, FIXED.direction)
    u = np.random.default_rng(2).normal(size=(*grid.shape, 3)).astype(np.float32)
    by_index = np.zeros((*grid.shape, 3, 3))
    for axis in range(3):
        if size[axis] > 1:
            by_index[..., axis] = np.gradient(u.astype(float), axis=2 - axis)
    expected = np.linalg.det(by_index @ np.linalg.inv(grid.index_to_point_matrix) + np.eye(3))
    chain = TransformChain((Link(DisplacementField(u, grid)),))
    np.testing.assert_allclose(jacobian_determinant_on(chain, grid).array, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(jacobian_matrices_on(chain, grid)), expected, atol=1e-4)


def test_folding_is_summarised_as_numpy_does():
    values = np.random.default_rng(0).normal(1, 0.6, FIXED.shape).astype(np.float32)
    summary = summarise_folding(Image(values, FIXED))
    assert summary.share_not_positive == pytest.approx((values <= 0).mean())
    assert (summary.min, summary.max) == (values.min(), values.max())
    assert summary.std_log == pytest.approx(np.log(values[values > 0].astype(float)).std())
    assert summary.voxels == values.size
    assert np.isnan(summarise_folding(Image(-np.abs(values), FIXED)).std_log)


def test_a_mask_elsewhere_is_refused():
    empty = Image(np.zeros(FIXED.shape, np.uint8), FIXED)
    with pytest.raises(ImageError, match="no voxel of the Jacobian lies inside the mask"):
        summarise_folding(Image(np.ones(FIXED.shape, np.float32), FIXED), empty)
