"""The coarse-to-fine network for images of any contrast: it sees how an image looks around a voxel as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet, cube_of_offsets, unit_length
from regnet_itk.networks.correlation import correlate
from regnet_itk.networks.layers import demons_force
from regnet_itk.networks.self_similarity import CHANNELS, mind_features

_NEIGHBOURS = cube_of_offsets(1)


class GeneralRegNet(CoarseToFineRegNet):
    """RegNet in several stages for two images whose intensities need not agree.

    Beside an image's intensities its encoder sees their self-similarity context (MIND-SSC), which does not depend on
    the contrast, and at the finest level it compares features by their correlation over the neighbouring voxels too.

    Parameters
    ----------
    voxel_size : float
        Voxels of the input images in mm.
    """

    def __init__(self, voxel_size: float = 2.0) -> None:
        super().__init__(voxel_size=voxel_size, seen=1 + CHANNELS, compared=3 + len(_NEIGHBOURS))

    def see(self, image: Tensor) -> Tensor:
        """Return an image (batch, 1, z, y, x) with its self-similarity context, from -0.5 to 0.5."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            context = torch.stack([mind_features(0.5 * one[0].float() + 0.5).movedim(-1, 0) for one in image])
        return torch.cat([image, (context - 0.5).to(image.dtype)], dim=1)

    def compare_finest(self, fixed: Tensor, moved: Tensor, of_fixed: Tensor, of_moved: Tensor) -> Tensor:
        """Return the correlation of the features over the neighbouring voxels, and the demons' force."""
        alike = correlate(unit_length(of_fixed), unit_length(of_moved), _NEIGHBOURS)
        return torch.cat([alike, demons_force(fixed, moved).to(alike.dtype)], dim=1)


def general_from(network: nn.Module) -> GeneralRegNet | None:
    """Return a general network that begins with what another one has learnt; None if they have nothing in common.

    Of the coarse-to-fine network it takes all but the finest stage: where that one saw intensities, this one sees the
    same, and the self-similarity context with random weights beside.
    """
    if isinstance(network, GeneralRegNet):
        return network
    if not isinstance(network, CoarseToFineRegNet):
        return None
    found = GeneralRegNet(network.voxel_size)
    first = "encoder.0.0.0.weight"
    learnt = {k: v for k, v in network.state_dict().items() if not k.startswith("decoder.0.body.0.")}
    weight = found.state_dict()[first] * 0.5
    weight[:, :1] = learnt[first]
    found.load_state_dict({**found.state_dict(), **learnt, first: weight})
    return found
