"""The inverse of transforms, judged by SimpleITK and by points that were mapped before."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.errors import TransformError
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.inverse import (
    image_grid,
    invert_chain,
    invert_field,
    invert_matrix,
    invert_points,
    measure_inverse_residual,
)
from regnet_itk.transforms.matrix import MatrixTransform

GRID = Grid((40, 36, 30), (1.5, 2.0, 3.0), (10, -20, 30), Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix())
MATRIX = MatrixTransform(
    np.array([[1.05, 0.04, 0.0], [-0.03, 0.96, 0.05], [0.02, 0.0, 1.02]]), translation=np.array([5.0, 3.0, -8.0])
)


def smooth_field(peak: float = 5.0) -> DisplacementField:
    rng = np.random.default_rng(0)
    u = ndimage.gaussian_filter(rng.normal(size=(*GRID.shape, 3)), (4, 6, 8, 0))
    window = np.ones(GRID.shape)
    for axis, n in enumerate(GRID.shape):
        ramp = np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / 5, 0, 1)
        window *= ramp.reshape([-1 if a == axis else 1 for a in range(3)])
    u *= window[..., None]
    return DisplacementField((u * peak / np.abs(u).max()).astype(np.float32), GRID)


def inner_points(n: int = 400) -> np.ndarray:
    return GRID.index_to_point(np.random.default_rng(1).uniform(6, 24, (n, 3)))


def test_field_is_inverted_on_an_oblique_anisotropic_grid_better_than_by_simpleitk() -> None:
    field = smooth_field()
    found = invert_field(field)
    judge = found.to_sitk_transform()
    x = inner_points()
    back = np.array([judge.TransformPoint(y) for y in field.map_points(x)])
    theirs = sitk.InvertDisplacementField(
        sitk.Cast(field.to_sitk(), sitk.sitkVectorFloat64), 50, meanErrorToleranceThreshold=1e-4,
        maxErrorToleranceThreshold=1e-3,
    )  # fmt: skip
    their_back = DisplacementField.from_sitk(theirs).map_points(field.map_points(x))
    ours, sitks = (np.linalg.norm(b - x, axis=1).mean() for b in (back, their_back))
    assert np.linalg.norm(field.at(x), axis=1).mean() > 1.5
    assert ours < 0.03
    assert ours <= sitks * 1.01


def test_inverse_field_is_exact_at_its_voxels() -> None:
    field = smooth_field()
    found = invert_field(field)
    y = found.grid.points()[8:-8, 8:-8, 8:-8].reshape(-1, 3)
    assert np.abs(field.map_points(found.map_points(y)) - y).max() < 1e-3


@pytest.mark.parametrize("combine", ["innermost", "compose"])
def test_chain_of_matrix_and_field(combine: str) -> None:
    chain = TransformChain((Link(MATRIX), Link(smooth_field(), combine)))
    inverse = invert_chain(chain, GRID)
    x = inner_points()
    assert np.linalg.norm(inverse.map_points(chain.map_points(x)) - x, axis=1).mean() < 0.03
    residual = measure_inverse_residual(chain, inverse, GRID)
    assert residual.mean < 0.03
    assert residual.mean <= residual.p95 <= residual.max


def test_bspline_is_inverted() -> None:
    control = Grid((9, 9, 9), (10.0, 12.0, 14.0), GRID.index_to_point((-8, -8, -6)), GRID.direction)
    coefficients = np.random.default_rng(2).uniform(-4, 4, (*control.shape, 3))
    chain = TransformChain((Link(MATRIX), Link(BSplineTransform(coefficients, control))))
    x = inner_points()
    assert np.linalg.norm(chain.map_points(x) - MATRIX.map_points(x), axis=1).mean() > 1.0
    back = invert_chain(chain, GRID).map_points(chain.map_points(x))
    assert np.linalg.norm(back - x, axis=1).mean() < 0.05


def test_points_go_back_without_an_inverse_field() -> None:
    chain = TransformChain((Link(MATRIX), Link(smooth_field(), "innermost")))
    x = inner_points()
    back, residual = invert_points(chain, chain.map_points(x))
    assert np.abs(back - x).max() < 1e-3
    assert residual.max() < 1e-4


def test_folded_points_are_reported_and_not_invented() -> None:
    field = smooth_field(peak=60.0)
    assert field.jacobian_determinant().min() < 0
    chain = TransformChain((Link(field),))
    y = GRID.index_to_point(np.random.default_rng(3).uniform(2, 26, (500, 3)))
    back, residual = invert_points(chain, y)
    assert np.allclose(np.linalg.norm(chain.map_points(back) - y, axis=1), residual)


def test_singular_matrix_is_refused() -> None:
    with pytest.raises(TransformError, match="cannot be inverted"):
        invert_matrix(MatrixTransform(np.zeros((3, 3))))


def test_inverse_of_a_chain_on_the_moving_grid_and_its_domain() -> None:
    chain = TransformChain((Link(MATRIX), Link(smooth_field(), "innermost")))
    moving = Grid((50, 44, 40), (1.3, 1.7, 2.1), tuple(GRID.index_to_point((3, 2, 1))), GRID.direction)
    inverse = invert_chain(chain, GRID, moving)
    assert [link.combine for link in inverse.links] == ["compose", "add"]
    np.testing.assert_allclose(inverse.links[0].transform.matrix, np.linalg.inv(MATRIX.matrix))
    assert inverse.links[1].transform.grid == moving
    residual = measure_inverse_residual(chain, inverse, GRID, grid=moving)
    assert residual.count < 20_000
    assert residual.mean < 0.03
    assert residual.failed == residual.folding == 0
    with pytest.raises(TransformError, match="outside of what the transform maps"):
        measure_inverse_residual(chain, inverse, GRID, grid=moving.crop((900, 0, 0), (5, 5, 5)))


def test_image_grid_holds_all_that_the_fixed_image_is_mapped_to() -> None:
    chain = TransformChain((Link(MATRIX), Link(smooth_field(), "innermost")))
    grid = image_grid(chain, GRID)
    assert grid.contains(chain.map_points(GRID.points())).all()
    assert grid.spacing == GRID.spacing
    index = GRID.point_to_index(grid.origin)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)


def test_strongly_bent_field_is_solved_at_every_voxel() -> None:
    field = smooth_field(peak=8.0)
    assert 0 < field.jacobian_determinant().min() < 0.35
    found = invert_field(field)
    y = found.grid.points().reshape(-1, 3)
    error = np.linalg.norm(field.map_points(found.map_points(y)) - y, axis=1)
    assert error.max() < 1e-3


def test_folding_and_failure_are_measured() -> None:
    field = smooth_field(peak=60.0)
    chain = TransformChain((Link(field),))
    residual = measure_inverse_residual(chain, invert_chain(chain, GRID), GRID)
    x = GRID.index_to_point(np.random.default_rng(0).uniform(1, np.array(GRID.size) - 2, (5000, 3)))
    ends = [[field.map_points(x + s * axis) for axis in GRID.index_to_point_matrix.T] for s in (1, -1)]
    slopes = np.moveaxis(np.array(ends[0]) - np.array(ends[1]), 0, -1) / 2
    folded = np.linalg.det(slopes @ np.linalg.inv(GRID.index_to_point_matrix)) <= 0
    assert residual.folding == pytest.approx(folded.mean(), abs=0.03)
    assert residual.failed > 0.01
    assert residual.max > 0.5 * min(GRID.spacing)


@pytest.mark.parametrize("size", [(1, 9, 8), (6, 1, 1), (5, 4, 3)])
def test_thin_grids_are_inverted(size: tuple[int, int, int]) -> None:
    grid = Grid(size, (2.0, 2.5, 3.0), (5.0, 6.0, 7.0), GRID.direction)
    vectors = np.broadcast_to(np.float32([0.5, -0.25, 0.125]), (*grid.shape, 3))
    found = invert_field(DisplacementField(vectors, grid))
    np.testing.assert_allclose(found.at(grid.centre()), [-0.5, 0.25, -0.125], atol=1e-3)


def test_one_field_for_a_turn_by_70_degrees_is_inverted() -> None:
    turn = Rotation.from_euler("zx", (70, 30), degrees=True).as_matrix()
    turned = MatrixTransform(turn, GRID.centre(), np.array([20.0, -10.0, 5.0]))
    field = TransformChain((Link(smooth_field()), Link(turned))).displacement_on(GRID)
    chain = TransformChain((Link(field),))
    x = inner_points()
    back, residual = invert_points(chain, chain.map_points(x), GRID)
    np.testing.assert_allclose(back, x, atol=1e-3)
    assert residual.max() < 1e-3
    inverse = invert_chain(chain, GRID)
    assert np.linalg.norm(inverse.map_points(chain.map_points(x)) - x, axis=1).mean() < 0.03
