"""The loop that maps points by a displacement field, compiled by numba when it is first used and kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from regnet_itk.compiling import compiled_for_one_thread
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.point_kernels import index_matrix, index_of


@njit(inline="always")
def _corner(size: int, place: Any) -> Any:  # pragma: no cover - compiled
    """Return the voxel below a place of an axis, the one above, and how far the place is between them."""
    low = min(max(int(np.floor(place)), 0), max(size - 2, 0))
    return low, min(low + 1, size - 1), np.float32(min(max(place - low, 0.0), 1.0))


def map_points(field: DisplacementField, points: FloatArray, found: FloatArray) -> None:
    """Fill `found` (n, 3) with points (n, 3), x first, in mm, plus the vectors there.

    Between voxels vectors are linear, over the outer half voxel those of the border, and zero beyond it.
    """
    _map(field.vectors, index_matrix(field.grid), points, found)


@compiled_for_one_thread
def _map(vectors: Any, matrix: Any, points: Any, found: Any) -> None:  # pragma: no cover - compiled
    nz, ny, nx, _ = vectors.shape
    for n in range(points.shape[0]):
        x, y, z = index_of(points[n], matrix)
        if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5):
            found[n] = points[n]
            continue
        x0, x1, fx = _corner(nx, x)
        y0, y1, fy = _corner(ny, y)
        z0, z1, fz = _corner(nz, z)
        gx, gy, gz = np.float32(1.0) - fx, np.float32(1.0) - fy, np.float32(1.0) - fz
        for c in range(3):
            below = (vectors[z0, y0, x0, c] * gx + vectors[z0, y0, x1, c] * fx) * gy + (
                vectors[z0, y1, x0, c] * gx + vectors[z0, y1, x1, c] * fx
            ) * fy
            above = (vectors[z1, y0, x0, c] * gx + vectors[z1, y0, x1, c] * fx) * gy + (
                vectors[z1, y1, x0, c] * gx + vectors[z1, y1, x1, c] * fx
            ) * fy
            found[n, c] = points[n, c] + (below * gz + above * fz)
