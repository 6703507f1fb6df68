"""Grids against SimpleITK, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.errors import ImageError

numbers = st.floats(-200, 200)
steps = st.floats(0.2, 7.0)
few = st.integers(0, 5)


@st.composite
def grids(draw, smallest=2):
    # hundredths of a degree: ITK's singular value decomposition fails on cosines below the smallest normal number
    angles = [hundredths / 100 for hundredths in draw(st.tuples(*[st.integers(-18000, 18000)] * 3))]
    flip = np.diag(draw(st.sampled_from([(1, 1, 1), (-1, 1, 1), (1, -1, -1)])))
    return Grid(
        draw(st.tuples(*[st.integers(smallest, 12)] * 3)),
        draw(st.tuples(steps, steps, steps)),
        draw(st.tuples(numbers, numbers, numbers)),
        Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flip,
    )


def judge(grid):
    image = sitk.Image(list(grid.size), sitk.sitkUInt8)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(np.ravel(grid.direction).tolist())
    return image


@given(grids(), st.lists(st.tuples(*[st.floats(-5, 15)] * 3), min_size=1, max_size=5))
def test_index_and_point_are_simpleitks(grid, indices):
    image = judge(grid)
    points = grid.index_to_point(indices)
    np.testing.assert_allclose(
        points, [image.TransformContinuousIndexToPhysicalPoint(index) for index in indices], atol=1e-8
    )
    np.testing.assert_allclose(grid.point_to_index(points), indices, atol=1e-8)
    theirs = [image.TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()]
    np.testing.assert_allclose(grid.point_to_index(points), theirs, atol=1e-8)


@given(grids())
def test_points_lie_in_array_order(grid):
    points = grid.points()
    assert points.shape == (*grid.shape, 3)
    z, y, x = (n // 2 for n in grid.shape)
    np.testing.assert_allclose(points[z, y, x], grid.index_to_point((x, y, z)), atol=1e-9)
    np.testing.assert_allclose(points.mean(axis=(0, 1, 2)), grid.centre(), atol=1e-6)
    np.testing.assert_allclose(grid.corners().mean(axis=0), grid.centre(), atol=1e-6)


@given(grids(), st.tuples(few, few, few), st.data())
def test_a_crop_is_simpleitks_region(grid, start, data):
    start = [min(s, n - 1) for s, n in zip(start, grid.size, strict=True)]
    size = [data.draw(st.integers(1, n - s)) for s, n in zip(start, grid.size, strict=True)]
    theirs = sitk.RegionOfInterest(judge(grid), size, start)
    ours = grid.crop(start, size)
    np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), atol=1e-9)
    assert ours.size == theirs.GetSize()
    assert (ours.spacing, ours.direction) == (grid.spacing, grid.direction)


@given(grids(), st.tuples(few, few, few), st.tuples(few, few, few))
def test_padding_is_simpleitks_and_cropping_undoes_it(grid, lower, upper):
    theirs = sitk.ConstantPad(judge(grid), lower, upper)
    ours = grid.pad(lower, upper)
    origin = theirs.TransformIndexToPhysicalPoint((0, 0, 0))
    np.testing.assert_allclose(ours.origin, origin, atol=1e-8)
    assert ours.size == theirs.GetSize()
    assert ours.crop(lower, grid.size).is_close(grid)


@given(grids(), st.integers(1, 4))
def test_every_is_simpleitks_slicing(grid, step):
    theirs = judge(grid)[::step, ::step, ::step]
    ours = grid.every(step)
    assert ours.size == theirs.GetSize()
    np.testing.assert_allclose(ours.spacing, theirs.GetSpacing())
    np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), atol=1e-9)


@given(grids(), st.floats(0.5, 4.0))
def test_isotropic_voxels_fill_the_same_box(grid, spacing):
    cubes = grid.isotropic(spacing)
    assert set(cubes.spacing) == {spacing}
    assert cubes.direction == grid.direction
    extent = np.asarray(grid.size) * grid.spacing
    filled = np.asarray(cubes.size) * spacing
    assert (filled >= extent - 1e-3 * spacing).all()
    assert ((filled < extent + spacing) | (np.asarray(cubes.size) == 1)).all()
    first = [grid.index_to_point((-0.5, -0.5, -0.5)), cubes.index_to_point((-0.5, -0.5, -0.5))]
    np.testing.assert_allclose(*first, atol=1e-6)


@given(grids())
def test_contains_the_box_of_the_voxels_and_no_more(grid):
    near, far = grid.centre() + 0.999 * (grid.corners() - grid.centre()), 1.001
    assert grid.contains(near).all()
    assert not grid.contains(grid.centre() + far * (grid.corners() - grid.centre())).any()
    assert grid.contains(grid.points()).all()


@given(grids())
def test_close_grids_have_corners_that_agree(grid):
    assert grid.is_close(grid)
    shift = 0.01 * min(grid.spacing)
    moved = Grid(grid.size, grid.spacing, tuple(np.add(grid.origin, (shift, 0, 0))), grid.direction)
    assert not grid.is_close(moved)
    assert grid.is_close(moved, tolerance=0.02)
    assert not grid.is_close(grid.pad((0, 0, 0), (1, 0, 0)))
    stretched = Grid(grid.size, tuple(1.2 * s for s in grid.spacing), grid.origin, grid.direction)
    assert not grid.is_close(stretched)


def test_a_grid_takes_what_numpy_and_simpleitk_hand_out():
    flat = Grid(np.array([4, 5, 6]), np.array([1, 2, 3]), np.zeros(3), tuple(np.eye(3).ravel()))
    assert flat == Grid((4, 5, 6), (1.0, 2.0, 3.0))
    assert flat.shape == (6, 5, 4)
    assert hash(flat) == hash(Grid((4, 5, 6), (1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 2, 2),), "size of at least 1"),
        (((2, 2, 2), (1, 0, 1)), "not positive"),
        (((2, 2, 2), (1, -1, 1)), "not positive"),
        (((2, 2, 2), (1, np.nan, 1)), "not positive"),
        (((2, 2, 2), (1, 1, 1), (np.inf, 0, 0)), "not finite"),
        (((2, 2, 2), (1, 1, 1), (0, 0, 0), np.ones((3, 3))), "cannot be inverted"),
        (((2, 2, 2), (1, 1, 1), (0, 0, 0), np.full((3, 3), np.nan)), "not finite"),
    ],
)
def test_grids_that_cannot_be(arguments, message):
    with pytest.raises(ImageError, match=message):
        Grid(*arguments)


@pytest.mark.parametrize("voxels", [1, 100, 10_000])
def test_slabs_cover_every_voxel_once(voxels):
    grid = Grid((7, 5, 9), (1.0, 2.0, 3.0))
    covered = np.zeros(grid.shape, int)
    for box in grid.slabs(voxels):
        covered[box] += 1
        assert covered[box].size <= max(voxels, 35)
        np.testing.assert_allclose(grid.part(box).points(), grid.points()[box])
    assert (covered == 1).all()


def test_a_lattice_and_random_points_keep_their_margin():
    turned = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    grid = Grid((10, 1, 4), (2.0, 3.0, 4.0), (5.0, 6.0, 7.0), turned)
    for margin, low, high in ((-0.5, (-0.5, -0.5, -0.5), (9.5, 0.5, 3.5)), (1.0, (1, 0, 1), (8, 0, 2))):
        lattice = grid.point_to_index(grid.lattice(3, margin))
        assert len(lattice) == 27
        np.testing.assert_allclose(lattice[[0, -1]], [low, high], atol=1e-9)
        np.testing.assert_allclose(lattice[1] - lattice[0], [0, 0, (high[2] - low[2]) / 2], atol=1e-9)
        drawn = grid.point_to_index(grid.random_points(500, np.random.default_rng(0), margin))
        np.testing.assert_allclose([drawn.min(axis=0), drawn.max(axis=0)], [low, high], atol=0.2)
