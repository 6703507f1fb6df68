"""A network over a whole image: tiles, device, precision and memory.

The images come already resampled to the network's voxels; the displacement leaves as a field in physical vectors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.data.distances import distance_to
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.errors import ParameterError
from regnet_itk.networks.coarse_to_fine import SLAB_VOXELS, CoarseToFineRegNet
from regnet_itk.networks.devices import Precision, find_device, find_precision, limited_threads
from regnet_itk.networks.layers import warp
from regnet_itk.networks.model import Model
from regnet_itk.networks.regnet import BLOCK_OVERHEAD, PATCH_MARGIN, RegNet
from regnet_itk.networks.streaming import StreamedRegNet

BoolArray = npt.NDArray[np.bool_]
Tile = tuple[slice, slice, slice]

_AIR = -1000.0
_CONTEXT = 32.0  # mm around the region that the coarse-to-fine network sees as well
_VOXELS_PER_SLICE = 45_000  # of a tile: with larger ones, fewer slices fit into the memory that is kept
_BYTES_PER_TILE_VOXEL = {torch.float32: 340, torch.bfloat16: 120}  # measured peaks of RegNet, a voxel at once
_BYTES_PER_VOXEL = {torch.float32: 180, torch.bfloat16: 125}  # the same for the coarse-to-fine network, to which
_BYTES_PER_SLAB_VOXEL = {torch.float32: 530, torch.bfloat16: 340}  # come the voxels that are worked on at once


@dataclass(frozen=True)
class InferenceOptions:
    """How a network is run.

    Parameters
    ----------
    device : str
        "auto" (CUDA, else Apple's GPU, else CPU), or a torch device.
    precision : {"auto", "float32", "bfloat16"}
        "auto" takes bfloat16 where the processor computes with it.
    memory : float
        Budget for the network's activations in GB.
    output_step : {1, 2}
        RegNet predicts every voxel, or every second one along each axis.
    repetitions : int
        How often the coarse-to-fine network is applied, each time to the image warped so far.
    stages : tuple of float
        Voxel sizes in mm of the coarse-to-fine network's levels to run, the coarsest first; none are all.
    threads : int, optional
        CPU threads; all by default.
    """

    device: str = "auto"
    precision: Precision = "auto"
    memory: float = 2.5
    output_step: int = 2
    repetitions: int = 1
    stages: tuple[float, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.output_step not in (1, 2):
            raise ParameterError(
                f"RegNet predicts every voxel or every second one: no output step of {self.output_step}"
            )
        if self.repetitions < 1:
            raise ParameterError(f"the network is applied once or more often, not {self.repetitions} times")


class Predictor:
    """A model made ready for one device.

    Parameters
    ----------
    model : Model
    options : InferenceOptions
    progress : callable
        Is given the fraction that is done.
    """

    def __init__(
        self, model: Model, options: InferenceOptions, progress: Callable[[float], None] = lambda _: None
    ) -> None:
        self.model, self.options, self.progress = model, options, progress
        self.device = find_device(options.device)
        self.precision = find_precision(options.precision, self.device)
        self.network = self._made_ready().to(self.device)
        self._finest = finest_level(model, options.stages)

    def predict(self, fixed: Image, moving: Image, region: Image, margin: float = 0.0) -> DisplacementField:
        """Predict u with fixed(x) = moving(x + u(x)).

        Parameters
        ----------
        fixed, moving : Image
            HU on the same grid, with cubic voxels of the model's size.
        region : Image
            Boolean, on that grid: where the displacement is wanted.
        margin : float
            mm around the region where it is wanted as well. Far from both, the field is zero.

        Returns
        -------
        DisplacementField
            Physical vectors in mm, on every `output_step`-th voxel (RegNet), or on every voxel (coarse to fine); it
            reaches to the last voxel of the images or past it.

        Raises
        ------
        ParameterError
            If the memory budget is too small.
        """
        with limited_threads(self.options.threads), torch.inference_mode(), self._autocast():
            along_axes = self._along_axes(fixed, moving, region.array.astype(bool), margin)
        step = self.options.output_step if isinstance(self.network, StreamedRegNet) else 1
        physical = fixed.grid.direction_matrix.astype(np.float32) @ along_axes.reshape(3, -1)
        vectors = np.moveaxis(physical.reshape(along_axes.shape), 0, -1)
        size = [step * (n - 1) + 1 for n in reversed(along_axes.shape[1:])]
        return DisplacementField(vectors, fixed.grid.crop((0, 0, 0), size).every(step))

    def _made_ready(self) -> nn.Module:
        if isinstance(self.model.network, RegNet):
            return StreamedRegNet(self.model.network, self.precision, self._voxels_at_once())
        return copy.deepcopy(self.model.network)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32 or isinstance(self.network, StreamedRegNet):
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _along_axes(self, fixed: Image, moving: Image, region: BoolArray, margin: float) -> npt.NDArray[np.float32]:
        """Return displacements (3, z, y, x) in mm along the grid's axes."""
        images = [torch.from_numpy(np.ascontiguousarray(i.array, dtype=np.float32)) for i in (fixed, moving)]
        normalised = (self.model.normalise(images[0]), self.model.normalise(images[1]))
        air = float(self.model.normalise(torch.tensor(_AIR)))
        if isinstance(self.network, StreamedRegNet):
            wanted = _wanted_outputs(region, self.options.output_step, margin / fixed.grid.spacing[0])
            return self._tiled(*normalised, wanted, air)
        return self._whole(*normalised, region, margin, air)

    def _tiled(self, fixed: Tensor, moving: Tensor, wanted: BoolArray, air: float) -> npt.NDArray[np.float32]:
        step = self.options.output_step
        found = np.zeros((3, *(fixed.shape if step == 1 else wanted.shape)), dtype=np.float32)
        shifts = list(product(range(0, 2, step), repeat=3))
        jobs = [(tile, shift) for tile in _tiles(wanted, self._voxels_per_slice()) for shift in shifts]
        for done, (tile, shift) in enumerate(jobs):
            first = [t.start * 2 + s for t, s in zip(tile, shift, strict=True)]
            count = [t.stop - t.start for t in tile]
            blocks = [_block(image, first, count, air).to(self.device) for image in (fixed, moving)]
            outputs = self.network(*blocks, partial(self._report, done, len(jobs)))[0].cpu().numpy()
            apart = 2 // step  # the outputs of one shift are this many voxels of the result apart
            target = tuple(slice(t.start * apart + s, t.stop * apart, apart) for t, s in zip(tile, shift, strict=True))
            part = found[(slice(None), *target)]
            part[...] = outputs[(slice(None), *(slice(n) for n in part.shape[1:]))]
        return found

    def _report(self, done: int, jobs: int, fraction: float) -> None:
        self.progress((done + fraction) / jobs)

    def _voxels_per_slice(self) -> int:
        """Return how many voxels a slice of a tile's images may have in the memory budget."""
        slices = BLOCK_OVERHEAD + 2
        voxels = int(self._voxels_at_once() / slices)
        if voxels < slices**2:
            least = slices**3 * _BYTES_PER_TILE_VOXEL[self.precision] / 1e9
            raise ParameterError(
                f"a memory budget of {self.options.memory} GB is too small for a single patch; "
                f"(RegNetMemoryBudget {math.ceil(least * 100) / 100}) is the least"
            )
        return min(voxels, _VOXELS_PER_SLICE)

    def _voxels_at_once(self) -> float:
        return self.options.memory * 1e9 / _BYTES_PER_TILE_VOXEL[self.precision]

    def _whole(
        self, fixed: Tensor, moving: Tensor, region: BoolArray, margin: float, air: float
    ) -> npt.NDArray[np.float32]:
        network = self.network
        assert isinstance(network, CoarseToFineRegNet)
        found = np.zeros((3, *region.shape), dtype=np.float32)
        box = bounding_box(region, math.ceil(max(_CONTEXT, margin) / network.voxel_size))
        voxels = math.prod(s.stop - s.start for s in box)
        slab = min(voxels, SLAB_VOXELS)
        needed = (voxels * _BYTES_PER_VOXEL[self.precision] + slab * _BYTES_PER_SLAB_VOXEL[self.precision]) / 1e9
        if needed > self.options.memory:
            raise ParameterError(
                f"the coarse-to-fine network needs {needed:.1f} GB for this region, over the budget of "
                f"{self.options.memory} GB; give a mask of what matters, or raise (RegNetMemoryBudget ..)"
            )
        factor = 2 ** (network.levels - 1)
        parts = [_padded_to_multiple(image[box][None, None], factor, air).to(self.device) for image in (fixed, moving)]
        total = self._at_full_size(network(*parts, self._finest)[-1])
        for repetition in range(1, self.options.repetitions):
            self.progress(repetition / self.options.repetitions)
            moved = warp(parts[1], total / network.voxel_size)
            more = self._at_full_size(network(parts[0], moved, self._finest)[-1])
            total = more + warp(total, more / network.voxel_size)
        inside = (slice(None), *(slice(s.stop - s.start) for s in box))
        found[(slice(None), *box)] = total[0].cpu().numpy()[inside]
        self.progress(1.0)
        return found

    def _at_full_size(self, displacement: Tensor) -> Tensor:
        if self._finest == 0:
            return displacement.float()
        return functional.interpolate(displacement.float(), scale_factor=float(2**self._finest), mode="trilinear")


def finest_level(model: Model, stages: tuple[float, ...]) -> int:
    """Return the level to end with if only some of a network's stages are run: 0 is its finest.

    Raises
    ------
    ParameterError
        If the network has no stages, or the ones named are not its first ones.
    """
    if not stages:
        return 0
    if not isinstance(model.network, CoarseToFineRegNet):
        raise ParameterError(
            f"the model '{model.description.name}' has no stages to choose from; leave out RegNetStages"
        )
    there = model.network.stages
    if stages != there[: len(stages)]:
        given, all_of_them, fewer = (" ".join(f"{mm:g}" for mm in part) for part in (stages, there, there[:-1]))
        raise ParameterError(
            f"the model '{model.description.name}' has stages of {all_of_them} mm and begins with the coarsest: "
            f"it cannot run '{given}', but (RegNetStages {fewer})"
        )
    return len(there) - len(stages)


def fade(field: DisplacementField, region: Image, width: float) -> DisplacementField:
    """Let a field fall smoothly to zero over `width` mm outside a region.

    Parameters
    ----------
    field : DisplacementField
    region : Image
        Boolean; it may lie on another grid than the field.
    width : float
        mm; 0 cuts the field off.

    Returns
    -------
    DisplacementField
        Unchanged inside the region.
    """
    inside = covering(region, field.grid)
    if inside.all():
        return field
    if not inside.any():
        return DisplacementField(np.zeros_like(field.vectors), field.grid)
    rest = np.clip(1.0 - distance_to(inside, field.grid.spacing) / max(width, 1e-3), 0.0, 1.0)
    weight = rest * rest * (3.0 - 2.0 * rest)
    return DisplacementField(field.vectors * weight[..., None], field.grid)


def covering(region: Image, grid: Grid) -> BoolArray:
    """Say which voxels of a grid matter inside a region: what is interpolated there from them is right.

    They lie in the region, or, if both grids have the same axes, are corners of a cell of eight voxels that holds a
    voxel of the region; so not even a single voxel gets lost on a coarser grid.
    """
    mask = region.array.astype(bool)
    if region.grid.is_close(grid):
        return mask
    found = np.asarray(Image(mask.astype(np.float32), region.grid).resampled(grid).array > 0)
    steps = grid.steps_along(region.grid)
    if steps is None:
        return found
    first = grid.point_to_index(region.grid.origin)
    for axis in range(3):  # counts x, y, z
        index = first[axis] + steps[axis] * np.arange(region.grid.size[axis])
        before, after = np.floor(index + 1e-4).astype(int), np.ceil(index - 1e-4).astype(int)
        length = grid.size[axis]
        mask = _spread(mask, before, length, 2 - axis) | _spread(mask, after, length, 2 - axis)
    return found | mask


def _spread(mask: BoolArray, index: npt.NDArray[np.int_], length: int, axis: int) -> BoolArray:
    """Bring the slices of a mask to new positions along an axis, given in rising order; those that meet are united."""
    shape = list(mask.shape)
    shape[axis] = length
    found = np.zeros(shape, dtype=bool)
    there = (index >= 0) & (index < length)
    if there.any():
        targets, starts = np.unique(index[there], return_index=True)
        united = np.logical_or.reduceat(mask.compress(there, axis), starts, axis)
        np.moveaxis(found, axis, 0)[targets] = np.moveaxis(united, axis, 0)
    return found


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


def _block(image: Tensor, first: list[int], count: list[int], air: float) -> Tensor:
    """Cut the input block (1, 1, z, y, x) of `count` outputs from voxel `first` on; air beyond the image."""
    inside, padding = [], []
    for n, start, outputs in zip(image.shape, first, count, strict=True):
        low = start - PATCH_MARGIN
        high = low + BLOCK_OVERHEAD + 2 * outputs
        inside.append(slice(min(max(low, 0), n), min(high, n)))
        padding.append((max(-low, 0), max(high - n, 0)))
    flat = [p for pair in reversed(padding) for p in pair]
    return functional.pad(image[tuple(inside)][None, None], flat, value=air)


def _padded_to_multiple(image: Tensor, factor: int, value: float) -> Tensor:
    padding: list[int] = []
    for n in reversed(image.shape[2:]):
        padding += [0, -n % factor]
    return functional.pad(image, padding, value=value)
