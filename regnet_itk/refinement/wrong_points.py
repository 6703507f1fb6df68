"""Points that do not belong together although they are said to, found by their neighbours and by the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import linalg, ndimage

from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.networks.self_similarity import REACH, mind_features
from regnet_itk.refinement.landmark_correction import Spread, fit_spread

BoolArray = npt.NDArray[np.bool_]

FAR = 6.0
"""mm, and `_FAR_RADII` radii of trust: what is no farther off is an inexact point, not a wrong one."""

_FAR_RADII = 4.0
_CERTAIN = 0.06  # the images differ so much more where the point leads than where the field does: it is wrong
_ALIKE, _SURELY_ALIKE = 0.12, 0.05  # the images agree if they differ by less
_SAME = 0.03  # the images tell nothing if they differ by less than this
_BLIND = 0.2  # the images agree nowhere: what one of them shows is missing in the other
_UNLIKELY = 30.0  # squared standardised distance from the neighbours; of 3 normal components 1 in 700 000 has more
_UNLIKELY_IF_BLIND = 3 * _UNLIKELY  # at the border of what is missing, displacements do change from point to point
_USUAL = 2.366  # the median of it
_ALONE = 0.7  # share of the variance that is left where no neighbour tells anything
_MOST = 1 / 3  # of the points can be called wrong by their neighbours, before nobody knows which of them are
_FEWEST = 3  # points, of which two can tell of the third
_ROUNDS = 4
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
    along = np.arange(-_PATCH - REACH, _PATCH + REACH + 1) * _PATCH_STEP
    steps = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1)[..., ::-1]
    places = point + steps @ image.grid.direction_matrix.T
    index = image.grid.point_to_index(places.reshape(-1, 3))[:, ::-1].T
    values = ndimage.map_coordinates(image.array, index, np.float32, order=1, mode="nearest").reshape(steps.shape[:3])
    features = mind_features(torch.from_numpy((values.clip(low, high) - low) / (high - low))).numpy()
    inner = slice(REACH, -REACH)
    found: FloatArray = features[inner, inner, inner]
    return found


def find_wrong_points(
    points: FloatArray, u: FloatArray, wanted: FloatArray, radius: float, views: PointViews
) -> list[Wrong]:
    """Find the points whose displacement cannot be right.

    A point is wrong if the images agree much better where the field so far leads; or if its neighbours put it
    elsewhere and the images do not take its side. Where the images show nothing alike, only near neighbours count.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        mm, LPS.
    u, wanted : ndarray, shape (n, 3)
        Their displacement by the field so far, and by the points themselves, mm, LPS.
    radius : float
        Of trust, mm.
    views : PointViews
        Of the same points.

    Returns
    -------
    list of Wrong
        By their numbers.
    """
    evidence = _Evidence(wanted, views.differences(wanted), views.differences(u), max(FAR, _FAR_RADII * radius), views)
    residuals = wanted - u
    found = {wrong.number: wrong for wrong in evidence.against(residuals)}
    for _ in range(_ROUNDS):
        kept = np.setdiff1d(np.arange(len(points)), list(found))
        if len(kept) < _FEWEST:
            break
        left_one_out = _LeftOneOut(fit_spread(points[kept], residuals[kept], radius), points, residuals, kept)
        before = len(found)
        while len(found) < _MOST * len(points) and (wrong := evidence.worst(left_one_out)) is not None:
            found[wrong.number] = wrong
            left_one_out.remove(wrong.number)
        if len(found) == before:
            break
    return [found[number] for number in sorted(found)]


class _LeftOneOut:
    """What the other points tell of each, as one after the other is taken away."""

    def __init__(self, spread: Spread, points: FloatArray, residuals: FloatArray, kept: npt.NDArray[np.intp]) -> None:
        self.kept, self._spread, self._residuals = kept, spread, residuals[kept]
        self._precision = linalg.inv(spread.covariance(points[kept]))

    def away(self) -> tuple[FloatArray, FloatArray]:
        """Return how far each residual (n, 3) is from what the others tell of it, and the variance of that (n,)."""
        variance = 1.0 / np.diag(self._precision)
        return (self._precision @ self._residuals) * variance[:, None], variance

    def alone(self, variance: FloatArray) -> BoolArray:
        """Say of which points the others tell next to nothing."""
        whole = self._spread.errors**2 + self._spread.points**2
        alone: BoolArray = variance > _ALONE * whole
        return alone

    def remove(self, number: int) -> None:
        row = int(np.flatnonzero(self.kept == number)[0])
        column = np.delete(self._precision[:, row], row)
        rest = np.delete(np.delete(self._precision, row, axis=0), row, axis=1)
        self._precision = rest - np.outer(column, column) / self._precision[row, row]
        self.kept, self._residuals = np.delete(self.kept, row), np.delete(self._residuals, row, axis=0)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What the images tell of points.

    Parameters
    ----------
    wanted : ndarray, shape (n, 3)
        Displacements by the points themselves, mm.
    there, by_field : ndarray, shape (n,)
        How much the images differ under these, and under the field so far.
    far : float
        mm; what is no farther off is not wrong.
    views : PointViews
    """

    wanted: FloatArray
    there: FloatArray
    by_field: FloatArray
    far: float
    views: PointViews

    def against(self, residuals: FloatArray) -> Iterator[Wrong]:
        """Yield the points where the field so far makes the images agree much better."""
        length = np.linalg.norm(residuals, axis=1)
        certain = (self.by_field < _ALIKE) & (self.there - self.by_field > _CERTAIN)
        for number in np.flatnonzero((length > self.far) & certain):
            yield Wrong(int(number), float(length[number]), float(self.there[number]), float(self.by_field[number]))

    def worst(self, left_one_out: _LeftOneOut) -> Wrong | None:
        """Return the point that is the least likely by its neighbours, and whose side the images do not take."""
        away, variance = left_one_out.away()
        distance = np.linalg.norm(away, axis=1)
        unlikely = distance**2 / variance
        unlikely /= max(1.0, float(np.median(unlikely)) / _USUAL)
        alone = left_one_out.alone(variance)
        for row in np.argsort(-unlikely):
            if unlikely[row] < _UNLIKELY:
                break
            number = left_one_out.kept[row]
            by_neighbours = self.views.differences((self.wanted[number] - away[row])[None], number[None])[0]
            instead = float(np.fmin(by_neighbours, self.by_field[number]))
            for_it = instead - self.there[number] > _SAME or self.there[number] < _SURELY_ALIKE
            blind = not instead < _BLIND
            certain = not blind or (unlikely[row] > _UNLIKELY_IF_BLIND and not alone[row])
            if distance[row] > self.far and certain and not for_it:
                return Wrong(int(number), float(distance[row]), float(self.there[number]), instead)
        return None
