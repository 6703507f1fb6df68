"""Features interpolated at places between voxels, with gradients by the places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.compiling import find_kernels


def interpolate(features: Tensor, index: Tensor) -> Tensor:
    """Interpolate features linearly; beyond the border take what is there.

    On a processor, with numba installed, a compiled loop does it; Torch's operations serve everywhere else. The
    features of a voxel lie side by side, which makes this several times faster than grid_sample.

    Parameters
    ----------
    features : Tensor, shape (z, y, x, channel)
        float32; no gradient goes to it.
    index : Tensor, shape (n, 3)
        z, y, x in voxels.

    Returns
    -------
    Tensor, shape (n, channel)
    """
    last = torch.tensor(features.shape[:3], device=index.device) - 1
    index = torch.minimum(index.clamp(min=0.0), last.to(index))
    if features.device.type == "cpu" and features.dtype == torch.float32 and _kernels() is not None:
        found: Tensor = _Compiled.apply(features.contiguous(), index.float().contiguous())
    else:
        found = interpolate_by_operations(features, index)
    return found


def interpolate_by_operations(features: Tensor, index: Tensor) -> Tensor:
    """Interpolate as :func:`interpolate` does, in Torch's operations, at indices that lie within the features."""
    shape = torch.tensor(features.shape[:3], device=index.device)
    low = torch.minimum(index.detach().floor().long(), (shape - 2).clamp(min=0))
    part = index - low
    rows, weights = [], []
    for corner in range(8):
        side = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=index.device)
        z, y, x = torch.minimum(low + side, shape - 1).unbind(dim=1)
        rows.append((z * shape[1] + y) * shape[2] + x)
        weights.append(torch.where(side > 0, part, 1.0 - part).prod(dim=1))
    return functional.embedding_bag(
        torch.stack(rows, dim=1), features.flatten(0, 2), per_sample_weights=torch.stack(weights, dim=1), mode="sum"
    )


def load_kernels() -> None:
    """Load numba and a compiled loop, which takes a second when it is first needed."""
    interpolate(torch.zeros(2, 2, 2, 1), torch.zeros(1, 3))


def _kernels() -> Any:
    return find_kernels("regnet_itk.networks.interpolation_kernels")


class _Compiled(torch.autograd.Function):
    """The compiled loops, for autograd."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(features, index)
        found = index.new_empty(len(index), features.shape[-1])
        _kernels().run_forward(features, index.detach(), found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        features, index = ctx.saved_tensors
        found = torch.empty_like(index)
        _kernels().run_backward(features, index.detach(), gradients[0].contiguous(), found)
        return None, found
