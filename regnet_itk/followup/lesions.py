"""Lesions, measured in the space of the image that they were marked in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.measure import find_contours

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ImageError
from regnet_itk.radiotherapy.shapes import PlaneStack, Shape, enclosed_area, make_shape, stack_planes
from regnet_itk.radiotherapy.structures import Structure

REACH = 8.0
"""mm around a lesion in which the distance to it is known."""

LEAST_VOXELS, LEAST_SLICES = 200, 5
"""In fewer, counting voxels alone puts a volume off by some percent."""

_MOST_LABELS = 5000
_SAMPLE = 300
_LEAST_AREA = 1e-3  # mm2; what encloses less is a line


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion of one image, in millimetres and LPS.

    Parameters
    ----------
    name : str
        As it is called in tables: its label's value, the name of the point or of the structure.
    centre : ndarray, shape (3,)
        Of its mass; of a point, the point.
    volume : float or None
        mm3: of its voxels, or of its contours. None for a point.
    longest, across : float or None
        mm: its longest diameter in an axial slice of the image, within one outline, and how wide that outline is across
        it (RECIST 1.1).
    voxels : float or None
        How many voxels of the image its volume is.
    slices : int or None
        The fewest voxels that it extends over along an axis of the image, or planes of contours.
    solid : Shape or None
        About the distance to its surface, negative inside; known to about `REACH` around it.
    points : ndarray, shape (n, 3)
        Some places that are evenly spread inside of it; of a point, the point.
    cut : bool
        Whether it reaches the border of the image.
    pieces : int
        Of its label that do not touch each other.

    References
    ----------
    Eisenhauer et al., "New response evaluation criteria in solid tumours: revised RECIST guideline (version 1.1)",
    European Journal of Cancer 2009.
    """

    name: str
    centre: FloatArray
    volume: float | None
    longest: float | None
    across: float | None
    voxels: float | None
    slices: int | None
    solid: Shape | None
    points: FloatArray
    cut: bool = False
    pieces: int = 1

    def __repr__(self) -> str:
        at = " ".join(f"{c:.1f}" for c in self.centre)
        size = "a point" if self.volume is None else f"{self.volume:.0f} mm3, {self.longest:.1f} mm"
        return f"Lesion('{self.name}' at ({at}) mm, {size})"

    @property
    def effective(self) -> float | None:
        """The diameter in mm of the ball of the same volume."""
        return None if self.volume is None else float(np.cbrt(6 * self.volume / np.pi))

    @property
    def is_small(self) -> bool:
        """Whether it has so few voxels that its volume is uncertain by that alone."""
        few = self.voxels is not None and self.voxels < LEAST_VOXELS
        return few or (self.slices is not None and self.slices < LEAST_SLICES)


def lesions_of_labels(labels: Image, connected: bool = False) -> tuple[Lesion, ...]:
    """Measure the lesions of a segmentation: each label is one, whatever its pieces.

    Parameters
    ----------
    labels : Image
        Whole numbers, 0 where there is no lesion.
    connected : bool
        Take what differs from 0 as a mask, of which each piece that is connected (by faces, edges or corners) is one.

    Returns
    -------
    tuple of Lesion
        By their labels' values; pieces by their order in the array. None if all is 0.

    Raises
    ------
    ImageError
        If a value is negative or no whole number, or the labels are those of an image: too many, or over half of it.
    """
    numbered, names = _numbered(labels, connected)
    inner = _axial_axis(labels.grid)
    found = []
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        part = numbered[box] == number
        cut = any(s.start == 0 or s.stop == n for s, n in zip(box, labels.grid.shape, strict=True))
        lesion = _measure(Image(part, labels.grid.part(box)), names[number - 1], inner, cut)
        found.append(replace(lesion, pieces=int(ndimage.label(part, np.ones((3, 3, 3)))[1])))
    return tuple(found)


def _numbered(labels: Image, connected: bool) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Return labels from 1 on without gaps, and what each is called."""
    array = labels.array
    if array.dtype.kind not in "biuf":
        raise ImageError(f"the labels have values of the type {array.dtype}; give whole numbers")
    if not np.isfinite(array).all() or (array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))):
        raise ImageError("the labels have values that are NaN, infinite or no whole numbers; give a segmentation")
    if array.size and array.min() < 0:
        raise ImageError(f"the labels have negative values, down to {array.min()}; give a segmentation, 0 at no lesion")
    if (share := np.count_nonzero(array) / array.size) > 0.5:
        raise ImageError(f"the labels fill {share:.0%} of the image, as no lesions do; give a segmentation of lesions")
    if connected:
        numbered, count = ndimage.label(array != 0, np.ones((3, 3, 3)), output=np.int32)
        return numbered, [str(number) for number in range(1, count + 1)]
    there = array != 0
    values, numbers = np.unique(array[there], return_inverse=True)
    if len(values) > _MOST_LABELS:
        raise ImageError(f"the labels have {len(values)} different values, as an image has; give a segmentation")
    numbered = np.zeros(array.shape, dtype=np.int32)
    numbered[there] = numbers + 1
    return numbered, [str(int(value)) for value in values]


def _axial_axis(grid: Grid) -> int:
    """Return the axis of the grid (0 x, 1 y, 2 z) that is nearest to the patient's from feet to head."""
    return int(np.abs(grid.direction_matrix[2]).argmax())


