"""The inverse of transforms, with what is left of T(T^-1(y)) - y in millimetres."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Box, FloatArray, Grid, Triple
from regnet_itk.errors import TransformError
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.sampler import determinant, fill_in_blocks, matrix_product, voxel_points

TOLERANCE = 1e-4
"""mm; a voxel whose residual is smaller is done."""

MAX_ITERATIONS = 100
FAILED_SHARE = 1e-3
"""An inverse has failed if more than this share of the points has a residual above half a voxel."""

_SMALLEST_STEP = 1 / 64
_SAMPLES = 20_000
_COARSE_STEP = 4  # voxels; on this grid the inverse is found first
_SMALLEST_DETERMINANT = 0.05
_NEWTON_ROUNDS = 12
_LATTICE = 16  # points along each axis of the fixed image


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

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> inverse = regnet_itk.invert_chain(chain, regnet_itk.Grid(size=(8, 8, 4)))
    >>> inverse.map_points([[2.0, 0.0, -1.0]]).round(6).tolist()
    [[0.0, 0.0, 0.0]]
    """
    matrix = chain.as_matrix()
    if matrix is not None:
        return TransformChain((Link(invert_matrix(matrix)),))
    base = _matrices_inverted(chain)
    field = _solved(_Solver(chain, base, fixed_grid), grid or image_grid(chain, fixed_grid))
    has_matrix = any(isinstance(link.transform, MatrixTransform) for link in chain.links)
    return TransformChain((Link(base), Link(field, "add")) if has_matrix else (Link(field),))


def _matrices_inverted(chain: TransformChain) -> MatrixTransform:
    """Return the inverse of the product of the matrices in a chain; the identity if there are none."""
    matrices = TransformChain(tuple(link for link in chain.links if isinstance(link.transform, MatrixTransform)))
    product = matrices.as_matrix()
    assert product is not None
    return invert_matrix(product)


def image_grid(chain: TransformChain, fixed_grid: Grid) -> Grid:
    """Return the grid with the voxels of the fixed image, along its axes, over all that T maps its box to."""
    reached = fixed_grid.point_to_index(chain.map_points(fixed_grid.lattice(17, -0.5)))
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
    solver = _Solver(TransformChain((Link(field),)), MatrixTransform(np.eye(3)), field.grid)
    return _solved(solver, field.grid.pad(margin, margin))


