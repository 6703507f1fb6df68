"""RegNet in several stages from coarse to fine, with explicit correlation.

It takes normalised fixed and moving intensities, tensors of shape (batch, 1, z, y, x) on the same voxels, and returns
displacements of shape (batch, 3, z, y, x) in mm along the axes x, y, z of those voxels (not of physical space).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.networks.correlation import Offsets, correlate
from regnet_itk.networks.layers import demons_force, warp

SLAB_VOXELS = 1_500_000
"""Voxels of the coarse-to-fine network's finest level that are worked on at once outside of training."""

_SLAB_HALO = 4  # voxels: three convolutions of 3x3x3 and one difference reach so far; even, as the level below is half


def unit_length(features: Tensor) -> Tensor:
    """Return features of unit length over the channels, in float32."""
    return functional.normalize(features.float(), dim=1)


def cube_of_offsets(radius: int) -> Offsets:
    """Return the offsets to all voxels of a cube, the middle one included."""
    steps = range(-radius, radius + 1)
    return [(dz, dy, dx) for dz in steps for dy in steps for dx in steps]


def _padded_convolution(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv3d(before, after, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, a=0.1)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.LeakyReLU(0.1, inplace=True))


def _with_right_gradients(layers: nn.Module, inputs: Tensor) -> Tensor:
    """Apply padded convolutions, in float32 where they learn from fewer than three voxels along an axis.

    oneDNN's gradient of a 3x3x3 kernel in bfloat16 holds there what happened to lie in the memory (seen with torch 2.13
    on a processor with AVX-512 BF16).
    """
    found: Tensor
    if torch.is_grad_enabled() and min(inputs.shape[2:]) < 3:
        with torch.autocast(inputs.device.type, enabled=False):
            found = layers(inputs.float())
    else:
        found = layers(inputs)
    return found


class _Decoder(nn.Module):
    """Predict what is left of the displacement at one level, in voxels of that level."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_padded_convolution(inputs, width), _padded_convolution(width, width))
        self.head = nn.Conv3d(width, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = _with_right_gradients(self.body, inputs)
        return _with_right_gradients(self.head, hidden), hidden


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
    seen : int
        Channels that the encoder sees of an image; see :meth:`see`.
    compared : int
        Channels that :meth:`compare_finest` returns.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (8, 16, 32, 48),
        widths: tuple[int, ...] = (16, 32, 48, 64),
        voxel_size: float = 2.0,
        seen: int = 1,
        compared: int = 3,
    ) -> None:
        super().__init__()
        self.voxel_size = voxel_size
        self.offsets = [[], cube_of_offsets(1), cube_of_offsets(2), cube_of_offsets(2)]
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(channels):
            before = channels[level - 1] if level else 1
            if level:
                self.down.append(nn.Conv3d(before, after, 2, stride=2))
            first = after if level else seen
            self.encoder.append(nn.Sequential(_padded_convolution(first, after), _padded_convolution(after, after)))
        self.decoder, self.hand_down = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            context = channels[level] if level + 1 < len(widths) else 0
            if context:
                self.hand_down.append(nn.Conv3d(widths[level + 1], context, 1))
            known = len(self.offsets[level]) if level else channels[0] + compared
            self.decoder.append(_Decoder(known + channels[level] + 3 + context, width))

    @property
    def levels(self) -> int:
        """Number of resolution levels; the input's size must be a multiple of 2 ** (levels - 1)."""
        return len(self.encoder)

    def see(self, image: Tensor) -> Tensor:
        """Return what the encoder sees of an image: itself."""
        return image

    def compare_finest(self, fixed: Tensor, moved: Tensor, of_fixed: Tensor, of_moved: Tensor) -> Tensor:
        """Compare the fixed and the warped moving image, and their features, at the finest level."""
        return demons_force(fixed, moved)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the features of an image at every level, the finest first."""
        found = [_with_right_gradients(self.encoder[0], self.see(image))]
        for down, encoder in zip(self.down, self.encoder[1:], strict=True):
            found.append(_with_right_gradients(encoder, down(found[-1])))
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
            correlate(unit_length(of_fixed), unit_length(of_moving), self.offsets[level]),
            displacement / size,
        ]
        left, hidden = self.decoder[level](_joined(inputs))
        return left.float() * size + warp(displacement, left.detach()), hidden

    def _finest_level(self, fixed: Tensor, moving: Tensor, features: Tensor, before: Tensor, context: Tensor) -> Tensor:
        """Improve the displacement by what is left of a voxel, in slabs along z that bound the memory; no seams."""
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
            features_here = of_fixed[:, :, low:high]
            inputs = [
                features_here,
                _doubled(handed[:, :, low // 2 : high // 2], "nearest"),
                moved[:, 1:],
                self.compare_finest(fixed[:, :, low:high], moved[:, :1], features_here, moved[:, 1:]),
                here,
            ]
            left = self.decoder[0](_joined(inputs))[0][:, :, start - low : stop - low]
            parts.append(left.float() * self.voxel_size + warp(displacement, left.detach(), start))
        return torch.cat(parts, dim=2)


def _doubled(image: Tensor, mode: str) -> Tensor:
    return functional.interpolate(image, scale_factor=2.0, mode=mode)


def _joined(inputs: list[Tensor]) -> Tensor:
    return torch.cat([i.to(inputs[0].dtype) for i in inputs], dim=1)
