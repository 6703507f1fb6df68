"""The loops that interpolate features between voxels, compiled by numba when they are first used and kept on disk."""

from __future__ import annotations

from typing import Any

from numba import njit, prange
from torch import Tensor

from regnet_itk.compiling import compiled, on_torch_threads


def run_forward(features: Tensor, index: Tensor, found: Tensor) -> None:
    """Fill `found` (n, channel) with the features (z, y, x, channel) at indices (n, 3) within them.

    All are contiguous and float32.
    """
    with on_torch_threads():
        _forward(features.numpy(), index.numpy(), found.numpy())


def run_backward(features: Tensor, index: Tensor, gradient: Tensor, found: Tensor) -> None:
    """Fill `found` (n, 3) with the gradient by the indices, for the `gradient` (n, channel) by the values."""
    with on_torch_threads():
        _backward(features.numpy(), index.numpy(), gradient.numpy(), found.numpy())


@njit(inline="always")
def _corner(size: int, place: Any) -> Any:  # pragma: no cover - compiled
    """Return the voxel below a place of an axis, the one above, and how far the place is between them."""
    low = min(int(place), max(size - 2, 0))
    return low, min(low + 1, size - 1), place - low


@compiled
def _forward(features: Any, index: Any, found: Any) -> None:  # pragma: no cover - compiled
    """Interpolate linearly."""
    nz, ny, nx, channels = features.shape
    for n in prange(index.shape[0]):
        z0, z1, fz = _corner(nz, index[n, 0])
        y0, y1, fy = _corner(ny, index[n, 1])
        x0, x1, fx = _corner(nx, index[n, 2])
        for c in range(channels):
            below = (features[z0, y0, x0, c] * (1 - fx) + features[z0, y0, x1, c] * fx) * (1 - fy) + (
                features[z0, y1, x0, c] * (1 - fx) + features[z0, y1, x1, c] * fx
            ) * fy
            above = (features[z1, y0, x0, c] * (1 - fx) + features[z1, y0, x1, c] * fx) * (1 - fy) + (
                features[z1, y1, x0, c] * (1 - fx) + features[z1, y1, x1, c] * fx
            ) * fy
            found[n, c] = below * (1 - fz) + above * fz


@compiled
def _backward(features: Any, index: Any, gradient: Any, found: Any) -> None:  # pragma: no cover - compiled
    """Sum over the channels what each one changes by along each axis, times its gradient."""
    nz, ny, nx, channels = features.shape
    for n in prange(index.shape[0]):
        z0, z1, fz = _corner(nz, index[n, 0])
        y0, y1, fy = _corner(ny, index[n, 1])
        x0, x1, fx = _corner(nx, index[n, 2])
        along_z = along_y = along_x = features.dtype.type(0)
        for c in range(channels):
            a, b = features[z0, y0, x0, c], features[z0, y0, x1, c]
            d, e = features[z0, y1, x0, c], features[z0, y1, x1, c]
            f, g = features[z1, y0, x0, c], features[z1, y0, x1, c]
            h, i = features[z1, y1, x0, c], features[z1, y1, x1, c]
            front, back = a + (b - a) * fx, d + (e - d) * fx
            front_up, back_up = f + (g - f) * fx, h + (i - h) * fx
            weight = gradient[n, c]
            along_z += weight * ((front_up - front) * (1 - fy) + (back_up - back) * fy)
            along_y += weight * ((back - front) * (1 - fz) + (back_up - front_up) * fz)
            along_x += weight * (
                ((b - a) * (1 - fy) + (e - d) * fy) * (1 - fz) + ((g - f) * (1 - fy) + (i - h) * fy) * fz
            )
        found[n, 0], found[n, 1], found[n, 2] = along_z, along_y, along_x
