"""The solid that a stack of contours encloses: its volume, and a function that is negative inside of it.

Contours of one plane are joined by exclusive or, so that one within another is a hole. From plane to plane the distance
to the outline is interpolated. The solid ends half the distance of two planes beyond the first and the last one, as
programs for radiotherapy take it; so it does at a gap of more than two such distances. Single planes that lack within a
structure are bridged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.draw import polygon2mask
from skimage.measure import points_in_poly

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import DicomError
from regnet_itk.radiotherapy.structures import CLOSED, Structure

_FLAT = 0.5  # mm; how far a point of a planar contour may lie beside its plane
_SAME_PLANE = 0.2  # mm
_FINEST, _COARSEST = 0.25, 1.0  # mm; pixels in which outlines are drawn
_PIXELS_ACROSS = 60
_BRIDGED = 2.1  # plane distances
_ALIKE = 0.2  # of a plane distance
_LARGEST, _MOST_PIXELS = 5000.0, 500_000_000  # mm; more is damage
_MARGIN = 4  # pixels around a structure
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PlaneStack:
    """The closed contours of a structure, plane by plane.

    Parameters
    ----------
    name : str
        Of the structure.
    axes : ndarray, shape (3, 3)
        Columns: two directions in the planes, and their normal.
    heights : ndarray, shape (n,)
        Of the planes along the normal, mm, ascending.
    outlines : tuple of tuple of ndarray, shape (m, 2)
        For each plane its contours, along the first two axes, mm.
    distance : float
        Of neighbouring planes, mm.
    """

    name: str
    axes: FloatArray
    heights: FloatArray
    outlines: tuple[tuple[FloatArray, ...], ...]
    distance: float

    def volume(self) -> float:
        """Return the volume in mm3: each plane's area, holes taken off, times the thickness that it stands for."""
        return float(np.dot([_area(plane) for plane in self.outlines], self._thickness()))

    def _thickness(self) -> FloatArray:
        gaps = np.diff(self.heights)
        half = np.where(gaps <= _BRIDGED * self.distance, gaps / 2, self.distance / 2)
        ends = [self.distance / 2]
        return np.concatenate([ends, half]) + np.concatenate([half, ends])

    def vertices(self) -> FloatArray:
        """Return all points (n, 3) of the contours, mm, LPS."""
        each = zip(self.outlines, self.heights, strict=True)
        placed = [np.insert(outline, 2, height, axis=1) for plane, height in each for outline in plane]
        return np.concatenate(placed) @ self.axes.T

    def gaps(self) -> list[tuple[float, float]]:
        """Return the heights between which planes lack, so many that the solid is taken to end there."""
        wide = np.flatnonzero(np.diff(self.heights) > _BRIDGED * self.distance)
        return [(float(self.heights[i]), float(self.heights[i + 1])) for i in wide]


def stack_planes(structure: Structure, distance: float | None = None) -> PlaneStack | None:
    """Return the closed contours of a structure, plane by plane; None if it has none.

    Parameters
    ----------
    structure : Structure
    distance : float, optional
        Of the slices that it was drawn on, in mm; for a structure of a single plane.

    Raises
    ------
    DicomError
        If its contours are not planar, are not parallel, or lie in one plane and `distance` is not given.
    """
    closed = [contour.points for contour in structure.contours if contour.kind in CLOSED and len(contour.points) > 2]
    if not closed:
        return None
    axes = _axes(structure.name, closed)
    placed = [points @ axes for points in closed]
    for points in placed:
        beside = float(np.ptp(points[:, 2]))
        if beside > _FLAT:
            raise DicomError(
                f"structure '{structure.name}' has contours of the kind CLOSED_PLANAR that are not planar (by "
                f"{beside:.1f} mm) or not parallel to each other; export it slice by slice"
            )
    height = np.array([points[:, 2].mean() for points in placed])
    order = np.argsort(height, kind="stable")
    plane = np.concatenate([[0], np.cumsum(np.diff(height[order]) > _SAME_PLANE)])
    heights = np.array([height[order[plane == k]].mean() for k in range(plane[-1] + 1)])
    outlines = tuple(tuple(placed[i][:, :2] for i in order[plane == k]) for k in range(plane[-1] + 1))
    return PlaneStack(structure.name, axes, heights, outlines, _plane_distance(structure.name, heights, distance))


