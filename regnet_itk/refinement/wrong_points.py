"""Points that do not belong together although they are said to, or less exactly than a field knows already.

Their neighbours and the images tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.networks import self_similarity
from regnet_itk.refinement.landmark_correction import REACH, correlation_over, fit_spread

BoolArray = npt.NDArray[np.bool_]

FAR = 6.0
"""mm, and `_FAR_RADII` radii of trust: what is no farther off is an inexact point, not a wrong one."""

_FAR_RADII = 4.0
_CERTAIN = 0.06  # images that differ so much more where a point leads, `FAR` away from the field, contradict it
_ALIKE, _SURELY_ALIKE = 0.12, 0.05  # the images agree if they differ by less
_SAME = 0.03  # the images tell nothing if they differ by less than this
_BLIND = 0.2  # the images agree nowhere: what one of them shows is missing in the other
_UNLIKELY = 20.0  # squared standardised distance from the others; of 3 normal components 1 in 6000 has more
_ALONE = 1.5 * REACH  # mm; no other point is so near to one of which they tell nothing
_MOST = 1 / 3  # of the points can be called wrong by their neighbours, before nobody knows which of them are
_FEWEST = 3  # points, of which two can tell of the third
_SUSPECTS = 5  # points, the least likely ones, that are looked at each time before all count as right
_ONE_OF = 50  # of so many points, where that is more
_NEIGHBOURS = 100  # points, the nearest ones, that tell of another: what lies behind them adds nothing
_AT_ONCE = 200
_PATCH = 4  # voxels around a point that are compared
_PATCH_STEP = 2.0  # mm


@dataclass(frozen=True)
class Wrong:
    """A point that is not used.

    Parameters
    ----------
    number : int
        Of the point.
    distance : float
        mm from where its neighbours, or else the field so far, put it.
    there, instead : float
        How much the images differ where the point leads, and where those do: 0 to about 0.3; NaN outside of them.
    """

    number: int
    distance: float
    there: float
    instead: float

    def describe(self) -> str:
        """Return how far off it is and what the images say, in a few words."""
        words = f"{self.distance:.1f} mm from where its neighbours and the images put it"
        if np.isnan(self.there - self.instead):
            return words
        return f"{words} (the images differ by {self.there:.2f} where it leads, by {self.instead:.2f} there)"


class PointViews:
    """The surroundings of points in two images, compared by their self-similarity contexts.

    Parameters
    ----------
    fixed, moving : Image
        On one grid and in one unit, the moving one through the transform so far.
    intensity_range : tuple of float
        These values are told apart.
    points : ndarray, shape (n, 3)
        In the fixed image, mm, LPS.
    """

    def __init__(self, fixed: Image, moving: Image, intensity_range: tuple[float, float], points: FloatArray) -> None:
        self._moving, self._range, self._points = moving, intensity_range, points
        self._seen = [_features(fixed, point, intensity_range) for point in points]

    def differences(self, u: FloatArray, numbers: npt.NDArray[np.intp] | None = None) -> FloatArray:
        """Return how much the images differ at points (of these `numbers`) under displacements u (n, 3), mm, LPS.

        The mean squared difference of their contexts: 0.02 to 0.1 where they belong together, about 0.2 elsewhere, NaN
        where the point or its place lies outside of the images.
        """
        numbers = np.arange(len(self._points)) if numbers is None else numbers
        found = np.full(len(numbers), np.nan)
        for row, (number, vector) in enumerate(zip(numbers, u, strict=True)):
            there = _features(self._moving, self._points[number] + vector, self._range)
            here = self._seen[number]
            if here is not None and there is not None:
                found[row] = np.square(here - there).mean()
        return found


def _features(image: Image, point: FloatArray, intensity_range: tuple[float, float]) -> FloatArray | None:
    """Return the features of a cube around a point; None outside of the image."""
    if not image.grid.contains(point[None]).all():
        return None
    low, high = intensity_range
    margin = self_similarity.REACH
    along = np.arange(-_PATCH - margin, _PATCH + margin + 1) * _PATCH_STEP
    steps = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1)[..., ::-1]
    places = point + steps @ image.grid.direction_matrix.T
    index = image.grid.point_to_index(places.reshape(-1, 3))[:, ::-1].T
    values = ndimage.map_coordinates(image.array, index, np.float32, order=1, mode="nearest").reshape(steps.shape[:3])
    features = self_similarity.mind_features(torch.from_numpy((values.clip(low, high) - low) / (high - low))).numpy()
    inner = slice(margin, -margin)
    found: FloatArray = features[inner, inner, inner]
    return found


@dataclass(frozen=True, eq=False)
class Doubts:
    """What speaks against points.

    Parameters
    ----------
    wrong : list of Wrong
        By their numbers.
    outvoted : ndarray of bool, shape (n,)
        Points that differ from the field by no more than inexact ones do, and at which the images take the field's
        side: they tell nothing that the field does not know better.
    """

    wrong: list[Wrong]
    outvoted: BoolArray


def doubt_points(points: FloatArray, u: FloatArray, wanted: FloatArray, radii: FloatArray, views: PointViews) -> Doubts:
    """Find the points whose displacement cannot be right, and those that the images know to be less right than a field.

    A point is wrong if the images agree much better where the field so far leads; or if its neighbours put it
    elsewhere and the images do not take its side. Neighbours tell by the whole displacement, which is smooth even
    where the field's error is not: at the border of what one image does not show.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        mm, LPS.
    u, wanted : ndarray, shape (n, 3)
        Their displacement by the field so far, and by the points themselves, mm, LPS.
    radii : ndarray, shape (n,)
        Of trust, mm.
    views : PointViews
        Of the same points.
    """
    far = np.maximum(FAR, _FAR_RADII * radii)
    off = np.linalg.norm(wanted - u, axis=1)
    there, by_field = views.differences(wanted), views.differences(u)
    # near to where they agree, images differ by the square of the distance
    contradicted = (by_field < _ALIKE) & (there - by_field > _CERTAIN * (off / far).clip(max=1.0) ** 2)
    found = {
        int(number): Wrong(int(number), float(off[number]), float(there[number]), float(by_field[number]))
        for number in np.flatnonzero(contradicted & (off > far))
    }
    told = np.where(contradicted[:, None], u, wanted)
    evidence = _Evidence(points, told, contradicted, there, by_field, radii, far, views)
    before = -1
    while len(found) > before:
        before = len(found)
        for number in evidence.suspects(_without(found, len(points))):
            others = _without([*found, number], len(points))
            if len(found) < _MOST * len(points) and (wrong := evidence.against(number, others)) is not None:
                found[number] = wrong
    return Doubts([found[number] for number in sorted(found)], contradicted & (off <= far))


def _without(some: Iterable[int], count: int) -> npt.NDArray[np.int64]:
    """Return the numbers below `count` but some."""
    return np.setdiff1d(np.arange(count), list(some))


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What neighbours and images tell of points.

    Parameters
    ----------
    points, told : ndarray, shape (n, 3)
        Points, and the displacements that they tell of, mm.
    contradicted : ndarray of bool, shape (n,)
        Those whose place the field so far has told.
    there, by_field : ndarray, shape (n,)
        How much the images differ where the points lead, and under the field so far.
    radii, far : ndarray, shape (n,)
        mm, of trust; a point that is no farther off is not wrong.
    views : PointViews
    """

    points: FloatArray
    told: FloatArray
    contradicted: BoolArray
    there: FloatArray
    by_field: FloatArray
    radii: FloatArray
    far: FloatArray
    views: PointViews

    def suspects(self, kept: npt.NDArray[np.int64]) -> list[int]:
        """Return the points, out of those kept, that are the least likely by the others, the worst one first."""
        if len(kept) < _FEWEST:
            return []
        by_others, variances = self._told_by(kept, kept)
        distances = np.linalg.norm(self.told[kept] - by_others, axis=1)
        rows = np.flatnonzero((distances > self.far[kept]) & ~self.contradicted[kept])
        worst = np.argsort(-(distances[rows] ** 2) / variances[rows])[: max(_SUSPECTS, len(kept) // _ONE_OF)]
        return [int(number) for number in kept[rows[worst]]]

    def against(self, number: int, others: npt.NDArray[np.int64]) -> Wrong | None:
        """Return a point as wrong, if others put it elsewhere and the images do not take its side.

        How far displacements vary, the others tell as well: a point far off would make its own distance look usual.
        """
        by_others, (variance,) = self._told_by(np.array([number]), others)
        distance = float(np.linalg.norm(self.told[number] - by_others))
        if distance <= self.far[number] or distance**2 <= _UNLIKELY * variance:
            return None
        there = float(self.there[number])
        instead = float(np.fmin(self.views.differences(by_others, np.array([number]))[0], self.by_field[number]))
        for_it = instead - there > _SAME or there < _SURELY_ALIKE
        alone = not instead < _BLIND and cdist(self.points[[number]], self.points[others]).min() > _ALONE
        return None if for_it or alone else Wrong(number, distance, there, instead)

    def _told_by(self, numbers: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return the displacements (n, 3) of points that the others near to each tell of, and their variances (n,).

        The points are all among the others, where each is left out for itself, or none of them is.
        """
        common = np.median(self.told[others], axis=0)
        spread = fit_spread(self.points[others], self.told[others] - common, self.radii[others])
        tree, among = cKDTree(self.points[others]), int(np.isin(numbers, others).all())
        count = min(_NEIGHBOURS, len(others) - among)
        displacements, variances = np.empty((len(numbers), 3)), np.empty(len(numbers))
        for rows in np.array_split(np.arange(len(numbers)), -(-len(numbers) // _AT_ONCE)):
            some = numbers[rows]
            near = others[tree.query(self.points[some], count + among)[1].reshape(len(some), -1)]
            if among:
                itself = near == some[:, None]
                itself[~itself.any(axis=1), -1] = True  # more points lie at the same place than are asked for
                near = near[~itself].reshape(len(some), count)
            known, radii = self.points[near], spread.looseness * self.radii[near]
            apart = np.linalg.norm(known[:, :, None] - known[:, None], axis=-1)
            covariance = spread.errors**2 * correlation_over(apart) + np.eye(count) * radii[..., None] ** 2
            off = np.linalg.norm(known - self.points[some][:, None], axis=-1)
            shared = spread.errors**2 * correlation_over(off)
            weights = np.linalg.solve(covariance, shared[..., None])
            displacements[rows] = common + (weights * (self.told[near] - common)).sum(axis=1)
            own = spread.looseness * self.radii[some]
            variances[rows] = spread.errors**2 + own**2 - (weights[..., 0] * shared).sum(axis=1)
        return displacements, variances
