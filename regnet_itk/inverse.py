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
from regnet_itk.evaluator import Block, ChainEvaluator, determinant, for_blocks, matrix_product, voxel_points
from regnet_itk.geometry import FloatArray, Grid, Triple
from regnet_itk.transforms import Link, MatrixTransform, TransformChain

TOLERANCE = 1e-4
"""mm; a voxel whose residual is smaller is done."""

MAX_ITERATIONS = 100
FAILED_SHARE = 1e-3
"""An inverse has failed if more than this share of the points has a residual above half a voxel."""

_SMALLEST_STEP = 1 / 64
_SAMPLES = 20_000
_COARSE_STEP = 4  # voxels; on this grid the inverse is found first
_SMALLEST_DETERMINANT = 0.05
_NEWTON_ROUNDS = 5


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
    failed : float
        Share (0 to 1) of the points whose residual is above half of the inverse's smallest voxel edge.
    folding : float
        Share (0 to 1) of the points where T folds (det J <= 0): there, several points x have the same T(x).
    """

    mean: float
    p95: float
    max: float
    where: Triple
    count: int
    failed: float = 0.0
    folding: float = 0.0


def invert_chain(chain: TransformChain, fixed_grid: Grid, grid: Grid | None = None) -> TransformChain:
    """Return T^-1, which maps points of the moving to the fixed image.

    A chain of matrices gives one matrix, exactly. Any other gives the inverse B of the product of its matrices, and on
    top of it ("add") a displacement field T^-1(y) - B(y), for which T(x) = y is solved at every voxel. Outside of the
    field's grid, B is left.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    fixed_grid : Grid
        The fixed image's grid.
    grid : Grid, optional
        Voxels of the inverse's field, in the moving image. By default those of `image_grid`.

    Raises
    ------
    TransformError
        If a matrix cannot be inverted.
    """
    matrix = chain.as_matrix()
    if matrix is not None:
        return TransformChain((Link(invert_matrix(matrix)),))
    matrices = tuple(link for link in chain.links if isinstance(link.transform, MatrixTransform))
    product = TransformChain(matrices).as_matrix()
    assert product is not None
    base = invert_matrix(product)
    field = _solved(chain, base, grid or image_grid(chain, fixed_grid))
    return TransformChain((Link(base), Link(field, "add")) if matrices else (Link(field),))


def image_grid(chain: TransformChain, fixed_grid: Grid) -> Grid:
    """Return the grid with the voxels of the fixed image, along its axes, over all that T maps its box to."""
    size = np.asarray(fixed_grid.size)
    lattice = np.linspace(-0.5, size - 0.5, 17)
    index = np.stack(np.meshgrid(*lattice.T, indexing="ij"), axis=-1).reshape(-1, 3)
    reached = fixed_grid.point_to_index(chain.map_points(fixed_grid.index_to_point(index)))
    low, high = np.floor(reached.min(axis=0)).astype(int), np.ceil(reached.max(axis=0)).astype(int)
    return fixed_grid.crop(low.tolist(), (high - low + 1).tolist())


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

    Parameters
    ----------
    field : DisplacementField
        u in mm, LPS; zero outside its grid.

    Returns
    -------
    DisplacementField
        On the same voxels, and as many more around as u reaches.
    """
    reach = [float(np.abs(field.vectors[..., c]).max()) for c in range(3)]
    to_index = np.abs(np.linalg.inv(field.grid.index_to_point_matrix))
    margin = [math.ceil(m) for m in to_index @ reach]
    return _solved(TransformChain((Link(field),)), MatrixTransform(np.eye(3)), field.grid.pad(margin, margin))


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


