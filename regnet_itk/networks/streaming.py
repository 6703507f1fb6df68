"""RegNet over a large block: a few slices at a time, every layer keeping what it needs of them for the next ones.

Run layer by layer over the whole block, the feature maps would be written to memory that the system has to clear first,
which takes as long as the convolutions themselves. The displacements are the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regnet_itk.networks.regnet import BLOCK_OVERHEAD, FINE_OFFSET, RegNet

_PORTION = 25_000_000  # bytes of a portion's largest feature maps: what is larger, the system takes back and clears

_LARGEST = 32  # feature maps, at full resolution

_TOGETHER = 16  # feature maps that a processor's vector unit computes at once


class StreamedRegNet(nn.Module):
    """A RegNet for inference, in one precision, that goes through a block from its first slice to its last.

    Parameters
    ----------
    network : RegNet
        It is left as it is.
    precision : torch.dtype
        Of all convolutions but the last, which is in float32.
    voxels : float
        How many voxels of a block may be worked on at once, if that is possible.
    """

    def __init__(self, network: RegNet, precision: torch.dtype, voxels: float = math.inf) -> None:
        super().__init__()
        self.precision, self.voxels = precision, voxels
        self.network = copy.deepcopy(network).eval()
        for name, layers in self.network.named_children():
            if isinstance(layers, nn.Sequential):
                setattr(self.network, name, nn.Sequential(*_fused(layers, precision)))

    def forward(self, fixed: Tensor, moving: Tensor, progress: Callable[[float], None] = lambda _: None) -> Tensor:
        """Predict displacements.

        Parameters
        ----------
        fixed, moving : Tensor, shape (1, 1, 52 + 2 Gz, 52 + 2 Gy, 52 + 2 Gx)
            Normalised intensities on voxels of the model's size.
        progress : callable
            Is given the fraction that is done.

        Returns
        -------
        Tensor, shape (1, 3, Gz, Gy, Gx), float32
            What :class:`regnet_itk.networks.regnet.RegNet` returns for the block.
        """
        found: list[Tensor] = []
        for portion, fraction in self._portions(fixed, moving):
            found.append(portion)
            progress(fraction)
        return torch.cat(found, dim=2)

    def _portions(self, fixed: Tensor, moving: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Yield the displacements of some slices after the other, and which fraction of the block is done."""
        for layer in self.network.modules():
            if isinstance(layer, StreamedConvolution):
                layer.forget()
        inside = (..., *(slice(FINE_OFFSET, -FINE_OFFSET),) * 3)
        fine_fixed, fine_moving = fixed[inside], moving[inside]
        outputs = (fixed.shape[2] - BLOCK_OVERHEAD) // 2
        at_once = self._at_once(fixed[0, 0, 0].numel(), fine_fixed[0, 0, 0].numel())
        for start in range(0, outputs, at_once):
            stop = min(start + at_once, outputs)
            new = _new_slices(start, stop, BLOCK_OVERHEAD - 2 * FINE_OFFSET)
            features = [self.network.fine_features(fine_fixed[:, :, new], fine_moving[:, :, new])]
            if self.network.scales == 2:
                new = _new_slices(start, stop, BLOCK_OVERHEAD)
                features.append(self.network.coarse_features(fixed[:, :, new], moving[:, :, new]))
            yield self.network.from_features(features), stop / outputs

    def _at_once(self, voxels: int, fine_voxels: int) -> int:
        """Return how many slices of outputs to work on at once, for so many voxels in a slice of the images."""
        fast = _PORTION / (2 * fine_voxels * _LARGEST * self.precision.itemsize)
        allowed = (self.voxels / voxels - BLOCK_OVERHEAD) / 2
        return max(1, int(min(fast, allowed)))


def _new_slices(start: int, stop: int, overhead: int) -> slice:
    """Return which slices the outputs from `start` to `stop` need that those before them did not."""
    return slice(2 * start + overhead if start else 0, 2 * stop + overhead)


class StreamedConvolution(nn.Module):
    """A valid convolution and the ReLU after it, which is given the slices of an image in portions.

    Parameters
    ----------
    weight : Tensor, shape (after, before, k, k, k)
    bias : Tensor, shape (after,)
    precision : torch.dtype
        Of weights, inputs and outputs; inputs in another one are converted.
    """

    def __init__(self, weight: Tensor, bias: Tensor, precision: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(precision).contiguous(memory_format=torch.channels_last_3d))
        self.register_buffer("bias", bias.to(precision))
        self._kept: Tensor | None = None

    def forget(self) -> None:
        """Begin anew: the next slices are the first ones of an image."""
        self._kept = None

    def forward(self, slices: Tensor) -> Tensor:
        """Return what the slices (1, before, z, y, x) add to the result: as many, but fewer for the first portion."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        slices = slices.to(weight.dtype)
        if (reach := weight.shape[2] - 1) > 0:
            if self._kept is not None:
                slices = torch.cat([self._kept, slices], dim=2)
            self._kept = slices[:, :, -reach:].clone()
        # in float32, with few feature maps, the one operation would round more than the two
        if weight.dtype == torch.bfloat16 and slices.device.type == "cpu" and _one_operation_exists():
            ones = [1, 1, 1]
            return torch.ops.mkldnn._convolution_pointwise(
                slices, weight, bias, [0, 0, 0], ones, ones, 1, "relu", [], ""
            )
        return functional.relu_(functional.conv3d(slices, weight, bias))


def _one_operation_exists() -> bool:
    """Say whether oneDNN's convolution with ReLU, which torch.compile calls too, is there and knows bfloat16 here."""
    operations = torch.ops.mkldnn
    return (
        hasattr(operations, "_convolution_pointwise")
        and hasattr(operations, "_is_mkldnn_bf16_supported")
        and bool(operations._is_mkldnn_bf16_supported())
    )


def _fused(layers: nn.Sequential, precision: torch.dtype) -> Iterator[StreamedConvolution]:
    """Yield the convolutions of a sequence, each with the normalisation and the ReLU after it.

    Feature maps of zeros fill up what a processor would leave idle, but for those that leave the sequence.
    """
    pairs = [(a, b) for a, b in pairwise(layers) if isinstance(a, nn.Conv3d) and isinstance(b, nn.BatchNorm3d)]
    filled_before = 0
    for convolution, normalisation in pairs:
        fused = fuse_conv_bn_eval(convolution, normalisation)
        assert fused.bias is not None
        weight, bias = fused.weight.detach(), fused.bias.detach()
        last = convolution is pairs[-1][0]
        filled = -len(bias) % _TOGETHER if len(bias) < 2 * _TOGETHER and not last else 0
        weight = functional.pad(weight, [0] * 6 + [0, filled_before, 0, filled])
        yield StreamedConvolution(weight, functional.pad(bias, [0, filled]), precision)
        filled_before = filled
