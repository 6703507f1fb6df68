"""What features would differ if one image moved: the same by compiled loops, by Torch and by shifted arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regnet_itk.networks.coarse_to_fine import cube_of_offsets
from regnet_itk.trust.costs import costs_by_operations, mean_around, moved_costs


@pytest.mark.parametrize(("shape", "reach", "pool"), [((5, 9, 8, 7), 1, 2), ((3, 4, 3, 7), 3, 1), ((2, 5, 4, 6), 2, 1)])
def test_costs_are_those_of_shifted_arrays(shape: tuple[int, ...], reach: int, pool: int) -> None:
    rng = np.random.default_rng(0)
    fixed, moving = rng.normal(size=(2, *shape)).astype(np.float32)
    offsets = cube_of_offsets(reach)
    found = [
        compute(torch.from_numpy(fixed), torch.from_numpy(moving), offsets, pool).numpy()
        for compute in (moved_costs, costs_by_operations)
    ]
    size = [n // pool for n in shape[1:]]
    for k, offset in enumerate(offsets):
        there = moving
        for axis, step in enumerate(offset):
            index = np.clip(np.arange(shape[axis + 1]) + step, 0, shape[axis + 1] - 1)
            there = there.take(index, axis=axis + 1)
        squares = ((fixed - there) ** 2).mean(axis=0)[tuple(slice(0, n * pool) for n in size)]
        wanted = squares.reshape(size[0], pool, size[1], pool, size[2], pool).mean(axis=(1, 3, 5))
        for costs in found:
            np.testing.assert_allclose(costs[k], wanted, atol=1e-5)


def test_the_cost_is_least_where_the_image_went() -> None:
    image = torch.randn(4, 12, 12, 12)
    moved = torch.roll(image, (1, -2, 0), dims=(1, 2, 3))
    costs = moved_costs(image, moved, cube_of_offsets(2))[:, 3:-3, 3:-3, 3:-3]
    offset = cube_of_offsets(2)[int(costs.mean(dim=(1, 2, 3)).argmin())]
    assert offset == (1, -2, 0)


def test_means_around_keep_what_is_the_same_everywhere_and_spread_a_point() -> None:
    flat = torch.full((2, 5, 4, 3), 7.0)
    torch.testing.assert_close(mean_around(flat, 3), flat)
    point = torch.zeros(7, 7, 7)
    point[3, 3, 3] = 27.0
    spread = mean_around(point)
    assert spread[2:5, 2:5, 2:5].allclose(torch.ones(3, 3, 3))
    assert float(spread.sum()) == pytest.approx(27.0)
