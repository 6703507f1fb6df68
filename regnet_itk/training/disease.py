"""What one scan of a chest shows and the other does not: nodules, and lung that is denser."""

from __future__ import annotations

import torch
from torch import Tensor

from regnet_itk.training.config import Range
from regnet_itk.training.fields import FieldMaker, for_each
from regnet_itk.training.random_numbers import put_on

SOFT_TISSUE = 1040.0
"""HU above air."""

_NODULES = 3
_NODULE_RADIUS: Range = (2.0, 12.0)  # mm
_NODULE_EDGE = 0.7  # mm
_PATCHY = 15.0  # mm


def lightness(image: Tensor) -> Tensor:
    """Return 1 where an image (HU above air) is as light as lung tissue, fading to 0 towards soft tissue."""
    return torch.sigmoid((450.0 - image) / 60.0)


def add_nodules(image: Tensor, share: float, fields: FieldMaker) -> Tensor:
    """Put up to three lumps of soft tissue, somewhat irregular, into a share of the images.

    Parameters
    ----------
    image : Tensor, shape (n, 1, z, y, x)
        HU above air.
    share : float
    fields : FieldMaker
        Of the block; its random numbers are used.
    """
    these = _chosen(image, share, fields)
    if not len(these):
        return image
    random, count = fields.random, len(these)
    shape = 1.0 + 0.25 * fields.uneven(8.0, count)
    inside = torch.zeros_like(shape)
    half = put_on(image.device, torch.tensor(image.shape[:1:-1]) * (fields.voxel_size / 2))
    for number in range(_NODULES):
        centre = put_on(image.device, random.uniform_small(count, 3)) * half
        radius = random.log_numbers(count, _NODULE_RADIUS)
        radius = torch.where(random.numbers(count) < 1.0 / (1 + number), radius, -10.0)  # mm; else there is none
        distance = (fields.positions - centre[..., None, None, None]).norm(dim=1, keepdim=True)
        lump = torch.sigmoid((for_each(radius, image.device) * shape - distance) / _NODULE_EDGE)
        inside = torch.maximum(inside, lump)
    tissue = SOFT_TISSUE + for_each(random.numbers(count, (-60.0, 60.0)), image.device)
    old = image[these]
    return image.index_copy(0, these, old + (tissue - old).clamp(min=0.0) * inside)


def add_consolidation(image: Tensor, share: float, fields: FieldMaker) -> Tensor:
    """Make a part of the lung tissue denser, from ground glass to soft tissue, in a share of the images.

    Parameters
    ----------
    image, share, fields : as for :func:`add_nodules`
    """
    these = _chosen(image, share, fields)
    if not len(these):
        return image
    random, count = fields.random, len(these)
    edge = for_each(random.numbers(count, (0.2, 0.7)), image.device)
    where = torch.sigmoid((fields.uneven(_PATCHY, count) - edge) * 12.0)
    strength = for_each(random.numbers(count, (0.15, 1.0)), image.device)
    old = image[these]
    lung = lightness(old) * torch.sigmoid((old - 60.0) / 15.0)  # air around the body stays
    return image.index_copy(0, these, old + (SOFT_TISSUE - old) * where * strength * lung)


def _chosen(image: Tensor, share: float, fields: FieldMaker) -> Tensor:
    """Draw the numbers of the images that something happens to."""
    return put_on(image.device, fields.random.chances(len(image), share).nonzero()[:, 0])
