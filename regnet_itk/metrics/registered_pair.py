"""A pair of images with the transform that was found for it: what metrics are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ImageError
from regnet_itk.transforms.chain import TransformChain

FOLDING_SPACING = 2.0
"""The Jacobian is looked at on voxels of this size in mm, or on the fixed image's if they are larger."""

Need = Literal["fixed_mask", "masks", "landmarks", "truth", "labels", "structures"]
"""What may be known about a pair: its fixed mask, both masks, landmarks of both images, the true displacement, labels
of both images; "structures" are labels, or else both masks."""

NEEDS: tuple[Need, ...] = get_args(Need)


@dataclass(frozen=True, eq=False)
class RegisteredPair:
    """A pair of images, what is known about it, and a transform of it.

    Parameters
    ----------
    fixed, moving : Image
        Each on its own grid.
    chain : TransformChain
        T, fixed to moving, mm, LPS.
    fixed_mask, moving_mask : Image, optional
        Voxels other than 0 count; each on the grid of its image.
    fixed_landmarks, moving_landmarks : Landmarks, optional
        Point i of one corresponds to point i of the other.
    truth : DisplacementField, optional
        The true T(x) - x in mm on the fixed side, on any grid.
    fixed_labels, moving_labels : Image, optional
        Segmentations: whole numbers, 0 is background.
    order : int
        Of the B-spline that interpolates the warped image; 1 is linear.
    outside : float, optional
        Value of the warped image outside the moving one; the moving image's lowest by default.
    """

    fixed: Image
    moving: Image
    chain: TransformChain
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    fixed_landmarks: Landmarks | None = None
    moving_landmarks: Landmarks | None = None
    truth: DisplacementField | None = None
    fixed_labels: Image | None = None
    moving_labels: Image | None = None
    order: int = 3
    outside: float | None = None

    def has(self, need: Need) -> bool:
        """Say whether something is known about the pair."""
        if need == "structures":
            return self.has("labels") or self.has("masks")
        parts = {
            "fixed_mask": (self.fixed_mask,),
            "masks": (self.fixed_mask, self.moving_mask),
            "landmarks": (self.fixed_landmarks, self.moving_landmarks),
            "truth": (self.truth,),
            "labels": (self.fixed_labels, self.moving_labels),
        }
        return all(part is not None for part in parts[need])

    @cached_property
    def warped(self) -> Image:
        """The moving image on the fixed grid, I_M(T(x)), float32."""
        grid = self.fixed.grid
        outside = float(self.moving.array.min()) if self.outside is None else self.outside
        return self.moving.resampled(grid, self.chain.to_sitk(grid), order=self.order, default=outside)

    @cached_property
    def determinant(self) -> Image:
        """det(dT/dx) on voxels of 2 mm, or of the fixed image's size if they are larger; see `choose_overview_grid`."""
        grid = choose_overview_grid(self.fixed.grid)
        return Image(self.chain.displacement_on(grid).jacobian_determinant(), grid)

    @property
    def determinant_mask(self) -> Image | None:
        """The fixed mask on the voxels of `determinant`; None without a mask.

        Raises
        ------
        ImageError
            If it covers none of them.
        """
        return mask_on(self.fixed_mask, self.determinant.grid)

    def pulled(self, labels: Image, grid: Grid) -> Image:
        """Return labels of the moving image under T on a grid of the fixed side; 0 outside, the nearest voxel."""
        return labels.resampled(grid, self.chain.to_sitk(grid), order=0)

    def structures(self) -> Iterator[tuple[str, Image, Image]]:
        """Give each label's name with its mask in the fixed image and its warped one, on one grid.

        Without labels, both masks as "mask"; nothing if they are not known either.
        """
        if self.fixed_labels is not None and self.moving_labels is not None:
            fixed, moving = self.fixed_labels, self.pulled(self.moving_labels, self.fixed_labels.grid)
            for label in np.unique(fixed.array[fixed.array != 0]):
                inside = [Image(image.array == label, fixed.grid) for image in (fixed, moving)]
                yield str(int(label)), inside[0], inside[1]
        elif self.fixed_mask is not None and self.moving_mask is not None:
            fixed, moving = _as_mask(self.fixed_mask), _as_mask(self.moving_mask)
            yield "mask", fixed, self.pulled(moving, fixed.grid)


def _as_mask(image: Image) -> Image:
    return Image((image.array != 0).astype(np.uint8), image.grid)


def mask_on(mask: Image | None, grid: Grid) -> Image | None:
    """Return the fixed mask on another grid of the fixed side; None without a mask.

    Raises
    ------
    ImageError
        If no voxel of the grid lies in the mask.
    """
    if mask is None or mask.grid.is_close(grid, 1e-2):
        return mask
    found = _as_mask(mask).resampled(grid, order=0)
    if not found.array.any():
        raise ImageError(
            f"the fixed mask covers no voxel of the grid on which is measured (spacing {grid.spacing} mm, origin "
            f"{grid.origin}): it is too small, or lies elsewhere than the true displacement field"
        )
    return found


def choose_overview_grid(grid: Grid) -> Grid:
    """Return a grid over the same box, along the same axes, no finer than needed to look at a smooth transform."""
    nx, ny, nz = (max(1, round(n * s / max(s, FOLDING_SPACING))) for n, s in zip(grid.size, grid.spacing, strict=True))
    sx, sy, sz = (n * s / m for n, s, m in zip(grid.size, grid.spacing, (nx, ny, nz), strict=True))
    first = (-0.5 + 0.5 * sx / grid.spacing[0], -0.5 + 0.5 * sy / grid.spacing[1], -0.5 + 0.5 * sz / grid.spacing[2])
    x, y, z = grid.index_to_point(first)
    return Grid((nx, ny, nz), (sx, sy, sz), (float(x), float(y), float(z)), grid.direction)
