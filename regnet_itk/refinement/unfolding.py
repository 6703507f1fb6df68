"""A displacement field that folds nowhere: where it does, it is smoothed until it no longer does."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.compiling import find_kernels
from regnet_itk.data.distances import distance_to
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import bounding_box
from regnet_itk.refinement.carrying_on import carry_on

LEAST = 0.05
"""det J that is left everywhere. What shrinks to a twentieth is next to folding, and its inverse next to impossible."""

_MOST_STEPS = 40
_REACHES = (2, 4, 6, 9, 12, 16)  # voxels around a fold that become harmonic, where others are held
_STEPS = 100  # for that
_FIRST_REACH = 2.0  # voxels around a fold that change in the first step; more in each further one


def unfold_field(field: DisplacementField, least: float = LEAST) -> tuple[DisplacementField, float]:
    """Smooth a displacement field where T(x) = x + u(x) folds, and nowhere else.

    Parameters
    ----------
    field : DisplacementField
        u in mm, on any grid.
    least : float
        det J that is wanted everywhere, above 0 and below 1.

    Returns
    -------
    field : DisplacementField
        On the same grid; the given one if nothing folds. If a fold is left (none was seen), the transform's own check
        for folding tells.
    share : float
        Of the cells between voxels that were below `least`.

    Notes
    -----
    det J is looked at in the corners of every cell between eight voxels, where linear interpolation has its own
    derivatives: it may be negative there and positive by the central differences that are commonly taken. A fold is
    blended into Gaussian means, wider and farther around it in each step.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import DisplacementField, Grid
    >>> from regnet_itk.refinement.unfolding import unfold_field
    >>> u = np.zeros((6, 6, 6, 3))
    >>> u[3, 3, 3, 0] = 3.0
    >>> unfolded, share = unfold_field(DisplacementField(u, Grid((6, 6, 6))))
    >>> round(share, 3), bool(unfolded.vectors.max() < 1.0)
    (0.032, True)
    """
    if min(field.grid.size) < 2:
        return field, 0.0
    folds = least_determinants(field.vectors, field.grid) < least
    share = float(folds.mean())
    if not share:
        return field, 0.0
    vectors = np.array(field.vectors, dtype=np.float32)
    for step in range(_MOST_STEPS):
        reach = _FIRST_REACH + step
        box = bounding_box(folds, round(2 * reach) + 2)
        around = tuple(slice(s.start, s.stop + 1) for s in box)
        vectors[around] = _smoothed(vectors[around], folds[box], reach)
        folds[box] = least_determinants(vectors[around], field.grid) < least
        if not folds.any():
            break
    return DisplacementField(vectors, field.grid), share


def unfold_around(field: DisplacementField, held: npt.NDArray[np.bool_], least: float = LEAST) -> DisplacementField:
    """Take folds out of a displacement field, some voxels of which must not be changed.

    Around a fold, what is not held becomes harmonic, farther and farther until nothing folds; as far as that helps.

    Parameters
    ----------
    field : DisplacementField
    held : bool array, shape (z, y, x)
    least : float
        det J that is wanted everywhere.

    Returns
    -------
    DisplacementField
        On the same grid.
    """
    if min(field.grid.size) < 2:
        return field
    vectors = np.array(field.vectors, dtype=np.float32)
    folds = least_determinants(vectors, field.grid) < least
    for reach in _REACHES:
        if not folds.any():
            break
        box = bounding_box(folds, reach + 2)
        around = tuple(slice(s.start, s.stop + 1) for s in box)
        free = (distance_to(_corners_of(folds[box])) <= reach) & ~held[around]
        found = carry_on(DisplacementField(vectors[around], field.grid.part(around)), free, _STEPS).vectors
        left = least_determinants(found, field.grid) < least
        helps = free & _where_fewer(free, folds[box], left)  # elsewhere what is held leaves no room
        vectors[around][helps] = found[helps]
        folds[box] = least_determinants(vectors[around], field.grid) < least
    return DisplacementField(vectors, field.grid)


def _where_fewer(
    free: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Say in which connected pieces of what is free (z, y, x) there are fewer folded cells after than before."""
    pieces, count = ndimage.label(free, np.ones((3, 3, 3)))
    nz, ny, nx = before.shape
    corners = (pieces[k : k + nz, j : j + ny, i : i + nx] for k, j, i in product((0, 1), repeat=3))
    of_cell = np.maximum.reduce(list(corners))
    counts = [np.bincount(of_cell[folded], minlength=count + 1) for folded in (before, after)]
    return np.asarray((counts[1] < counts[0])[pieces])


def _corners_of(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Say which voxels are a corner of a cell that is true."""
    corners = np.zeros([n + 1 for n in cells.shape], dtype=bool)
    for corner in product((0, 1), repeat=3):
        corners[tuple(slice(c, c + n) for c, n in zip(corner, cells.shape, strict=True))] |= cells
    return corners


def _smoothed(vectors: FloatArray, folds: npt.NDArray[np.bool_], reach: float) -> FloatArray:
    """Return a field that is a mean of its surroundings in cells that fold, and less so away from them."""
    apart = ndimage.distance_transform_edt(~_corners_of(folds))
    weight = np.clip(1.0 - apart / (2 * reach), 0.0, 1.0).astype(np.float32)
    mean = np.stack([ndimage.gaussian_filter(vectors[..., c], reach / 2, mode="nearest") for c in range(3)], axis=-1)
    found: FloatArray = vectors + weight[..., None] * (mean - vectors)
    return found


def least_determinants(vectors: FloatArray, grid: Grid) -> npt.NDArray[np.float32]:
    """Return the least det J in the eight corners of each cell between voxels.

    Parameters
    ----------
    vectors : ndarray, shape (z, y, x, 3)
        u in mm, components x, y, z (LPS).
    grid : Grid
        Says how the voxels lie; its size is not looked at.

    Returns
    -------
    ndarray, shape (z - 1, y - 1, x - 1)
        1 where nothing is stretched.
    """
    found = np.empty([n - 1 for n in vectors.shape[:3]], dtype=np.float32)
    u, edges = np.ascontiguousarray(vectors, dtype=np.float32), grid.index_to_point_matrix.astype(np.float32)
    kernels = find_kernels("regnet_itk.refinement.unfolding_kernels")
    if kernels is not None:
        kernels.run_determinants(u, edges, found)
        return found
    return least_determinants_by_operations(u, edges)


def least_determinants_by_operations(u: FloatArray, edges: FloatArray) -> npt.NDArray[Any]:
    """Return what :func:`least_determinants` does, in NumPy's operations; `edges` (3, 3) are those of a cell, in mm."""
    along = [np.diff(u, axis=2 - k) + edges[:, k] for k in range(3)]
    nz, ny, nx = (n - 1 for n in u.shape[:3])
    found = np.full((nz, ny, nx), np.inf, dtype=np.float32)
    volume = np.linalg.det(edges).astype(np.float32)  # below zero on a left-handed grid
    for k, j, i in product((0, 1), repeat=3):
        x = along[0][k : k + nz, j : j + ny]
        y = along[1][k : k + nz, :, i : i + nx]
        z = along[2][:, j : j + ny, i : i + nx]
        np.minimum(found, (x * np.cross(y, z)).sum(axis=-1) / volume, out=found)
    return found
