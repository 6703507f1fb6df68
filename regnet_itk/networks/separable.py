"""Linear maps of a 3D image that are a product of one matrix an axis: smoothing, interpolation, B-splines."""

from __future__ import annotations

import torch
from torch import Tensor


def along_axes(image: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply each of the axes z, y, x by a matrix of shape (after, before).

    Parameters
    ----------
    image : Tensor, shape (batch, channel, z, y, x)
    matrices : list of Tensor
        In the order z, y, x: of shape (after, before), or (batch, after, before) with one for each image.
    """
    z, y, x = matrices
    if z.ndim == 2:
        image = y @ (image @ x.T)
        return (z @ image.flatten(-2)).unflatten(-1, image.shape[-2:])
    image = torch.einsum("bczyx,bwx->bczyw", image, x)
    image = torch.einsum("bczyw,bvy->bczvw", image, y)
    return torch.einsum("bczvw,buz->bcuvw", image, z)
