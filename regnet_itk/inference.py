"""A network over a whole image: tiles, device, precision and memory.

The images come already resampled to the network's voxels; the displacement leaves as a field in physical vectors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import ParameterError
from regnet_itk.geometry import Grid
from regnet_itk.images import Image
from regnet_itk.model import Model
from regnet_itk.network import BLOCK_OVERHEAD, PATCH_MARGIN, CoarseToFineRegNet, RegNet, warp

Precision = Literal["auto", "float32", "bfloat16"]
BoolArray = npt.NDArray[np.bool_]

_AIR = -1000.0
_CONTEXT = 32.0  # mm around the region that the coarse-to-fine network sees as well
_BYTES_PER_TILE_VOXEL = {torch.float32: 420, torch.bfloat16: 230}  # measured peak of RegNet, per input voxel of a tile
_BYTES_PER_VOXEL = {torch.float32: 620, torch.bfloat16: 520}  # the same for the coarse-to-fine network


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
    threads : int, optional
        CPU threads; all by default.
    """

    device: str = "auto"
    precision: Precision = "auto"
    memory: float = 2.0
    output_step: int = 2
    repetitions: int = 1
    threads: int | None = None


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the fastest that is there.

    Raises
    ------
    ParameterError
        If the name is unknown, or the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ParameterError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ParameterError(f"there is no CUDA device '{name}' here; use --device auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ParameterError("there is no Apple GPU (mps) here; use --device auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ParameterError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps")
    return device


def find_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Return the number type of the convolutions: bfloat16 only where the hardware computes with it."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, flag, bool)() for flag in flags) else torch.float32
    return torch.float32


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
        network = copy.deepcopy(model.network)
        if isinstance(network, RegNet):
            _fuse_normalisation(network)
        self.network = network.to(self.device)

    def predict(self, fixed: Image, moving: Image, region: Image) -> DisplacementField:
        """Predict u with fixed(x) = moving(x + u(x)).

        Parameters
        ----------
        fixed, moving : Image
            HU on the same grid, with cubic voxels of the model's size.
        region : Image
            Boolean, on that grid: where the displacement is wanted. It is zero where no tile touches the region.

        Returns
        -------
        DisplacementField
            Physical vectors in mm, on every `output_step`-th voxel (RegNet), or on every voxel (coarse to fine).
        """
        threads = torch.get_num_threads()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        try:
            with torch.inference_mode(), self._autocast():
                along_axes = self._along_axes(fixed, moving, region.array.astype(bool))
        finally:
            torch.set_num_threads(threads)
        step = self.options.output_step if isinstance(self.network, RegNet) else 1
        vectors = np.moveaxis(along_axes, 0, -1) @ fixed.grid.direction_matrix.T.astype(np.float32)
        return DisplacementField(vectors, fixed.grid.every(step))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _along_axes(self, fixed: Image, moving: Image, region: BoolArray) -> npt.NDArray[np.float32]:
        """Return displacements (3, z, y, x) in mm along the grid's axes."""
        images = [torch.from_numpy(np.ascontiguousarray(i.array, dtype=np.float32)) for i in (fixed, moving)]
        normalised = (self.model.normalise(images[0]), self.model.normalise(images[1]))
        air = float(self.model.normalise(torch.tensor(_AIR)))
        if isinstance(self.network, RegNet):
            return self._tiled(*normalised, region, air)
        return self._whole(*normalised, region, air)

    def _tiled(self, fixed: Tensor, moving: Tensor, region: BoolArray, air: float) -> npt.NDArray[np.float32]:
        step = self.options.output_step
        found = np.zeros((3, *(-(-n // step) for n in region.shape)), dtype=np.float32)
        shifts = list(product(range(0, 2, step), repeat=3))
        jobs = [
            (tile, shift)
            for tile in _tiles(region, self._outputs_per_tile())
            for shift in shifts
        ]  # fmt: skip
        for done, (tile, shift) in enumerate(jobs):
            first = [t.start * 2 + s for t, s in zip(tile, shift, strict=True)]
            count = [t.stop - t.start for t in tile]
            blocks = [_block(image, first, count, air).to(self.device) for image in (fixed, moving)]
            outputs = self.network(*blocks)[0].float().cpu().numpy()
            apart = 2 // step  # the outputs of one shift are this many voxels of the result apart
            target = tuple(slice(t.start * apart + s, t.stop * apart, apart) for t, s in zip(tile, shift, strict=True))
            part = found[(slice(None), *target)]
            part[...] = outputs[(slice(None), *(slice(n) for n in part.shape[1:]))]
            self.progress((done + 1) / len(jobs))
        return found

    def _outputs_per_tile(self) -> int:
        """Return the largest number of outputs along an axis of a tile that the memory budget allows."""
        voxels = self.options.memory * 1e9 / _BYTES_PER_TILE_VOXEL[self.precision]
        outputs = int((voxels ** (1 / 3) - BLOCK_OVERHEAD) / 2)
        if outputs < 1:
            raise ParameterError(f"a memory budget of {self.options.memory} GB is too small for a single patch")
        return min(outputs, 80)

    def _whole(self, fixed: Tensor, moving: Tensor, region: BoolArray, air: float) -> npt.NDArray[np.float32]:
        network = self.network
        assert isinstance(network, CoarseToFineRegNet)
        found = np.zeros((3, *region.shape), dtype=np.float32)
        box = _bounding_box(region, round(_CONTEXT / network.voxel_size))
        voxels = math.prod(s.stop - s.start for s in box)
        needed = voxels * _BYTES_PER_VOXEL[self.precision] / 1e9
        if needed > self.options.memory:
            raise ParameterError(
                f"the coarse-to-fine network needs {needed:.1f} GB for this region, over the budget of "
                f"{self.options.memory} GB; give a mask of what matters, or raise (RegNetMemoryBudget ..)"
            )
        factor = 2 ** (network.levels - 1)
        parts = [_padded_to_multiple(image[box][None, None], factor, air).to(self.device) for image in (fixed, moving)]
        total = network(*parts)[-1].float()
        for repetition in range(1, self.options.repetitions):
            self.progress(repetition / self.options.repetitions)
            more = network(parts[0], warp(parts[1], total / network.voxel_size))[-1].float()
            total = more + warp(total, more / network.voxel_size)
        inside = (slice(None), *(slice(s.stop - s.start) for s in box))
        found[(slice(None), *box)] = total[0].cpu().numpy()[inside]
        self.progress(1.0)
        return found


def fade(field: DisplacementField, region: Image, width: float) -> DisplacementField:
    """Let a field fall smoothly to zero over `width` mm outside a region.

    Parameters
    ----------
    field : DisplacementField
    region : Image
        Boolean; on another grid than the field's it is resampled.
    width : float
        mm; 0 cuts the field off.

    Returns
    -------
    DisplacementField
        Unchanged inside the region.
    """
    from scipy import ndimage

    inside = region.array.astype(bool)
    if not region.grid.is_close(field.grid):
        resampled = Image(inside.astype(np.float32), region.grid).resampled(field.grid)
        inside = resampled.array > 0
    if inside.all():
        return field
    distance = ndimage.distance_transform_edt(~inside, sampling=field.grid.spacing[::-1]).astype(np.float32)
    rest = np.clip(1.0 - distance / max(width, 1e-3), 0.0, 1.0)
    weight = rest * rest * (3.0 - 2.0 * rest)
    return DisplacementField(field.vectors * weight[..., None], field.grid)


def resampled_for_network(image: Image, grid: Grid, transform: Any = None) -> Image:
    """Return an image (HU) on the network's grid; air outside.

    Where the image is much finer than the grid, it is averaged over the grid's voxels instead of picked at points.
    """
    finest = min(image.grid.spacing)
    if finest >= 0.6 * min(grid.spacing):
        return image.resampled(grid, transform, default=_AIR)
    fine = Grid(
        tuple(2 * n for n in grid.size),  # type: ignore[arg-type]
        tuple(s / 2 for s in grid.spacing),  # type: ignore[arg-type]
        tuple(grid.index_to_point((-0.25, -0.25, -0.25))),
        grid.direction,
    )
    values = torch.from_numpy(image.resampled(fine, transform, default=_AIR).array)
    return Image(functional.avg_pool3d(values[None], 2)[0].numpy(), grid)


def _tiles(region: BoolArray, largest: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut the region's box into even tiles of outputs two voxels apart, and leave out those without a voxel of it."""
    wanted = functional.max_pool3d(
        torch.from_numpy(region[None].astype(np.float32)), 2, ceil_mode=True
    )[0].numpy() > 0  # fmt: skip
    cuts = []
    for extent in _bounding_box(wanted, 1):
        length = extent.stop - extent.start
        count = math.ceil(length / largest)
        edges = [extent.start + length * i // count for i in range(count + 1)]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    for tile in product(cuts[0], cuts[1], cuts[2]):
        if wanted[tile].any():
            yield tile


def _bounding_box(mask: BoolArray, margin: int) -> tuple[slice, slice, slice]:
    spans = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (there[0], there[-1]) if there.size else (0, mask.shape[axis] - 1)
        spans.append(slice(max(0, int(first) - margin), min(mask.shape[axis], int(last) + 1 + margin)))
    return spans[0], spans[1], spans[2]


def _block(image: Tensor, first: list[int], count: list[int], air: float) -> Tensor:
    """Cut the input block (1, 1, z, y, x) of `count` outputs from voxel `first` on; air beyond the image."""
    inside, padding = [], []
    for n, start, outputs in zip(image.shape, first, count, strict=True):
        low = start - PATCH_MARGIN
        high = low + BLOCK_OVERHEAD + 2 * outputs
        inside.append(slice(max(low, 0), min(high, n)))
        padding.append((max(-low, 0), max(high - n, 0)))
    flat = [p for pair in reversed(padding) for p in pair]
    return functional.pad(image[tuple(inside)][None, None], flat, value=air)


def _padded_to_multiple(image: Tensor, factor: int, value: float) -> Tensor:
    padding: list[int] = []
    for n in reversed(image.shape[2:]):
        padding += [0, -n % factor]
    return functional.pad(image, padding, value=value)


def _fuse_normalisation(network: nn.Module) -> None:
    """Fold batch normalisation into the convolutions before it: the same function, in one pass."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for name, child in network.named_children():
        if not isinstance(child, nn.Sequential):
            continue
        layers: list[nn.Module] = []
        for layer in child:
            if isinstance(layer, nn.BatchNorm3d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer)  # type: ignore[type-var]
            else:
                layers.append(layer)
        setattr(network, name, nn.Sequential(*layers))
