"""The loops of the costs, compiled by numba when they are first used and kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from torch import Tensor

from regnet_itk.compiling import compiled, on_torch_threads


def run_costs(fixed: Tensor, moving: Tensor, offsets: list[tuple[int, int, int]], pool: int, found: Tensor) -> None:
    """Fill `found` (offset, z, y, x) as `regnet_itk.trust.costs.moved_costs` says; all float32 and contiguous."""
    f, m, out = (t.detach().numpy() for t in (fixed, moving, found))
    with on_torch_threads():
        _costs(f, m, np.array(offsets, dtype=np.int64), pool, out)


@compiled
def _costs(fixed: Any, moving: Any, offsets: Any, pool: int, found: Any) -> None:  # pragma: no cover - compiled
    """Work on one row of voxels at a time, along which values lie side by side."""
    channels, nz, ny, nx = fixed.shape
    share = np.float32(1.0) / np.float32(channels * pool * pool * pool)
    for z in prange(found.shape[1]):
        row = np.empty(nx, dtype=np.float32)
        for y in range(found.shape[2]):
            for k in range(offsets.shape[0]):
                dx = offsets[k, 2]
                first, end = max(0, -dx), min(nx, nx - dx)
                row[:] = 0.0
                for part in range(pool * pool):
                    at_z, at_y = z * pool + part // pool, y * pool + part % pool
                    to_z = min(max(at_z + offsets[k, 0], 0), nz - 1)
                    to_y = min(max(at_y + offsets[k, 1], 0), ny - 1)
                    for c in range(channels):
                        here, there = fixed[c, at_z, at_y], moving[c, to_z, to_y]
                        for x in range(min(first, nx)):
                            difference = here[x] - there[0]
                            row[x] += difference * difference
                        for x in range(first, end):
                            difference = here[x] - there[x + dx]
                            row[x] += difference * difference
                        for x in range(max(end, 0), nx):
                            difference = here[x] - there[nx - 1]
                            row[x] += difference * difference
                cells = found[k, z, y]
                for x in range(cells.shape[0]):
                    total = np.float32(0.0)
                    for inner in range(pool):
                        total += row[x * pool + inner]
                    cells[x] = total * share
