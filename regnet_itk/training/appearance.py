"""What two scans of a patient differ in besides the displacement: density, contrast, reconstruction, slices, noise."""

from __future__ import annotations

import torch
from torch import Tensor

from regnet_itk.networks.separable import along_axes
from regnet_itk.training.config import AppearanceRecipe
from regnet_itk.training.fields import FieldMaker
from regnet_itk.training.filters import slice_matrix, smooth
from regnet_itk.training.random_numbers import Random

SOFT_TISSUE = 1040.0
"""HU above air."""

_KNOTS = 6
_DARK_BACKGROUND = 0.8  # of the curves


def scale_lung_density(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply what is as light as lung tissue (HU above air) by `factor`, fading out towards soft tissue."""
    light = torch.sigmoid((450.0 - image) / 60.0)
    return image * (1.0 + (factor - 1.0) * light)


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
    knots = random.shares(_KNOTS).to(image.device) * width
    if random.happens(_DARK_BACKGROUND):
        knots[0] = 0.0
    place = (image * ((_KNOTS - 1) / width)).clamp(0.0, _KNOTS - 1 - 1e-4)
    low = place.long()
    return torch.lerp(knots[low], knots[low + 1], place - low)


def add_scanner_effects(image: Tensor, recipe: AppearanceRecipe, fields: FieldMaker, slice_axis: int) -> Tensor:
    """Give an image an appearance of its own.

    Parameters
    ----------
    image : Tensor, shape (1, 1, z, y, x)
        Intensities above the background; what the recipe says of tissue takes them for HU above air.
    recipe : AppearanceRecipe
    fields : FieldMaker
        Of the block; its random numbers are used.
    slice_axis : int
        The axis of the block, 0 for z, that is nearest to the body's axis.

    Returns
    -------
    Tensor
        Above the background as well.
    """
    random = fields.random
    if recipe.density:
        change = fields.noise(1, 40.0)
        change = 1.0 + random.uniform((0.0, recipe.density)) * change / change.abs().max()
        image = scale_lung_density(image, change * (1.0 + random.uniform((-recipe.density, recipe.density))))
    if recipe.contrast:
        soft = (image - 950.0).clamp(min=0.0)
        image = image + soft * random.uniform((-recipe.contrast, recipe.contrast))
    if recipe.contrast_agent and random.integer(2):
        where = torch.sigmoid(fields.noise(1, 30.0))
        image = image + random.uniform((0.0, recipe.contrast_agent)) * where * torch.sigmoid((image - 1030.0) / 15.0)
    if recipe.sharpening and random.integer(2):
        image = image + random.uniform((0.0, recipe.sharpening)) * (image - smooth(image, (0.8, 0.8, 0.8)))
    if recipe.blur:
        limits = (0.0, recipe.blur)
        image = smooth(image, (random.uniform(limits), random.uniform(limits), random.uniform(limits)))
    image = image + _noise(image, recipe, random)
    thickness = random.uniform((0.0, recipe.slice_thickness)) / fields.voxel_size
    if thickness > 1:
        image = _in_slices(image, thickness, random.uniform(), slice_axis)
    return image


def _noise(image: Tensor, recipe: AppearanceRecipe, random: Random) -> Tensor:
    noise = random.normal(*image.shape)
    if recipe.noise_correlation:
        noise = smooth(noise, (random.uniform((0.0, recipe.noise_correlation)),) * 3)
        noise = noise / noise.std()
    return noise * random.uniform(recipe.noise)


def _in_slices(image: Tensor, thickness: float, phase: float, axis: int) -> Tensor:
    matrices = [torch.eye(n, device=image.device) for n in image.shape[2:]]
    matrices[axis] = slice_matrix(image.shape[2 + axis], thickness, phase, image.device)
    return along_axes(image, matrices)
