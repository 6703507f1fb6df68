"""RegNet over a whole image: the wanted outputs cut into tiles that fit into the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.distances import distance_to
from regnet_itk.data.image import bounding_box
from regnet_itk.errors import ParameterError
from regnet_itk.networks.regnet import BLOCK_OVERHEAD, PATCH_MARGIN, RegNet
from regnet_itk.networks.running import BoolArray, RunSetup
from regnet_itk.networks.streaming import StreamedRegNet

Tile = tuple[slice, slice, slice]

_VOXELS_PER_SLICE = 45_000  # of a tile: with larger ones, fewer slices fit into the memory that is kept
_BYTES_PER_TILE_VOXEL = {torch.float32: 340, torch.bfloat16: 120}  # measured peaks of RegNet, a voxel at once


class TiledRunner:
    """Runs RegNet over the tiles of a region.

    Parameters
    ----------
    network : RegNet
        It is left as it is.
    setup : RunSetup
    """

    def __init__(self, network: RegNet, setup: RunSetup) -> None:
        self._setup = setup
        self.network = StreamedRegNet(network, setup.precision, self._voxels_at_once()).to(setup.device)
        self.step = setup.options.output_step

    def run(
        self, fixed: Tensor, moving: Tensor, region: BoolArray, margin: float, outside: float
    ) -> npt.NDArray[np.float32]:
        """Predict displacements, as :meth:`regnet_itk.networks.running.Runner.run` says."""
        step = self.step
        wanted = _wanted_outputs(region, step, margin / self._setup.voxel_size)
        found = np.zeros((3, *(fixed.shape if step == 1 else wanted.shape)), dtype=np.float32)
        shifts = list(product(range(0, 2, step), repeat=3))
        jobs = [(tile, shift) for tile in _tiles(wanted, self._voxels_per_slice()) for shift in shifts]
        for done, (tile, shift) in enumerate(jobs):
            first = [t.start * 2 + s for t, s in zip(tile, shift, strict=True)]
            count = [t.stop - t.start for t in tile]
            blocks = [_block(image, first, count, outside).to(self._setup.device) for image in (fixed, moving)]
            outputs = self.network(*blocks, partial(self._report, done, len(jobs)))[0].cpu().numpy()
            apart = 2 // step  # the outputs of one shift are this many voxels of the result apart
            target = tuple(slice(t.start * apart + s, t.stop * apart, apart) for t, s in zip(tile, shift, strict=True))
            part = found[(slice(None), *target)]
            part[...] = outputs[(slice(None), *(slice(n) for n in part.shape[1:]))]
        return found

    def _report(self, done: int, jobs: int, fraction: float) -> None:
        self._setup.progress((done + fraction) / jobs)

    def _voxels_per_slice(self) -> int:
        """Return how many voxels a slice of a tile's images may have in the memory budget."""
        slices = BLOCK_OVERHEAD + 2
        voxels = int(self._voxels_at_once() / slices)
        if voxels < slices**2:
            least = slices**3 * _BYTES_PER_TILE_VOXEL[self._setup.precision] / 1e9
            raise ParameterError(
                f"a memory budget of {self._setup.options.memory} GB is too small for a single patch; "
                f"(RegNetMemoryBudget {math.ceil(least * 100) / 100}) is the least"
            )
        return min(voxels, _VOXELS_PER_SLICE)

    def _voxels_at_once(self) -> float:
        return self._setup.options.memory * 1e9 / _BYTES_PER_TILE_VOXEL[self._setup.precision]


def _wanted_outputs(region: BoolArray, step: int, margin: float) -> BoolArray:
    """Return which of RegNet's outputs, two voxels apart, are wanted.

    With a step of 1, output g stands for the voxels 2 g and 2 g + 1. With a step of 2 it stands for voxel 2 g and
    its neighbours on both sides, which are interpolated, and the outputs reach to the last voxel or one past it.
    """
    voxels = torch.from_numpy(region[None].astype(np.float32))
    if step == 1:
        pooled = functional.max_pool3d(voxels, 2, ceil_mode=True)
    else:
        pooled = functional.max_pool3d(functional.pad(voxels, [1, 2] * 3), 3, stride=2)
    wanted = pooled[0].numpy() > 0
    if margin <= 0 or not wanted.any():
        return np.asarray(wanted)
    return np.asarray(distance_to(wanted) <= margin / 2 + 1)


def _tiles(wanted: BoolArray, largest: int) -> Iterator[Tile]:
    """Cut the box around the wanted outputs into tiles with at most `largest` voxels in a slice of their images.

    It is cut evenly along y and x. Each tile is cropped to its wanted outputs, those that have none are left out.
    """
    if not wanted.any():
        return
    z, *box = bounding_box(wanted, 0)
    counts = _fewest_voxels([extent.stop - extent.start for extent in box], largest)
    cuts = []
    for extent, count in zip(box, counts, strict=True):
        edges = [extent.start + (extent.stop - extent.start) * i // count for i in range(count + 1)]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    for part in product([z], *cuts):
        if wanted[part].any():
            within = bounding_box(wanted[part], 0)
            cropped = [slice(p.start + w.start, p.start + w.stop) for p, w in zip(part, within, strict=True)]
            yield cropped[0], cropped[1], cropped[2]


def _fewest_voxels(outputs: Sequence[int], largest: int) -> tuple[int, int]:
    """Return into how many parts to cut along y and x, so that their borders cost least."""
    ways = []
    for along_y in range(1, outputs[0] + 1):
        height = BLOCK_OVERHEAD + 2 * math.ceil(outputs[0] / along_y)
        most = (largest // height - BLOCK_OVERHEAD) // 2
        if most > 0:
            along_x = math.ceil(outputs[1] / most)
            width = BLOCK_OVERHEAD + 2 * math.ceil(outputs[1] / along_x)
            ways.append((along_y * height * along_x * width, along_y, along_x))
    return min(ways)[1:]


def _block(image: Tensor, first: list[int], count: list[int], outside: float) -> Tensor:
    """Cut the input block (1, 1, z, y, x) of `count` outputs from voxel `first` on; `outside` beyond the image."""
    inside, padding = [], []
    for n, start, outputs in zip(image.shape, first, count, strict=True):
        low = start - PATCH_MARGIN
        high = low + BLOCK_OVERHEAD + 2 * outputs
        inside.append(slice(min(max(low, 0), n), min(high, n)))
        padding.append((max(-low, 0), max(high - n, 0)))
    flat = [p for pair in reversed(padding) for p in pair]
    return functional.pad(image[tuple(inside)][None, None], flat, value=outside)
