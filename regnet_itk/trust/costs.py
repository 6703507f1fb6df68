"""What the difference of two images' features would be if one of them moved by some voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.compiling import find_kernels
from regnet_itk.networks.correlation import Offsets


def moved_costs(fixed: Tensor, moving: Tensor, offsets: Offsets, pool: int = 1) -> Tensor:
    """Return the mean squared difference of features after each of some steps.

    Parameters
    ----------
    fixed, moving : Tensor, shape (channel, z, y, x)
        float32. Beyond the border they continue with the border's values.
    offsets : list of (dz, dy, dx)
        Steps, in voxels: the fixed features at x meet the moving ones at x + step.
    pool : int
        Voxels along an edge of the cubes that the differences are averaged over; what is left over at the ends of the
        axes is dropped.

    Returns
    -------
    Tensor, shape (offset, z // pool, y // pool, x // pool)
    """
    size = [n // pool for n in fixed.shape[1:]]
    kernels = _kernels() if fixed.device.type == "cpu" and fixed.dtype == torch.float32 else None
    if kernels is None:
        return costs_by_operations(fixed, moving, offsets, pool)
    found = torch.empty(len(offsets), *size)
    kernels.run_costs(fixed.contiguous(), moving.contiguous(), offsets, pool, found)
    return found


def _kernels() -> Any:
    return find_kernels("regnet_itk.trust.cost_kernels")


def costs_by_operations(fixed: Tensor, moving: Tensor, offsets: Offsets, pool: int) -> Tensor:
    """Do what :func:`moved_costs` does, in Torch's operations."""
    reach = max(abs(step) for offset in offsets for step in offset)
    padded = functional.pad(moving[None], [reach] * 6, mode="replicate")[0]
    found = []
    for offset in offsets:
        there = padded
        for axis, step in enumerate(offset):
            there = there.narrow(axis + 1, reach + step, fixed.shape[axis + 1])
        found.append(functional.avg_pool3d((fixed - there).square().mean(0)[None, None], pool)[0, 0])
    return torch.stack(found)


def mean_around(values: Tensor, times: int = 1) -> Tensor:
    """Average each of some maps (.., z, y, x) over cubes of 3 voxels, repeatedly; with both neighbours at a border."""
    for _ in range(times):
        for axis in (-1, -2, -3):
            values = _mean_of_three(values, axis)
    return values


def _mean_of_three(values: Tensor, axis: int) -> Tensor:
    """Average with both neighbours along an axis: several times faster than pooling of many channels."""
    count = values.shape[axis]
    found = values.clone()
    found.narrow(axis, 1, count - 1).add_(values.narrow(axis, 0, count - 1))
    found.narrow(axis, 0, count - 1).add_(values.narrow(axis, 1, count - 1))
    found.narrow(axis, 0, 1).add_(values.narrow(axis, 0, 1))
    found.narrow(axis, count - 1, 1).add_(values.narrow(axis, count - 1, 1))
    return found.div_(3.0)
