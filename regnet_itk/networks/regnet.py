"""RegNet of the paper (Sokooti et al., MICCAI 2017), and the two designs that the paper compares it with.

It takes normalised fixed and moving intensities, tensors of shape (batch, 1, z, y, x) on the same voxels, and returns
displacements of shape (batch, 3, z, y, x) in mm along the axes x, y, z of those voxels (not of physical space).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH_MARGIN = 27
"""Voxels that RegNet's low-resolution patch reaches before its centre voxel."""

BLOCK_OVERHEAD = 52
"""A block of G outputs, two voxels apart, needs BLOCK_OVERHEAD + 2 G input voxels along each axis."""

FINE_OFFSET = 13
"""The 29-voxel patch begins 13 voxels after the 54-voxel patch; its last slice only meets what pooling drops."""


def _convolutions(channels: list[int], kernel: int = 3) -> nn.Sequential:
    """Return valid convolutions, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        convolution = nn.Conv3d(before, after, kernel)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class RegNet(nn.Module):
    """RegNet with late fusion and two scales (Sokooti et al., MICCAI 2017, Fig. 1).

    It is a patch network and its dense form at once: a block of ``52 + 2 G`` voxels along each axis gives the
    displacement at every second voxel, G along each axis; G = 1 is the paper's patch of 54 voxels (the 29 in its
    middle at full resolution, all of them averaged over 2x2x2 voxels for the low resolution). Output (g) belongs to
    input voxel ``27 + 2 g``. All convolutions are valid, so the blocks' results do not depend on how an image is
    cut into blocks.

    The two designs that the paper compares it with (Table 1) are the same network without one of its marks.

    Parameters
    ----------
    early_fusion : bool
        "RegNet Early": the images are the two channels of one path from the start, with as many feature maps at every
        depth as both paths of late fusion have together.
    scales : {1, 2}
        1 is "RegNet 1Scale": without the path of low resolution.
    """

    def __init__(self, early_fusion: bool = False, scales: int = 2) -> None:
        super().__init__()
        self.early_fusion, self.scales = early_fusion, scales
        if early_fusion:
            self.fine_both = _convolutions([2, 32, 32, 32])
        else:
            self.fine_fixed = _convolutions([1, 16, 16, 16])
            self.fine_moving = _convolutions([1, 16, 16, 16])
        self.fine_merged = _convolutions([32, 25, 30])
        if scales == 2:
            if early_fusion:
                self.coarse_both = _convolutions([2, 32, 32, 32])
            else:
                self.coarse_fixed = _convolutions([1, 16, 16, 16])
                self.coarse_moving = _convolutions([1, 16, 16, 16])
            self.coarse_merged = _convolutions([32, 25, 25, 25, 30, 30, 30])
        self.merged = _convolutions([30 * scales, 60, 70, 75, 150])
        self.dense = _convolutions([150, 150], kernel=1)
        self.displacement = nn.Conv3d(150, 3, 1)
        nn.init.xavier_uniform_(self.displacement.weight)
        nn.init.zeros_(self.displacement.bias)  # type: ignore[arg-type]

    def features(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the merged feature maps (batch, 30, ..) of the original and, if there is one, of the low resolution.

        Both are cropped to the same (G + 8)^3 cells of 2x2x2 voxels.
        """
        if min(fixed.shape[2:]) < BLOCK_OVERHEAD + 2 or any(n % 2 for n in fixed.shape[2:]):
            raise ValueError(f"RegNet needs blocks of 54, 56, 58 .. voxels an axis, not {tuple(fixed.shape[2:])}")
        inside = (..., *(slice(FINE_OFFSET, -FINE_OFFSET),) * 3)
        fine = self.fine_features(fixed[inside], moving[inside])
        return [fine] if self.scales == 1 else [fine, self.coarse_features(fixed, moving)]

    def fine_features(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the merged feature maps (batch, 30, ..) of the original resolution, from 26 + 2 G voxels an axis."""
        if self.early_fusion:
            fine = self.fine_both(torch.cat([fixed, moving], dim=1))
        else:
            fine = torch.cat([self.fine_fixed(fixed), self.fine_moving(moving)], dim=1)
        return functional.max_pool3d(self.fine_merged(fine), 2)

    def coarse_features(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the merged feature maps (batch, 30, ..) of the low resolution, from 52 + 2 G voxels an axis."""
        images = [functional.avg_pool3d(image, 2) for image in (fixed, moving)]
        if self.early_fusion:
            coarse = self.coarse_both(torch.cat(images, dim=1))
        else:
            coarse = torch.cat([self.coarse_fixed(images[0]), self.coarse_moving(images[1])], dim=1)
        return self.coarse_merged(coarse)

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Predict displacements.

        Parameters
        ----------
        fixed, moving : Tensor, shape (batch, 1, 52 + 2 Gz, 52 + 2 Gy, 52 + 2 Gx)
            Normalised intensities on voxels of one size, 1 mm in the paper.

        Returns
        -------
        Tensor, shape (batch, 3, Gz, Gy, Gx)
            Displacements x, y, z in mm, at input voxels 27, 29, 31, ...
        """
        return self.from_features(self.features(fixed, moving))

    def from_features(self, features: list[Tensor]) -> Tensor:
        """Return the displacements (batch, 3, Gz, Gy, Gx) in mm that :meth:`features` tell."""
        hidden = self.dense(self.merged(torch.cat(features, dim=1)))
        with torch.autocast(hidden.device.type, enabled=False):  # 8 mm would be rounded to 0.03 mm in bfloat16
            return self.displacement(hidden.float())
