"""Operations that networks share: warping, the force of the demons algorithm.

Tensors are (batch, channel, z, y, x); displacements are in voxels, components x, y, z.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def warp(image: Tensor, displacement: Tensor, first: int = 0) -> Tensor:
    """Sample `image` at x + u(x), linearly; beyond its border it continues with the border's values.

    Parameters
    ----------
    image : Tensor, shape (batch, channel, z, y, x)
    displacement : Tensor, shape (batch, 3, z, y, x)
        u along the axes x, y, z, in voxels.
    first : int
        The slice z of `image` that the first slice of `displacement` belongs to, if that is only a part.

    Returns
    -------
    Tensor, shape (batch, channel, z, y, x), float32
    """
    shape = displacement.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=torch.float32) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    u = displacement.float()
    nz, ny, nx = image.shape[2:]
    where = torch.stack(
        [
            (x + u[:, 0]) * (2 / max(nx - 1, 1)),
            (y + u[:, 1]) * (2 / max(ny - 1, 1)),
            (z + first + u[:, 2]) * (2 / max(nz - 1, 1)),
        ],
        dim=-1,
    )
    return functional.grid_sample(image.float(), where - 1, padding_mode="border", align_corners=True)


def demons_force(fixed: Tensor, moving: Tensor) -> Tensor:
    """Return the displacement in voxels that explains a small difference of intensities along their gradient.

    (F - M) grad / (|grad|^2 + (F - M)^2) with the mean gradient of both images (Thirion's demons): at most half a
    voxel long. It is what a correlation would tell about displacements below a voxel, for a fraction of its cost.

    Parameters
    ----------
    fixed, moving : Tensor, shape (batch, 1, z, y, x)
        Intensities from -1 to 1.

    Returns
    -------
    Tensor, shape (batch, 3, z, y, x)
        Components x, y, z.
    """
    both = 0.5 * (fixed + moving)
    gradient = torch.cat([torch.gradient(both, dim=dim)[0] for dim in (4, 3, 2)], dim=1)
    difference = fixed - moving
    return gradient * (difference / (gradient.square().sum(dim=1, keepdim=True) + difference.square() + 1e-4))
