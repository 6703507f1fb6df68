"""What training minimises, and the auxiliary outputs that it uses."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.networks.regnet import RegNet

_LEVEL_SHARES = (0.25, 0.5, 1.0, 1.0)
"""Of the coarse-to-fine network's levels, the finest last."""

_AUXILIARY_SHARES = (0.2, 0.3)
"""Of RegNet's auxiliary outputs, of the original and of the low resolution."""


class DeepSupervision(nn.Module):
    """RegNet with auxiliary outputs, from the merged features of each resolution, for training only.

    They bring the error straight to the layers that must learn to match, which otherwise stay on a plateau.

    Parameters
    ----------
    network : RegNet
    auxiliary : bool
        False leaves them out.
    """

    def __init__(self, network: RegNet, auxiliary: bool = True) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(nn.Conv3d(30, 3, 1) for _ in range(network.scales if auxiliary else 0))

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the displacements of the auxiliary outputs, and the network's own last."""
        features = self.network.features(fixed, moving)
        inside = (..., *(slice(4, -4),) * 3)
        auxiliary = [head(part[inside]) for head, part in zip(self.heads, features, strict=False)]
        return [*auxiliary, self.network.from_features(features)]


def regnet_loss(outputs: list[Tensor], u: Tensor) -> Tensor:
    """Return the mean absolute error, with a part of that of the auxiliary outputs."""
    *auxiliary, total = ((output.float() - u).abs().mean() for output in outputs)
    for share, error in zip(_AUXILIARY_SHARES, auxiliary, strict=False):
        total = total + share * error
    return total


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
