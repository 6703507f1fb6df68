"""Each type of transform at many points at once, on Torch, with its Jacobian.

The Jacobian is dT_i/dx_j in physical axes (LPS). Matrices and B-splines are differentiated exactly; a displacement
field by central differences over one of its voxels, one-sided at its border (the derivative that ITK takes at voxels,
linear in between). Points are float64, mm, LPS; displacements are computed in float32.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.compiling import find_kernels
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.transforms.base import Transform


class MatrixSampler:
    """T(x) = A x + b.

    Parameters
    ----------
    matrix : ndarray, shape (3, 3)
        A.
    offset : ndarray, shape (3,)
        b in mm, LPS.
    """

    def __init__(self, matrix: FloatArray, offset: FloatArray) -> None:
        self._matrix, self._offset = torch.from_numpy(matrix), torch.from_numpy(offset)

    def map(self, points: Tensor) -> Tensor:
        """Return T of the points (n, 3)."""
        return points @ self._matrix.T + self._offset

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return T of the points, and its derivatives (3, 3, n)."""
        return self.map(points), self._matrix.float()[:, :, None].expand(3, 3, len(points))


class _OnGrid:
    """Index coordinates of points, in float64, and derivatives by index turned into derivatives by mm."""

    def __init__(self, grid: Grid) -> None:
        self._to_index = torch.from_numpy(np.linalg.inv(grid.index_to_point_matrix))
        self._origin = torch.tensor(grid.origin, dtype=torch.float64)
        self.size = torch.tensor(grid.size)

    def index(self, points: Tensor) -> Tensor:
        return (points - self._origin) @ self._to_index.T

    def jacobian(self, by_index: Tensor) -> Tensor:
        """Return I + du/dx (3, 3, n) of the derivatives of u (3, 3, n) by each index."""
        by_mm = torch.einsum("can,ak->ckn", by_index, self._to_index.float())
        return by_mm + torch.eye(3)[:, :, None]


class FieldSampler:
    """A displacement field between its voxels: linear, constant over the outer half voxel, zero beyond it.

    Torch's ``grid_sample`` would take the indices as float32 parts of the whole field, which is off by 3e-5 voxels in
    a field of 400 and leaves no vector as it was. Here the weights of the eight neighbours come from float64 indices,
    in a compiled loop; without numba and for derivatives, one ``embedding_bag`` gathers and sums them.

    Parameters
    ----------
    vectors : ndarray, shape (z, y, x, 3)
        u in mm, components x, y, z (LPS); used as float32.
    grid : Grid
        Where they lie.
    """

    def __init__(self, vectors: FloatArray, grid: Grid) -> None:
        nx, ny, _ = grid.size
        self._field = DisplacementField(np.ascontiguousarray(vectors, dtype=np.float32), grid)
        self._rows = torch.from_numpy(self._field.vectors).reshape(-1, 3)
        self._grid = _OnGrid(grid)
        self._last = torch.tensor(grid.size, dtype=torch.float64) - 1
        self._last_base = (self._last - 1).clamp(min=0)
        self._strides = torch.tensor([1, nx, nx * ny], dtype=torch.float64)
        x, y, z = torch.where(self._last > 0, self._strides, 0.0).tolist()  # an axis of one voxel has no neighbours
        count = torch.int32 if len(self._rows) < 2**31 else torch.int64
        self._corners = torch.tensor([c + b + a for c in (0, z) for b in (0, y) for a in (0, x)]).to(count)

    def map(self, points: Tensor) -> Tensor:
        """Return T(x) = x + u(x) of the points (n, 3)."""
        kernels = find_kernels("regnet_itk.transforms.field_kernels")
        if kernels is None:
            return self.map_by_operations(points)
        found = torch.empty(points.shape, dtype=torch.float64)
        kernels.map_points(self._field, points.contiguous().numpy(), found.numpy())
        return found

    def map_by_operations(self, points: Tensor) -> Tensor:
        """Return what :meth:`map` does, in Torch's operations."""
        index, inside = self._located(points)
        return points + self._at(index) * inside[:, None]

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return T of the points, and its derivatives (3, 3, n)."""
        index, inside = self._located(points)
        slopes = []
        for axis in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[axis] = 1.0
            high = torch.minimum(index.clamp(min=0) + step, self._last)
            low = torch.minimum(index, self._last).sub(step).clamp(min=0)
            width = (high - low)[:, axis].clamp(min=1e-6).float()
            slopes.append((self._at(high) - self._at(low)).T / width)
        mapped = points + self._at(index) * inside[:, None]
        return mapped, self._grid.jacobian(torch.stack(slopes, dim=1) * inside)

    def _located(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices (n, 3), x first, and which of them lie in the box that the voxels fill."""
        index = self._grid.index(points).nan_to_num_(-1.0)
        return index, ((index >= -0.5) & (index < self._last + 0.5)).all(dim=1)

    def _at(self, index: Tensor) -> Tensor:
        """Return the vectors (n, 3) at indices (n, 3); beyond the border they are those of the border."""
        base = torch.minimum(index.floor().clamp_(min=0), self._last_base)
        high = (index - base).clamp_(0.0, 1.0).float().T.contiguous()
        low = 1 - high
        rows = torch.stack([low[2], high[2]])[:, None] * torch.stack([low[1], high[1]])
        rows = rows.reshape(4, -1)
        weights = torch.empty(len(index), 4, 2)
        torch.mul(rows, low[0], out=weights[:, :, 0].T)
        torch.mul(rows, high[0], out=weights[:, :, 1].T)
        corners = (base @ self._strides).to(self._corners.dtype)[:, None] + self._corners
        return functional.embedding_bag(corners, self._rows, per_sample_weights=weights.view(-1, 8), mode="sum")


