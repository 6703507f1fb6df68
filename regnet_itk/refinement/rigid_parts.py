"""Parts of an image that move rigidly, as bones do, within a displacement field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import bounding_box
from regnet_itk.data.ramps import smooth_step
from regnet_itk.refinement.labels_on_fields import LabelOnField, find_owners

Mapping = Callable[[FloatArray], FloatArray]
"""Of points (n, 3) in mm, LPS."""
Bools = npt.NDArray[np.bool_]

_FITTED = 5_000  # voxels of a label, at most, that its motion is fitted to
_ROUNDS = 20
_SURE = 0.1  # mm; what lies no farther from the motion than this is not mistrusted
_NARROWEST, _WIDEST = 6.0, 25.0  # mm around a part over which its motion goes over into the field
_PER_STEP = 2.5  # mm of that, for a mm of what is changed


@dataclass(frozen=True, eq=False)
class RigidMotion:
    """y = R x + t of points in mm, LPS.

    Parameters
    ----------
    rotation : ndarray, shape (3, 3)
    shift : ndarray, shape (3,)
    """

    rotation: FloatArray
    shift: FloatArray

    def map_points(self, points: FloatArray) -> FloatArray:
        """Return where points (.., 3) move."""
        return points @ self.rotation.T + self.shift


def fit_rigid(points: FloatArray, moved: FloatArray) -> RigidMotion:
    """Return the rigid motion that fits how points move, whatever a smaller part of them does.

    Parameters
    ----------
    points, moved : ndarray, shape (n, 3)
        mm.

    References
    ----------
    Arun, Huang and Blostein, "Least-squares fitting of two 3-D point sets", IEEE PAMI 1987; weights of Geman and
    McClure.
    """
    weights = np.ones(len(points))
    for _ in range(_ROUNDS):
        motion = _fitted(points, moved, weights)
        rest = np.linalg.norm(motion.map_points(points) - moved, axis=1)
        scale = max(_SURE, 1.5 * float(np.median(rest)))
        weights = 1.0 / (1.0 + (rest / scale) ** 2) ** 2
    return _fitted(points, moved, weights)


def _fitted(points: FloatArray, moved: FloatArray, weights: FloatArray) -> RigidMotion:
    share = weights / weights.sum()
    first, second = share @ points, share @ moved
    u, _, vt = np.linalg.svd(((points - first) * share[:, None]).T @ (moved - second))
    turn = vt.T @ np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    return RigidMotion(turn, second - turn @ first)


@dataclass(frozen=True, eq=False)
class RigidParts:
    """Labels with their motions.

    Parameters
    ----------
    labels : sequence of LabelOnField
    motions : sequence of RigidMotion
        T of each.
    """

    labels: Sequence[LabelOnField]
    motions: Sequence[RigidMotion]

    def deviations(self, mapping: Mapping) -> dict[int, FloatArray]:
        """Return how far a transform is from rigid at the voxels' corners (n,) of a label, in mm, by its number.

        Another label's motion reaches the corners first.
        """
        found = {}
        for label, motion in zip(self.labels, self.motions, strict=True):
            points = np.unique(label.points(corners=True), axis=0)
            found[label.number] = np.linalg.norm(mapping(points) - motion.map_points(points), axis=1)
        return found


def fit_parts(labels: Sequence[LabelOnField], mapping: Mapping, ignored: Bools | None = None) -> RigidParts:
    """Fit a rigid motion to how a transform moves each label.

    Parameters
    ----------
    labels : sequence of LabelOnField
    mapping : callable
        T.
    ignored : bool array, shape (z, y, x), optional
        Voxels of the image of which T knows nothing; they count only if a label has no others.
    """
    motions = []
    for label in labels:
        points = label.without(ignored).points(_FITTED, corners=True)
        motions.append(fit_rigid(points, mapping(points)))
    return RigidParts(labels, motions)


def hold_rigid(u: DisplacementField, parts: RigidParts, before: Mapping) -> tuple[DisplacementField, Bools]:
    """Make labels move rigidly under T(x) = T0(x + u(x)), and let the field go over into these motions around them.

    Around a label, the field changes by what was changed at the nearest voxel of it, and by less the farther that is:
    where the field had moved a label nearly so, it hardly changes. Between labels, their changes are weighted by the
    inverse squares of the distances to them, as Little et al. have it for the motions themselves.

    Parameters
    ----------
    u : DisplacementField
    parts : RigidParts
        With the motions that T shall have.
    before : callable
        T0^-1, of points.

    Returns
    -------
    field : DisplacementField
        On the same grid.
    held : bool array, shape (z, y, x)
        Voxels that must not be changed any more.

    References
    ----------
    Little, Hill and Hawkes, "Deformations incorporating rigid structures", Computer Vision and Image Understanding
    1997.
    """
    owners = find_owners(list(parts.labels), u.grid)
    vectors, held = np.array(u.vectors, dtype=np.float32), owners > 0
    total, weights, most = np.zeros_like(vectors), *(np.zeros(u.grid.shape, dtype=np.float32) for _ in range(2))
    for number, motion in enumerate(parts.motions, start=1):
        own = owners == number
        if not own.any():
            continue
        vectors[own] = _displacement(u.grid, own, motion, before)
        change = vectors[own] - u.vectors[own]
        width = float(np.clip(_PER_STEP * np.linalg.norm(change, axis=1).max(), _NARROWEST, _WIDEST))
        box = bounding_box(own, [int(width / s) + 1 for s in reversed(u.grid.spacing)])
        distance, nearest = ndimage.distance_transform_edt(~own[box], u.grid.spacing[::-1], return_indices=True)
        near = (distance < width) & ~held[box]
        nearness = smooth_step(1.0 - distance[near] / width)
        weight = nearness / distance[near] ** 2
        at = tuple(index[near] for index in nearest)
        total[box][near] += weight[:, None] * (vectors[box][at] - u.vectors[box][at])
        weights[box][near] += weight
        most[box][near] = np.maximum(most[box][near], nearness)
    around = weights > 0
    vectors[around] += (most[around] / weights[around])[:, None] * total[around]
    return DisplacementField(vectors, u.grid), held


def _displacement(grid: Grid, chosen: Bools, motion: RigidMotion, before: Mapping) -> FloatArray:
    """Return u (n, 3) at chosen voxels of a grid with T0(x + u(x)) = R x + t."""
    points = grid.index_to_point(np.argwhere(chosen)[:, ::-1])
    return before(motion.map_points(points)) - points
