"""The inverse of transforms, with what is left of T(T^-1(y)) - y in millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import TransformError
from regnet_itk.geometry import FloatArray, Grid, Triple
from regnet_itk.transforms import BSplineTransform, Link, MatrixTransform, TransformChain

TOLERANCE = 1e-4
"""mm; a voxel whose residual is smaller is done."""

MAX_ITERATIONS = 100
_SLAB_VOXELS = 4_000_000
_SMALLEST_STEP = 1 / 64
_SAMPLES = 20_000


@dataclass(frozen=True)
class Residual:
    """Lengths of T(T^-1(y)) - y over random points y of a domain, in mm.

    Parameters
    ----------
    mean, p95, max : float
        mm.
    where : tuple of float
        The point y (LPS, mm) of the largest one.
    count : int
        Number of points.
    """

    mean: float
    p95: float
    max: float
    where: Triple
    count: int


def invert_chain(chain: TransformChain, fixed_grid: Grid) -> TransformChain:
    """Return T^-1, which maps points of the moving to the fixed image.

    Matrices are inverted exactly, displacement fields and B-splines by fixed-point iteration at every voxel.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    fixed_grid : Grid
        The fixed image's grid: B-splines are sampled on it (at most 2 mm apart) before they are inverted.

    Raises
    ------
    TransformError
        If a matrix cannot be inverted.
    """
    inverse = TransformChain()
    reached = fixed_grid
    inverted: list[MatrixTransform | DisplacementField] = []
    for transform in chain.applied(fixed_grid):
        if isinstance(transform, MatrixTransform):
            inverted.append(invert_matrix(transform))
            reached = _image_of(reached, transform)
        else:
            inverted.append(invert_field(_as_field(transform, reached)))
    for back in reversed(inverted):
        inverse = inverse.then(Link(back))
    return inverse


def invert_matrix(transform: MatrixTransform) -> MatrixTransform:
    """Return the inverse of an affine map.

    Raises
    ------
    TransformError
        If it has none.
    """
    if abs(np.linalg.det(transform.matrix)) < 1e-9:
        raise TransformError("the transform holds a matrix that cannot be inverted")
    matrix = np.linalg.inv(transform.matrix)
    return MatrixTransform(matrix, translation=-matrix @ transform.offset)


def invert_field(field: DisplacementField) -> DisplacementField:
    """Return w with y + w(y) = x wherever x + u(x) = y.

    Solves w(y) = -u(y + w(y)) at every voxel by fixed-point iteration, along the axes of the grid (so that direction
    and anisotropic spacing do not matter), with a step of each voxel's own that is halved where the residual does not
    fall. Memory is bounded: the voxels are worked on in slabs.

    Parameters
    ----------
    field : DisplacementField
        u in mm, LPS; zero outside its grid.

    Returns
    -------
    DisplacementField
        On the same voxels, and as many more around as u reaches.
    """
    to_index = np.linalg.inv(field.grid.index_to_point_matrix)
    along_axes = torch.from_numpy(np.ascontiguousarray((field.vectors @ to_index.T).astype(np.float32)))
    longest = field.vectors.reshape(-1, 3) @ to_index.T
    margin = [math.ceil(m) for m in np.abs(longest).max(axis=0)]
    wanted = field.grid.pad(margin, margin)
    nx, ny, nz = wanted.size
    source = along_axes.permute(3, 0, 1, 2)[None]
    tolerance = TOLERANCE / min(field.grid.spacing)
    found = np.empty((*wanted.shape, 3), dtype=np.float32)
    rows = max(1, _SLAB_VOXELS // (nx * ny))
    for start in range(0, nz, rows):
        stop = min(start + rows, nz)
        z, y, x = torch.meshgrid(
            torch.arange(start, stop) - margin[2], torch.arange(ny) - margin[1], torch.arange(nx) - margin[0],
            indexing="ij",
        )  # fmt: skip
        positions = torch.stack([x, y, z], dim=-1).reshape(-1, 3).float()
        solved = _solved(source, positions, tolerance).reshape(stop - start, ny, nx, 3).numpy()
        found[start:stop] = solved @ field.grid.index_to_point_matrix.T.astype(np.float32)
    return DisplacementField(found, wanted)


def inverse_points(
    chain: TransformChain, points: npt.ArrayLike, iterations: int = 200
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return the points x with T(x) = y: moving to fixed, without an inverse field.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    points : ndarray, shape (n, 3)
        y, in the moving image, mm, LPS.
    iterations : int
        At most.

    Returns
    -------
    points : ndarray, shape (n, 3)
        x, in the fixed image.
    residual : ndarray, shape (n,)
        |T(x) - y| in mm; where it is not small, y has no inverse (folding, or the border of a field).
    """
    wanted = np.atleast_2d(np.asarray(points, dtype=float))
    inverse = np.linalg.inv(_linear_part(chain, wanted))
    x = wanted + (wanted - chain.map_points(wanted)) @ inverse.T
    step = np.ones((len(wanted), 1))
    error = chain.map_points(x) - wanted
    for _ in range(iterations):
        length = np.linalg.norm(error, axis=1, keepdims=True)
        if (length < TOLERANCE / 10).all() or (step < _SMALLEST_STEP).all():
            break
        trial = x - step * (error @ inverse.T)
        trial_error = chain.map_points(trial) - wanted
        better = np.linalg.norm(trial_error, axis=1, keepdims=True) < length
        x, error = np.where(better, trial, x), np.where(better, trial_error, error)
        step = np.where(better, np.minimum(2 * step, 1.0), step / 2)
    return x, np.linalg.norm(error, axis=1)


