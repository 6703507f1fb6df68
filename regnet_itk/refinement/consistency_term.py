"""Both directions together: a field whose way back leads to where it began."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.networks.interpolation import interpolate
from regnet_itk.refinement.instance_optimisation import moved_index
from regnet_itk.refinement.terms import DisplacementAt

_DRAWN = 3_000  # places that a step looks at
_MEASURED = 20_000


class ConsistencyTerm:
    """How far the way back under another field misses where it began, squared; a term of instance optimisation.

    Parameters
    ----------
    other : DisplacementField
        v of the way back, mm, LPS, on a grid with the same axes: y + v(y) is where y came from.
    grid : Grid
        Of the pair that is improved.
    region : ndarray of bool, shape (z, y, x)
        On that grid: where it counts.
    weight : float
        Of a mm^2, against the differences of the images.
    seed : int
        Of the places.

    References
    ----------
    Christensen and Johnson, "Consistent image registration", IEEE TMI 2001.
    """

    def __init__(
        self, other: DisplacementField, grid: Grid, region: npt.NDArray[np.bool_], weight: float, seed: int = 0
    ) -> None:
        axes = other.grid.direction_matrix.astype(np.float32)
        self._other = torch.from_numpy(np.ascontiguousarray(other.vectors @ axes, dtype=np.float32))
        self._grids = other.grid, grid
        self._places = np.argwhere(region).astype(np.float32)
        self._weight, self._random = weight, np.random.default_rng(seed)

    def cost(self, at: DisplacementAt) -> Tensor:
        """Return the weighed mean of the squared distances, over places that are drawn anew each time."""
        index = torch.from_numpy(self._places[self._random.integers(0, len(self._places), _DRAWN)])
        u = at(index)
        back = interpolate(self._other, moved_index(*self._grids, index, u))
        return self._weight * (u + back).square().sum(dim=1).mean()


def inverse_residual(u: DisplacementField, v: DisplacementField, grid: Grid, region: npt.NDArray[np.bool_]) -> float:
    """Return the mean of |u(x) + v(x + u(x))| in mm over some points of a region, which lies on a grid."""
    places = np.argwhere(region)
    points = grid.index_to_point(places[:: -(-len(places) // _MEASURED), ::-1])
    moved = u.map_points(points)
    return float(np.linalg.norm(v.map_points(moved) - points, axis=1).mean())
