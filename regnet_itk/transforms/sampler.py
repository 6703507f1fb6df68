"""A chain of transforms at many points at once, with its Jacobian by the chain rule.

This is T wherever there are many points: on grids, in inverses, in Jacobian maps. Torch's threads share the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.transforms.base import Combine, PointSampler, Transform, TransformType
from regnet_itk.transforms.point_samplers import DifferenceSampler

_PART_POINTS = 32_768

Part = TypeVar("Part")


def prepare(transform: Transform, kind: TransformType | None) -> PointSampler:
    """Prepare a transform for many points: as its type says, or else by its `map_points`."""
    return kind.sampler(transform) if kind is not None and kind.sampler else DifferenceSampler(transform)


class ChainSampler:
    """T of a chain at many points at once; `TransformChain.sampler` makes it.

    Parameters
    ----------
    links : sequence of pairs
        How each transform joins those before it, and the transform, prepared.
    """

    def __init__(self, links: Sequence[tuple[Combine, PointSampler]]) -> None:
        self._links = tuple(links)

    def map_points(self, points: FloatArray) -> FloatArray:
        """Return T of the points (..., 3), float64, mm, LPS, on all of Torch's threads."""
        flat = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64)).reshape(-1, 3)
        found = torch.empty_like(flat)

        def fill(part: slice) -> None:
            found[part] = self.map(flat[part])

        starts = range(0, len(flat), _PART_POINTS)
        _run_on_threads(fill, [slice(start, start + _PART_POINTS) for start in starts])
        mapped: FloatArray = found.reshape(points.shape).numpy()
        return mapped

    def displacement_on(self, grid: Grid) -> DisplacementField:
        """Return T(x) - x at the voxels of a grid, float32, on all of Torch's threads."""
        return sample_field(lambda points: self.map(points) - points, grid)

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


def sample_field(displacement: Callable[[Tensor], Tensor], grid: Grid) -> DisplacementField:
    """Return a function of points (n, 3), with vectors (n, 3) in mm, as a float32 field on `grid`."""
    vectors = np.empty((*grid.shape, 3), dtype=np.float32)

    def fill(box: Box, part: Grid) -> None:
        vectors[box] = displacement(voxel_points(part)).reshape(*part.shape, 3).numpy()

    fill_in_blocks(fill, grid)
    return DisplacementField(vectors, grid)


def fill_in_blocks(fill: Callable[[Box, Grid], object], grid: Grid, step: int = 1, threads: int | None = None) -> None:
    """Call `fill` for the blocks of a grid, on several threads; see `Grid.blocks`.

    Parameters
    ----------
    fill : callable
        Fills its part of a result: is given the box of it in arrays (z, y, x) on `grid`, and the grid of that part.
    grid : Grid
    step : int
        Blocks begin at multiples of it along z and y.
    threads : int, optional
        As many as Torch has, by default.
    """
    _run_on_threads(lambda box: fill(box, grid.part(box)), grid.blocks(step), threads)


def _run_on_threads(work: Callable[[Part], object], parts: Iterable[Part], threads: int | None = None) -> None:
    """Call `work` for each part; they are too small to be shared out further, so that each thread computes alone."""
    with single_threads(threads) as pool:
        for _ in pool.map(work, parts):
            pass


class _Alone:
    """How many ask for threads in which Torch computes alone, and what Torch had before the first of them asked.

    Torch keeps one number of threads for all threads that are new to it: who asks while others have theirs would take
    1 for what there was before, and leave it behind.
    """

    lock = threading.Lock()
    users = 0
    before = 1


@contextmanager
def single_threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Give threads, as many as Torch has by default, in each of which Torch computes alone."""
    with _Alone.lock:
        if _Alone.users == 0:
            _Alone.before = torch.get_num_threads()
        _Alone.users += 1
    try:
        with ThreadPoolExecutor(count or _Alone.before, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        with _Alone.lock:
            _Alone.users -= 1
            if _Alone.users == 0:
                torch.set_num_threads(_Alone.before)
