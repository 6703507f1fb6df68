"""Positions to train at, balanced over the magnitude of the displacement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import FloatArray
from regnet_itk.errors import ImageError

BALANCE = (1.5, 4.0, 8.0)
"""mm between small, medium, large and very large displacements; smooth random fields are mostly small."""


def draw_balanced_positions(
    magnitude: FloatArray,
    mask: npt.NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
    limits: tuple[float, ...] = BALANCE,
) -> npt.NDArray[np.int_]:
    """Draw voxels of a mask, equally many from each range of displacement magnitudes.

    A range with too few voxels gives all that it has, and the others share what is missing. No voxel is drawn twice,
    and none is left out of every range.

    Parameters
    ----------
    magnitude : array, shape (z, y, x)
        Length of the displacement in mm.
    mask : bool array, shape (z, y, x)
    count : int
        How many voxels are wanted.
    rng : numpy.random.Generator
    limits : tuple of float
        Borders of the ranges in mm, rising.

    Returns
    -------
    int array, shape (count, 3)
        Indices (z, y, x), in random order; fewer rows if the mask has fewer voxels.

    Raises
    ------
    ImageError
        If the mask is empty.
    """
    inside = np.flatnonzero(mask)
    if not len(inside):
        raise ImageError("there is no voxel to train at: the mask is empty")
    ranges = np.digitize(magnitude.ravel()[inside], limits)
    members = [rng.permutation(inside[ranges == number]) for number in range(len(limits) + 1)]
    taken, left = [], count
    for number, voxels in enumerate(sorted(members, key=len)):  # the rarest first, so that the others can make up
        share = min(left // (len(members) - number), len(voxels))
        taken.append(voxels[:share])
        left -= share
    chosen = rng.permutation(np.concatenate(taken))
    return np.stack(np.unravel_index(chosen, mask.shape), axis=-1)