def inverse_residual(chain: TransformChain, inverse: TransformChain, fixed_grid: Grid, seed: int = 0) -> Residual:
    """Measure T^-1(T(x)) - x, as lengths of T(T^-1(y)) - y, at random points y = T(x) with x in the fixed image.

    The points lie anywhere, mostly between voxels, so the error of interpolating the inverse counts as well.

    Parameters
    ----------
    chain, inverse : TransformChain
        T and T^-1.
    fixed_grid : Grid
        x is drawn from its box, a voxel inside the border.
    seed : int
        Of the random points.
    """
    rng = np.random.default_rng(seed)
    size = np.asarray(fixed_grid.size)
    index = rng.uniform(np.minimum(1.0, (size - 1) / 2), np.maximum(size - 2.0, (size - 1) / 2), (_SAMPLES, 3))
    y = chain.map_points(fixed_grid.index_to_point(index))
    length = np.linalg.norm(chain.map_points(inverse.map_points(y)) - y, axis=1)
    worst = int(length.argmax())
    wx, wy, wz = (float(v) for v in y[worst])
    return Residual(
        float(length.mean()), float(np.percentile(length, 95)), float(length.max()), (wx, wy, wz), len(length)
    )


def _as_field(transform: BSplineTransform | DisplacementField, grid: Grid) -> DisplacementField:
    if isinstance(transform, DisplacementField):
        return transform
    return TransformChain((Link(transform),)).displacement_on(grid.isotropic(min(2.0, *grid.spacing)))


def _solved(source: Tensor, positions: Tensor, tolerance: float) -> Tensor:
    """Solve e = -d(y + e) for points y (n, 3) in voxels, with the displacement d (1, 3, z, y, x) in voxels."""
    e = -_sampled(source, positions)
    residual = e + _sampled(source, positions + e)
    step = torch.ones(len(positions), 1)
    open_ = torch.arange(len(positions))
    for _ in range(MAX_ITERATIONS):
        open_ = open_[(residual[open_].norm(dim=1) > tolerance) & (step[open_, 0] >= _SMALLEST_STEP)]
        if not len(open_):
            break
        trial = e[open_] - step[open_] * residual[open_]
        after = trial + _sampled(source, positions[open_] + trial)
        better = after.norm(dim=1, keepdim=True) < residual[open_].norm(dim=1, keepdim=True)
        e[open_] = torch.where(better, trial, e[open_])
        residual[open_] = torch.where(better, after, residual[open_])
        step[open_] = torch.where(better, (2 * step[open_]).clamp(max=1.0), step[open_] / 2)
    return e


def _sampled(source: Tensor, positions: Tensor) -> Tensor:
    """Return d (n, 3) at positions (n, 3) in voxels: linear, constant over the outer half voxel, zero beyond it."""
    last = torch.tensor(source.shape[:1:-1], dtype=torch.float32) - 1
    where = positions * (2 / last.clamp(min=1)) - 1
    values = functional.grid_sample(source, where[None, None, None], padding_mode="border", align_corners=True)
    inside = ((positions >= -0.5) & (positions < last + 0.5)).all(dim=1, keepdim=True)
    return values[0, :, 0, 0].T * inside


def _image_of(grid: Grid, transform: MatrixTransform) -> Grid:
    """Return a grid of the same spacing, along the same axes, over the box that the matrix maps `grid` to."""
    index = grid.point_to_index(transform.map_points(grid.corners()))
    low, high = np.floor(index.min(axis=0)).astype(int), np.ceil(index.max(axis=0)).astype(int)
    return grid.crop(low.tolist(), (high - low + 1).tolist())


def _linear_part(chain: TransformChain, points: FloatArray) -> FloatArray:
    """Return the matrix that fits T best around the points, from differences over 10 mm."""
    centre = points.mean(axis=0)
    ends = centre + 50.0 * np.vstack([np.eye(3), -np.eye(3)])
    mapped = chain.map_points(ends)
    return ((mapped[:3] - mapped[3:]) / 100.0).T
