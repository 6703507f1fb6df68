"""A network over a whole image.

The images come already resampled to the network's voxels; the displacement leaves as a field in physical vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.networks.devices import find_device, limited_threads
from regnet_itk.networks.model import Model
from regnet_itk.networks.precision import choose_precision
from regnet_itk.networks.running import InferenceOptions, RunSetup


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
        self.model, self.options = model, options
        self.device = find_device(options.device)
        self.precision = choose_precision(options.precision, model.network, self.device)
        voxel_size, left_out = model.description.voxel_size, model.stages_left_out(options.stages)
        setup = RunSetup(options, self.device, self.precision, voxel_size, left_out, progress)
        self._runner = model.architecture.make_runner(model.network, setup)

    @property
    def network(self) -> nn.Module:
        """The network as it is run."""
        return self._runner.network

    def predict(self, fixed: Image, moving: Image, region: Image, margin: float = 0.0) -> DisplacementField:
        """Predict u with fixed(x) = moving(x + u(x)).

        Parameters
        ----------
        fixed, moving : Image
            In the unit of the model's world, on the same grid, with cubic voxels of the model's size.
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
        with limited_threads(self.options.threads), torch.inference_mode():
            seen, wanted = (self._normalised(fixed), self._normalised(moving)), region.array.astype(bool)
            outside = float(self.model.normalise(torch.tensor(self.model.description.world.background)))
            along_axes = self._runner.run(*seen, wanted, margin, outside)
        step = self._runner.step
        physical = fixed.grid.direction_matrix.astype(np.float32) @ along_axes.reshape(3, -1)
        vectors = np.moveaxis(physical.reshape(along_axes.shape), 0, -1)
        size = [step * (n - 1) + 1 for n in reversed(along_axes.shape[1:])]
        return DisplacementField(vectors, fixed.grid.crop((0, 0, 0), size).every(step))

    def _normalised(self, image: Image) -> Tensor:
        return self.model.normalise(torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32)))
