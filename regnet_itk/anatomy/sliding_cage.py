"""What the rib cage holds, sliding down along its wall: a motion that is not continuous there, in closed form.

The cage is a horizontal superellipse whose half-axes change with height (`chest.CAGE`). A point keeps its place between
middle and wall, and changes its height alone; so what touches the wall touches it afterwards, nothing gapes, and
nothing overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regnet_itk.anatomy.chest import CAGE, Chest, Points
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.ramps import smooth_step

_WALL = 1.008  # of the cage's half-axes: a millimetre outside of the lungs, inside of the ribs
_STEPS = 40  # of the iterations, which gain more than a digit every two steps


@dataclass(frozen=True)
class SlidingCage:
    """A slide along the wall of the cage, as a map of points (n, 3) in mm, LPS; outside of the cage nothing moves.

    Parameters
    ----------
    chest : Chest
        The patient, whose cage it is.
    amplitude : float
        How far what lies at the diaphragm goes down, mm.
    dome : float
        z of the diaphragm before, mm, in the standard chest.
    """

    chest: Chest
    amplitude: float
    dome: float

    def holds(self, points: FloatArray) -> npt.NDArray[np.bool_]:
        """Say which points (..., 3) lie in the cage; those that slide do before and after."""
        q = self._standard(points)
        across, along = self._place(q)
        return np.asarray((_radius(across, along) < _WALL) & (q.z < CAGE.top))

    def map_points(self, points: FloatArray, held: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """Return where points (..., 3) slide to.

        Parameters
        ----------
        points : ndarray
        held : ndarray of bool, optional
            Which of them to take for points of the cage; by default those that are.
        """
        held = self.holds(points) if held is None else held
        moved = np.array(points, dtype=float)
        q = self._standard(moved[held])
        across, along = self._place(q)
        moved[held] = self._at(across, along, q.z - self._fall(across, along, q.z))
        return moved

    def invert_points(self, points: FloatArray) -> FloatArray:
        """Return the points (..., 3) that slide to the given ones."""
        held = self.holds(points)
        found = np.array(points, dtype=float)
        q = self._standard(found[held])
        across, along = self._place(q)
        z = q.z
        for _ in range(_STEPS):
            z = q.z + self._fall(across, along, z)
        found[held] = self._at(across, along, z)
        return found

    def _standard(self, points: FloatArray) -> Points:
        return self.chest.standard(np.moveaxis(np.asarray(points, dtype=float), -1, 0))

    def _place(self, q: Points) -> tuple[FloatArray, FloatArray]:
        """Return x and y from the middle of the cage, as shares of its half-axes there."""
        return q.x / CAGE.half_width(q.z), (q.y - CAGE.middle(q.z)) / CAGE.half_depth(q.z)

    def _at(self, across: FloatArray, along: FloatArray, z: FloatArray) -> FloatArray:
        """Return the points (n, 3) of the patient at such a place and height in the standard chest."""
        goal = np.stack(
            [across * CAGE.half_width(z), along * CAGE.half_depth(z) + CAGE.middle(z), z], axis=-1
        )  # fmt: skip
        bent = goal
        for _ in range(_STEPS):
            bent = goal - np.stack(self.chest.bend(*np.moveaxis(bent, -1, 0)), axis=-1)
        return np.asarray(bent * np.asarray(self.chest.scale))

    def _fall(self, across: FloatArray, along: FloatArray, z: FloatArray) -> FloatArray:
        """Return how far such points go down: most at the diaphragm, not at the apex, nor at the spine."""
        fall = smooth_step((CAGE.top - z) / (CAGE.top - self.dome)) ** 1.3
        fall = fall * (1.0 - 0.6 * smooth_step((self.dome - z) / 130.0))
        spine = 1.0 - np.exp(-((across / 0.3) ** 2 + ((along - 0.85) / 0.45) ** 2) / 2)
        return np.asarray(self.amplitude * fall * spine)


def _radius(across: FloatArray, along: FloatArray) -> FloatArray:
    return np.asarray((np.abs(across) ** CAGE.power + np.abs(along) ** CAGE.power) ** (1.0 / CAGE.power))
