"""The coarse-to-fine network's record: its loss, its memory, how it runs over an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.networks.architectures import Architecture
from regnet_itk.networks.coarse_to_fine import SLAB_VOXELS, CoarseToFineRegNet
from regnet_itk.networks.whole_box import WholeBox

_LEVEL_SHARES = (0.25, 0.5, 1.0, 1.0)
"""Of the loss of each level, the finest last."""

_LARGEST_FACTOR = 8
"""Voxels of the finest level along an edge of the coarsest one's."""

_BYTES_PER_VOXEL = {torch.float32: 180, torch.bfloat16: 125}  # measured peaks, to which
_BYTES_PER_SLAB_VOXEL = {torch.float32: 530, torch.bfloat16: 340}  # come the voxels that are worked on at once


def coarse_to_fine_loss(levels: list[Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """Sum the mean error of all levels, mostly inside the region that blocks are weighted by."""
    weight = weight + 0.15
    total = u.new_zeros(())
    for share, predicted in zip(_LEVEL_SHARES[-len(levels) :], levels, strict=True):
        factor = u.shape[-1] // predicted.shape[-1]
        truth, at = (functional.avg_pool3d(t, factor) if factor > 1 else t for t in (u, weight))
        error = ((predicted - truth).square().sum(dim=1, keepdim=True) + 1e-3).sqrt()
        total = total + share * (error * at).sum() / at.sum()
    return total


def _bytes_needed(voxels: int, precision: torch.dtype) -> float:
    return voxels * _BYTES_PER_VOXEL[precision] + min(voxels, SLAB_VOXELS) * _BYTES_PER_SLAB_VOXEL[precision]


def _at_full_size(network: nn.Module, fixed: Tensor, moving: Tensor, left_out: int) -> Tensor:
    displacement: Tensor = network(fixed, moving, left_out)[-1].float()
    if not left_out:
        return displacement
    return functional.interpolate(displacement, scale_factor=float(2**left_out), mode="trilinear")


def _stages(network: nn.Module) -> tuple[float, ...]:
    assert isinstance(network, CoarseToFineRegNet)
    return network.stages


def _make(voxel_size: float) -> CoarseToFineRegNet:
    return CoarseToFineRegNet(voxel_size=voxel_size)


def run_whole_boxes(bytes_needed: Callable[[int, torch.dtype], float], words: str) -> WholeBox:
    """Return the maker of runners of a network in stages; its memory is as `bytes_needed` says."""
    return WholeBox(bytes_needed, _LARGEST_FACTOR, apply=_at_full_size, words=words)


COARSE_TO_FINE = Architecture(
    name="coarse_to_fine",
    make=_make,
    voxel_size=2.0,
    make_runner=run_whole_boxes(_bytes_needed, "coarse-to-fine network"),
    loss=coarse_to_fine_loss,
    stages=_stages,
    block_multiple=_LARGEST_FACTOR,
)