def invert_points(
    chain: TransformChain, points: npt.ArrayLike, fixed_grid: Grid | None = None
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Return the points x with T(x) = y: moving to fixed, without an inverse field.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    points : ndarray, shape (n, 3)
        y, in the moving image, mm, LPS.
    fixed_grid : Grid, optional
        Where x is looked for, if the matrices of the chain do not lead there.

    Returns
    -------
    points : ndarray, shape (n, 3)
        x, in the fixed image.
    residual : ndarray, shape (n,)
        |T(x) - y| in mm; where it is not small, y has no inverse (folding, or the border of a field).

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> found, residual = regnet_itk.invert_points(chain, [[12.0, -20.0, 29.0]])
    >>> found.round(6).tolist()
    [[10.0, -20.0, 30.0]]
    """
    y = torch.from_numpy(np.atleast_2d(np.array(points, dtype=float)))
    x, _ = _Solver(chain, _matrices_inverted(chain), fixed_grid, TOLERANCE / 10).solved(y)
    found: FloatArray = x.numpy()
    return found, np.linalg.norm(chain.map_points(found) - y.numpy(), axis=1)


def measure_inverse_residual(
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

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> grid = regnet_itk.Grid(size=(8, 8, 4))
    >>> inverse = regnet_itk.invert_chain(chain, grid)
    >>> regnet_itk.measure_inverse_residual(chain, inverse, grid).max < 1e-9
    True
    """
    points = fixed_grid.random_points(_SAMPLES, np.random.default_rng(seed), margin=1.0)
    mapped, jacobian = chain.sampler().map_with_jacobian(torch.from_numpy(points))
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


def _solved(solver: _Solver, grid: Grid) -> DisplacementField:
    """Return the field T^-1(y) - B(y), float32, with T(x) = y solved at every voxel y of `grid`."""
    step = _COARSE_STEP
    nx, ny, nz = (math.ceil((n - 1) / step) + 1 for n in grid.size)
    sx, sy, sz = (s * step for s in grid.spacing)
    start = solver.start_on(Grid((nx, ny, nz), (sx, sy, sz), grid.origin, grid.direction))
    found = np.empty((*grid.shape, 3), dtype=np.float32)

    def fill(box: Box, part: Grid) -> None:
        z, y = (slice(along.start // step, (along.stop - 2) // step + 2) for along in box[:2])
        near = start[:, z, y]
        finer = [1 + step * (n - 1) for n in near.shape[1:]]
        guess = functional.interpolate(near[None], finer, mode="trilinear", align_corners=True)[0]
        nz, ny, nx = part.shape
        guess = guess[:, :nz, :ny, :nx].reshape(12, -1)
        found[box] = solver.refined(voxel_points(part), guess).reshape(nz, ny, nx, 3)

    fill_in_blocks(fill, grid, step)
    return DisplacementField(found, grid)


class _Solver:
    """Solves T(x) = y by steps x - K (T(x) - y), with K near the inverse of the Jacobian of T.

    On a coarse grid K is the matrix of B. On the fine grid the start and K come from the coarse one, so that one or two
    steps are enough. A step that does not make the residual smaller is not taken, but halved. Where that fails, K is
    the inverse of the Jacobian, and at last the start is the point of a lattice in the fixed image that T maps nearest
    to y.
    """

    def __init__(
        self, chain: TransformChain, base: MatrixTransform, fixed_grid: Grid | None, tolerance: float = TOLERANCE
    ) -> None:
        self._forward, self._tolerance, self._fixed_grid = chain.sampler(), tolerance, fixed_grid
        self._matrix, self._offset = torch.from_numpy(base.matrix), torch.from_numpy(base.offset)
        self._lattice = torch.from_numpy(fixed_grid.lattice(_LATTICE, margin=0.5)) if fixed_grid else torch.empty(0, 3)
        self._mapped_lattice = KDTree(self._forward.map(self._lattice).numpy()) if len(self._lattice) else None

    def base(self, y: Tensor) -> Tensor:
        return y @ self._matrix.T + self._offset

    def start_on(self, grid: Grid) -> Tensor:
        """Return T^-1(y) - B(y) and the 9 numbers of K, as a tensor (12, z, y, x)."""
        found = torch.empty(12, *grid.shape)

        def fill(box: Box, part: Grid) -> None:
            y = voxel_points(part)
            x, _ = self.solved(y)
            k = self._newton_matrix(x)
            numbers = torch.cat([(x - self.base(y)).T.float(), k.reshape(9, -1)])
            found[:, *box] = numbers.reshape(12, *part.shape)

        fill_in_blocks(fill, grid)
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
        self._try_again(y, x, error, self.solved)
        found: FloatArray = (x - base).float().numpy()
        return found

    def solved(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and T(x) - y (n, 3) of the points y, without a guess; x in the fixed image if there is such."""
        x = self.base(y)
        error = self._forward.map(x) - y
        self._damped(y, x, error, self._matrix.float()[:, :, None].expand(3, 3, len(y)))
        self._try_again(y, x, error, lambda some: self._newton(some, self.base(some)))
        self._look_in_the_fixed_image(y, x, error)
        return x, error

    def _look_in_the_fixed_image(self, y: Tensor, x: Tensor, error: Tensor) -> None:
        """Replace, in place, what is not solved or lies outside: a field that ends abruptly has solutions beyond."""
        if self._fixed_grid is None:
            return
        inside = torch.from_numpy(self._fixed_grid.contains(x.numpy()))
        left = (~inside | (_length(error)[:, 0] > self._tolerance)).nonzero()[:, 0]
        if not len(left):
            return
        again, again_error = self._newton(y[left], self._nearest_on_lattice(y[left]))
        good = _length(again_error)[:, 0] <= self._tolerance
        good &= torch.from_numpy(self._fixed_grid.contains(again.numpy()))
        x[left[good]], error[left[good]] = again[good], again_error[good]

    def _try_again(self, y: Tensor, x: Tensor, error: Tensor, solve: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Solve, in place, where the residual is too long."""
        left = (_length(error)[:, 0] > self._tolerance).nonzero()[:, 0]
        if not len(left):
            return
        again, again_error = solve(y[left])
        better = _length(again_error) < _length(error[left])
        x[left] = torch.where(better, again, x[left])
        error[left] = torch.where(better, again_error, error[left])

    def _newton(self, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Solve with the Jacobian of where each point is, as long as that gets it on."""
        x = start.clone()
        error = self._forward.map(x) - y
        left = torch.arange(len(y))
        for _ in range(_NEWTON_ROUNDS):
            before = _length(error[left])
            left_x, left_error = x[left], error[left]
            self._damped(y[left], left_x, left_error, self._newton_matrix(left_x), iterations=3)
            x[left], error[left] = left_x, left_error
            after = _length(left_error)
            left = left[((after > self._tolerance) & (after < 0.7 * before))[:, 0]]
            if not len(left):
                break
        return x, error

    def _nearest_on_lattice(self, y: Tensor) -> Tensor:
        assert self._mapped_lattice is not None
        return self._lattice[torch.from_numpy(self._mapped_lattice.query(y.numpy())[1])]

    def _newton_matrix(self, x: Tensor) -> Tensor:
        """Return the inverse of the Jacobian (3, 3, n), or the matrix of B where that is nearly singular."""
        jacobian = self._forward.map_with_jacobian(x)[1]
        base = self._matrix.float()[:, :, None].expand_as(jacobian)
        bad = determinant(matrix_product(base, jacobian)) < _SMALLEST_DETERMINANT
        safe = torch.where(bad, torch.eye(3)[:, :, None], jacobian)
        return torch.where(bad, base, _inverse(safe))

    def _damped(self, y: Tensor, x: Tensor, error: Tensor, k: Tensor, iterations: int = MAX_ITERATIONS) -> None:
        """Step, in place, at the points whose residual is still too long."""
        step = torch.ones(len(y), 1)
        left = torch.arange(len(y))
        for _ in range(iterations):
            left = left[(_length(error[left])[:, 0] > self._tolerance) & (step[left, 0] >= _SMALLEST_STEP)]
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
