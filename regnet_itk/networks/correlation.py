"""Features of two images compared over a neighbourhood: compiled for processors, in Torch's operations for all else.

Tensors are (batch, channel, z, y, x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.compiling import find_kernels

Offsets = list[tuple[int, int, int]]

_CACHED_VALUES = 262_144  # products that are summed before they leave the processor's cache


def correlate(fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
    """Correlate fixed features with moving features at neighbouring voxels.

    On a processor, with numba installed, a compiled loop does it many times faster than Torch's operations, which serve
    everywhere else.

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
    features = fixed.float().contiguous(), moving.float().contiguous()
    if fixed.device.type == "cpu" and _kernels() is not None:
        found: Tensor = _Compiled.apply(*features, offsets)
    else:
        found = correlate_by_operations(*features, offsets)
    return found


def correlate_by_operations(fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
    """Correlate as :func:`correlate` does, in Torch's operations: float32, contiguous, on any device."""
    found: Tensor = _Operations.apply(fixed, moving, offsets)
    return found


def _kernels() -> Any:
    return find_kernels("regnet_itk.networks.correlation_kernels")


class _Compiled(torch.autograd.Function):
    """Products of shifted features in one pass over the fixed image, a row of voxels at a time."""

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.offsets = offsets
        found = fixed.new_empty(fixed.shape[0], len(offsets), *fixed.shape[2:])
        for f, m, out in zip(fixed, moving, found, strict=True):
            _kernels().run_forward(f, m, offsets, out)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        fixed, moving = ctx.saved_tensors
        gradient = gradient.float().contiguous()
        of_fixed, of_moving = torch.empty_like(fixed), torch.empty_like(moving)
        for g, f, m, df, dm in zip(gradient, fixed, moving, of_fixed, of_moving, strict=True):
            _kernels().run_backward(g, f, m, ctx.offsets, (df, dm))
        return of_fixed, of_moving, None


class _Operations(torch.autograd.Function):
    """Products of shifted features, summed over the channels, some sections and one shift at a time.

    Autograd would allocate a gradient of full size for every shift; this adds them up in place.
    """

    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moving: Tensor, offsets: Offsets) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.offsets = offsets
        padded, r = _padded_to_reach(moving, offsets)
        found = fixed.new_empty(fixed.shape[0], len(offsets), *fixed.shape[2:])
        rows = fixed.shape[2]
        if fixed.device.type == "cpu":
            rows = max(1, _CACHED_VALUES // (fixed.numel() // rows))
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