def _measure(mask: Image, name: str, axial: int, cut: bool) -> Lesion:
    grid = mask.grid
    index = np.argwhere(mask.array)[:, ::-1].astype(float)
    points = grid.index_to_point(index)
    longest, across = _diameters(outline for plane in _planes(mask, axial) for outline in plane)
    volume = len(index) * float(abs(np.linalg.det(grid.index_to_point_matrix)))
    return Lesion(
        name, points.mean(axis=0), volume, longest, across, float(len(index)), min(grid.size), _solid(mask),
        _some(points), cut,
    )  # fmt: skip


def _planes(mask: Image, axial: int) -> list[list[FloatArray]]:
    """Return the outlines (n, 2), in mm, in each slice across an axis of the grid; half-way between voxels."""
    right, down = (axis for axis in range(3) if axis != axial)
    spacing = np.array([mask.grid.spacing[down], mask.grid.spacing[right]])
    slices = np.moveaxis(mask.array, 2 - axial, 0)  # the higher axis of the grid comes first in an array
    return [[line * spacing for line in find_contours(np.pad(plane.astype(float), 1), 0.5)] for plane in slices]


def _diameters(outlines: Iterable[FloatArray]) -> tuple[float, float]:
    """Return the longest diameter of outlines (n, 2) in mm, and how wide that outline is across it."""
    best, across = 0.0, 0.0
    for outline in outlines:
        if enclosed_area(outline) < _LEAST_AREA:
            continue
        hull = outline[ConvexHull(outline).vertices]
        between = hull[:, None] - hull[None]
        lengths = np.linalg.norm(between, axis=-1)
        if lengths.max() > best:
            best = float(lengths.max())
            along = between[np.unravel_index(int(lengths.argmax()), lengths.shape)] / best
            across = float(np.ptp(hull @ np.array([-along[1], along[0]])))
    return best, across


def _solid(mask: Image) -> Shape:
    """Return the distance to the faces between a mask's voxels and the others, negative inside."""
    margin = np.ceil(REACH / np.asarray(mask.grid.spacing)).astype(int)
    padded = np.pad(mask.array, [(m, m) for m in margin[::-1]])
    along = mask.grid.spacing[::-1]
    inside, outside = (ndimage.distance_transform_edt(part, along) for part in (padded, ~padded))
    return Shape((outside - inside).astype(np.float32), mask.grid.pad(margin.tolist(), margin.tolist()))


def _some(points: FloatArray) -> FloatArray:
    """Return at most `_SAMPLE` of many points, spread evenly over their order."""
    return points[np.unique(np.linspace(0, len(points) - 1, min(len(points), _SAMPLE)).astype(int))]


def lesions_at_points(landmarks: Landmarks) -> tuple[Lesion, ...]:
    """Take each point as a lesion, of which nothing but its place is known; without names, they are numbered from 1."""
    names = landmarks.names or ("",) * len(landmarks)
    return tuple(
        Lesion(name or str(number), point, None, None, None, None, None, None, point[None])
        for number, (name, point) in enumerate(zip(names, landmarks.points, strict=True), start=1)
    )


def lesion_of_structure(structure: Structure, grid: Grid) -> tuple[Lesion, ...]:
    """Measure what the closed contours of a structure enclose; of a structure of points, each of them is a lesion.

    Parameters
    ----------
    structure : Structure
    grid : Grid
        Of the image that it was drawn on.

    Raises
    ------
    DicomError
        See :func:`regnet_itk.radiotherapy.shapes.stack_planes`.
    """
    stack = stack_planes(structure, grid.spacing[_axial_axis(grid)])
    if stack is None:
        points = [point for contour in structure.contours for point in contour.points]
        names = [structure.name if len(points) == 1 else f"{structure.name} {k + 1}" for k in range(len(points))]
        return lesions_at_points(Landmarks(np.array(points), tuple(names))) if points else ()
    return (_enclosed(stack, grid),)


def _enclosed(stack: PlaneStack, grid: Grid) -> Lesion:
    shape, vertices = make_shape(stack), stack.vertices()
    inside = shape.grid.index_to_point(np.argwhere(shape.values <= 0)[:, ::-1].astype(float))
    if not len(inside):  # it is smaller than the pixels in which it is drawn
        inside = vertices
    longest, across = _diameters(outline for plane in stack.outlines for outline in plane)
    volume, voxel = stack.volume(), float(np.prod(grid.spacing))
    at = grid.point_to_index(vertices)
    cut = bool((at < 0.5).any() or (at > np.asarray(grid.size) - 1.5).any())
    return Lesion(
        stack.name, inside.mean(axis=0), volume, longest, across, volume / voxel, len(stack.heights), shape,
        _some(inside), cut,
    )  # fmt: skip