def inverse_residual(
    chain: TransformChain, inverse: TransformChain, fixed_grid: Grid, seed: int = 0, grid: Grid | None = None
) -> Residual:
    """Measure T(T^-1(y)) - y at random points y = T(x) with x in the fixed image.

    The points lie anywhere, mostly between voxels, so the error of interpolating the inverse counts as well.

    Parameters
    ----------
    chain, inverse : TransformChain
        T and T^-1.
    fixed_grid : Grid
        x is drawn from its box, a voxel inside the border.
    seed : int
        Of the random points.
    grid : Grid, optional
        Only points y in its box count; for an inverse that was made on this grid.

    Raises
    ------
    TransformError
        If no point lies in `grid`.
    """
    rng = np.random.default_rng(seed)
    size = np.asarray(fixed_grid.size)
    index = rng.uniform(np.minimum(1.0, (size - 1) / 2), np.maximum(size - 2.0, (size - 1) / 2), (_SAMPLES, 3))
    mapped, jacobian = ChainEvaluator(chain).map_with_jacobian(torch.from_numpy(fixed_grid.index_to_point(index)))
    y, folded = mapped.numpy(), (determinant(jacobian) <= 0).numpy()
    if grid is not None:
        inside = grid.crop((1, 1, 1), [max(1, n - 2) for n in grid.size]).contains(y)
        if not inside.any():
            raise TransformError("the grid of the inverse lies outside of what the transform maps the fixed image to")
        y, folded = y[inside], folded[inside]
    length = np.linalg.norm(chain.map_points(inverse.map_points(y)) - y, axis=1)
    worst = int(length.argmax())
    wx, wy, wz = (float(v) for v in y[worst])
    edge = min(*(grid or fixed_grid).spacing, *fixed_grid.spacing)
    return Residual(
        float(length.mean()), float(np.percentile(length, 95)), float(length.max()), (wx, wy, wz), len(length),
        float((length > 0.5 * edge).mean()), float(folded.mean()),
    )  # fmt: skip


