"""The records of RegNet and of the two designs that the paper compares it with: loss, auxiliary outputs, blocks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from regnet_itk.networks.architectures import Architecture, Shape
from regnet_itk.networks.regnet import BLOCK_OVERHEAD, PATCH_MARGIN, RegNet
from regnet_itk.networks.running import RunSetup
from regnet_itk.networks.tiles import TiledRunner

_AUXILIARY_SHARES = (0.2, 0.3)
"""Of the loss of RegNet's auxiliary outputs, of the original and of the low resolution."""


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


def regnet_loss(outputs: list[Tensor], u: Tensor, weight: Tensor) -> Tensor:
    """Return the mean absolute error, with a part of that of the auxiliary outputs; no output weighs more."""
    *auxiliary, total = ((output.float() - u).abs().mean() for output in outputs)
    for share, error in zip(_AUXILIARY_SHARES, auxiliary, strict=False):
        total = total + share * error
    return total


def _block_shape(outputs: int) -> Shape:
    edge = BLOCK_OVERHEAD + 2 * outputs
    return edge, edge, edge


def _at_outputs(block: Tensor) -> Tensor:
    return block[(..., *(slice(PATCH_MARGIN, -PATCH_MARGIN + 1, 2),) * 3)]


def _with_heads(network: nn.Module, auxiliary: bool) -> nn.Module:
    assert isinstance(network, RegNet)
    return DeepSupervision(network, auxiliary)


def _make(voxel_size: float, *, early_fusion: bool = False, scales: int = 2) -> RegNet:
    return RegNet(early_fusion, scales)


def _make_runner(network: nn.Module, setup: RunSetup) -> TiledRunner:
    assert isinstance(network, RegNet)
    return TiledRunner(network, setup)


REGNET = Architecture(
    name="regnet",
    make=_make,
    voxel_size=1.0,
    make_runner=_make_runner,
    loss=regnet_loss,
    with_heads=_with_heads,
    block_shape=_block_shape,
    at_outputs=_at_outputs,
    has_batch_statistics=True,
    predicts_everywhere=False,
    auxiliary_outputs=True,
)
REGNET_EARLY = replace(REGNET, name="regnet_early", make=partial(_make, early_fusion=True))
REGNET_1SCALE = replace(REGNET, name="regnet_1scale", make=partial(_make, scales=1))
