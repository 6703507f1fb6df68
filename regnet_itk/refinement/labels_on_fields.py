"""Which voxels of a displacement field belong to the labels of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.data.image import Image

_EVEN_AROUND = 1e-3  # of a label's share of a voxel: what its neighbours' shares count


@dataclass(frozen=True, eq=False)
class LabelOnField:
    """One label of an image.

    Parameters
    ----------
    number : int
    image : Image
        Of the labels.
    where : tuple of ndarray
        The indices z, y, x of its voxels, in the image.
    """

    number: int
    image: Image
    where: tuple[npt.NDArray[np.intp], ...]

    def without(self, ignored: npt.NDArray[np.bool_] | None) -> LabelOnField:
        """Return the label without some voxels of its image; the whole label if there are no others."""
        left = np.ones(len(self.where[0]), dtype=bool) if ignored is None else ~ignored[self.where]
        if left.all() or not left.any():
            return self
        return replace(self, where=tuple(part[left] for part in self.where))

    def points(self, most: int | None = None, corners: bool = False) -> FloatArray:
        """Return the middles (n, 3) of its voxels, or their corners, in mm; of about `most` voxels, if given.

        Corners are those within the middles of the image's outermost voxels, where a field may end.
        """
        index = np.stack(self.where[::-1], axis=-1).astype(float)
        if most is not None:
            index = index[:: max(1, len(index) // most)]
        if corners:
            index = (index[:, None] + np.array(list(product((-0.5, 0.5), repeat=3)))).reshape(-1, 3)
            index = np.clip(index, 0.0, np.array(self.image.grid.size) - 1.0)
        return self.image.grid.index_to_point(index)


def list_labels(image: Image) -> Iterator[LabelOnField]:
    """Yield the labels of an image, 0 left out, by rising numbers."""
    numbers, compact = np.unique(image.array, return_inverse=True)
    compact = compact.reshape(image.array.shape)
    if numbers[0] != 0:
        numbers, compact = np.concatenate([[0], numbers]), compact + 1
    for index, box in enumerate(ndimage.find_objects(compact.astype(np.int32)), start=1):
        if box is None or numbers[index] == 0:
            continue
        inside = np.nonzero(compact[box] == index)
        where = tuple(part + along.start for part, along in zip(inside, box, strict=True))
        yield LabelOnField(int(numbers[index]), image, where)


def find_owners(labels: list[LabelOnField], grid: Grid) -> npt.NDArray[np.int32]:
    """Say which label each voxel of a field belongs to: all that are needed for linear interpolation within it.

    These are the corners of the field's cells that a label's voxels touch, and one voxel around them. Where two labels
    want the same one, it belongs to the label that fills more of the cells beside it.

    Parameters
    ----------
    labels : list of LabelOnField
    grid : Grid
        The field's.

    Returns
    -------
    ndarray, shape (z, y, x)
        0 for none, n for the n-th label, counted from 1.
    """
    owners = np.zeros(grid.shape, dtype=np.int32)
    best = np.zeros(grid.shape, dtype=np.float32)
    for number, label in enumerate(labels, start=1):
        box, share = _share_of(label, grid)
        if share.size:
            more = share > best[box]
            owners[box][more], best[box][more] = number, share[more]
    return owners


def cells_of(label: LabelOnField, grid: Grid) -> npt.NDArray[np.bool_]:
    """Say which cells of a field, counted by their first corners, hold the middle or a corner of a label's voxel.

    Parameters
    ----------
    label : LabelOnField
    grid : Grid
        The field's.

    Returns
    -------
    ndarray, shape (z - 1, y - 1, x - 1)
    """
    cells = np.zeros([n - 1 for n in grid.shape], dtype=bool)
    for corners in (False, True):
        first = np.floor(grid.point_to_index(label.points(corners=corners))).astype(int)
        inside = ((first >= 0) & (first < np.array(grid.size) - 1)).all(axis=1)
        x, y, z = first[inside].T
        cells[z, y, x] = True
    return cells


def _share_of(label: LabelOnField, grid: Grid) -> tuple[Box, npt.NDArray[np.float32]]:
    """Return how much of the cells around each voxel of a field's box a label fills, up to a factor; above 0 if any."""
    index = grid.point_to_index(label.points())
    half = np.abs(np.linalg.solve(grid.index_to_point_matrix, label.image.grid.index_to_point_matrix)).sum(axis=1) / 2
    low = np.floor(index.min(axis=0) - half).astype(int) - 1
    high = np.ceil(index.max(axis=0) + half).astype(int) + 2
    shape = tuple((high - low)[::-1])
    share = np.zeros(shape, dtype=np.float64)
    first = np.floor(index).astype(int)
    for corner in product((0, 1), repeat=3):
        weight = np.prod(np.abs(1 - np.array(corner) - (index - first)), axis=1)
        flat = np.ravel_multi_index(tuple((first + corner - low)[:, ::-1].T), shape)
        share += np.bincount(flat, weights=weight + 1e-9, minlength=share.size).reshape(shape)
    share += _nearest(label, grid.crop(low, high - low))  # of voxels that are larger than the field's
    share += _EVEN_AROUND * ndimage.uniform_filter(share, 3, mode="constant")
    share[share < 1e-14] = 0.0  # what the filter leaves of nothing
    size = np.array(grid.size)
    low_in, high_in = np.clip(low, 0, size), np.clip(high, 0, size)
    box = tuple(slice(a, b) for a, b in zip(low_in[::-1], high_in[::-1], strict=True))
    cut = tuple(slice(a - o, b - o) for a, b, o in zip(low_in[::-1], high_in[::-1], low[::-1], strict=True))
    return box, share[cut].astype(np.float32)  # type: ignore[return-value]


def _nearest(label: LabelOnField, grid: Grid) -> npt.NDArray[np.float64]:
    """Return 1 at the voxels of a grid whose nearest voxel of the image has the label."""
    index = np.rint(label.image.grid.point_to_index(grid.points())).astype(int)
    inside = ((index >= 0) & (index < np.array(label.image.grid.size))).all(axis=-1)
    found = np.zeros(grid.shape)
    x, y, z = index[inside].T
    found[inside] = label.image.array[z, y, x] == label.number
    return found
