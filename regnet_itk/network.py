"""The networks: RegNet of the paper, and a coarse-to-fine RegNet with explicit correlation.

Both take normalised fixed and moving intensities, tensors of shape (batch, 1, z, y, x) on the same voxels, and return
displacements of shape (batch, 3, z, y, x) in mm along the axes x, y, z of those voxels (not of physical space).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Offsets = list[tuple[int, int, int]]

PATCH_MARGIN = 27
"""Voxels that RegNet's low-resolution patch reaches before its centre voxel."""

BLOCK_OVERHEAD = 52
"""A block of G outputs, two voxels apart, needs BLOCK_OVERHEAD + 2 G input voxels along each axis."""

FINE_OFFSET = 13
"""The 29-voxel patch begins 13 voxels after the 54-voxel patch; its last slice only meets what pooling drops."""

SLAB_VOXELS = 1_500_000
"""Voxels of the coarse-to-fine network's finest level that are worked on at once outside of training."""

_CACHED_VALUES = 262_144  # products that are summed before they leave the processor's cache

_SLAB_HALO = 4  # voxels: three convolutions of 3x3x3 and one difference reach so far; even, as the level below is half


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
            Normalised intensities on voxels of 1 mm.

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


def _unit_length(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=1)


def _cube(radius: int) -> Offsets:
    steps = range(-radius, radius + 1)
    return [(dz, dy, dx) for dz in steps for dy in steps for dx in steps]


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


def _padded_convolution(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv3d(before, after, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, a=0.1)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True))