def _axes(name: str, closed: Sequence[FloatArray]) -> FloatArray:
    """Return in-plane axes and the normal of the planes: the mean of the contours', by their areas."""
    areas = [
        0.5 * np.cross(points - points[0], np.roll(points, -1, axis=0) - points[0]).sum(axis=0) for points in closed
    ]
    largest = max(areas, key=lambda area: float(np.linalg.norm(area)))
    if not np.linalg.norm(largest) > 1e-3:
        raise DicomError(f"structure '{name}' has contours that enclose nothing; export it again")
    normal = np.sum([area * np.sign(area @ largest) for area in areas], axis=0)
    normal /= np.linalg.norm(normal)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    nearest = np.eye(3)[np.abs(normal).argmax()]
    if np.abs(normal - nearest).max() < 1e-4:  # rounded coordinates; slices lie along the patient's axes
        normal = nearest
    first = np.eye(3)[(int(np.abs(normal).argmax()) + 1) % 3]
    first = first - (first @ normal) * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first), normal], axis=1)


def _plane_distance(name: str, heights: FloatArray, distance: float | None) -> float:
    gaps = np.diff(heights)
    if len(gaps):  # the usual one, and not the mean: planes may lack, and one may be doubled
        usual = np.quantile(gaps, 0.25, method="lower")
        return float(gaps[np.abs(gaps - usual) < _ALIKE * usual].mean())
    if distance is None:
        raise DicomError(
            f"structure '{name}' has contours in one plane, which stand for a slice of unknown thickness; give the "
            "series that it was drawn on with `moving_series`"
        )
    return distance


def enclosed_area(outline: FloatArray) -> float:
    """Return the area in a closed line (n, 2) that does not cross itself."""
    x, y = (outline - outline[0]).T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _area(outlines: Sequence[FloatArray]) -> float:
    """Return the area that is enclosed an odd number of times, of contours that do not cross."""
    total = 0.0
    for i, outline in enumerate(outlines):
        area = enclosed_area(outline)
        inside = sum(bool(points_in_poly(outline[:1], other)[0]) for j, other in enumerate(outlines) if j != i)
        total += -area if inside % 2 else area
    return total


@dataclass(frozen=True, eq=False)
class Shape:
    """A function in space that is negative inside of a solid; about the distance to its surface in mm near it.

    Parameters
    ----------
    values : ndarray, shape (z, y, x)
        float32, at the voxels of `grid`; linear in between, and positive beyond.
    grid : Grid
    """

    values: npt.NDArray[np.float32]
    grid: Grid

    def at(self, points: FloatArray) -> npt.NDArray[np.float32]:
        """Return the function at points (.., 3) in mm, LPS."""
        index = self.grid.point_to_index(points)
        outside = float(self.values.max())
        found = ndimage.map_coordinates(
            self.values, np.moveaxis(index, -1, 0)[::-1], np.float32, order=1, mode="constant", cval=outside
        )
        return np.asarray(found)


