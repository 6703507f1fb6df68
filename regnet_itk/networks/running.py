"""What runs a network over a whole image: what it is given, what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regnet_itk.errors import ParameterError
from regnet_itk.networks.devices import Precision

BoolArray = npt.NDArray[np.bool_]


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


@dataclass(frozen=True)
class RunSetup:
    """What a network is run with.

    Parameters
    ----------
    options : InferenceOptions
    device : torch.device
    precision : torch.dtype
        Of the convolutions.
    voxel_size : float
        mm; of the images.
    left_out : int
        How many of the network's stages are left out, beginning with the finest.
    progress : callable
        Is given the fraction that is done.
    """

    options: InferenceOptions
    device: torch.device
    precision: torch.dtype
    voxel_size: float
    left_out: int = 0
    progress: Callable[[float], None] = lambda _: None


class Runner(Protocol):
    """A network made ready for one device."""

    @property
    def network(self) -> nn.Module:
        """The network as it is run."""

    @property
    def step(self) -> int:
        """Voxels from one output to the next, along each axis."""

    def run(
        self, fixed: Tensor, moving: Tensor, region: BoolArray, margin: float, outside: float
    ) -> npt.NDArray[np.float32]:
        """Predict displacements.

        Parameters
        ----------
        fixed, moving : Tensor, shape (z, y, x)
            Normalised intensities, on the CPU.
        region : bool array, shape (z, y, x)
            Where the displacement is wanted.
        margin : float
            mm around the region where it is wanted as well.
        outside : float
            What lies beyond the images, normalised.

        Returns
        -------
        array, shape (3, z, y, x)
            mm along the axes x, y, z, at every `step`-th voxel from the first to the last one or past it; 0 far from
            the region.

        Raises
        ------
        ParameterError
            If the memory budget is too small.
        """
