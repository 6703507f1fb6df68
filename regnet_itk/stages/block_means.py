"""Images of fewer voxels: the means of blocks, in NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import SMALLEST_SIZE, Image

Floats = npt.NDArray[np.float32]


def block_for(grid: Grid, voxels: int, fewest: int = 1) -> npt.NDArray[np.intp]:
    """Return how many voxels along x, y, z to average, so that about so many nearly cubic ones are left.

    Parameters
    ----------
    grid : Grid
    voxels : int
        How many are wanted.
    fewest : int
        As many are left along each axis that has so many.
    """
    size, spacing = np.asarray(grid.size), np.asarray(grid.spacing)
    edge = (np.prod(spacing * size) / voxels) ** (1 / 3)
    return np.minimum(np.maximum(1, np.rint(edge / spacing)), np.maximum(1, size // fewest)).astype(np.intp)


def block_means(
    array: npt.NDArray[np.generic], grid: Grid, factor: npt.NDArray[np.intp],
    prepare: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]] = lambda block: block,
) -> tuple[Floats, Grid]:  # fmt: skip
    """Return the means of blocks of voxels, and where they lie; what is left over at the ends is dropped.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
    grid : Grid
        Of the array.
    factor : ndarray, shape (3,)
        Voxels of a block along x, y, z.
    prepare : callable
        Is applied to a few slices before they are averaged.
    """
    fx, fy, fz = (int(f) for f in factor)
    nx, ny, nz = (n // f for n, f in zip(grid.size, (fx, fy, fz), strict=True))
    found = np.empty((nz, ny, nx), dtype=np.float32)
    for z in range(nz):
        slices = prepare(array[z * fz : (z + 1) * fz, : ny * fy, : nx * fx]).mean(axis=0, dtype=np.float32)
        found[z] = slices.reshape(ny, fy, nx, fx).mean(axis=(1, 3))
    sx, sy, sz = grid.spacing
    origin = grid.index_to_point((np.array([fx, fy, fz]) - 1) / 2)
    return found, Grid((nx, ny, nz), (sx * fx, sy * fy, sz * fz), tuple(origin), grid.direction)


def shrink_image(image: Image, voxels: int) -> Image:
    """Return an image of about so many voxels (a third to three times as many), or the image itself if it has few."""
    factor = block_for(image.grid, voxels, SMALLEST_SIZE)
    return image if (factor == 1).all() else Image(*block_means(image.array, image.grid, factor))


def shrink_mask(mask: Image, voxels: int) -> Image:
    """Return a mask (all but 0 counts) on the grid that :func:`shrink_image` takes for an image on the same one."""
    factor = block_for(mask.grid, voxels, SMALLEST_SIZE)
    if (factor == 1).all():
        return mask
    share, grid = block_means(mask.array, mask.grid, factor, lambda block: block != 0)
    inside = share >= 0.5 if (share >= 0.5).any() else share > 0  # a thin mask is not lost
    return Image(inside, grid)
