"""A field carried on through what is hidden: on grids of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from transform_cases import FIXED

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.refinement.carrying_on import carry_on
from regnet_itk.refinement.unfolding import least_determinants

SLOPES = np.array([[0.1, -0.05, 0.02], [0.0, 0.08, -0.1], [0.04, 0.0, -0.06]])


def hidden_ball(grid: Grid, radius: float) -> np.ndarray:
    return np.linalg.norm(grid.points() - grid.centre(), axis=-1) < radius


@pytest.mark.parametrize("radius", [4.0, 11.0])
def test_what_is_affine_around_is_affine_within_on_a_turned_anisotropic_grid(radius):
    grid = Grid((30, 26, 17), (1.0, 1.3, 2.2), FIXED.origin, FIXED.direction)
    truth = grid.points() @ SLOPES.T + (3.0, -1.0, 2.0)
    hidden = hidden_ball(grid, radius)
    found = carry_on(DisplacementField(np.where(hidden[..., None], 50.0, truth).astype(np.float32), grid), hidden)
    assert np.abs(found.vectors - truth).max() < 0.02
    np.testing.assert_array_equal(found.vectors[~hidden], truth.astype(np.float32)[~hidden])


def test_it_lies_between_what_is_around_and_does_not_fold():
    rng = np.random.default_rng(0)
    grid = Grid((40, 36, 32), (2.0, 2.0, 2.0))
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=grid.shape), 4.0) for _ in range(3)], axis=-1)
    field = DisplacementField((2.0 * smooth / smooth.std()).astype(np.float32), grid)
    hidden = hidden_ball(grid, 22.0)
    found = carry_on(field, hidden)
    around = field.vectors[ndimage.binary_dilation(hidden) & ~hidden]
    assert (found.vectors[hidden] >= around.min(axis=0) - 0.01).all()
    assert (found.vectors[hidden] <= around.max(axis=0) + 0.01).all()
    assert least_determinants(found.vectors, grid).min() >= min(0.2, least_determinants(field.vectors, grid).min())
    second = sum(np.diff(found.vectors, 2, axis=axis)[_inner(axis)] for axis in range(3))
    assert np.abs(second[hidden[1:-1, 1:-1, 1:-1]]).max() < 0.02  # harmonic: the sum of second differences is zero


def _inner(axis: int) -> tuple[slice, ...]:
    return tuple(slice(None) if a == axis else slice(1, -1) for a in range(3))


def test_a_region_at_the_border_is_carried_on_too():
    grid = Grid((20, 20, 20), (2.0, 2.0, 2.0))
    hidden = np.zeros(grid.shape, dtype=bool)
    hidden[:6, :, 12:] = True
    found = carry_on(DisplacementField(np.where(hidden[..., None], 9.0, np.full((*grid.shape, 3), 1.5)), grid), hidden)
    np.testing.assert_allclose(found.vectors, 1.5, atol=1e-3)


@pytest.mark.parametrize("everywhere", [False, True])
def test_nothing_and_everything_leave_a_field_alone(everywhere):
    field = DisplacementField(np.zeros((4, 5, 6, 3)), Grid((6, 5, 4)))
    assert carry_on(field, np.full((4, 5, 6), everywhere)) is field