class _Decoder(nn.Module):
    """Predict what is left of the displacement at one level, in voxels of that level."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_padded_convolution(inputs, width), _padded_convolution(width, width))
        self.head = nn.Conv3d(width, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(inputs)
        return self.head(hidden), hidden


class CoarseToFineRegNet(nn.Module):
    """RegNet in several stages from coarse to fine, with late fusion by explicit correlation.

    One encoder with shared weights turns the fixed and the moving image into features on voxels of 1, 2, 4 and 8
    times the image's (2, 4, 8 and 16 mm). From the coarsest level on, the moving features are warped by the
    displacement so far and compared with the fixed features, and three convolutions predict the displacement that is
    left, which is composed with the one so far. Features are compared by their correlation over a neighbourhood; at
    the finest level, where less than a voxel is left, by the force of the demons algorithm.

    Parameters
    ----------
    channels : tuple of int
        Feature maps of each level, the finest first.
    widths : tuple of int
        Feature maps of the decoder of each level, the finest first.
    voxel_size : float
        Voxels of the input images in mm.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (8, 16, 32, 48),
        widths: tuple[int, ...] = (16, 32, 48, 64),
        voxel_size: float = 2.0,
    ) -> None:
        super().__init__()
        self.voxel_size = voxel_size
        self.offsets = [[], _cube(1), _cube(2), _cube(2)]
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(channels):
            before = channels[level - 1] if level else 1
            if level:
                self.down.append(nn.Conv3d(before, after, 2, stride=2))
            first = after if level else 1
            self.encoder.append(nn.Sequential(_padded_convolution(first, after), _padded_convolution(after, after)))
        self.decoder, self.hand_down = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            context = channels[level] if level + 1 < len(widths) else 0
            if context:
                self.hand_down.append(nn.Conv3d(widths[level + 1], context, 1))
            compared = len(self.offsets[level]) if level else channels[0] + 3
            self.decoder.append(_Decoder(compared + channels[level] + 3 + context, width))

    @property
    def levels(self) -> int:
        """Number of resolution levels; the input's size must be a multiple of 2 ** (levels - 1)."""
        return len(self.encoder)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the features of an image at every level, the finest first."""
        found = [self.encoder[0](image)]
        for down, encoder in zip(self.down, self.encoder[1:], strict=True):
            found.append(encoder(down(found[-1])))
        return found

    @property
    def stages(self) -> tuple[float, ...]:
        """Voxel size in mm of every level, the coarsest first, as they are run."""
        return tuple(self.voxel_size * 2**level for level in reversed(range(self.levels)))

    def forward(self, fixed: Tensor, moving: Tensor, finest: int = 0) -> list[Tensor]:
        """Predict displacements.

        Parameters
        ----------
        fixed, moving : Tensor, shape (batch, 1, z, y, x)
            Normalised intensities on voxels of `voxel_size`; z, y, x are multiples of 2 ** (levels - 1).
        finest : int
            The level to end with.

        Returns
        -------
        list of Tensor, shape (batch, 3, z / 2**k, y / 2**k, x / 2**k)
            Displacements x, y, z in mm, float32, at every level, the finest (k = `finest`) last.
        """
        factor = 2 ** (self.levels - 1)
        if any(n % factor for n in fixed.shape[2:]):
            raise ValueError(f"the size must be a multiple of {factor} along each axis, not {tuple(fixed.shape[2:])}")
        both = self.features(torch.cat([fixed, moving]))
        displacement, context = self._coarse_level(self.levels - 1, both[-1], None, None)
        found = [displacement]
        for level in reversed(range(max(finest, 1), self.levels - 1)):
            displacement, context = self._coarse_level(level, both[level], displacement, context)
            found.append(displacement)
        if finest == 0:
            found.append(self._finest_level(fixed, moving, both[0], displacement, context))
        return found

    def _coarse_level(
        self, level: int, features: Tensor, before: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Improve the displacement by correlation; return it with the decoder's features."""
        size = self.voxel_size * 2**level
        of_fixed, of_moving = features.chunk(2)
        inputs = [of_fixed]
        if before is None or context is None:
            displacement = torch.zeros_like(of_fixed[:, :3], dtype=torch.float32)
        else:
            # every level learns from its own loss: no gradient through the displacement it starts from
            displacement = _doubled(before.detach(), "trilinear")
            of_moving = warp(of_moving, displacement / size)
            inputs.append(_doubled(self.hand_down[level](context), "nearest"))
        inputs += [
            correlate(_unit_length(of_fixed), _unit_length(of_moving), self.offsets[level]),
            displacement / size,
        ]
        left, hidden = self.decoder[level](_joined(inputs))
        return left.float() * size + warp(displacement, left.detach()), hidden

    def _finest_level(self, fixed: Tensor, moving: Tensor, features: Tensor, before: Tensor, context: Tensor) -> Tensor:
        """Improve the displacement by the demons' force, in slabs along z that bound the memory and leave no seams."""
        of_fixed, of_moving = features.chunk(2)
        displacement = _doubled(before.detach(), "trilinear")
        handed = self.hand_down[0](context)
        to_warp = torch.cat([moving.float(), of_moving.float()], dim=1)
        nz, ny, nx = fixed.shape[2:]
        rows = nz if self.training else max(2, SLAB_VOXELS // (ny * nx) // 2 * 2)
        parts = []
        for start in range(0, nz, rows):
            stop = min(start + rows, nz)
            low, high = max(0, start - _SLAB_HALO), min(nz, stop + _SLAB_HALO)
            here = displacement[:, :, low:high] / self.voxel_size
            moved = warp(to_warp, here, low)
            inputs = [
                of_fixed[:, :, low:high],
                _doubled(handed[:, :, low // 2 : high // 2], "nearest"),
                moved[:, 1:],
                demons_force(fixed[:, :, low:high], moved[:, :1]),
                here,
            ]
            left = self.decoder[0](_joined(inputs))[0][:, :, start - low : stop - low]
            parts.append(left.float() * self.voxel_size + warp(displacement, left.detach(), start))
        return torch.cat(parts, dim=2)


def _doubled(image: Tensor, mode: str) -> Tensor:
    return functional.interpolate(image, scale_factor=2.0, mode=mode)


def _joined(inputs: list[Tensor]) -> Tensor:
    return torch.cat([i.to(inputs[0].dtype) for i in inputs], dim=1)
