"""A chain of transforms at many points at once, with its Jacobian: what inverses and Jacobian maps are made of.

The Jacobian is dT_i/dx_j in physical axes (LPS), by the chain rule. Matrices and B-splines are differentiated exactly;
a displacement field by central differences over one of its voxels, one-sided at its border (the derivative that ITK
takes at voxels, linear in between).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.types import BSplineTransform, MatrixTransform, Transform

_BLOCK_VOXELS = 32_768
_BLOCK_EDGE = 8  # slices


class ChainEvaluator:
    """T of a chain, prepared once and evaluated in parts.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving, mm, LPS.
    """

    def __init__(self, chain: TransformChain) -> None:
        self._links = [(link.combine, _prepared(link)) for link in chain.links]

    def map(self, points: Tensor) -> Tensor:
        """Return T of the points (n, 3), float64, mm, LPS."""
        return self._map(points, len(self._links))

    def _map(self, points: Tensor, count: int) -> Tensor:
        if count == 0:
            return points
        combine, last = self._links[count - 1]
        if combine == "innermost":
            return self._map(last.map(points), count - 1)
        before = self._map(points, count - 1)
        return before + last.map(points) - points if combine == "add" else last.map(before)

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return T of the points (n, 3), and dT_i/dx_j there as a tensor (3, 3, n), float32."""
        return self._jacobian(points, len(self._links))

    def _jacobian(self, points: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if count == 0:
            return points, torch.eye(3)[:, :, None].expand(3, 3, len(points))
        combine, last = self._links[count - 1]
        if combine == "innermost":
            inner, inner_jacobian = last.map_with_jacobian(points)
            mapped, jacobian = self._jacobian(inner, count - 1)
            return mapped, matrix_product(jacobian, inner_jacobian)
        before, jacobian = self._jacobian(points, count - 1)
        mapped, last_jacobian = last.map_with_jacobian(points if combine == "add" else before)
        if combine == "add":
            return before + mapped - points, jacobian + last_jacobian - torch.eye(3)[:, :, None]
        return mapped, matrix_product(last_jacobian, jacobian)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the products of matrices (3, 3, n), n at a time."""
    return torch.stack([a[i, 0] * b[0] + a[i, 1] * b[1] + a[i, 2] * b[2] for i in range(3)])


def determinant(matrices: Tensor) -> Tensor:
    """Return the determinants (n) of matrices (3, 3, n)."""
    (a, b, c), (d, e, f), (g, h, i) = matrices
    return a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)


def voxel_points(grid: Grid) -> Tensor:
    """Return the points (n, 3) of the voxels of a grid, float64, mm, LPS."""
    return torch.from_numpy(grid.points().reshape(-1, 3))


@dataclass(frozen=True)
class Block:
    """A part of a grid.

    Parameters
    ----------
    grid : Grid
        Of the block's own voxels.
    z, y : slice
        Where it lies in an array (z, y, x) of the whole; it has all of x.
    """

    grid: Grid
    z: slice
    y: slice


def for_blocks(work: Callable[[Block], object], grid: Grid, step: int = 1) -> None:
    """Call `work` for blocks that cover the grid, small enough for the processor's cache, on torch's threads.

    Parameters
    ----------
    work : callable
        Fills its block of a result.
    grid : Grid
    step : int
        Blocks begin at multiples of it along z and y.
    """
    nx, ny, nz = grid.size
    slices = step * max(1, round(_BLOCK_EDGE / step))
    rows = step * max(1, _BLOCK_VOXELS // (slices * nx * step))
    blocks = []
    for z in range(0, nz, slices):
        for y in range(0, ny, rows):
            size = (nx, min(rows, ny - y), min(slices, nz - z))
            blocks.append(Block(grid.crop((0, y, z), size), slice(z, z + size[2]), slice(y, y + size[1])))
    threads = torch.get_num_threads()
    try:  # a block is too small to be shared out further, so each worker computes alone
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, blocks):
                pass
    finally:
        torch.set_num_threads(threads)


class _Matrix:
    def __init__(self, transform: MatrixTransform) -> None:
        self._matrix, self._offset = torch.from_numpy(transform.matrix), torch.from_numpy(transform.offset)

    def map(self, points: Tensor) -> Tensor:
        return points @ self._matrix.T + self._offset

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
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

    Parameters
    ----------
    vectors : Tensor, shape (1, 3, z, y, x)
        float32.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors
        self.last = torch.tensor(vectors.shape[:1:-1]) - 1
        self._scale = (2.0 / self.last.clamp(min=1)).double()

    def at(self, index: Tensor) -> Tensor:
        """Return the vectors (3, n) at indices (n, 3), x first; those outside are not set to zero."""
        where = (index * self._scale - 1.0).float()[None, None, None]
        values = functional.grid_sample(self._vectors, where, padding_mode="border", align_corners=True)
        return values[0, :, 0, 0]

    def inside(self, index: Tensor) -> Tensor:
        """Say which indices (n, 3) lie in the box that the voxels fill."""
        return ((index >= -0.5) & (index < self.last + 0.5)).all(dim=1)


class _Field:
    def __init__(self, field: DisplacementField) -> None:
        vectors = np.ascontiguousarray(field.vectors, dtype=np.float32)
        self._sampler = FieldSampler(torch.from_numpy(vectors).permute(3, 0, 1, 2)[None])
        self._grid = _OnGrid(field.grid)

    def map(self, points: Tensor) -> Tensor:
        index = self._grid.index(points)
        return points + (self._sampler.at(index) * self._sampler.inside(index)).T

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        index = self._grid.index(points)
        inside = self._sampler.inside(index)
        last = self._sampler.last.double()
        slopes = []
        for axis in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[axis] = 1.0
            high = torch.minimum(index.clamp(min=0) + step, last)
            low = torch.minimum(index, last).sub(step).clamp(min=0)
            width = (high - low)[:, axis].clamp(min=1e-6).float()
            slopes.append((self._sampler.at(high) - self._sampler.at(low)) / width)
        mapped = points + (self._sampler.at(index) * inside).T
        return mapped, self._grid.jacobian(torch.stack(slopes, dim=1) * inside)


class _BSpline:
    def __init__(self, transform: BSplineTransform) -> None:
        self._order = transform.order
        coefficients = np.ascontiguousarray(np.moveaxis(transform.coefficients, -1, 0), dtype=np.float32)
        self._coefficients = torch.from_numpy(coefficients).reshape(3, -1)
        self._grid = _OnGrid(transform.grid)
        low = 0.5 * (self._order - 1)
        self._low, self._high = low, self._grid.size - 1 - low

    def map(self, points: Tensor) -> Tensor:
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
        index = self._grid.index(points)
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


def _prepared(link: Link) -> _Matrix | _Field | _BSpline:
    transform: Transform = link.transform
    if isinstance(transform, MatrixTransform):
        return _Matrix(transform)
    return _BSpline(transform) if isinstance(transform, BSplineTransform) else _Field(transform)
