"""Mutual information of two images at the same places, with a gradient by one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from regnet_itk.transforms.point_samplers import centred_bspline

BINS = 32
"""Of each image's brightness, as in elastix."""

_BEFORE, _AFTER = 1, 2  # bins at the ends that only the kernel reaches


def mutual_information(fixed: Tensor, moving: Tensor) -> Tensor:
    """Return the mutual information of two images' brightness, in nats.

    The joint histogram is smoothed along the moving image by a cubic B-spline, so that it can be differentiated; the
    fixed one counts in whole bins.

    Parameters
    ----------
    fixed, moving : Tensor, shape (n,)
        Brightness at the same places, from 0 to 1. The gradient goes to the moving one.

    Returns
    -------
    Tensor, shape ()

    References
    ----------
    Mattes, Haynor, Vesselle, Lewellen and Eubank, "PET-CT image registration in the chest using free-form
    deformations", IEEE TMI 2003.
    """
    rows = (fixed * (BINS - 1)).round().long()
    place = _BEFORE + moving * (BINS - 1 - _BEFORE - _AFTER)
    first = place.detach().floor().long() - 1
    columns = first[:, None] + torch.arange(4, device=moving.device)
    weights = centred_bspline(place[:, None] - columns.to(place), 3)
    cells = (rows[:, None] * BINS + columns).flatten()
    joint = moving.new_zeros(BINS * BINS).index_add(0, cells, weights.flatten()).view(BINS, BINS) / len(moving)
    of_both = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return torch.special.xlogy(joint, joint / of_both.clamp(min=1e-12) + 1e-12).sum()
