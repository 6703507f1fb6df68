"""What a network sees of a pair: both images on the same voxels, the moving one through the transform so far."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ParameterError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.world import World
    from regnet_itk.stages.base import ImagePair


def standardise_pair(pair: ImagePair, world: World) -> ImagePair:
    """Return the pair with its images in the unit of a model's world.

    Raises
    ------
    ImageError
        If an image cannot be brought to it.
    """
    try:
        return replace(pair, fixed=world.standardise(pair.fixed), moving=world.standardise(pair.moving))
    except ParameterError as error:
        raise ImageError(str(error)) from None


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
