"""Structures carried from the moving to the fixed image.

What closed contours enclose is a solid, and is pulled as an image is: a point x of the fixed image belongs to it if
T(x) does, and new contours are drawn on the fixed image's slices. Points and open contours go from the moving to the
fixed image, against T, so T(x) = y is solved for each of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import find_contours

from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.radiotherapy.shapes import Shape, enclosed_area, make_shape, stack_planes
from regnet_itk.radiotherapy.structures import CLOSED, OPEN, POINT, Contour, Structure
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.inverse import invert_points
from regnet_itk.transforms.point_mapping import NO_INVERSE

_PIXEL = 1.0  # mm; the largest in which new contours are drawn
_NEAR = 1.5  # pixels; so near to an outline the values of the next pixels are, wherever the outline is
_COARSE = 6.0  # mm; where a structure may be is looked for in such steps
_REACH = 15.0  # mm; around a structure
_LEAST_AREA = 0.25  # mm2
_STRAIGHT = 0.02  # mm; how far a contour may be off to do with fewer points
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MappedStructure:
    """A structure in the space of the fixed image.

    Parameters
    ----------
    structure : Structure
        In the fixed image.
    mask : Image or None
        uint8, on the fixed grid, 1 where a voxel's centre is inside; None if it encloses nothing.
    volume_before, volume_after : float or None
        cm3, of its contours in the moving and in the fixed image.
    """

    structure: Structure
    mask: Image | None
    volume_before: float | None
    volume_after: float | None


class StructureMapper:
    """Carries structures to the fixed image.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The fixed image's: new contours lie in its slices.
    plane_distance : float, optional
        Of the slices that the structures were drawn on, in mm; for those of a single slice.
    """

    def __init__(self, chain: TransformChain, grid: Grid, plane_distance: float | None = None) -> None:
        self._chain, self._grid, self._plane_distance = chain, grid, plane_distance
        self._sampler = chain.sampler()
        self._coarse = grid.with_spacing([max(_COARSE, s) for s in grid.spacing])
        self._mapped = self._sampler.map_points(self._coarse.points())

    def map(self, structure: Structure) -> MappedStructure:
        """Carry a structure over; warnings tell what of it is lost.

        Raises
        ------
        DicomError
            If its contours enclose no solid that could be told; see `stack_planes`.
        """
        stack = stack_planes(structure, self._plane_distance)
        contours = list(self._points(structure))
        if stack is None:
            return MappedStructure(_with(structure, contours), None, None, None)
        for low, high in stack.gaps():
            _log.warning(
                "structure '%s' has no contours between %.1f and %.1f mm across its slices; nothing is taken to be "
                "there", structure.name, low, high,
            )  # fmt: skip
        kind = next(contour.kind for contour in structure.contours if contour.kind in CLOSED)
        closed, mask = self._pulled(make_shape(stack), kind)
        warped = _with(structure, closed)
        after = stack_planes(warped, self._grid.spacing[2])
        volumes = [s.volume() / 1000 if s is not None else 0.0 for s in (stack, after)]
        if not closed:
            _log.warning("structure '%s' lies outside of the fixed image, or is too small for it", structure.name)
        elif self._touches_border(mask):
            _log.warning("structure '%s' reaches the border of the fixed image, and is cut there", structure.name)
        return MappedStructure(_with(structure, [*closed, *contours]), mask, *volumes)

    def _points(self, structure: Structure) -> Iterator[Contour]:
        """Carry points and open contours over."""
        for contour in structure.contours:
            if contour.kind in CLOSED:
                continue
            found, residual = invert_points(self._chain, contour.points, self._grid)
            good = residual <= NO_INVERSE
            if not good.all():
                _log.warning(
                    "structure '%s': %d of %d points have no place in the fixed image, and are left out",
                    structure.name, int((~good).sum()), len(good),
                )  # fmt: skip
            if good.any():
                yield Contour(found[good], POINT if contour.kind == POINT else OPEN)

    def _pulled(self, shape: Shape, kind: str) -> tuple[list[Contour], Image]:
        """Return the outlines of a solid on the fixed image's slices, and its mask."""
        mask = np.zeros(self._grid.shape, dtype=np.uint8)
        contours: list[Contour] = []
        box = self._box(shape)
        if box is None:
            return contours, Image(mask, self._grid)
        for z in range(box[0].start, box[0].stop):
            plane = self._grid.part((slice(z, z + 1), *box[1:]))
            values = shape.at(self._sampler.map_points(plane.points()))[0]
            mask[z, box[1], box[2]] = values <= 0
            finer, fine = self._refined(shape, values, plane)
            contours += [Contour(points, kind) for points in _outlines(finer, fine)]
        return contours, Image(mask, self._grid)

    def _refined(
        self, shape: Shape, values: npt.NDArray[np.float32], plane: Grid
    ) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the values of a plane on pixels no larger than `_PIXEL`, exact where an outline may be."""
        sx, sy, sz = plane.spacing
        nx, ny = (max(1, int(np.ceil(s / _PIXEL - 1e-6))) for s in (sx, sy))
        fine = plane.with_spacing((sx / nx, sy / ny, sz))
        if nx == ny == 1:
            return values, plane
        index = plane.point_to_index(fine.points()[0])
        finer = ndimage.map_coordinates(values, [index[..., 1], index[..., 0]], order=1, mode="nearest")
        near = np.abs(finer) < _NEAR * max(sx, sy)
        finer[near] = shape.at(self._sampler.map_points(fine.index_to_point(_indices(near))))
        return finer, fine

    def _box(self, shape: Shape) -> Box | None:
        """Return the part of the fixed grid that T maps to the neighbourhood of a solid."""
        steps = np.ceil(_REACH / np.asarray(shape.grid.spacing)).astype(int).tolist()
        inside = shape.grid.pad(steps, steps).contains(self._mapped)
        if not inside.any():
            return None
        found = bounding_box(inside, 1)
        scale = np.asarray(self._coarse.spacing)[::-1] / np.asarray(self._grid.spacing)[::-1]
        z, y, x = (
            slice(int(along.start * s), min(n, int(np.ceil(along.stop * s))))
            for along, s, n in zip(found, scale, self._grid.shape, strict=True)
        )
        return z, y, x

    def _touches_border(self, mask: Image) -> bool:
        array = mask.array
        return any(bool(array.take(end, axis=axis).any()) for axis in range(3) for end in (0, -1))


def _indices(chosen: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the indices (n, 3), x first, of the chosen pixels of a plane."""
    y, x = np.nonzero(chosen)
    return np.stack([x, y, np.zeros_like(x)], axis=1).astype(float)


