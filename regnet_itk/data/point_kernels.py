"""Where a point lies on a grid, for the compiled loops over many points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from regnet_itk.data.grid import FloatArray, Grid


def index_matrix(grid: Grid) -> FloatArray:
    """Return what :func:`index_of` needs of a grid: (3, 4), indices by mm, and the origin as the last column."""
    return np.column_stack([np.linalg.inv(grid.index_to_point_matrix), grid.origin])


@njit(inline="always")
def index_of(point: Any, matrix: Any) -> Any:  # pragma: no cover - compiled
    """Return the index x, y, z of a point in mm by the :func:`index_matrix` of the grid."""
    x, y, z = point[0] - matrix[0, 3], point[1] - matrix[1, 3], point[2] - matrix[2, 3]
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z,
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z,
        matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z,
    )
