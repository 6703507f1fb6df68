"""A displacement field carried on smoothly through a region about which its images say nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import bounding_box

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

MOST_STEPS = 200
"""Enough to be within a thousandth."""

_SMALLEST = 200  # unknown voxels that are not made fewer for a first guess
_AROUND = 2  # voxels beside the region that are looked at
_TOLERANCE = 1e-3  # of what is left, against the beginning


def carry_on(field: DisplacementField, unknown: Bools, most_steps: int = MOST_STEPS) -> DisplacementField:
    """Replace a displacement field in a region by the smoothest continuation of what is around it.

    The continuation is harmonic: of all fields that agree with the given one outside of the region, it has the least
    squared slopes, and lies between what is found at the border. What is affine around stays affine within. (One of
    least bending, which goes on with the slopes at the border, was worse on fields that were found, not given: there
    the slopes are wrong first.)

    Parameters
    ----------
    field : DisplacementField
    unknown : bool array, shape (z, y, x)
        On the field's grid: where it is replaced.
    most_steps : int
        Of conjugate gradients, on the field's voxels and on each of the coarser ones that are looked at first.

    Returns
    -------
    DisplacementField
        The given one if nothing is to be replaced, or nothing is known.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import DisplacementField, Grid
    >>> from regnet_itk.refinement.carrying_on import carry_on
    >>> grid = Grid((12, 11, 10), spacing=(2.0, 2.0, 2.0))
    >>> u = 0.1 * grid.points()
    >>> hidden = np.zeros(grid.shape, dtype=bool)
    >>> hidden[3:7, 4:8, 3:9] = True
    >>> found = carry_on(DisplacementField(np.where(hidden[..., None], 99.0, u), grid), hidden)
    >>> bool(np.abs(found.vectors - u).max() < 0.01)
    True
    """
    if not unknown.any() or unknown.all():
        return field
    box = bounding_box(unknown, _AROUND)
    vectors = np.array(field.vectors, dtype=np.float32)
    inside = unknown[box]
    if not inside.all():
        squares = [float(1.0 / s**2) for s in reversed(field.grid.spacing)]
        scale = max(squares)
        vectors[box] = _carried_on(vectors[box], inside, [s / scale for s in squares], most_steps)
        return DisplacementField(vectors, field.grid)
    return field


def _carried_on(values: Floats, unknown: Bools, stiffness: list[float], most_steps: int) -> Floats:
    """Return values (z, y, x, component) with those that are unknown replaced."""
    found = np.where(unknown[..., None], _first_guess(values, unknown, stiffness, most_steps), values)

    def matrix(of: Floats) -> Floats:
        return np.where(unknown[..., None], -_laplacian(of, stiffness), 0)

    return found + _solve(matrix, -matrix(found), most_steps)


def _first_guess(values: Floats, unknown: Bools, stiffness: list[float], most_steps: int) -> Floats:
    """Return values on the same voxels that are about right where they are unknown, found on coarser voxels."""
    if unknown.sum() <= _SMALLEST or min(unknown.shape) < 4:
        mean = values[~unknown].mean(axis=0) if not unknown.all() else np.zeros(values.shape[-1])
        return np.broadcast_to(mean.astype(np.float32), values.shape)
    weight, total = _halved((~unknown).astype(np.float32)[..., None]), _halved(np.where(unknown[..., None], 0, values))
    known = total / np.maximum(weight, 1e-6)
    coarse = _carried_on(known.astype(np.float32), weight[..., 0] <= 0, stiffness, most_steps)
    places = np.meshgrid(*((np.arange(n) - 0.5) / 2 for n in unknown.shape), indexing="ij")
    parts = [
        ndimage.map_coordinates(coarse[..., c], places, np.float32, order=1, mode="nearest")
        for c in range(values.shape[-1])
    ]
    return np.stack(parts, axis=-1)


def _halved(values: Floats) -> Floats:
    """Return means of blocks of two voxels along each axis; an odd border is repeated."""
    padded = np.pad(values, [(0, n % 2) for n in values.shape[:3]] + [(0, 0)], mode="edge")
    z, y, x = (n // 2 for n in padded.shape[:3])
    return np.asarray(padded.reshape(z, 2, y, 2, x, 2, -1).mean(axis=(1, 3, 5)), dtype=np.float32)


def _laplacian(values: Floats, stiffness: list[float]) -> Floats:
    """Return the sum of second differences; at the array's border as if the values went on unchanged."""
    found = np.zeros_like(values)
    for axis, weight in enumerate(stiffness):
        step = np.float32(weight) * np.diff(values, axis=axis)
        first, last = np.moveaxis(found, axis, 0)[:-1], np.moveaxis(found, axis, 0)[1:]
        first += np.moveaxis(step, axis, 0)
        last -= np.moveaxis(step, axis, 0)
    return found


def _solve(matrix: Callable[[Floats], Floats], goal: Floats, most_steps: int) -> Floats:
    """Return what a symmetric positive matrix makes the goal of, by conjugate gradients."""
    found = np.zeros_like(goal)
    rest, direction = goal, goal
    square = first = float(np.vdot(rest, rest))
    for _ in range(most_steps):
        if square <= _TOLERANCE**2 * first:
            break
        image = matrix(direction)
        length = np.float32(square / float(np.vdot(direction, image)))
        found = found + length * direction
        rest = rest - length * image
        before, square = square, float(np.vdot(rest, rest))
        direction = rest + np.float32(square / before) * direction
    return found
