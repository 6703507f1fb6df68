"""Operations that networks share: warping, the force of the demons algorithm.

Tensors are (batch, channel, z, y, x); displacements are in voxels, components x, y, z.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.networks.interpolation import interpolate


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
    if image.device.type == "cpu" and not torch.is_grad_enabled():
        return torch.cat([_interpolated(i, u, first) for i, u in zip(image, displacement, strict=True)])
    return warp_by_operations(image, displacement, first)


def warp_by_operations(image: Tensor, displacement: Tensor, first: int = 0) -> Tensor:
    """Sample as :func:`warp` does, in Torch's operations, with gradients."""
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


def _interpolated(image: Tensor, u: Tensor, first: int) -> Tensor:
    """Return an image (channel, z, y, x) at displaced voxels, as a batch of one whose channels lie side by side."""
    shape = u.shape[1:]
    index = torch.empty(*shape, 3)
    for axis, start in enumerate((first, 0, 0)):  # z, y, x
        places = torch.arange(start, start + shape[axis], dtype=torch.float32)
        torch.add(u[2 - axis], places.view([-1 if a == axis else 1 for a in range(3)]), out=index[..., axis])
    features = image.movedim(0, -1).float().contiguous()
    return interpolate(features, index.view(-1, 3)).view(*shape, -1).movedim(-1, 0)[None]


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
