"""Where a stage that finds a matrix starts: the best of several places, found on coarse voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.stages.coarse_pair import CoarsePair, Look
from regnet_itk.transforms.matrix import MatrixTransform

if TYPE_CHECKING:
    from regnet_itk.data.grid import FloatArray

AS_THEY_LIE = "as they lie"
"""The start at the identity."""

_STEPS = (3.0, 1.5, 0.75)  # coarse voxels by which a start is moved to better it
_MOST_MOVES = 8  # of one length
_HOPELESS = 0.5  # of the best score: a start below this is not moved
_BETTER = 0.01  # by which a start must be better than one that stands before it
_AXES = {(1, -1, -1): "x", (-1, 1, -1): "y", (-1, -1, 1): "z"}


_NOT_SEEN = Look()


@dataclass(frozen=True, eq=False)
class Start:
    """A place to start from.

    Parameters
    ----------
    name : str
        How it was found.
    transform : MatrixTransform
        Fixed to moving; a shift, or a turn with a shift.
    look : Look
        What the pair looks like there.
    axis : str, optional
        The axis of LPS about which it turns.
    """

    name: str
    transform: MatrixTransform
    look: Look = _NOT_SEEN
    axis: str | None = None


def find_start(pair: CoarsePair, turned: bool = False) -> Start:
    """Return the best place to start from.

    Parameters
    ----------
    pair : CoarsePair
    turned : bool
        Also try turns by 180 degrees about x, y, z (of LPS), and small turns from all of these starts.

    Returns
    -------
    Start
        Of the images as they lie, with the middles of both images (or masks) on each other, and with the middles of
        both bodies on each other, each also moved until no small move makes it better.
    """
    small = pair.halved()
    firsts = [
        replace(first, look=small.look(first.transform.map_points))
        for first in (*_shifts(pair), *(_turns(pair) if turned else ()))
    ]
    highest = max(first.look.score for first in firsts)
    least = min(_HOPELESS * highest, highest)  # below zero where the contrasts are opposite
    best: Start | None = None
    for first in (one for one in firsts if one.look.score >= least):
        moved = replace(first, name=f"{first.name}, moved", transform=_move_to_better(small, first.transform, turned))
        for one in (first, moved):
            seen = replace(one, look=pair.look(one.transform.map_points))
            if best is None or seen.look.score > best.look.score + _BETTER:
                best = seen
    assert best is not None
    return best


def _shifts(pair: CoarsePair) -> Iterator[Start]:
    yield Start(AS_THEY_LIE, MatrixTransform(np.eye(3)))
    yield from _on_each_other(pair, np.eye(3), "", None)


def _turns(pair: CoarsePair) -> Iterator[Start]:
    for signs, axis in _AXES.items():
        yield from _on_each_other(pair, np.diag(np.array(signs, float)), f"turned by 180 degrees about {axis}, ", axis)


def _on_each_other(pair: CoarsePair, matrix: FloatArray, words: str, axis: str | None) -> Iterator[Start]:
    fixed, moving = pair.fixed, pair.moving
    yield Start(f"{words}middle on middle", _carry(matrix, fixed.centre, moving.centre), axis=axis)
    yield Start(f"{words}body on body", _carry(matrix, fixed.centre_of_body, moving.centre_of_body), axis=axis)


def _carry(matrix: FloatArray, fixed: FloatArray, moving: FloatArray) -> MatrixTransform:
    """Return the transform with a matrix that takes one point to another."""
    return MatrixTransform(matrix, fixed, moving - fixed)


def _move_to_better(pair: CoarsePair, transform: MatrixTransform, turning: bool) -> MatrixTransform:
    """Shift a transform, or also turn it, by smaller and smaller moves along the grid's axes, while that is better."""
    best, score = transform, pair.look(transform.map_points).score
    for length in _STEPS:
        for _ in range(_MOST_MOVES):
            moves = [*_shifted(pair, best, length), *(_rotated(pair, best, length) if turning else ())]
            scores = [pair.look(move.map_points).score for move in moves]
            if max(scores) <= score:
                break
            best, score = moves[int(np.argmax(scores))], max(scores)
    return best


def _shifted(pair: CoarsePair, transform: MatrixTransform, length: float) -> Iterator[MatrixTransform]:
    for step in length * pair.fixed.grid.index_to_point_matrix.T:
        for shift in (step, -step):
            yield replace(transform, translation=transform.translation + shift, values={})


def _rotated(pair: CoarsePair, transform: MatrixTransform, length: float) -> Iterator[MatrixTransform]:
    """Turn the fixed body about its middle, so far that its outer voxels move by about `length` voxels."""
    from scipy.spatial.transform import Rotation

    centre = pair.fixed.centre_of_body
    angle = length * 4 / max(pair.fixed.grid.size)
    for axis in pair.fixed.grid.direction_matrix.T:
        for sign in (1.0, -1.0):
            turn = Rotation.from_rotvec(sign * angle * axis).as_matrix()
            matrix = transform.matrix @ turn
            yield MatrixTransform(matrix, centre, transform.map_points(centre) - centre)
