"""Where a field is wanted: on which voxels of a grid, and how it fades to zero around them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regnet_itk.data.distances import distance_to
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.ramps import smooth_step

BoolArray = npt.NDArray[np.bool_]


def fade(field: DisplacementField, region: Image, width: float) -> DisplacementField:
    """Let a field fall smoothly to zero over `width` mm outside a region.

    Parameters
    ----------
    field : DisplacementField
    region : Image
        Boolean; it may lie on another grid than the field.
    width : float
        mm; 0 cuts the field off.

    Returns
    -------
    DisplacementField
        Unchanged inside the region.
    """
    inside = covering(region, field.grid)
    if inside.all():
        return field
    if not inside.any():
        return DisplacementField(np.zeros_like(field.vectors), field.grid)
    weight = smooth_step(1.0 - distance_to(inside, field.grid.spacing) / max(width, 1e-3))
    return DisplacementField(field.vectors * weight[..., None], field.grid)


def covering(region: Image, grid: Grid) -> BoolArray:
    """Say which voxels of a grid matter inside a region: what is interpolated there from them is right.

    They lie in the region, or, if both grids have the same axes, are corners of a cell of eight voxels that holds a
    voxel of the region; so not even a single voxel gets lost on a coarser grid.
    """
    mask = region.array.astype(bool)
    if region.grid.is_close(grid):
        return mask
    found = np.asarray(Image(mask.astype(np.float32), region.grid).resampled(grid).array > 0)
    steps = grid.steps_along(region.grid)
    if steps is None:
        return found
    first = grid.point_to_index(region.grid.origin)
    for axis in range(3):  # counts x, y, z
        index = first[axis] + steps[axis] * np.arange(region.grid.size[axis])
        before, after = np.floor(index + 1e-4).astype(int), np.ceil(index - 1e-4).astype(int)
        length = grid.size[axis]
        mask = _spread(mask, before, length, 2 - axis) | _spread(mask, after, length, 2 - axis)
    return found | mask


def _spread(mask: BoolArray, index: npt.NDArray[np.int_], length: int, axis: int) -> BoolArray:
    """Bring the slices of a mask to new positions along an axis, given in rising order; those that meet are united."""
    shape = list(mask.shape)
    shape[axis] = length
    found = np.zeros(shape, dtype=bool)
    there = (index >= 0) & (index < length)
    if there.any():
        targets, starts = np.unique(index[there], return_index=True)
        united = np.logical_or.reduceat(mask.compress(there, axis), starts, axis)
        np.moveaxis(found, axis, 0)[targets] = np.moveaxis(united, axis, 0)
    return found