def make_shape(stack: PlaneStack) -> Shape:
    """Return the solid of a stack of contours as a function."""
    points = np.concatenate([outline for plane in stack.outlines for outline in plane])
    low, high = points.min(axis=0), points.max(axis=0)
    pixel = float(np.clip((high - low).max() / _PIXELS_ACROSS, _FINEST, _COARSEST))
    first = low - _MARGIN * pixel
    nx, ny = (int(n) for n in np.ceil((high - first) / pixel) + _MARGIN + 1)
    planes = (stack.heights[-1] - stack.heights[0]) / stack.distance + 3
    if (high - low).max() > _LARGEST or nx * ny * planes > _MOST_PIXELS:
        raise DicomError(
            f"structure '{stack.name}' is {' x '.join(f'{s:.0f}' for s in high - low)} mm large, in "
            f"{len(stack.heights)} planes {stack.distance:.3g} mm apart; its coordinates are damaged, or not in mm"
        )
    drawn = np.stack([_signed_distance(plane, first, pixel, (ny, nx)) for plane in stack.outlines])
    reach = max(stack.distance, 4 * pixel)
    values, bottom = _filled(np.clip(drawn, -reach, reach), stack, reach)
    origin = stack.axes @ np.array([*first, bottom])
    spacing = (pixel, pixel, stack.distance)
    return Shape(values, Grid((nx, ny, len(values)), spacing, tuple(origin), stack.axes))  # type: ignore[arg-type]


def _filled(drawn: FloatArray, stack: PlaneStack, reach: float) -> tuple[npt.NDArray[np.float32], float]:
    """Return values on evenly spaced planes, with one more at either end, and the height of the first."""
    bottom = float(stack.heights[0]) - stack.distance
    count = round((stack.heights[-1] - bottom) / stack.distance) + 2
    wanted = bottom + stack.distance * np.arange(count)
    found = np.empty((count, *drawn.shape[1:]), dtype=np.float32)
    last = len(stack.heights) - 1
    for k, height in enumerate(wanted):
        above = int(np.searchsorted(stack.heights, height - _SAME_PLANE))
        below = above - 1
        if above <= last and abs(stack.heights[above] - height) <= _SAME_PLANE:
            found[k] = drawn[above]
        elif below >= 0 and above <= last and stack.heights[above] - stack.heights[below] <= _BRIDGED * stack.distance:
            share = (height - stack.heights[below]) / (stack.heights[above] - stack.heights[below])
            found[k] = (1 - share) * drawn[below] + share * drawn[above]
        else:  # beyond an end: zero lies half-way to what mirrors the end's values
            near = [
                i for i in (below, above) if 0 <= i <= last and abs(stack.heights[i] - height) < 1.5 * stack.distance
            ]
            found[k] = np.max([np.abs(drawn[i]) for i in near], axis=0) if near else reach
    return found, bottom


def _signed_distance(
    outlines: Sequence[FloatArray], first: FloatArray, pixel: float, shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Return the distance of pixels (y, x) to outlines, in mm, negative where an odd number of them is around."""
    inside = np.zeros(shape, dtype=bool)
    for outline in outlines:
        inside ^= polygon2mask(shape, ((outline - first) / pixel)[:, ::-1])
    rough = ndimage.distance_transform_edt(~inside, pixel) if inside.any() else np.full(shape, 1e3)
    rough = np.where(inside, ndimage.distance_transform_edt(inside, pixel), rough)
    near = rough <= 2 * pixel
    y, x = np.nonzero(near)
    edge = KDTree(np.concatenate([_dense(outline, pixel / 8) for outline in outlines]))
    exact, _ = edge.query(np.stack([x, y], axis=1) * pixel + first)
    # a seam, where a contour goes in to a hole and out again, is no edge: there the pixels tell more
    rough[near] = np.clip(exact, rough[near] - 1.5 * pixel, rough[near])
    return np.where(inside, -rough, rough).astype(np.float32)


def _dense(outline: FloatArray, step: float) -> FloatArray:
    """Return points on a closed line, no further apart than a step."""
    following = np.roll(outline, -1, axis=0)
    counts = np.maximum(1, np.ceil(np.linalg.norm(following - outline, axis=1) / step)).astype(int)
    start = np.repeat(np.arange(len(outline)), counts)
    share = np.concatenate([np.arange(n) / n for n in counts])[:, None]
    return outline[start] * (1 - share) + following[start] * share
