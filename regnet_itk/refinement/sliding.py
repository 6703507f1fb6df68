"""Two displacement fields that meet at a border along which one side slides.

Each side is found by itself, so that its smoothness does not reach across the border. They are joined as surfaces that
touch: what lies on the border before lies on it afterwards, to both sides, so nothing gapes and nothing overlaps. Where
both sides turn out to move alike they are one, as they were before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.distances import distance_to
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.ramps import smooth_step

INNER_DEPTH, OUTER_DEPTH = 15.0, 8.0
"""mm. So far from the border a smooth field is right where it slides, inside and outside of it."""

_REACH = 10.0  # mm; width of the means that carry a side on to the border
_STICKS, _SLIDES = 3.0, 6.0  # mm between both sides: below the first they are one, from the second on they are two
_BAND = 1.5  # voxels to both sides of the border that stand for it
_SLIPS_ALONG, _GAPS_ALONG = 6.0, 4.0  # mm over which what is found at the border is smoothed
_CLOSED_OVER = 15.0  # mm over which what closes gaps fades
_CLOSINGS = 3  # more gain less than a tenth of a millimetre
_STEPS = 15  # of the iteration that inverts a side, which is smooth
_SOFTNESS = 1.5  # mm; of the mask's steps
_BLEND_VOXELS = 2.7  # of the fine grid, over which one side turns into the other; over fewer it folds

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Border:
    """The surface along which something slides, on the grid of the fields.

    Parameters
    ----------
    distance : ndarray, shape (z, y, x)
        From the surface in mm, positive inside, smooth.
    grid : Grid
    scale : float
        Of all lengths: 1 for a chest, below for small organs on fine voxels.
    """

    distance: FloatArray
    grid: Grid
    scale: float = 1.0

    @classmethod
    def of(cls, mask: Image, grid: Grid, scale: float = 1.0) -> Border | None:
        """Return the border of a mask (voxels other than 0) on a grid; None if it has none there."""
        inside = Image((mask.array != 0).astype(np.float32), mask.grid).resampled(grid).array > 0.5
        if inside.all() or not inside.any():
            return None
        half = 0.5 * min(grid.spacing)  # the surface lies between voxels
        rough = np.maximum(distance_to(~inside, grid.spacing) - half, 0.0)
        rough -= np.maximum(distance_to(inside, grid.spacing) - half, 0.0)
        smooth = ndimage.gaussian_filter(rough, [scale * _SOFTNESS / s for s in reversed(grid.spacing)])
        return cls(smooth, grid, scale)

    def normals(self) -> FloatArray:
        """Return the unit vectors (z, y, x, 3) that point inwards, LPS."""
        along = np.stack(list(np.gradient(self.distance, *reversed(self.grid.spacing)))[::-1], axis=-1)
        along /= np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
        return np.asarray(along @ self.grid.direction_matrix.T, dtype=np.float32)

    def band(self) -> BoolArray:
        """Return the voxels that stand for the surface."""
        return np.abs(self.distance) < _BAND * max(self.grid.spacing)

    def means(self, values: FloatArray, known: BoolArray, reach: float) -> FloatArray:
        """Return Gaussian means of what is known (z, y, x), `reach` mm wide; the nearest one where none is near."""
        sigma = [self.scale * reach / s for s in reversed(self.grid.spacing)]
        weight = ndimage.gaussian_filter(known.astype(np.float32), sigma, truncate=3.0)
        summed = ndimage.gaussian_filter(np.where(known, values, 0).astype(np.float32), sigma, truncate=3.0)
        far = weight < 1e-3
        found = summed / np.maximum(weight, 1e-3)
        if far.any() and not far.all():
            nearest = ndimage.distance_transform_edt(
                far, sampling=self.grid.spacing[::-1], return_distances=False, return_indices=True
            )
            found = found[tuple(nearest)]
        return np.asarray(found)


def carry_to_border(field: DisplacementField, border: Border) -> tuple[DisplacementField, DisplacementField]:
    """Return a smooth field as it would be inside and outside, from what of it lies away from the border.

    Parameters
    ----------
    field : DisplacementField
        u in mm, LPS, on the border's grid: one field, blurred across the border.
    border : Border

    Returns
    -------
    inner, outer : DisplacementField
        As `field` where it is deep enough on their side, and means of that elsewhere.
    """
    inner = border.distance > border.scale * INNER_DEPTH
    outer = border.distance < -border.scale * OUTER_DEPTH
    return _carried(field, border, inner), _carried(field, border, outer)


def _carried(field: DisplacementField, border: Border, kept: BoolArray) -> DisplacementField:
    if not kept.any():
        return field
    share = np.clip(distance_to(kept, field.grid.spacing) / (border.scale * _REACH), 0.0, 1.0)
    vectors = np.array(field.vectors, dtype=np.float32)
    for component in range(3):
        found = border.means(vectors[..., component], kept, _REACH)
        nearest = np.where(kept, vectors[..., component], found)
        vectors[..., component] = nearest + share * (found - nearest)
    return DisplacementField(vectors, field.grid)


def close_gaps(
    inner: DisplacementField, outer: DisplacementField, border: Border
) -> tuple[DisplacementField, DisplacementField, float]:
    """Move both sides so that they touch: half of each gap and overlap each.

    With A and B the maps of both sides, what is at x inside the border slides to S(x) = B^-1(A(x)) along what is
    outside. Nothing gapes if S leaves the distance from the border as it is; this holds for large slides along curved
    borders too, where it is not enough that both move alike along the normal.

    Parameters
    ----------
    inner, outer : DisplacementField
        u in mm, LPS, on the border's grid, each smooth beyond the border.
    border : Border

    Returns
    -------
    inner, outer : DisplacementField
    gap : float
        Mean of what still gapes or overlaps, in mm.
    """
    band, normals = border.band(), border.normals()
    points = border.grid.points()[band]
    fading = smooth_step(1.0 - np.abs(border.distance) / (border.scale * _CLOSED_OVER))
    sides = [inner, outer]
    for _ in range(_CLOSINGS):
        for side in (0, 1):
            gaps = _gaps(points, sides[side], sides[1 - side], border, band)
            spread = border.means(_placed(gaps, band), band, _GAPS_ALONG)
            moved = sides[side].vectors - (0.5 * fading * spread)[..., None] * normals
            sides[side] = DisplacementField(moved.astype(np.float32), border.grid)
    return sides[0], sides[1], float(np.abs(_gaps(points, sides[0], sides[1], border, band)).mean())


def _gaps(
    points: FloatArray, one: DisplacementField, other: DisplacementField, border: Border, band: BoolArray
) -> FloatArray:
    """Return by how much the distance from the border changes where points (n, 3) of its band slide to, in mm.

    0 for those that slide out of the grid, where nobody knows the border.
    """
    goal = one.map_points(points)
    there = goal - other.at(points)
    for _ in range(_STEPS):
        there = goal - other.at(there)
    index = border.grid.point_to_index(there)[:, ::-1].T
    gaps = ndimage.map_coordinates(border.distance, index, order=1, mode="nearest") - border.distance[band]
    return np.asarray(np.where(border.grid.contains(there), gaps, 0.0))


def _placed(values: FloatArray, band: BoolArray) -> FloatArray:
    placed = np.zeros(band.shape, dtype=np.float32)
    placed[band] = values
    return placed


def join_sides(
    whole: DisplacementField, inner: DisplacementField, outer: DisplacementField, border: Border, fine: Grid
) -> tuple[DisplacementField, FloatArray]:
    """Return one field that turns from one side into the other over a few voxels.

    Parameters
    ----------
    whole : DisplacementField
        What holds where both sides move alike; all fields lie on the border's grid.
    inner, outer : DisplacementField
    border : Border
    fine : Grid
        Where the field is wanted, with the same axes.

    Returns
    -------
    field : DisplacementField
        On `fine`.
    slips : ndarray, shape (n,)
        By how many mm it slides along the border, smoothed.
    """
    band = border.band()
    slip = border.means(np.linalg.norm(inner.vectors - outer.vectors, axis=-1), band, _SLIPS_ALONG)
    two = smooth_step((slip / border.scale - _STICKS) / (_SLIDES - _STICKS)).astype(np.float32)
    share = smooth_step(0.5 + _on(border.distance, border.grid, fine) / (_BLEND_VOXELS * max(fine.spacing)))
    weights = _on(two, border.grid, fine)
    vectors = np.empty((*fine.shape, 3), dtype=np.float32)
    for component in range(3):
        a, b, one = (_on(side.vectors[..., component], border.grid, fine) for side in (inner, outer, whole))
        vectors[..., component] = one + weights * (b + share * (a - b) - one)
    return DisplacementField(vectors, fine), np.asarray((two * slip)[band])


def _on(values: FloatArray, grid: Grid, fine: Grid) -> FloatArray:
    return Image(np.ascontiguousarray(values, dtype=np.float32), grid).resampled(fine).array
