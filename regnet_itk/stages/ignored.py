"""What is to be ignored of a pair, as a stage that finds a displacement field sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.distances import distance_to
from regnet_itk.data.image import Image
from regnet_itk.stages.guides import mark
from regnet_itk.transforms.chain import TransformChain, link_field

if TYPE_CHECKING:
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.stages.base import ImagePair

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Ignored:
    """Where the images of a pair have nothing to compare.

    Parameters
    ----------
    fixed, moving : Image, optional
        Masks on the images' grids, in which all but 0 counts.
    """

    fixed: Image | None = None
    moving: Image | None = None

    @classmethod
    def of(cls, pair: ImagePair) -> Ignored:
        """Return what is to be ignored of a pair."""
        return cls(pair.fixed_guides.ignore, pair.moving_guides.ignore)

    def in_fixed(self, grid: Grid) -> Bools:
        """Say which voxels of a grid hold anything that is ignored in the fixed image."""
        return _touched(self.fixed, grid)

    def in_moving(self, grid: Grid, transform: Any) -> Bools:
        """Say which voxels of a grid a transform (of SimpleITK's) leads to what is ignored in the moving image."""
        return _touched(self.moving, grid, transform)

    def left_of(self, region: Image, transform: Any) -> Image:
        """Return a region of the fixed image without what is ignored there, or where a transform leads to."""
        if self.fixed is None and self.moving is None:
            return region
        hidden = self.in_fixed(region.grid) | self.in_moving(region.grid, transform)
        return Image((region.array != 0) & ~hidden, region.grid)

    def carry_on(self, u: DisplacementField, initial: TransformChain, around: float) -> DisplacementField:
        """Return a field that is carried on smoothly through all that is ignored, seen through T(x) = T0(x + u(x)).

        Parameters
        ----------
        u : DisplacementField
        initial : TransformChain
            T0.
        around : float
            mm beside it where the field was found with what is ignored in view, and is replaced as well.
        """
        from regnet_itk.refinement.carrying_on import carry_on

        if self.fixed is None and self.moving is None:
            return u
        hidden = self.in_fixed(u.grid)
        if self.moving is not None:
            hidden |= self.in_moving(u.grid, initial.then(link_field(u)).to_sitk(u.grid))
        if hidden.any():
            hidden = distance_to(hidden, u.grid.spacing) <= around
        return carry_on(u, hidden)


def _touched(mask: Image | None, grid: Grid, transform: Any = None) -> Bools:
    """Say which voxels of a grid have one of a mask around them."""
    if mask is None:
        return np.zeros(grid.shape, dtype=bool)
    return np.asarray(mark(mask).resampled(grid, transform).array > 0)
