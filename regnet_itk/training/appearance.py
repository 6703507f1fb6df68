"""What two scans of a patient differ in besides the displacement: density, contrast, motion, kernel, slices, noise."""

from __future__ import annotations

import torch
from torch import Tensor

from regnet_itk.networks.layers import warp
from regnet_itk.networks.separable import along_axes
from regnet_itk.training.config import AppearanceRecipe
from regnet_itk.training.disease import add_consolidation, add_nodules, lightness
from regnet_itk.training.fields import FieldMaker, for_each
from regnet_itk.training.filters import slice_matrix, smooth
from regnet_itk.training.random_numbers import Random, put_on

_KNOTS = 6
_DARK_BACKGROUND = 0.8  # of the curves
_MOTION_SIGMA = (12.0, 30.0)  # mm


def scale_lung_density(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply what is as light as lung tissue (HU above air) by `factor`, fading out towards soft tissue."""
    return image * (1.0 + (factor - 1.0) * lightness(image))


def remap_brightness(image: Tensor, width: float, random: Random) -> Tensor:
    """Change brightness by a curve through random points: what was dark may be bright, and alike what was not.

    Parameters
    ----------
    image : Tensor
        Intensities above the background.
    width : float
        Of the range that the curve is for; brighter values become what its end becomes.
    random : Random

    Returns
    -------
    Tensor
        From 0 to `width`; in most cases the background stays what it is.
    """
    knots = put_on(image.device, random.numbers(_KNOTS)) * width
    if random.happens(_DARK_BACKGROUND):
        knots[0] = 0.0
    place = (image * ((_KNOTS - 1) / width)).clamp(0.0, _KNOTS - 1 - 1e-4)
    low = place.long()
    return torch.lerp(knots[low], knots[low + 1], place - low)


def add_scanner_effects(image: Tensor, recipe: AppearanceRecipe, fields: FieldMaker, slice_axes: Tensor) -> Tensor:
    """Give each of n images an appearance of its own.

    Parameters
    ----------
    image : Tensor, shape (n, 1, z, y, x)
        Intensities above the background; what the recipe says of tissue takes them for HU above air.
    recipe : AppearanceRecipe
    fields : FieldMaker
        Of the block; its random numbers are used.
    slice_axes : Tensor, shape (n,)
        The axes of the blocks, 0 for z, that are nearest to the bodies' axes.

    Returns
    -------
    Tensor
        Above the background as well.
    """
    random, count = fields.random, len(image)

    def drawn(low: float, high: float) -> Tensor:
        return for_each(random.numbers(count, (low, high)), image.device)

    if recipe.density:
        change = 1.0 + drawn(0.0, recipe.density) * fields.uneven(40.0, count)
        image = scale_lung_density(image, change * (1.0 + drawn(-recipe.density, recipe.density)))
    image = add_consolidation(image, recipe.consolidation_share, fields)
    image = add_nodules(image, recipe.nodules_share, fields)
    image = _with_motion(image, recipe, fields)
    if recipe.contrast:
        image = image + (image - 950.0).clamp(min=0.0) * drawn(-recipe.contrast, recipe.contrast)
    enhanced = random.chances(count, 0.5 if recipe.contrast_agent else 0.0)
    if enhanced.any():
        strength = drawn(0.0, recipe.contrast_agent) * for_each(enhanced, image.device)
        where = torch.sigmoid(fields.noise(1, 30.0, count))
        image = image + strength * where * torch.sigmoid((image - 1030.0) / 15.0)
    sharp = random.chances(count, 0.5 if recipe.sharpening else 0.0)
    if sharp.any():
        strength = drawn(0.0, recipe.sharpening) * for_each(sharp, image.device)
        image = image + strength * (image - smooth(image, (0.8, 0.8, 0.8)))
    if recipe.blur:
        image = smooth(image, [random.numbers(count, (0.0, recipe.blur)) for _ in range(3)])
    image = image + _noise(image, recipe, random)
    thickness = random.numbers(count, (0.0, recipe.slice_thickness)) / fields.voxel_size
    return in_slices(image, thickness, random.numbers(count), slice_axes)


def _with_motion(image: Tensor, recipe: AppearanceRecipe, fields: FieldMaker) -> Tensor:
    """Let a part of some images move while they are taken: contours become double."""
    random, device = fields.random, image.device
    these = put_on(device, random.chances(len(image), recipe.motion_share).nonzero()[:, 0])
    count = len(these)
    if not count:
        return image
    sigma, theta = random.log_numbers(count, _MOTION_SIGMA), random.numbers(count, (0.0, recipe.motion))
    old = image[these]
    moved = warp(old, fields.wave(sigma, theta) / fields.voxel_size)
    where = torch.sigmoid(8.0 * fields.uneven(25.0, count))
    return image.index_copy(0, these, old + 0.5 * where * (moved - old))


def _noise(image: Tensor, recipe: AppearanceRecipe, random: Random) -> Tensor:
    count, noise = len(image), random.normal(*image.shape)
    if recipe.noise_correlation:
        noise = smooth(noise, [random.numbers(count, (0.0, recipe.noise_correlation))] * 3)
        noise = noise / noise.std(dim=(1, 2, 3, 4), keepdim=True)
    return noise * for_each(random.numbers(count, recipe.noise), image.device)


def in_slices(image: Tensor, thickness: Tensor, phase: Tensor, axes: Tensor) -> Tensor:
    """Return n images as scans in slices show them, across an axis of its own each.

    Parameters
    ----------
    image : Tensor, shape (n, 1, z, y, x)
    thickness : Tensor, shape (n,)
        Of the slices, in voxels; up to 1 nothing changes.
    phase : Tensor, shape (n,)
        From 0 to 1: where the first slice lies.
    axes : Tensor, shape (n,)
        0 for z.
    """
    if not (thickness > 1).any():
        return image
    matrices = [torch.eye(n, device=image.device).repeat(len(image), 1, 1) for n in image.shape[2:]]
    for axis, matrix in enumerate(matrices):
        these = ((axes == axis) & (thickness > 1)).nonzero()[:, 0]
        if len(these):
            matrix[put_on(image.device, these)] = slice_matrix(
                matrix.shape[1], thickness[these], phase[these], image.device
            )
    return along_axes(image, matrices)
