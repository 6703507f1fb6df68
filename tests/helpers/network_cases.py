"""Networks with random weights, and the paper's network patch by patch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from regnet_itk.networks.regnet import RegNet


def means_of_eight(patch: np.ndarray) -> np.ndarray:
    z, y, x = (n // 2 for n in patch.shape)
    return patch.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every statistic a value that matters, and outputs of a few mm."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor, low, high in (
                (module.weight, 0.8, 1.5), (module.bias, -0.2, 0.4), (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.3, 0.8),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, nn.Conv3d):
            bound = (6.0 / (module.weight[0].numel())) ** 0.5
            module.weight.data.uniform_(-bound, bound, generator=generator)
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


def random_regnet() -> RegNet:
    network = RegNet()
    randomised(network)
    network.displacement.weight *= 0.001
    return network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def patch_by_patch(network: RegNet, fixed: np.ndarray, moving: np.ndarray, voxel: tuple[int, int, int]) -> np.ndarray:
    """Compute one displacement as the paper draws it: from patches around a voxel (z, y, x) of padded arrays."""

    def patches(image: np.ndarray) -> tuple[Tensor, Tensor]:
        fine = image[tuple(slice(c - 14, c + 15) for c in voxel)]
        wide = image[tuple(slice(c - 27, c + 27) for c in voxel)]
        assert fine.shape == (29, 29, 29)
        assert wide.shape == (54, 54, 54)
        return tuple(torch.from_numpy(np.ascontiguousarray(p))[None, None] for p in (fine, means_of_eight(wide)))

    (fine_f, coarse_f), (fine_m, coarse_m) = patches(fixed), patches(moving)
    fine = network.fine_merged(torch.cat([network.fine_fixed(fine_f), network.fine_moving(fine_m)], dim=1))
    assert fine.shape[2:] == (19, 19, 19)  # voxels c-9 .. c+9; the centre of the pooled nine is {c-1, c}
    pooled = fine[..., :18, :18, :18].numpy().reshape(1, 30, 9, 2, 9, 2, 9, 2).max(axis=(3, 5, 7))
    coarse = network.coarse_merged(torch.cat([network.coarse_fixed(coarse_f), network.coarse_moving(coarse_m)], dim=1))
    merged = network.merged(torch.cat([torch.from_numpy(pooled), coarse], dim=1))
    return network.displacement(network.dense(merged))[0, :, 0, 0, 0].numpy()
