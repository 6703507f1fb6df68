"""What training minimises, and the auxiliary outputs that it uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.network import RegNet

_LEVEL_SHARES = (0.25, 0.5, 1.0, 1.0)
"""Of the coarse-to-fine network's levels, the finest last."""


class DeepSupervision(nn.Module):
    """RegNet with two auxiliary outputs, from the merged features of either resolution, for training only.

    They bring the error straight to the layers that must learn to match, which otherwise stay on a plateau.
    """

    def __init__(self, network: RegNet) -> None:
        super().__init__()
        self.network = network
        self.fine_head = nn.Conv3d(30, 3, 1)
        self.coarse_head = nn.Conv3d(30, 3, 1)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the displacements of the network and of both auxiliary outputs, the network's own last."""
        fine, coarse = self.network.features(fixed, moving)
        merged = self.network.merged(torch.cat([fine, coarse], dim=1))
        inside = (..., *(slice(4, -4),) * 3)
        own = self.network.displacement(self.network.dense(merged))
        return [self.fine_head(fine[inside]), self.coarse_head(coarse[inside]), own]


def regnet_loss(outputs: list[Tensor], u: Tensor) -> Tensor:
    """Return the mean absolute error, with a part of that of the auxiliary outputs."""
    fine, coarse, own = ((output.float() - u).abs().mean() for output in outputs)
    return own + 0.3 * coarse + 0.2 * fine


def coarse_to_fine_loss(levels: list[Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """Sum the mean error of all levels, mostly inside the lungs."""
    weight = weight + 0.15
    total = u.new_zeros(())
    for share, predicted in zip(_LEVEL_SHARES[-len(levels) :], levels, strict=True):
        factor = u.shape[-1] // predicted.shape[-1]
        truth, at = (functional.avg_pool3d(t, factor) if factor > 1 else t for t in (u, weight))
        error = ((predicted - truth).square().sum(dim=1, keepdim=True) + 1e-3).sqrt()
        total = total + share * (error * at).sum() / at.sum()
    return total
