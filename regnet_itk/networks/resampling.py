"""Images on the voxels they are compared on: picked where they are about as coarse, averaged where they are finer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.separable import along_axes

_FINER = 0.6  # image voxels below this share of the grid's are averaged
_CHUNK = 4_000_000  # voxels that are worked on at once


def resample_for_network(
    image: Image, grid: Grid, background: float, transform: Any = None, averaged: bool = False
) -> Image:
    """Return an image on the network's grid.

    Where the image is much finer than the grid, it is averaged over the grid's voxels instead of picked at points.
    Where noise matters, it had better be averaged always: linear interpolation keeps the noise at the image's voxels
    and halves it between them, so that two images of the same thing are unlike in a pattern of their grids.

    Parameters
    ----------
    image : Image
    grid : Grid
    background : float
        The value outside of the image.
    transform : SimpleITK.Transform, optional
        Maps points of `grid` to points of `image`. Identity by default.
    averaged : bool
        Average whatever the image's voxels.

    Returns
    -------
    Image
        float32, on `grid`.
    """
    if not averaged and min(image.grid.spacing) >= _FINER * min(grid.spacing):
        return image.resampled(grid, transform, default=background)
    if transform is None and (steps := image.grid.steps_along(grid)) is not None:
        return Image(_averaged_along_axes(image, grid, steps, background), grid)
    rows = max(1, _CHUNK // (8 * grid.size[0] * grid.size[1]))
    counts = [min(rows, grid.size[2] - start) for start in range(0, grid.size[2], rows)]
    fine = (_halved(grid.crop((0, 0, rows * n), (*grid.size[:2], count))) for n, count in enumerate(counts))
    parts = (torch.from_numpy(part.array) for part in image.resampled_in_parts(fine, transform, default=background))
    return Image(torch.cat([functional.avg_pool3d(part[None], 2)[0] for part in parts]).numpy(), grid)


def _halved(grid: Grid) -> Grid:
    """Return a grid of eight voxels in place of each voxel."""
    return Grid(
        tuple(2 * n for n in grid.size),  # type: ignore[arg-type]
        tuple(s / 2 for s in grid.spacing),  # type: ignore[arg-type]
        tuple(grid.index_to_point((-0.25, -0.25, -0.25))),
        grid.direction,
    )


def _averaged_along_axes(image: Image, grid: Grid, steps: FloatArray, background: float) -> FloatArray:
    """Average an image with the same axes: the same values as by a fine grid, several times faster."""
    first = image.grid.point_to_index(grid.origin)
    z, y, x = (
        _averaging(first[axis] + steps[axis] * np.arange(grid.size[axis]), steps[axis], image.grid.size[axis])
        for axis in (2, 1, 0)
    )
    rows = max(1, _CHUNK // (image.grid.size[0] * image.grid.size[1]))
    found = torch.full(grid.shape, background)
    for start in range(0, image.grid.size[2], rows):
        part = torch.from_numpy(image.array[start : start + rows].astype(np.float32)).sub_(background)
        touched = z[:, start : start + rows].any(dim=1).nonzero()[:, 0]
        if len(touched):
            last = int(touched[-1]) + 1
            found[touched[0] : last] += along_axes(part, [z[touched[0] : last, start : start + rows], y, x])
    return found.numpy()


def _averaging(index: FloatArray, step: float, count: int) -> Tensor:
    """Return the matrix that averages what is interpolated a quarter of a step before and after each index.

    Past the outer half voxel there is nothing.
    """
    places = index[:, None] + step * np.array([-0.25, 0.25])
    inside = (places >= -0.5) & (places <= count - 0.5)
    distance = np.abs(np.clip(places, 0, count - 1)[..., None] - np.arange(count))
    weights = np.maximum(1.0 - distance, 0.0) * inside[..., None]
    return torch.from_numpy(weights.mean(axis=1).astype(np.float32))
