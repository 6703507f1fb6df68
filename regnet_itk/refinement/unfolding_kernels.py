"""The loop that measures folding, compiled by numba when it is first used and kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from regnet_itk.compiling import compiled, on_torch_threads


def run_determinants(vectors: Any, edges: Any, found: Any) -> None:
    """Fill `found` (z - 1, y - 1, x - 1) as `regnet_itk.refinement.unfolding.least_determinants` says."""
    with on_torch_threads():
        _determinants(vectors, edges, found)


@njit(inline="always")
def _edge(u: Any, edges: Any, k: int, a: Any, b: Any) -> Any:  # pragma: no cover - compiled
    """Return where the edge k of a cell, from the voxel a to the voxel b, is taken."""
    return (
        edges[0, k] + u[b[0], b[1], b[2], 0] - u[a[0], a[1], a[2], 0],
        edges[1, k] + u[b[0], b[1], b[2], 1] - u[a[0], a[1], a[2], 1],
        edges[2, k] + u[b[0], b[1], b[2], 2] - u[a[0], a[1], a[2], 2],
    )


@njit(inline="always")
def _product(p: Any, q: Any, r: Any) -> Any:  # pragma: no cover - compiled
    return p[0] * (q[1] * r[2] - q[2] * r[1]) - p[1] * (q[0] * r[2] - q[2] * r[0]) + p[2] * (q[0] * r[1] - q[1] * r[0])


@compiled
def _determinants(u: Any, edges: Any, found: Any) -> None:  # pragma: no cover - compiled
    e = edges
    share = np.float32(1.0) / _product(e[:, 0], e[:, 1], e[:, 2])  # below zero on a left-handed grid
    for z in prange(found.shape[0]):
        for y in range(found.shape[1]):
            for x in range(found.shape[2]):
                least = np.float32(np.inf)
                for k in range(2):
                    for j in range(2):
                        for i in range(2):
                            along_x = _edge(u, e, 0, (z + k, y + j, x), (z + k, y + j, x + 1))
                            along_y = _edge(u, e, 1, (z + k, y, x + i), (z + k, y + 1, x + i))
                            along_z = _edge(u, e, 2, (z, y + j, x + i), (z + 1, y + j, x + i))
                            least = min(least, _product(along_x, along_y, along_z) * share)
                found[z, y, x] = least
