"""Fields that fold nowhere, judged by SimpleITK and by differences between points."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from transform_cases import FIXED

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.refinement.unfolding import LEAST, least_determinants, unfold_around, unfold_field
from regnet_itk.transforms.chain import Link, TransformChain

MIRRORED = Grid((26, 22, 18), (1.5, 2.0, 2.5), (3.0, -4.0, 50.0), FIXED.direction_matrix @ np.diag([1.0, -1.0, 1.0]))
LARGE = Grid((26, 22, 18), (1.5, 2.0, 2.5), (3.0, -4.0, 50.0), FIXED.direction)


def rough_field(grid, peak=14.0, seed=0):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(*grid.shape, 3)), (2, 2, 2, 0))
    return DisplacementField((noise * (peak / np.abs(noise).max())).astype(np.float32), grid)


def determinants_by_itk(field):
    """det J by ITK, which takes the vectors for those along the axes of the grid."""
    along = DisplacementField(field.vectors @ field.grid.direction_matrix, Grid(field.grid.size, field.grid.spacing))
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(along.to_sitk()))


def corner_determinants(field, points=400):
    """det J next to voxels, on every side, by differences of the interpolated transform."""
    chain = TransformChain((Link(field),))
    rng = np.random.default_rng(5)
    size = np.asarray(field.grid.size)
    index = rng.integers(1, size - 1, (points, 3)) + rng.choice([-1e-3, 1e-3], (points, 3))
    step = field.grid.index_to_point_matrix.T * 1e-4
    at = field.grid.index_to_point(index)
    ends = np.stack([chain.map_points(at + s) - chain.map_points(at) for s in step], axis=1)
    return index, np.linalg.det(ends) / np.linalg.det(step)


@pytest.mark.parametrize("grid", [LARGE, MIRRORED], ids=["oblique", "mirrored"])
def test_a_rough_field_is_unfolded(grid):
    field = rough_field(grid)
    assert (determinants_by_itk(field) <= 0).mean() > 0.02
    found, share = unfold_field(field)
    assert share > 0.02
    assert determinants_by_itk(found).min() > 0
    assert corner_determinants(found)[1].min() > 0.5 * LEAST
    assert found.grid == grid


def test_what_does_not_fold_stays():
    field = rough_field(LARGE, peak=1.0)
    assert unfold_field(field) == (field, 0.0)
    field.vectors[5, 5, 5] += (9.0, 0.0, 0.0)
    found, share = unfold_field(field)
    assert 0 < share < 0.01
    changed = np.abs(found.vectors - field.vectors).max(axis=-1) > 0
    assert changed[5, 5, 5]
    assert not changed[14:].any()
    assert not changed[:, :, 20:].any()
    assert determinants_by_itk(found).min() > 0


@pytest.mark.parametrize("numba", [True, False])
def test_determinants_are_those_of_the_interpolated_transform(numba, monkeypatch):
    if not numba:
        monkeypatch.setattr("regnet_itk.refinement.unfolding.find_kernels", lambda _: None)
    field = rough_field(LARGE, peak=5.0)
    found = least_determinants(field.vectors, LARGE)
    index, judged = corner_determinants(field)
    cells = np.floor(index).astype(int)
    least = found[cells[:, 2], cells[:, 1], cells[:, 0]]
    assert (least <= judged + 0.02).all()
    turned = least_determinants(np.zeros_like(field.vectors), MIRRORED)
    np.testing.assert_allclose(turned, 1.0, atol=1e-5)


def test_one_thin_axis_has_no_cells():
    grid = Grid((5, 4, 1))
    field = DisplacementField(np.ones((*grid.shape, 3), dtype=np.float32), grid)
    assert unfold_field(field) == (field, 0.0)


def test_a_fold_beside_what_is_held_is_taken_out_and_the_rest_stays():
    grid = Grid((60, 28, 26), (2.0, 2.0, 2.0))
    held = np.zeros(grid.shape, dtype=bool)
    held[8:16, 8:18, 8:16] = True
    u = np.zeros((*grid.shape, 3), dtype=np.float32)
    u[held] = (5.0, -2.0, 1.0)
    field = DisplacementField(u, grid)
    assert least_determinants(u, grid).min() < 0
    found = unfold_around(field, held)
    assert least_determinants(found.vectors, grid).min() >= LEAST
    np.testing.assert_array_equal(found.vectors[held], u[held])
    assert not found.vectors[:, :, 35:].any()


def test_a_fold_that_what_is_held_allows_no_way_out_of_changes_nothing_else():
    grid = Grid((30, 28, 26), (2.0, 2.0, 2.0))
    held = np.zeros(grid.shape, dtype=bool)
    held[8:16, 8:18, 8:18] = True
    u = np.zeros((*grid.shape, 3), dtype=np.float32)
    u[8:16, 8:18, 8:13, 0] = 9.0  # one half of what is held runs into the other
    found = unfold_around(DisplacementField(u, grid), held)
    changed = np.linalg.norm(found.vectors - u, axis=-1) > 0
    assert not changed[held].any()
    assert least_determinants(found.vectors, grid).min() < 0
    assert not changed[ndimage.distance_transform_edt(~held) > 17].any()
