"""A smooth displacement that brings a few points to where they belong, and ends away from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.spatial.distance import cdist

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image

REACH = 30.0
"""mm. Correlation length of a network's errors: so far does a point tell what a displacement should be. Chosen on
phantoms and CTs of the training seeds, out of 15 to 120 mm and by likelihood for each pair: shorter gains less,
longer spoils what is right elsewhere."""

_VARIATIONS = np.geomspace(0.3, 40.0, 12)  # mm along each axis: the errors of a field, from next to none to failed
_LOOSENESS = (1.0, 2.0, 4.0, 8.0)  # the points' own errors, in their radii of trust
_MOST_FITTED = 500  # points by which these two are chosen
_STEP = REACH / 4  # mm; the grid that the correction is computed on, and then interpolated
_AT_ONCE = 20_000  # places


@dataclass(frozen=True)
class Spread:
    """How displacements that are to be corrected, and the points that tell of it, vary along each axis.

    Parameters
    ----------
    errors : float
        Standard deviation of the field's errors, mm.
    looseness : float
        Standard deviation of the points' own errors, in their radii of trust.
    """

    errors: float
    looseness: float

    def covariance(self, points: FloatArray, radii: FloatArray) -> FloatArray:
        """Return the covariance (n, n) of what points (n, 3) with radii of trust (n,), both in mm, tell."""
        own = np.diag((self.looseness * radii) ** 2)
        found: FloatArray = self.errors**2 * correlation(points, points) + own
        return found


def correlation(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the correlation (n, m) of errors at points (n, 3) and (m, 3) in mm."""
    return correlation_over(cdist(a, b))


def correlation_over(distances: FloatArray) -> FloatArray:
    """Return the correlation of errors over distances in mm: Matern's, twice differentiable."""
    scaled = distances * (np.sqrt(5.0) / REACH)
    found: FloatArray = (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
    return found


def fit_spread(points: FloatArray, residuals: FloatArray, radii: FloatArray) -> Spread:
    """Return the spread under which residuals are most likely.

    Points that are taken for better than they are, and whose errors follow no neighbour, are so found to tell little.

    Parameters
    ----------
    points, residuals : ndarray, shape (n, 3)
        mm.
    radii : ndarray, shape (n,)
        Of trust, mm; the points' own errors are no smaller.
    """
    some = slice(None, None, -(-len(points) // _MOST_FITTED))
    # in units of the points' radii their own errors are independent and alike: one decomposition serves for all
    values, vectors = linalg.eigh(correlation(points[some], points[some]) / np.outer(radii[some], radii[some]))
    squares = ((vectors.T @ (residuals[some] / radii[some, None])) ** 2).sum(axis=1)
    best, found = -np.inf, Spread(0.0, 1.0)
    for errors in _VARIATIONS:
        for looseness in _LOOSENESS:
            variance = errors**2 * values.clip(min=0.0) + looseness**2
            likelihood = -0.5 * (squares / variance).sum() - 1.5 * np.log(variance).sum() - np.log(looseness) ** 2
            if likelihood > best:
                best, found = likelihood, Spread(float(errors), looseness)
    return found


@dataclass(frozen=True, eq=False)
class Correction:
    """The most likely displacement between points and around them (kriging); zero far from all.

    Parameters
    ----------
    points, residuals : ndarray, shape (n, 3)
        Where the displacement is known and what it is, mm, LPS.
    radii : ndarray, shape (n,)
        Of trust, mm.
    spread : Spread
    """

    points: FloatArray
    residuals: FloatArray
    radii: FloatArray
    spread: Spread

    def on(self, grid: Grid) -> npt.NDArray[np.float32]:
        """Return the displacement (z, y, x, 3), mm, LPS, on a grid."""
        weights = linalg.solve(self.spread.covariance(self.points, self.radii), self.residuals, assume_a="pos")
        coarse = grid.isotropic(_STEP).pad((2, 2, 2), (2, 2, 2))
        places = coarse.points().reshape(-1, 3)
        parts = [
            correlation(places[first : first + _AT_ONCE], self.points) @ weights
            for first in range(0, len(places), _AT_ONCE)
        ]
        vectors = (self.spread.errors**2 * np.concatenate(parts)).astype(np.float32).reshape(*coarse.shape, 3)
        components = [Image(np.ascontiguousarray(vectors[..., c]), coarse).resampled(grid, order=3) for c in range(3)]
        return np.stack([component.array for component in components], axis=-1)


def correct_field(u: DisplacementField, correction: Correction) -> DisplacementField:
    """Return the field u + correction on the grid of `u`."""
    return DisplacementField((u.vectors + correction.on(u.grid)).astype(np.float32), u.grid)
