"""The loops of cubic splines, compiled by numba when they are first used and kept on disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from regnet_itk.compiling import compiled_for_one_thread
from regnet_itk.data.point_kernels import index_of

_F = np.float32
_POLE = _F(-0.2679491924311227)  # sqrt(3) - 2
_HORIZON = 20
"""Voxels; what is farther away counts less than float32 can tell."""

_SIDE_BY_SIDE = 16
"""Rows along x that are turned, to be worked on side by side."""


@njit(inline="always")
def _first(rows: Any, into: Any) -> None:  # pragma: no cover - compiled
    """Sum what lies before each column's first value, which is mirrored there."""
    count, width = rows.shape
    into[:] = 0.0
    power = _F(1.0)
    for k in range(_HORIZON):  # a mirror at each end: 0 1 .. n-1 n-2 .. 1 0 1 ..
        at = k % (2 * count - 2)
        at = min(at, 2 * count - 2 - at)
        for x in range(width):
            into[x] += power * rows[at, x]
        power *= _POLE


@njit(inline="always")
def _filter(rows: Any, first: Any) -> None:  # pragma: no cover - compiled
    """Turn values into coefficients, along the first axis of `rows` (n, m), in place; n is 2 or more."""
    count, width = rows.shape
    for k in range(count):
        for x in range(width):
            rows[k, x] *= _F(6.0)
    _first(rows, first)
    rows[0] = first
    for k in range(1, count):
        for x in range(width):
            rows[k, x] += _POLE * rows[k - 1, x]
    factor = _POLE / (_POLE * _POLE - _F(1.0))
    for x in range(width):
        rows[count - 1, x] = factor * (rows[count - 1, x] + _POLE * rows[count - 2, x])
    for k in range(count - 2, -1, -1):
        for x in range(width):
            rows[k, x] = _POLE * (rows[k + 1, x] - rows[k, x])


@compiled_for_one_thread
def filter_slices(values: Any) -> None:  # pragma: no cover - compiled
    """Turn values (z, y, x), float32, into coefficients along x and y, in place."""
    nz, ny, nx = values.shape
    turned, first = np.empty((nx, _SIDE_BY_SIDE), dtype=np.float32), np.empty(max(nx, _SIDE_BY_SIDE), dtype=np.float32)
    for z in range(nz):
        _filter(values[z], first[:nx])
        for start in range(0, ny, _SIDE_BY_SIDE):
            rows = min(_SIDE_BY_SIDE, ny - start)
            for y in range(rows):
                for x in range(nx):
                    turned[x, y] = values[z, start + y, x]
            _filter(turned[:, :rows], first[:rows])
            for y in range(rows):
                for x in range(nx):
                    values[z, start + y, x] = turned[x, y]


@compiled_for_one_thread
def filter_across(values: Any) -> None:  # pragma: no cover - compiled
    """Turn values (z, y, x), float32, into coefficients along z, in place."""
    first = np.empty(values.shape[2], dtype=np.float32)
    for y in range(values.shape[1]):
        _filter(values[:, y], first)


@njit(inline="always")
def _weights(t: Any) -> Any:  # pragma: no cover - compiled
    """Return the weights of the coefficients at -1, 0, 1 and 2 for a place t between 0 and 1."""
    u = _F(1.0) - t
    return (
        u * u * u * _F(1 / 6),
        _F(2 / 3) - _F(0.5) * t * t * (_F(2.0) - t),
        _F(2 / 3) - _F(0.5) * u * u * (_F(2.0) - u),
        t * t * t * _F(1 / 6),
    )


@njit(inline="always")
def _row(c: Any, at: int, w: Any) -> Any:  # pragma: no cover - compiled
    return w[0] * c[at] + w[1] * c[at + 1] + w[2] * c[at + 2] + w[3] * c[at + 3]


@njit(inline="always")
def _plane(c: Any, at: int, step: int, along_x: Any, w: Any) -> Any:  # pragma: no cover - compiled
    return (
        w[0] * _row(c, at, along_x)
        + w[1] * _row(c, at + step, along_x)
        + w[2] * _row(c, at + 2 * step, along_x)
        + w[3] * _row(c, at + 3 * step, along_x)
    )


@njit(inline="always")
def _mirrored(index: int, count: int) -> Any:  # pragma: no cover - compiled
    return count - 1 - abs(count - 1 - abs(index))


@compiled_for_one_thread
def evaluate(
    coefficients: Any, points: Any, matrix: Any, default: float, found: Any
) -> None:  # pragma: no cover - compiled
    """Fill `found` (n) with the splines' values at points (n, 3), x first, in mm; `default` outside of the voxels.

    `matrix` is the grid's :func:`index_matrix`.
    """
    nz, ny, nx = coefficients.shape
    c, step_y, step_z = coefficients.ravel(), nx, nx * ny
    for n in range(points.shape[0]):
        x, y, z = index_of(points[n], matrix)
        if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5 and -0.5 <= z < nz - 0.5):
            found[n] = default
            continue
        ix, iy, iz = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
        wx, wy, wz = _weights(_F(x - ix)), _weights(_F(y - iy)), _weights(_F(z - iz))
        if 1 <= ix < nx - 2 and 1 <= iy < ny - 2 and 1 <= iz < nz - 2:
            at = (iz - 1) * step_z + (iy - 1) * step_y + ix - 1
            found[n] = (
                wz[0] * _plane(c, at, step_y, wx, wy)
                + wz[1] * _plane(c, at + step_z, step_y, wx, wy)
                + wz[2] * _plane(c, at + 2 * step_z, step_y, wx, wy)
                + wz[3] * _plane(c, at + 3 * step_z, step_y, wx, wy)
            )
        else:
            total = _F(0.0)
            for k in range(4):
                for j in range(4):
                    row = _mirrored(iz - 1 + k, nz) * step_z + _mirrored(iy - 1 + j, ny) * step_y
                    for i in range(4):
                        total += wx[i] * wy[j] * wz[k] * c[row + _mirrored(ix - 1 + i, nx)]
            found[n] = total
