"""Labels that have to come to lie on each other, as a term of instance optimisation.

What is compared are distances to the surface of each label, below 0 inside of it: they tell which way to go from
centimetres away, where an overlap tells nothing. Each label has its own distances, on the box around it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from regnet_itk.data.distances import distance_to
from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.interpolation import interpolate
from regnet_itk.refinement.terms import DisplacementAt

UNKNOWN = -1
"""What stands in a label image where nothing is known; there is no surface towards it."""

REACH = 40.0
"""mm. Larger distances are cut: so far does one label see the other."""

_BAND = 6.0  # mm on either side of a surface in the fixed image, where distances are compared
_PER_MM = 0.05  # so much more do features of images differ where a displacement is wrong by 1 mm
_EXACT = 1.0  # mm; segmentations are no more exact than that, and within it a surface does not pull
_LINEAR_FROM = 1.0  # mm beyond that; a surface that is farther off pulls no harder
_KEPT = 20_000  # places of each label
_DRAWN = 3000  # of them in each step, over all labels
_DRAWN_LEAST = 50  # of a label


@dataclass(frozen=True, eq=False)
class LabelSurface:
    """One label in both images, in a box of a grid of cubic voxels.

    Parameters
    ----------
    number : int
        Of the label.
    grid : Grid
        The box.
    points : ndarray, shape (n, 3)
        Near the surface in the fixed image, mm, LPS.
    distances : ndarray, shape (n,)
        Of these points from it, mm.
    moving : ndarray, shape (z, y, x)
        Distances from the surface in the moving image under the transform so far, mm.
    volume : float
        mm^3 within `_BAND` of the surface.
    """

    number: int
    grid: Grid
    points: FloatArray
    distances: FloatArray
    moving: npt.NDArray[np.float32]
    volume: float

    def off(self, u: FloatArray) -> float:
        """Return how far a twentieth of the surfaces are apart at least, mm, if the points move by u (n, 3), mm."""
        index = self.grid.point_to_index(self.points + u)[:, ::-1].T
        there = ndimage.map_coordinates(self.moving, index, order=1, mode="nearest")
        return float(np.quantile(np.abs(there - self.distances), 0.95))


def label_surfaces(
    fixed: Image, moving: Image, numbers: Sequence[int], random: np.random.Generator
) -> Iterator[LabelSurface]:
    """Yield the surfaces of labels; of one that fills all that is known of an image there is none.

    Parameters
    ----------
    fixed, moving : Image
        Labels on one grid of cubic voxels, the moving ones through the transform so far; `UNKNOWN` is not looked at.
    numbers : sequence of int
        Of labels that both have.
    random : numpy.random.Generator
        Chooses the points.
    """
    step = fixed.grid.spacing[0]
    for number in numbers:
        box = _box_around(fixed.array, moving.array, number, round(REACH / step))
        grid = fixed.grid.part(box)
        here, there = (_signed_distance(image.array[box], number, step) for image in (fixed, moving))
        if here is None or there is None:
            continue
        near = (np.abs(here) <= _BAND) & (fixed.array[box] != UNKNOWN)
        places = np.argwhere(near)
        chosen = places[random.permutation(len(places))[:_KEPT]]
        distances = here[tuple(chosen.T)].astype(float)
        points = grid.index_to_point(chosen[:, ::-1])
        yield LabelSurface(number, grid, points, distances, there, len(places) * step**3)


def _box_around(fixed: npt.NDArray[np.int32], moving: npt.NDArray[np.int32], number: int, margin: int) -> Box:
    """Return the box that holds a label of both images, and a margin."""
    inside = (fixed == number) | (moving == number)
    (found,) = ndimage.find_objects(inside.astype(np.uint8))
    z, y, x = (
        slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(found, fixed.shape, strict=True)
    )
    return z, y, x


def _signed_distance(labels: npt.NDArray[np.int32], number: int, step: float) -> npt.NDArray[np.float32] | None:
    """Return the distance from the surface of a label, halfway between voxels; below 0 inside. None without surface."""
    inside = labels == number
    outside = ~inside & (labels != UNKNOWN)
    if not inside.any() or not outside.any():
        return None
    spacing = (step, step, step)
    signed = distance_to(inside, spacing) - distance_to(outside, spacing)
    signed -= np.sign(signed) * (0.5 * step)
    return np.clip(signed, -REACH, REACH, out=signed)


class LabelTerm:
    """The distances of labels' surfaces from each other.

    Parameters
    ----------
    grid : Grid
        Of the pair that is improved.
    surfaces : sequence of LabelSurface
    weights : mapping of int to float
        By the labels' numbers; at 1 a surface that is off by 1 mm more counts as much as images that do not agree
        within 6 mm on either side of it.
    volume : float
        mm^3 over which the images are compared.
    seed : int
        Of the places that are looked at in each step.
    """

    def __init__(
        self, grid: Grid, surfaces: Sequence[LabelSurface], weights: Mapping[int, float], volume: float, seed: int
    ) -> None:
        self._random, self._voxel = np.random.default_rng(seed), grid.spacing[0]
        self._labels = [_Compared.on(grid, surface, weights[surface.number], volume) for surface in surfaces]
        whole = sum(len(label.index) for label in self._labels)
        self._drawn = [
            min(len(label.index), max(_DRAWN_LEAST, round(_DRAWN * len(label.index) / whole))) for label in self._labels
        ]

    def cost(self, at: DisplacementAt) -> Tensor:
        """Return the sum over all labels, in the unit of the images' differences."""
        drawn = [
            torch.from_numpy(self._random.integers(0, len(label.index), count))
            for label, count in zip(self._labels, self._drawn, strict=True)
        ]
        index = torch.cat([label.index[some] for label, some in zip(self._labels, drawn, strict=True)])
        there = (index + at(index).flip(1) / self._voxel).split(self._drawn)
        costs = [label.cost(some, place) for label, some, place in zip(self._labels, drawn, there, strict=True)]
        return torch.stack(costs).sum()


@dataclass(frozen=True, eq=False)
class _Compared:
    """A label as a step looks at it: indices z, y, x are those of the pair's grid."""

    index: Tensor
    distances: Tensor
    moving: Tensor
    first: Tensor
    scale: float
    share: float

    @classmethod
    def on(cls, grid: Grid, surface: LabelSurface, weight: float, volume: float) -> _Compared:
        index = np.asarray(grid.point_to_index(surface.points))[:, ::-1].copy()
        first = np.asarray(grid.point_to_index(surface.grid.origin))[::-1].copy()
        share = weight * _PER_MM * min(1.0, surface.volume / max(volume, 1.0))
        return cls(
            torch.from_numpy(index).float(), torch.from_numpy(surface.distances).float(),
            torch.from_numpy(np.ascontiguousarray(surface.moving))[..., None], torch.from_numpy(first).float(),
            grid.spacing[0] / surface.grid.spacing[0], share,
        )  # fmt: skip

    def cost(self, some: Tensor, there: Tensor) -> Tensor:
        """Return the cost of the points `some`, which are displaced to the indices `there` (n, 3)."""
        distance = interpolate(self.moving, (there - self.first) * self.scale)[:, 0]
        off = ((distance - self.distances[some]).abs() - _EXACT).clamp(min=0.0)
        return self.share * torch.where(off < _LINEAR_FROM, 0.5 * off**2, off - 0.5 * _LINEAR_FROM).mean()
