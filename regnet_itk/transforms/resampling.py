"""An image through a transform, I(T(x)): by cubic B-splines in compiled loops where they pay, and by ITK elsewhere."""

from __future__ import annotations

import math

import numpy as np

from regnet_itk.compiling import find_kernels
from regnet_itk.data.grid import Box, Grid
from regnet_itk.data.image import Image
from regnet_itk.transforms.chain import TransformChain

_CUBIC = 3
_MANY_VOXELS = 4_000_000
"""From here on, compiled loops save more time than it takes to load what they need."""


def resample_through(
    image: Image,
    chain: TransformChain,
    grid: Grid,
    order: int = 3,
    default: float = 0.0,
    *,
    threads: int | None = None,
) -> Image:
    """Return I(T(x)) at the voxels of a grid, as float32.

    Parameters
    ----------
    image : Image
        In the space of the moving image.
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The wanted voxels, in the space of the fixed image.
    order : {0, 1, 2, 3, 4, 5}
        As for :meth:`regnet_itk.Image.resampled`.
    default : float
        Value where T(x) is outside of the image.
    threads : int, optional
        That share the work; as many as Torch has by default.
    """
    if order == _CUBIC and math.prod(grid.size) >= _MANY_VOXELS and _can_be_splines(image):
        return _resample_by_splines(image, chain, grid, default, threads)
    return image.resampled(grid, chain.to_sitk(grid), order, default)


def _can_be_splines(image: Image) -> bool:
    if find_kernels("regnet_itk.data.cubic_kernels") is None:
        return False
    from regnet_itk.data.cubic_splines import CubicSplines

    return CubicSplines.fits(image)


def _resample_by_splines(image: Image, chain: TransformChain, grid: Grid, default: float, threads: int | None) -> Image:
    from regnet_itk.data.cubic_splines import CubicSplines
    from regnet_itk.transforms.sampler import fill_in_blocks, single_threads, voxel_points

    with single_threads(threads) as pool:
        splines = CubicSplines(image, pool)
    sampler, values = chain.sampler(), np.empty(grid.shape, dtype=np.float32)

    def fill(box: Box, part: Grid) -> None:
        values[box] = splines.at(sampler.map(voxel_points(part)).numpy(), default).reshape(part.shape)

    fill_in_blocks(fill, grid, threads=threads)
    return Image(values, grid)
