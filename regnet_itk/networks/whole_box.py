"""A network over the whole box around a region at once, if it predicts at every voxel of what it is given."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnet_itk.data.image import bounding_box
from regnet_itk.errors import ParameterError
from regnet_itk.networks.layers import warp
from regnet_itk.networks.running import BoolArray, RunSetup


def last_output(network: nn.Module, fixed: Tensor, moving: Tensor, left_out: int) -> Tensor:
    """Return the displacement (1, 3, z, y, x) in mm of a network that is run as a whole."""
    found = network(fixed, moving)
    displacement: Tensor = found if isinstance(found, Tensor) else found[-1]
    return displacement.float()


@dataclass(frozen=True)
class WholeBox:
    """Makes a runner of a network that predicts at every voxel of what it is given.

    Parameters
    ----------
    bytes_needed : callable
        Takes the number of voxels of a box and the precision; returns the peak of the memory in bytes.
    multiple : int
        Of which the box's size must be a multiple along each axis.
    context : float
        mm around the region that the network sees as well.
    apply : callable
        Takes the network, the fixed and the moving image (1, 1, z, y, x) and how many stages are left out; returns the
        displacement (1, 3, z, y, x) in mm, float32.
    words : str
        What to call the network in messages.
    """

    bytes_needed: Callable[[int, torch.dtype], float]
    multiple: int = 1
    context: float = 32.0
    apply: Callable[[nn.Module, Tensor, Tensor, int], Tensor] = last_output
    words: str = "network"

    def __call__(self, network: nn.Module, setup: RunSetup) -> WholeBoxRunner:
        """Return the runner of a copy of a network."""
        return WholeBoxRunner(copy.deepcopy(network).to(setup.device), setup, self)


class WholeBoxRunner:
    """Runs a network over the box around a region.

    Parameters
    ----------
    network : nn.Module
        On the setup's device.
    setup : RunSetup
    how : WholeBox
    """

    step = 1

    def __init__(self, network: nn.Module, setup: RunSetup, how: WholeBox) -> None:
        self.network, self._setup, self._how = network, setup, how

    def run(
        self, fixed: Tensor, moving: Tensor, region: BoolArray, margin: float, outside: float
    ) -> npt.NDArray[np.float32]:
        """Predict displacements, as :meth:`regnet_itk.networks.running.Runner.run` says."""
        setup, how = self._setup, self._how
        found = np.zeros((3, *region.shape), dtype=np.float32)
        box = bounding_box(region, math.ceil(max(how.context, margin) / setup.voxel_size))
        self._check_memory(math.prod(s.stop - s.start for s in box))
        parts = [
            _padded_to_multiple(image[box][None, None], how.multiple, outside).to(setup.device)
            for image in (fixed, moving)
        ]
        with self._autocast():
            total = self._predict(*parts)
            for repetition in range(1, setup.options.repetitions):
                setup.progress(repetition / setup.options.repetitions)
                more = self._predict(parts[0], warp(parts[1], total / setup.voxel_size))
                total = more + warp(total, more / setup.voxel_size)
        inside = (slice(None), *(slice(s.stop - s.start) for s in box))
        found[(slice(None), *box)] = total[0].cpu().numpy()[inside]
        setup.progress(1.0)
        return found

    def _predict(self, fixed: Tensor, moving: Tensor) -> Tensor:
        return self._how.apply(self.network, fixed, moving, self._setup.left_out)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._setup.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._setup.device.type, self._setup.precision)

    def _check_memory(self, voxels: int) -> None:
        needed, budget = self._how.bytes_needed(voxels, self._setup.precision) / 1e9, self._setup.options.memory
        if needed > budget:
            raise ParameterError(
                f"the {self._how.words} needs {needed:.1f} GB for this region, over the budget of {budget} GB; give a "
                "mask of what matters, or raise (RegNetMemoryBudget ..)"
            )


def _padded_to_multiple(image: Tensor, factor: int, value: float) -> Tensor:
    padding: list[int] = []
    for n in reversed(image.shape[2:]):
        padding += [0, -n % factor]
    return functional.pad(image, padding, value=value)
