"""Points that have to come to where they belong, as a term of instance optimisation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.refinement.terms import DisplacementAt

_SPEAKS_FOR = 12.0
"""mm. A point of weight 1 counts as much as the voxels so near to it: about what one control point moves."""

_PER_MM = 0.05  # so much more do features differ where a displacement is wrong by 1 mm
_LINEAR_FROM = 1.0  # mm beyond the radius; a point farther off pulls no harder


class LandmarkTerm:
    """The distance of points from where they belong, beyond a radius of trust.

    Parameters
    ----------
    grid : Grid
        Of the pair that is improved.
    points, wanted : ndarray, shape (n, 3)
        Points of the fixed image and their displacements, mm, LPS.
    radii : ndarray, shape (n,)
        mm; within its radius a point does not pull.
    weight : float
        At 1 a point that is off by 1 mm more counts as much as images that do not agree within 12 mm around it.
    volume : float
        mm^3 over which the images are compared.
    """

    def __init__(
        self, grid: Grid, points: FloatArray, wanted: FloatArray, *, radii: FloatArray, weight: float, volume: float
    ) -> None:
        self._index = torch.from_numpy(np.asarray(grid.point_to_index(points))[:, ::-1].copy()).float()
        self._wanted = torch.from_numpy(wanted @ grid.direction_matrix).float()
        self._radii = torch.from_numpy(radii).float()
        self._share = weight * _PER_MM * (4 / 3 * math.pi * _SPEAKS_FOR**3) / max(volume, 1.0)

    def cost(self, at: DisplacementAt) -> Tensor:
        """Return the sum over all points, in the unit of the images' differences."""
        off = (at(self._index) - self._wanted).square().sum(dim=1).add(1e-6).sqrt()
        beyond = (off - self._radii).clamp(min=0.0)
        return self._share * torch.where(beyond < _LINEAR_FROM, 0.5 * beyond**2, beyond - 0.5 * _LINEAR_FROM).sum()
