"""Operations that networks share: warping, correlation, the force of the demons algorithm.

Tensors are (batch, channel, z, y, x); displacements are in voxels, components x, y, z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Offsets = list[tuple[int, int, int]]

_CACHED_VALUES = 262_144  # products that are summed before they leave the processor's cache


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


class _Correlation(torch.autograd.Function):
    """Products of shifted features, summed over the channels, some sections and one shift at a time.

    Autograd would allocate a gradient of full size for every shift; this adds them up in place.
    """

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.offsets = offsets
        padded, r = _padded_to_reach(moving, offsets)
        found = fixed.new_empty(fixed.shape[0], len(offsets), *fixed.shape[2:])
        rows = max(1, _CACHED_VALUES // (fixed.numel() // fixed.shape[2]))
        for start in range(0, fixed.shape[2], rows):
            part = fixed[:, :, start : start + rows]
            reached = padded[:, :, start : start + part.shape[2] + 2 * r]
            product = torch.empty_like(part)
            for k, offset in enumerate(offsets):
                torch.mul(part, _shifted(reached, offset, r, part.shape), out=product)
                torch.sum(product, dim=1, out=found[:, k, start : start + rows])
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        fixed, moving = ctx.saved_tensors
        padded, r = _padded_to_reach(moving, ctx.offsets)
        of_fixed, of_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        for k, offset in enumerate(ctx.offsets):
            weight = gradient[:, k : k + 1]
            of_fixed.addcmul_(weight, _shifted(padded, offset, r, fixed.shape))
            _shifted(of_padded, offset, r, fixed.shape).addcmul_(weight, fixed)
        return of_fixed, _shifted(of_padded, (0, 0, 0), r, fixed.shape), None


def _padded_to_reach(moving: Tensor, offsets: Offsets) -> tuple[Tensor, int]:
    reach = max(max(abs(o) for o in offset) for offset in offsets)
    return functional.pad(moving, [reach] * 6), reach


def _shifted(padded: Tensor, offset: tuple[int, int, int], reach: int, shape: torch.Size) -> Tensor:
    for axis, shift in enumerate(offset, start=2):
        padded = padded.narrow(axis, reach + shift, shape[axis])
    return padded


def correlate(fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
    """Correlate fixed features with moving features at neighbouring voxels.

    Parameters
    ----------
    fixed, moving : Tensor, shape (batch, channel, z, y, x)
        Features of unit length over the channels.
    offsets : list of (dz, dy, dx)
        The neighbours, in voxels.

    Returns
    -------
    Tensor, shape (batch, len(offsets), z, y, x), float32
        The cosine between the fixed feature at x and the moving feature at x + offset; 0 beyond the border.
    """
    return _Correlation.apply(fixed.float().contiguous(), moving.float().contiguous(), offsets)


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
