"""Parts of an image that keep their volume at every point, within a displacement field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import fft, sparse
from scipy.sparse.linalg import LinearOperator, cg

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.data.image import bounding_box

Bools = npt.NDArray[np.bool_]
LogVolume = Callable[[FloatArray], FloatArray]
"""The logarithm of det J of T0 at points (n, 3) in mm."""

GOAL = 0.01
"""|det J - 1| that is worked towards; below what is promised, so that it holds between the voxels as well."""

_MOST_ROUNDS = 10
_FORCE = 300.0  # of keeping the volume, against the smoothness of what is changed; doubled in each round
_MOST_STEPS = 400  # of conjugate gradients
_TOLERANCE = 1e-2
_NARROWEST, _WIDEST = 14.0, 40.0  # mm around a part in which other volume makes up for it
_SMALLEST_DETERMINANT = 0.05
_CORNERS = tuple(product((0, 1), repeat=3))


def keep_volume(u: DisplacementField, part: Bools, before: LogVolume, held: Bools) -> DisplacementField:
    """Change u so that T(x) = T0(x + u(x)) keeps the volume of a part at every point.

    Newton's method for log det J = 0 in all eight corners of each cell of the part, where linear interpolation has its
    own derivatives. Of all changes that do so, each step takes the smoothest one that is zero beyond a shell around the
    part.

    Parameters
    ----------
    u : DisplacementField
    part : bool array, shape (z, y, x)
        On the field's grid. A cell counts if all of its corners are in it.
    before : callable
        Tells of T0.
    held : bool array, shape (z, y, x)
        What must not be changed.

    Returns
    -------
    DisplacementField
        On the same grid. How far it keeps the volume, `volume_changes` tells.

    References
    ----------
    Haber and Modersitzki, "Numerical methods for volume preserving image registration", Inverse Problems 2004, for
    det J = 1 as a constraint on a grid.
    """
    spacing = u.grid.spacing[::-1]
    radius = (3 * float(part.sum() * np.prod(spacing)) / (4 * np.pi)) ** (1 / 3)
    reach = float(np.clip(0.6 * radius, _NARROWEST, _WIDEST))
    box = bounding_box(part, [int(reach / s) + 2 for s in spacing])
    cells = _cells_in(part[box])
    problem = _Problem.of(~held[box] & _not_at_cut(box, part.shape), cells)
    if not problem.free.any() or not cells.any():
        return u
    vectors = np.array(u.vectors, dtype=np.float64)
    grid = u.grid.part(box)
    best, least = vectors[box].copy(), np.inf
    for number in range(_MOST_ROUNDS):
        change, slopes = problem.volumes(vectors[box], grid, before)
        worst = float(np.abs(np.expm1(change)).max())
        if worst >= 0.98 * least:
            break
        best, least = vectors[box].copy(), worst
        if worst <= GOAL:
            break
        vectors[box] += problem.step(change, slopes, _FORCE * 2**number)
    vectors[box] = best
    return DisplacementField(vectors.astype(np.float32), u.grid)


def volume_changes(u: DisplacementField, cells: Bools, before: LogVolume) -> FloatArray:
    """Return det J - 1 of T(x) = T0(x + u(x)) in the corners of cells (n,).

    Parameters
    ----------
    u : DisplacementField
    cells : bool array, shape (z - 1, y - 1, x - 1)
        Which of the field's cells, counted by their first corners.
    before : callable
        Tells of T0.
    """
    if not cells.any():
        return np.zeros(0)
    cut = bounding_box(cells, 0)
    box = tuple(slice(s.start, s.stop + 1) for s in cut)
    problem = _Problem.of(np.zeros([s.stop - s.start for s in box], dtype=bool), cells[cut])
    change, _ = problem.volumes(np.asarray(u.vectors[box], dtype=np.float64), u.grid.part(box), before)
    return np.expm1(change)


def _cells_in(part: Bools) -> Bools:
    """Say which cells, counted by their first corner, have all eight corners in a part; shape (z - 1, y - 1, x - 1)."""
    nz, ny, nx = (n - 1 for n in part.shape)
    corners = [part[k : k + nz, j : j + ny, i : i + nx] for k, j, i in _CORNERS]
    return np.asarray(np.logical_and.reduce(corners))


def _not_at_cut(box: Box, shape: tuple[int, ...]) -> Bools:
    """Say which voxels of a box do not lie at a side where the array goes on: what lies beyond stays as it is."""
    inside = np.ones([s.stop - s.start for s in box], dtype=bool)
    for axis, (along, n) in enumerate(zip(box, shape, strict=True)):
        layers = np.moveaxis(inside, axis, 0)
        if along.start > 0:
            layers[0] = False
        if along.stop < n:
            layers[-1] = False
    return inside


@dataclass(frozen=True, eq=False)
class _Problem:
    """Displacements that may change, and the corners of cells whose volume is to stay; all in one box.

    Parameters
    ----------
    free : bool array, shape (z, y, x)
    corner : int array, shape (n,)
        The voxel (flat) at each corner of each cell.
    ends : int array, shape (n, 3)
        The other ends of the cell's edges along x, y, z that begin there.
    signs : array, shape (n, 3)
        1 where the edge leads to a larger index, else -1.
    """

    free: Bools
    corner: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    signs: FloatArray

    @classmethod
    def of(cls, free: Bools, cells: Bools) -> _Problem:
        """Return the problem of some cells."""
        first = np.argwhere(cells)
        corners, ends, signs = [], [], []
        for offset in _CORNERS:
            at = first + offset
            corners.append(np.ravel_multi_index(tuple(at.T), free.shape))
            along = []
            for axis in (2, 1, 0):
                other = at.copy()
                other[:, axis] += 1 - 2 * offset[axis]
                along.append(np.ravel_multi_index(tuple(other.T), free.shape))
            ends.append(np.stack(along, axis=1))
            signs.append(np.broadcast_to([1.0 - 2.0 * offset[axis] for axis in (2, 1, 0)], (len(first), 3)))
        return cls(free, np.concatenate(corners), np.concatenate(ends), np.concatenate(signs))

    def volumes(self, vectors: FloatArray, grid: Grid, before: LogVolume) -> tuple[FloatArray, FloatArray]:
        """Return log det J in each corner (n,), and by how much it grows with the edges' displacement (n, edge, 3)."""
        flat = vectors.reshape(-1, 3)
        matrix = grid.index_to_point_matrix
        edges = matrix.T + self.signs[..., None] * (flat[self.ends] - flat[self.corner][:, None])
        determinant = np.linalg.det(edges) / np.linalg.det(matrix)
        used = np.unique(self.corner)
        moved = grid.points().reshape(-1, 3)[used] + flat[used]
        of_t0 = before(moved)[np.searchsorted(used, self.corner)]
        slopes = self.signs[..., None] * np.linalg.inv(edges).transpose(0, 2, 1)
        return np.log(np.maximum(determinant, _SMALLEST_DETERMINANT)) + of_t0, slopes

    def step(self, change: FloatArray, slopes: FloatArray, force: float) -> FloatArray:
        """Return the smoothest displacement (z, y, x, 3) that takes the change of volume away, to first order."""
        number = np.full(self.free.size, -1)
        count = int(self.free.sum())
        number[self.free.ravel()] = np.arange(count)
        rows = np.arange(len(self.corner))
        entries = [(self.corner, -slopes.sum(axis=1)), *((self.ends[:, k], slopes[:, k]) for k in range(3))]
        parts = []
        for nodes, values in entries:
            there = number[nodes] >= 0
            columns = 3 * number[nodes][there][:, None] + np.arange(3)
            parts.append((values[there].ravel(), np.repeat(rows[there], 3), columns.ravel()))
        values, of_row, of_column = (np.concatenate(each) for each in zip(*parts, strict=True))
        volume = sparse.csr_matrix((values, (of_row, of_column)), shape=(len(rows), 3 * count))
        smooth = sparse.kron(self._stiffness(number, count), sparse.identity(3), format="csr")
        force /= len(_CORNERS)
        transposed = volume.T.tocsr()
        system = LinearOperator(smooth.shape, lambda x: smooth @ x + force * (transposed @ (volume @ x)))
        smoother = LinearOperator(smooth.shape, self._smoothed)
        found, _ = cg(system, -force * (transposed @ change), rtol=_TOLERANCE, maxiter=_MOST_STEPS, M=smoother)
        step = np.zeros((self.free.size, 3))
        step[self.free.ravel()] = found.reshape(-1, 3)
        return step.reshape(*self.free.shape, 3)

    def _smoothed(self, values: FloatArray) -> FloatArray:
        """Return what the inverse of the stiffness, with zeros around the whole box, makes of free displacements."""
        whole = np.zeros((self.free.size, 3))
        whole[self.free.ravel()] = values.reshape(-1, 3)
        spectrum = fft.dstn(whole.reshape(*self.free.shape, 3), type=1, axes=(0, 1, 2), norm="ortho")
        for_axes = [2.0 - 2.0 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in self.free.shape]
        spectrum /= (for_axes[0][:, None, None] + for_axes[1][:, None] + for_axes[2])[..., None]
        found = fft.dstn(spectrum, type=1, axes=(0, 1, 2), norm="ortho")
        return np.asarray(found.reshape(-1, 3)[self.free.ravel()].ravel())

    def _stiffness(self, number: npt.NDArray[np.int64], count: int) -> sparse.csr_matrix:
        """Return the matrix whose quadratic form sums squared differences of neighbours; what is not free is zero."""
        numbers = number.reshape(self.free.shape)
        diagonal = np.zeros(count)
        rows, columns = [], []
        for axis in range(3):
            along = np.moveaxis(numbers, axis, 0)
            first, second = along[:-1].ravel(), along[1:].ravel()
            for one in (first, second):
                diagonal += np.bincount(one[one >= 0], minlength=count)
            both = (first >= 0) & (second >= 0)
            rows += [first[both], second[both]]
            columns += [second[both], first[both]]
        row, column = np.concatenate(rows), np.concatenate(columns)
        return sparse.diags(diagonal).tocsr() - sparse.csr_matrix((np.ones(len(row)), (row, column)), (count, count))
