"""How far the transform may be off at lesions: as its error map says, or as it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from regnet_itk.data.grid import FloatArray
from regnet_itk.errors import ParameterError
from regnet_itk.trust.error_map import ErrorMap

_MEAN = 1.596 / 2.5  # of the radius of 90 %: the mean distance of a normal distribution in space
_NEAR = 12.0  # mm; a lesion at the border of the map's region takes what is known so near
_WIDEST = 95.0  # percentile; where nothing is known, the transform is taken to be as far off as at its worst places


@dataclass(frozen=True)
class ErrorAt:
    """How far the transform may be off at a place of the fixed image.

    Parameters
    ----------
    expected : float
        mm.
    radius : float
        mm; the truth lies within it in 90 % of the cases.
    known : bool
        Whether anything was known there.
    """

    expected: float
    radius: float
    known: bool = True


class ErrorSource:
    """What is known of a transform's errors.

    Parameters
    ----------
    errors : ErrorMap, float or None
        A map, or the radius in mm within which 90 % lie everywhere.

    Raises
    ------
    ParameterError
        If there is none, the map knows nothing, or the radius is not positive.
    """

    def __init__(self, errors: ErrorMap | float | None) -> None:
        self._given: ErrorAt | None = None
        if isinstance(errors, float | int | np.floating | np.integer):
            errors = float(errors)
            if not 0 < errors < np.inf:
                raise ParameterError(f"the transform's error has to be a length in mm, not {errors}; correct `error`")
            self._given = ErrorAt(_MEAN * errors, errors)
            return
        if errors is None or not errors.known.any():
            raise ParameterError(
                "the registration says nothing of how far it may be off, as runs do in errorMap.N.mha; give the radius "
                "in mm within which 90 % of the points lie with `error`"
            )
        values = errors.values[errors.known]
        self._errors, self._values = errors, values
        self._near = KDTree(errors.grid.points()[errors.known])
        expected, radius = np.percentile(values, _WIDEST, axis=0).tolist()
        self._else = ErrorAt(expected, radius, known=False)

    def at(self, places: Sequence[FloatArray]) -> list[ErrorAt]:
        """Return the errors at places of the fixed image, each of them points (n, 3) of which the mean counts."""
        return [self._at(points) for points in places]

    def _at(self, points: FloatArray) -> ErrorAt:
        if self._given is not None:
            return self._given
        found = self._errors.at(points)
        found = found[np.isfinite(found[:, 0])]
        if len(found):
            return ErrorAt(*found.mean(axis=0).tolist())
        distance, nearest = self._near.query(points.mean(axis=0))
        return ErrorAt(*self._values[nearest].tolist()) if distance <= _NEAR else self._else