class BSplineSampler:
    """B-splines on a grid of control points; the identity outside the grid's valid region.

    Parameters
    ----------
    coefficients : ndarray, shape (z, y, x, 3)
        In mm, components x, y, z (LPS); used as float32.
    grid : Grid
        The control points.
    order : {1, 2, 3}
    """

    def __init__(self, coefficients: FloatArray, grid: Grid, order: int) -> None:
        self._order = order
        first = np.ascontiguousarray(np.moveaxis(coefficients, -1, 0), dtype=np.float32)
        self._coefficients = torch.from_numpy(first).reshape(3, -1)
        self._grid = _OnGrid(grid)
        low = 0.5 * (self._order - 1)
        self._low, self._high = low, self._grid.size - 1 - low

    def map(self, points: Tensor) -> Tensor:
        """Return T of the points (n, 3)."""
        valid, base, offset = self._located(points)
        wx, wy, wz = (self._weights(offset[:, axis]) for axis in range(3))
        value = torch.zeros(3, len(points))
        for z, w in enumerate(wz):
            plane = torch.zeros_like(value)
            for y, v in enumerate(wy):
                plane += v * _weighted(wx, self._taps(base, z, y))
            value += w * plane
        return points + (value * valid).T

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return T of the points, and its derivatives (3, 3, n)."""
        valid, base, offset = self._located(points)
        wx, wy, wz = (self._weights(offset[:, axis]) for axis in range(3))
        dx, dy, dz = (self._slopes(offset[:, axis]) for axis in range(3))
        value, by_x, by_y, by_z = (torch.zeros(3, len(points)) for _ in range(4))
        for z in range(self._order + 1):
            plane, plane_x, plane_y = (torch.zeros_like(value) for _ in range(3))
            for y in range(self._order + 1):
                taps = self._taps(base, z, y)
                row = _weighted(wx, taps)
                plane += wy[y] * row
                plane_x += wy[y] * _weighted(dx, taps)
                plane_y += dy[y] * row
            value += wz[z] * plane
            by_x += wz[z] * plane_x
            by_y += wz[z] * plane_y
            by_z += dz[z] * plane
        slopes = torch.stack([by_x, by_y, by_z], dim=1)
        return points + (value * valid).T, self._grid.jacobian(slopes * valid)

    def _located(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which points are valid, their first control point, and their distance (n, 3) from it in indices."""
        index = self._grid.index(points).nan_to_num_(-1e9)
        valid = ((index >= self._low) & (index < self._high)).all(dim=1)
        base = torch.floor(index - self._low).clamp(min=0)
        base = torch.minimum(base, (self._grid.size - 1 - self._order).double())
        nx, ny, _ = self._grid.size.tolist()
        x, y, z = base.long().T
        return valid, (z * ny + y) * nx + x, (index - base).float().clamp(-1.0, self._order + 1.0)

    def _weights(self, offset: Tensor) -> list[Tensor]:
        return [centred_bspline(offset - k, self._order) for k in range(self._order + 1)]

    def _slopes(self, offset: Tensor) -> list[Tensor]:
        steps = [centred_bspline(offset - k + 0.5, self._order - 1) for k in range(self._order + 2)]
        return [before - after for before, after in pairwise(steps)]

    def _taps(self, base: Tensor, z: int, y: int) -> list[Tensor]:
        """Return the coefficients (3, n) of the control points along x, in a row of those around each point."""
        nx, ny, _ = self._grid.size.tolist()
        first = base + (z * ny + y) * nx
        return [self._coefficients.index_select(1, first + x) for x in range(self._order + 1)]


def _weighted(weights: list[Tensor], taps: list[Tensor]) -> Tensor:
    total = weights[0] * taps[0]
    for weight, tap in zip(weights[1:], taps[1:], strict=True):
        total += weight * tap
    return total


class DifferenceSampler:
    """A transform of any type: mapped by its `map_points`, differentiated by central differences.

    Parameters
    ----------
    transform : Transform
        Something with `map_points`.
    step : float
        Half of the distance over which differences are taken, in mm.
    """

    def __init__(self, transform: Transform, step: float = 1e-2) -> None:
        self._transform, self._step = transform, step

    def map(self, points: Tensor) -> Tensor:
        """Return T of the points (n, 3)."""
        return torch.from_numpy(np.ascontiguousarray(self._transform.map_points(points.numpy()), dtype=np.float64))

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return T of the points, and its derivatives (3, 3, n)."""
        steps = self._step * torch.eye(3, dtype=torch.float64)
        columns = [(self.map(points + step) - self.map(points - step)) / (2 * self._step) for step in steps]
        return self.map(points), torch.stack(columns).permute(2, 0, 1).float()


def centred_bspline(t: Tensor, order: int) -> Tensor:
    """Return the centred B-spline of an order from 0 to 3 at t."""
    a = t.abs()
    if order == 0:
        return ((t >= -0.5) & (t < 0.5)).to(t.dtype)
    if order == 1:
        return (1 - a).clamp(min=0)
    if order == 2:
        return torch.where(a <= 0.5, 0.75 - a * a, 0.5 * (1.5 - a).clamp(min=0) ** 2)
    return torch.where(a <= 1, 2 / 3 - a * a * (1 - a / 2), (2 - a).clamp(min=0) ** 3 / 6)