def _with(structure: Structure, contours: list[Contour]) -> Structure:
    return Structure(structure.number, structure.name, structure.colour, tuple(contours))


def _outlines(values: npt.NDArray[np.float32], plane: Grid) -> Iterator[FloatArray]:
    """Give the closed lines, in mm, around what is negative on a plane."""
    padded = np.pad(values, 1, constant_values=max(1.0, float(values.max())))
    for line in find_contours(padded, 0.0):
        outline = _thinned((line[:-1, ::-1] - 1) * plane.spacing[:2])  # the last point is the first one again
        if len(outline) > 2 and enclosed_area(outline) >= _LEAST_AREA:
            index = np.column_stack([outline / plane.spacing[:2], np.zeros(len(outline))])
            yield plane.index_to_point(index)


def _thinned(outline: FloatArray) -> FloatArray:
    """Return a closed line (n, 2) without points that lie on the straight line between their neighbours."""
    while len(outline) > 8:
        before, after = np.roll(outline, 1, axis=0), np.roll(outline, -1, axis=0)
        along, beside = after - before, outline - before
        off = np.abs(along[:, 0] * beside[:, 1] - along[:, 1] * beside[:, 0])
        needless = off <= _STRAIGHT * np.linalg.norm(along, axis=1)
        needless[::2] = False  # never two neighbours at once
        if not needless.any():
            break
        outline = outline[~needless]
    return outline