def _solved(chain: TransformChain, base: MatrixTransform, grid: Grid) -> DisplacementField:
    """Return the field T^-1(y) - B(y), float32, with T(x) = y solved at every voxel y of `grid`."""
    solver = _Solver(chain, base)
    step = _COARSE_STEP
    nx, ny, nz = (math.ceil((n - 1) / step) + 1 for n in grid.size)
    sx, sy, sz = (s * step for s in grid.spacing)
    start = solver.start_on(Grid((nx, ny, nz), (sx, sy, sz), grid.origin, grid.direction))
    found = np.empty((*grid.shape, 3), dtype=np.float32)

    def fill(block: Block) -> None:
        z, y = (slice(part.start // step, (part.stop - 2) // step + 2) for part in (block.z, block.y))
        near = start[:, z, y]
        finer = [1 + step * (n - 1) for n in near.shape[1:]]
        guess = functional.interpolate(near[None], finer, mode="trilinear", align_corners=True)[0]
        nz, ny, nx = block.grid.shape
        guess = guess[:, :nz, :ny, :nx].reshape(12, -1)
        found[block.z, block.y] = solver.refined(voxel_points(block.grid), guess).reshape(nz, ny, nx, 3)

    for_blocks(fill, grid, step)
    return DisplacementField(found, grid)


class _Solver:
    """Solves T(x) = y by steps x - K (T(x) - y), with K near the inverse of the Jacobian of T.

    On a coarse grid K is the matrix of B. On the fine grid the start and K come from the coarse one, so that two or
    three steps are enough. A step that does not make the residual smaller is not taken, but halved.
    """

    def __init__(self, chain: TransformChain, base: MatrixTransform) -> None:
        self._forward = ChainEvaluator(chain)
        self._matrix, self._offset = torch.from_numpy(base.matrix), torch.from_numpy(base.offset)

    def base(self, y: Tensor) -> Tensor:
        return y @ self._matrix.T + self._offset

    def start_on(self, grid: Grid) -> Tensor:
        """Return T^-1(y) - B(y) and the 9 numbers of K, as a tensor (12, z, y, x)."""
        found = torch.empty(12, *grid.shape)

        def fill(block: Block) -> None:
            y = voxel_points(block.grid)
            x, _ = self._from_base(y)
            k = self._newton_matrix(x)
            part = torch.cat([(x - self.base(y)).T.float(), k.reshape(9, -1)])
            found[:, block.z, block.y] = part.reshape(12, *block.grid.shape)

        for_blocks(fill, grid)
        return found

    def refined(self, y: Tensor, guess: Tensor) -> FloatArray:
        """Return T^-1(y) - B(y) (n, 3) of the points y (n, 3), from the guess (12, n) of `start_on`."""
        base = self.base(y)
        x, k = base + guess[:3].T, guess[3:].reshape(3, 3, -1)
        error = self._forward.map(x) - y
        trial = x - _applied(k, error)  # a step for all; those that need more are then gathered
        after = self._forward.map(trial) - y
        better = _length(after) < _length(error)
        x, error = torch.where(better, trial, x), torch.where(better, after, error)
        self._damped(y, x, error, k)
        left = (_length(error)[:, 0] > TOLERANCE).nonzero()[:, 0]
        if len(left):
            again, again_error = self._stubborn(y[left])
            x[left] = torch.where(_length(again_error) < _length(error[left]), again, x[left])
        found: FloatArray = (x - base).float().numpy()
        return found

    def _from_base(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.base(y)
        error = self._forward.map(x) - y
        self._damped(y, x, error, self._matrix.float()[:, :, None].expand(3, 3, len(y)))
        return x, error

    def _stubborn(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for points at which the coarse grid misleads: from B(y), with the Jacobian of where one is."""
        x, error = self._from_base(y)
        for _ in range(_NEWTON_ROUNDS):
            self._damped(y, x, error, self._newton_matrix(x))
        return x, error

    def _newton_matrix(self, x: Tensor) -> Tensor:
        """Return the inverse of the Jacobian (3, 3, n), or the matrix of B where that is nearly singular."""
        jacobian = self._forward.map_with_jacobian(x)[1]
        base = self._matrix.float()[:, :, None].expand_as(jacobian)
        bad = determinant(matrix_product(base, jacobian)) < _SMALLEST_DETERMINANT
        safe = torch.where(bad, torch.eye(3)[:, :, None], jacobian)
        return torch.where(bad, base, _inverse(safe))

    def _damped(self, y: Tensor, x: Tensor, error: Tensor, k: Tensor) -> None:
        """Step, in place, at the points whose residual is still too long."""
        step = torch.ones(len(y), 1)
        left = torch.arange(len(y))
        for _ in range(MAX_ITERATIONS):
            left = left[(_length(error[left])[:, 0] > TOLERANCE) & (step[left, 0] >= _SMALLEST_STEP)]
            if not len(left):
                return
            trial = x[left] - step[left] * _applied(k[:, :, left], error[left])
            after = self._forward.map(trial) - y[left]
            better = _length(after) < _length(error[left])
            x[left] = torch.where(better, trial, x[left])
            error[left] = torch.where(better, after, error[left])
            step[left] = torch.where(better, (2 * step[left]).clamp(max=1.0), step[left] / 2)


def _length(vectors: Tensor) -> Tensor:
    return vectors.norm(dim=1, keepdim=True)


def _applied(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products of matrices (3, 3, n), float32, with vectors (n, 3)."""
    v = vectors.T.float()
    return (matrices[:, 0] * v[0] + matrices[:, 1] * v[1] + matrices[:, 2] * v[2]).T


def _inverse(matrices: Tensor) -> Tensor:
    """Return the inverses of matrices (3, 3, n): the rows of cross products over the determinant."""
    a, b, c = matrices.unbind(dim=1)  # columns
    rows = [torch.linalg.cross(p, q, dim=0) for p, q in ((b, c), (c, a), (a, b))]
    return torch.stack(rows) / determinant(matrices)


def _linear_part(chain: TransformChain, points: FloatArray) -> FloatArray:
    """Return the matrix that fits T best around the points, from differences over 100 mm."""
    centre = points.mean(axis=0)
    ends = centre + 50.0 * np.vstack([np.eye(3), -np.eye(3)])
    mapped = chain.map_points(ends)
    return ((mapped[:3] - mapped[3:]) / 100.0).T
