"""Nodules in the lungs of a chest phantom, of which all is known: their size at both dates, and what became of them.

A nodule is an ellipsoid of soft tissue, drawn into each image in that image's own space: where it lies in the moving
image is where the phantom's exact motion takes its place in the fixed image, and its size is chosen for each date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from regnet_itk.anatomy.phantom import Phantom
from regnet_itk.data.distances import distance_to
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError

Fate = Literal["grown", "shrunk", "stable", "new", "gone", "close", "split", "merged"]

FATES: tuple[Fate, ...] = ("grown", "grown", "grown", "shrunk", "stable", "new", "gone", "close", "split")
"""Of ten nodules: "close" are two, of which one grows and one shrinks. There is "merged" too."""

_Shape = Callable[[float], FloatArray]
_SOFT_TISSUE = 30.0  # HU
_APART = 22.0  # mm between nodules that have nothing to do with each other
_GAP = 2.0  # mm between those that are close
_EDGE = 3.0  # mm from a nodule to the border of the lungs


@dataclass(frozen=True, eq=False)
class Nodule:
    """A nodule at one date.

    Parameters
    ----------
    centre : ndarray, shape (3,)
        mm, LPS.
    radii : ndarray, shape (3,)
        mm, along x, y, z.
    """

    centre: FloatArray
    radii: FloatArray

    @property
    def volume(self) -> float:
        """mm3."""
        return float(4 / 3 * np.pi * np.prod(self.radii))


@dataclass(frozen=True, eq=False)
class KnownLesion:
    """What a follow-up should find: the same lesion in both images.

    Parameters
    ----------
    fate : str
        One of `FATES`' words.
    fixed, moving : tuple of Nodule
        None, one, or several; those of the fixed image are the baseline.
    """

    fate: Fate
    fixed: tuple[Nodule, ...]
    moving: tuple[Nodule, ...]


@dataclass(frozen=True, eq=False)
class NodulePhantom:
    """A phantom with nodules.

    Parameters
    ----------
    phantom : Phantom
        Its images show the nodules.
    known : tuple of KnownLesion
        Two that are close to each other are two.
    fixed_numbers, moving_numbers : tuple of tuples of int
        The labels of each of `known`: the nodules of each image are numbered from 1 in a random order, so that numbers
        tell nothing.
    """

    phantom: Phantom
    known: tuple[KnownLesion, ...]
    fixed_numbers: tuple[tuple[int, ...], ...]
    moving_numbers: tuple[tuple[int, ...], ...]

    def labels(self, role: Literal["fixed", "moving"], grid: Grid | None = None) -> Image:
        """Return the labels of an image, uint8.

        Parameters
        ----------
        role : {"fixed", "moving"}
        grid : Grid, optional
            In the space of that image; its own by default.
        """
        grid = grid or getattr(self.phantom, role).grid
        labels: npt.NDArray[np.uint8] = np.zeros(grid.shape, dtype=np.uint8)
        for lesion, numbers in zip(self.known, getattr(self, f"{role}_numbers"), strict=True):
            for nodule, number in zip(getattr(lesion, role), numbers, strict=True):
                box = _box(grid, nodule)
                labels[box][_depth_in(grid, nodule, box) >= 0] = number
        return Image(labels, grid)


def add_nodules(
    phantom: Phantom,
    seed: int = 0,
    fates: Sequence[Fate] = FATES,
    radii: tuple[float, float] = (4.5, 9.0),
) -> NodulePhantom:
    """Draw nodules into both images of a phantom.

    Parameters
    ----------
    phantom : Phantom
    seed : int
        Of where they lie and how large they are.
    fates : sequence of str
        What becomes of each, from the fixed to the moving image. "close" are two nodules, 2 mm from each other.
    radii : tuple of float
        Smallest and largest mean radius in mm.

    Raises
    ------
    ParameterError
        If the lungs have no room for them.
    """
    rng = np.random.default_rng([seed, 77])
    places = _Places(phantom, rng)
    known = [lesion for fate in fates for lesion in _draw(fate, places, rng, radii)]
    images, numbers = [], []
    for role in ("fixed", "moving"):
        image: Image = getattr(phantom, role)
        of_each = [getattr(lesion, role) for lesion in known]
        nodules = [nodule for each in of_each for nodule in each]
        order = (rng.permutation(len(nodules)) + 1).tolist()
        images.append(_painted(image, nodules, rng))
        numbers.append(tuple(tuple(order.pop(0) for _ in each) for each in of_each))
    return NodulePhantom(replace(phantom, fixed=images[0], moving=images[1]), tuple(known), *numbers)


class _Places:
    """Where there is room for a nodule."""

    def __init__(self, phantom: Phantom, rng: np.random.Generator) -> None:
        self._phantom, self._rng = phantom, rng
        inside = phantom.fixed_mask.array > 0
        self._depth = distance_to(~inside, phantom.fixed_mask.grid.spacing)
        self._taken: list[tuple[FloatArray, float]] = []

    def find(self, radius: float) -> FloatArray:
        """Return a point of the fixed image around which a ball of this radius lies in the lungs of both images."""
        grid, moving = self._phantom.fixed.grid, self._phantom.moving.grid
        deep = np.argwhere(self._depth > radius + _EDGE)[:, ::-1]
        for index in self._rng.permutation(deep)[:500]:
            point = grid.index_to_point(index)
            apart = all(np.linalg.norm(point - other) > radius + size + _APART for other, size in self._taken)
            there = moving.point_to_index(self.there(point))
            margin = (radius + _EDGE) / np.asarray(moving.spacing)
            if apart and ((there > margin) & (there < np.asarray(moving.size) - 1 - margin)).all():
                self._taken.append((point, radius))
                return point
        raise ParameterError("the lungs of this phantom have no room for so many nodules; make it larger")

    def there(self, point: FloatArray) -> FloatArray:
        """Return where a point of the fixed image lies in the moving one."""
        mapped: FloatArray = self._phantom.motion.map_points(point[None])[0]
        return mapped


def _draw(fate: Fate, places: _Places, rng: np.random.Generator, radii: tuple[float, float]) -> list[KnownLesion]:
    def shape(radius: float) -> FloatArray:
        axes = rng.uniform(0.85, 1.15, 3)
        return radius * axes / float(np.cbrt(axes.prod()))

    radius = float(rng.uniform(*radii))
    factor = {"grown": rng.uniform(1.12, 1.5), "shrunk": rng.uniform(0.7, 0.88)}.get(fate, 1.0)
    if fate == "close":
        return _close(places, rng, shape, min(radius, 0.7 * radii[1]))
    if fate in ("split", "merged"):
        return [_parted(fate, places, shape, max(radius, 0.8 * radii[1]))]
    point = places.find(radius * max(1.0, float(factor)))
    axes = shape(radius)
    before, after = Nodule(point, axes), Nodule(places.there(point), factor * axes)
    return [KnownLesion(fate, () if fate == "new" else (before,), () if fate == "gone" else (after,))]


def _close(places: _Places, rng: np.random.Generator, shape: _Shape, radius: float) -> list[KnownLesion]:
    """Return two nodules beside each other: the one grows, the other shrinks."""
    middle = places.find(2.2 * radius + _GAP)
    way = rng.normal(size=3)
    way *= (1.15 * radius + _GAP / 2) / np.linalg.norm(way)
    return [
        KnownLesion(
            "close", (Nodule(middle + side * way, axes),), (Nodule(places.there(middle + side * way), axes * k),)
        )
        for side, k, axes in ((1, 1.15, shape(0.85 * radius)), (-1, 0.85, shape(radius)))
    ]


def _parted(fate: Fate, places: _Places, shape: _Shape, radius: float) -> KnownLesion:
    """Return a nodule that falls into two, or two that grow together."""
    point, part = places.find(radius), 0.48 * radius
    away = np.array([part + 1.0, 0.0, 0.0])
    there = places.there(point)
    whole, parts = (point, there) if fate == "split" else (there, point)
    one = (Nodule(whole, shape(radius)),)
    two = tuple(Nodule(parts + side * away, np.full(3, part)) for side in (-1, 1))
    return KnownLesion(fate, one, two) if fate == "split" else KnownLesion(fate, two, one)


def _box(grid: Grid, nodule: Nodule) -> tuple[slice, slice, slice]:
    reach = (nodule.radii.max() + 3.0) / np.asarray(grid.spacing)
    index = grid.point_to_index(nodule.centre)
    low = np.maximum(np.floor(index - reach), 0).astype(int)
    high = np.minimum(np.ceil(index + reach) + 1, grid.size).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
    return z, y, x


def _depth_in(grid: Grid, nodule: Nodule, box: tuple[slice, slice, slice]) -> FloatArray:
    """Return about how deep, in mm, the voxels of a box lie in a nodule."""
    away = np.linalg.norm((grid.part(box).points() - nodule.centre) / nodule.radii, axis=-1)
    return np.asarray((1.0 - away) * nodule.radii.mean())


def _painted(image: Image, nodules: list[Nodule], rng: np.random.Generator) -> Image:
    values = image.array.astype(np.float32)
    softness = max(1.4, 0.7 * max(image.grid.spacing))
    for nodule in nodules:
        box = _box(image.grid, nodule)
        share = np.clip(0.5 + _depth_in(image.grid, nodule, box) / softness, 0.0, 1.0)
        tissue = _SOFT_TISSUE + rng.normal(0.0, 15.0, share.shape)
        values[box] += share * (tissue - values[box])
    return Image(np.rint(values).astype(image.array.dtype), image.grid)
