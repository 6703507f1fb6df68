"""In which number type a network computes: bfloat16 only where this machine gets its convolutions right."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import nn

from regnet_itk.networks.devices import Precision, find_precision

_LOG = logging.getLogger(__name__)
_SIZE = 12  # voxels along each axis of what the convolutions are tried on
_TOLERATED = 0.05
"""Of the largest value: bfloat16 is off by 0.005, and by as much as the value itself where it is wrong."""

_Shape = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""A convolution's channels before and after, kernel, stride, padding and dilation."""


def choose_precision(name: Precision, network: nn.Module, device: torch.device) -> torch.dtype:
    """Return the number type of a network's convolutions.

    Parameters
    ----------
    name : {"auto", "float32", "bfloat16"}
        "auto" takes bfloat16 where the hardware computes with it, and float32, with a warning, where its results are
        not those of float32. Some processors and versions of Torch are known for that (pytorch/pytorch#169688).
    network : nn.Module
        Its convolutions are tried on noise, each kind once in a process; it takes a tenth of a second.
    device : torch.device
    """
    found = find_precision(name, device)
    if name == "auto" and found != torch.float32 and (wrong := _wrong_convolution(network, device, found)) is not None:
        before, after, kernel, *_ = wrong
        _LOG.warning(
            "convolutions in %s are wrong on this machine (%d to %d channels, kernel %s): networks compute in float32, "
            "which takes longer", str(found).removeprefix("torch."), before, after, kernel,
        )  # fmt: skip
        return torch.float32
    return found


def _wrong_convolution(network: nn.Module, device: torch.device, dtype: torch.dtype) -> _Shape | None:
    """Return the first convolution whose results are not those of float32, or None."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            assert not isinstance(layer.padding, str)
            channels = layer.in_channels, layer.out_channels
            shape = (*channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            if not _is_right(shape, device, dtype):
                return shape
    return None


@cache
def _is_right(shape: _Shape, device: torch.device, dtype: torch.dtype) -> bool:
    random = torch.Generator().manual_seed(0)
    before, after, kernel, stride, padding, dilation = shape
    image = torch.randn(1, before, *[_SIZE] * 3, generator=random)
    weights = torch.randn(after, before, *kernel, generator=random) / (before * kernel[0] ** 3) ** 0.5
    image, weights = (tensor.to(device, memory_format=torch.channels_last_3d) for tensor in (image, weights))
    with torch.inference_mode():
        expected, found = (
            nn.functional.conv3d(image.to(kind), weights.to(kind), None, stride, padding, dilation).float()
            for kind in (torch.float32, dtype)
        )
    return bool((found - expected).abs().max() <= _TOLERATED * expected.abs().max())  # not so if one is NaN
