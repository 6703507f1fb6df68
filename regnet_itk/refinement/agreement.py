"""How well two images agree under a displacement, at voxels that are drawn anew in each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.interpolation import interpolate
from regnet_itk.networks.self_similarity import REACH, mind_features
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.refinement.mutual_information import mutual_information

_SAMPLES = 30_000  # voxels that a step looks at


@dataclass(frozen=True)
class InstancePair:
    """What a field is improved on, all on one grid of cubic voxels, best of the size that instance optimisation wants.

    Parameters
    ----------
    fixed, moving : Image
        In one unit.
    region : Image
        Boolean: where the images have to agree.
    known : Image
        Boolean: where the moving image is known. What would be compared with anything else is left out.
    intensity_range : tuple of float
        These values are scaled to 0 .. 1; what lies outside is clipped.
    further : tuple of (Image, Image)
        More fixed and moving images, on the same grid, that have to agree as well.
    """

    fixed: Image
    moving: Image
    region: Image
    known: Image
    intensity_range: tuple[float, float] = CHEST_CT.intensity_range
    further: tuple[tuple[Image, Image], ...] = ()

    @property
    def images(self) -> tuple[tuple[Image, Image], ...]:
        """All fixed images with their moving ones."""
        return ((self.fixed, self.moving), *self.further)


@dataclass(frozen=True)
class Drawn:
    """Voxels of a region that lie on a coarse lattice.

    Parameters
    ----------
    grid : Grid
        Whose voxels they are.
    lattice : list of ndarray
        The lattice's planes along z, y, x, as indices.
    chosen : Tensor, shape (n,)
        Which of the lattice's points lie in the region, counted with x running fastest.
    index : Tensor, shape (n, 3)
        Where they are: z, y, x.
    """

    grid: Grid
    lattice: list[npt.NDArray[np.int64]]
    chosen: Tensor
    index: Tensor


class Agreement:
    """How well the images of a pair agree inside its region.

    Parameters
    ----------
    pair : InstancePair
    device : torch.device
        Where to work.
    """

    def __init__(self, pair: InstancePair, device: torch.device) -> None:
        self.grid = pair.fixed.grid
        self._scaled = [[_scaled(image, pair.intensity_range).to(device) for image in images] for images in pair.images]
        self._fixed, self._moving = (
            _side_by_side([mind_features(images[side]) for images in self._scaled]) for side in (0, 1)
        )
        self._inside = torch.from_numpy(np.ascontiguousarray(pair.region.array, dtype=bool)).to(device)
        self._known = torch.from_numpy(dependable(pair.known.array)).to(device)
        self._stride = max(1, round((float(self._inside.sum()) / _SAMPLES) ** (1 / 3)))

    def draw(self, random: np.random.Generator) -> Drawn:
        """Return the region's voxels on a lattice that begins somewhere else each time."""
        offsets = [int(offset) for offset in random.integers(0, self._stride, 3)]
        lattice = [np.arange(offset, n, self._stride) for offset, n in zip(offsets, self.grid.shape, strict=True)]
        at = tuple(slice(offset, None, self._stride) for offset in offsets)
        chosen = self._inside[at].flatten().nonzero()[:, 0]
        index = torch.stack([i.flatten() for i in torch.meshgrid(*map(torch.from_numpy, lattice), indexing="ij")], 1)
        return Drawn(self.grid, lattice, chosen, index.to(chosen.device)[chosen].float())

    def difference(self, drawn: Drawn, u: Tensor, information: float) -> Tensor | None:
        """Return how much the images differ; None if nothing can be compared.

        Parameters
        ----------
        drawn : Drawn
        u : Tensor, shape (n, 3)
            Displacement of the drawn voxels, x, y, z in mm along the axes of the grid.
        information : float
            Weight of the mutual information.
        """
        there = drawn.index + u.flip(1) / self.grid.spacing[0]
        counts = self._known_at(there)
        if not counts.any():
            return None
        at, there = drawn.index[counts].long().unbind(1), there[counts]
        unlike = (interpolate(self._moving, there) - self._fixed[at]).square().mean()
        if information:
            shared = [
                mutual_information(fixed[at], interpolate(moving[..., None], there)[:, 0])
                for fixed, moving in self._scaled
            ]
            unlike = unlike - information * torch.stack(shared).mean()
        return unlike

    def _known_at(self, index: Tensor) -> Tensor:
        """Say at which indices (n, 3) z, y, x the moving image is known."""
        nearest = index.detach().round().long()
        size = torch.tensor(self._known.shape, device=index.device)
        inside = ((nearest >= 0) & (nearest < size)).all(dim=1)
        z, y, x = torch.minimum(nearest.clamp(min=0), size - 1).unbind(dim=1)
        return inside & self._known[z, y, x]


def _side_by_side(features: list[Tensor]) -> Tensor:
    """Return the features of all images as channels; those of a single one are not copied, since they are large."""
    return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


def _scaled(image: Image, intensity_range: tuple[float, float]) -> Tensor:
    low, high = intensity_range
    values = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
    return (values.clamp(low, high) - low) / (high - low)


def dependable(known: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where self-similarity contexts depend on nothing but what is known, both (z, y, x)."""
    unknown = torch.from_numpy(np.ascontiguousarray(~known.astype(bool), dtype=np.float32))[None]
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * REACH + 1, REACH
        unknown = functional.max_pool3d(unknown, window, stride=1, padding=padding)
    return np.asarray((unknown[0] < 0.5).numpy())
