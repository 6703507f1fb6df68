"""The correlation's loops, compiled by numba when they are first used and kept on disk.

Every thread works on sections of its own and on one row of voxels at a time: the rows of all channels stay in the
cache while they meet their neighbours, and the innermost loop runs along x, where values lie side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

from regnet_itk.compiling import compiled, on_torch_threads


def run_forward(fixed: Tensor, moving: Tensor, offsets: list[tuple[int, int, int]], found: Tensor) -> None:
    """Fill `found` (offset, z, y, x) from features (channel, z, y, x); all float32 and contiguous."""
    f, m, out = (t.detach().numpy() for t in (fixed, moving, found))
    with on_torch_threads():
        _forward(f, m, np.array(offsets, dtype=np.int64), out)


def run_backward(
    gradient: Tensor,
    fixed: Tensor,
    moving: Tensor,
    offsets: list[tuple[int, int, int]],
    found: tuple[Tensor, Tensor],
) -> None:
    """Fill `found`, the gradients of both features, from that of what :func:`run_forward` found."""
    there = np.array(offsets, dtype=np.int64)
    g, f, m, df, dm = (t.detach().numpy() for t in (gradient, fixed, moving, *found))
    with on_torch_threads():
        _gather(g, m, there, df)
        _scatter(g, f, there, dm)


@compiled
def _forward(fixed: Any, moving: Any, offsets: Any, found: Any) -> None:  # pragma: no cover - compiled
    channels, nz, ny, nx = fixed.shape
    for z in prange(nz):
        for y in range(ny):
            for k in range(offsets.shape[0]):
                at_z, at_y, dx = z + offsets[k, 0], y + offsets[k, 1], offsets[k, 2]
                row = found[k, z, y]
                row[:] = 0.0
                if 0 <= at_z < nz and 0 <= at_y < ny:
                    first, end = max(0, -dx), min(nx, nx - dx)
                    for c in range(channels):
                        here, there = fixed[c, z, y], moving[c, at_z, at_y]
                        for x in range(first, end):
                            row[x] += here[x] * there[x + dx]


@compiled
def _gather(gradient: Any, moving: Any, offsets: Any, of_fixed: Any) -> None:  # pragma: no cover - compiled
    channels, nz, ny, nx = moving.shape
    for z in prange(nz):
        for y in range(ny):
            for c in range(channels):
                of_fixed[c, z, y, :] = 0.0
            for k in range(offsets.shape[0]):
                at_z, at_y, dx = z + offsets[k, 0], y + offsets[k, 1], offsets[k, 2]
                if 0 <= at_z < nz and 0 <= at_y < ny:
                    first, end = max(0, -dx), min(nx, nx - dx)
                    weight = gradient[k, z, y]
                    for c in range(channels):
                        row, there = of_fixed[c, z, y], moving[c, at_z, at_y]
                        for x in range(first, end):
                            row[x] += weight[x] * there[x + dx]


@compiled
def _scatter(gradient: Any, fixed: Any, offsets: Any, of_moving: Any) -> None:  # pragma: no cover - compiled
    channels, nz, ny, nx = fixed.shape
    for z in prange(nz):
        for y in range(ny):
            for c in range(channels):
                of_moving[c, z, y, :] = 0.0
            for k in range(offsets.shape[0]):
                from_z, from_y, dx = z - offsets[k, 0], y - offsets[k, 1], offsets[k, 2]
                if 0 <= from_z < nz and 0 <= from_y < ny:
                    first, end = max(0, dx), min(nx, nx + dx)
                    weight = gradient[k, from_z, from_y]
                    for c in range(channels):
                        row, there = of_moving[c, z, y], fixed[c, from_z, from_y]
                        for x in range(first, end):
                            row[x] += weight[x - dx] * there[x - dx]
