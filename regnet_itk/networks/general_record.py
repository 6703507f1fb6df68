"""The general network's record: its memory, how it runs over an image, what it may begin with."""

from __future__ import annotations

import dataclasses

import torch

from regnet_itk.networks.coarse_to_fine import SLAB_VOXELS
from regnet_itk.networks.coarse_to_fine_record import COARSE_TO_FINE, run_whole_boxes
from regnet_itk.networks.general import GeneralRegNet, general_from

# measured peaks are 235 and 225, and for the voxels that are worked on at once 690 and 350: there is room to spare
_BYTES_PER_VOXEL = {torch.float32: 300, torch.bfloat16: 245}
_BYTES_PER_SLAB_VOXEL = {torch.float32: 800, torch.bfloat16: 600}


def _bytes_needed(voxels: int, precision: torch.dtype) -> float:
    return voxels * _BYTES_PER_VOXEL[precision] + min(voxels, SLAB_VOXELS) * _BYTES_PER_SLAB_VOXEL[precision]


def _make(voxel_size: float) -> GeneralRegNet:
    return GeneralRegNet(voxel_size)


GENERAL = dataclasses.replace(
    COARSE_TO_FINE,
    name="general",
    make=_make,
    make_runner=run_whole_boxes(_bytes_needed, "general network"),
    begin_with=general_from,
)
