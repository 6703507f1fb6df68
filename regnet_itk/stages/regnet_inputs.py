"""What a network sees of a pair: both images on the same voxels, the moving one through the transform so far."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.errors import ImageError, ParameterError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.model import Model
    from regnet_itk.networks.world import World
    from regnet_itk.stages.base import ImagePair

_VOXELS_WANTED = 3_500_000  # of the region, for the network
_COARSE = 4.0  # mm; of the voxels that the region's size is taken on


def fit_to_pair(model: Model, pair: ImagePair) -> Model:
    """Return a model on the voxels that fit a pair, if it works on voxels of several sizes.

    They are no finer than both images' own, and so large that the fixed image's mask, or its foreground, has a number
    of voxels that two processor cores and the memory budget bear: about 1 mm for a head, 2 mm for a chest.
    """
    limits = model.description.world.voxel_sizes
    if limits is None:
        return model
    extent = _extent_of_interest(pair)
    finest = max(math.prod(image.grid.spacing) ** (1 / 3) for image in (pair.fixed, pair.moving))
    wanted = max(finest, (math.prod(extent) / _VOXELS_WANTED) ** (1 / 3))
    return model.at_voxel_size(min(max(round(wanted, 2), limits[0]), limits[1]))


def _extent_of_interest(pair: ImagePair) -> list[float]:
    """Return how many mm the fixed image's mask reaches along each axis, or else its foreground, or all of it."""
    grid = pair.fixed.grid
    coarse = grid.isotropic(max(_COARSE, *grid.spacing))
    region: Image | None = None
    if pair.fixed_mask is not None:
        mask = Image((pair.fixed_mask.array != 0).astype(np.uint8), grid)
        region = mask.resampled(coarse, order=0)
    else:
        with contextlib.suppress(ImageError):
            region = Scan(pair.fixed).find("foreground", coarse)
    if region is None or not region.array.any():
        return [n * s for n, s in zip(grid.size, grid.spacing, strict=True)]
    return [(s.stop - s.start) * coarse.spacing[0] for s in bounding_box(region.array > 0, 0)]


def standardised_pairs(pair: ImagePair, world: World) -> list[ImagePair]:
    """Return each fixed image with its moving one, in the unit of a model's world; the first ones first.

    A single image of one side belongs to all of the other.

    Raises
    ------
    ImageError
        If an image cannot be brought to that unit, or it is not clear which images belong together.
    """
    counts = len(pair.fixed_images), len(pair.moving_images)
    if min(counts) > 1 and counts[0] != counts[1]:
        raise ImageError(
            f"a network compares images in pairs: give as many moving as fixed images, or one, not {counts[1]} to "
            f"{counts[0]}"
        )
    try:
        fixed, moving = ([world.standardise(i) for i in images] for images in (pair.fixed_images, pair.moving_images))
    except ParameterError as error:
        raise ImageError(str(error)) from None
    pairs = zip(fixed * (max(counts) // counts[0]), moving * (max(counts) // counts[1]), strict=True)
    return [replace(pair, fixed=f, moving=m, more_fixed=(), more_moving=()) for f, m in pairs]


def resample_pair(
    pair: ImagePair,
    grid: Grid,
    composite: sitk.Transform,
    background: float,
    *,
    threads: int | None,
    averaged: bool = False,
) -> tuple[Image, Image]:
    """Return the fixed image, and the moving image through the transform so far, on the same voxels.

    Parameters
    ----------
    pair : ImagePair
    grid : Grid
        The voxels.
    composite : SimpleITK.Transform
        The transform so far, fixed to moving.
    background : float
        The value outside of the images.
    threads : int, optional
        All by default.
    averaged : bool
        Whether voxels that are larger than the image's are means over it.
    """
    from regnet_itk.networks.devices import limited_threads
    from regnet_itk.networks.resampling import resample_for_network

    with limited_threads(threads):
        return (
            resample_for_network(pair.fixed, grid, background, averaged=averaged),
            resample_for_network(pair.moving, grid, background, composite, averaged),
        )


def check_overlap(fixed: Image, moving: Image, region: Image, background: float) -> None:
    """Refuse images of which only the fixed one has something in the region, all on one grid.

    Raises
    ------
    ImageError
    """
    inside = region.array.astype(bool)
    if not (moving.array[inside] > background).any() and (fixed.array[inside] > background).any():
        raise ImageError(
            "the images do not overlap where the displacement is wanted: the moving image lies elsewhere in space; "
            "put an affine stage with (AutomaticTransformInitialization) before, or give `initial`"
        )
