"""Whole synthetic pairs, as in Sect. 2.2 of the paper, made with SimpleITK.

The undeformed image is the moving one; the fixed image is I_M(x + u(x)), so u is the label at the fixed voxel x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from regnet_itk.displacement import DisplacementField
from regnet_itk.geometry import Grid
from regnet_itk.images import Image

_FIELD_SPACING = 4.0
"""mm. Gaussians of 20 mm and more lose nothing on such a grid, which is then interpolated."""


@dataclass(frozen=True)
class Frequency:
    """One setting of the paper: `points` impulses, smoothed with `sigma` mm, scaled to a peak of `theta` mm."""

    sigma: float
    points: int
    theta: float = 8.0


FREQUENCIES = {
    "low": Frequency(35.0, 80),
    "medium": Frequency(25.0, 100),
    "high": Frequency(20.0, 100),
}
"""Low, medium and high frequency deformations of the paper."""


@dataclass(frozen=True)
class SyntheticPair:
    """Two images of one patient with the exact displacement between them."""

    fixed: Image
    moving: Image
    displacement: DisplacementField


def random_displacement(grid: Grid, frequency: Frequency, rng: np.random.Generator) -> DisplacementField:
    """Return the paper's random field: impulses at random points, smoothed, scaled by one factor for the field.

    Scaling positive and negative parts apart would make a kink at zero.

    Parameters
    ----------
    grid : Grid
        The box to fill; the field lies on a coarser grid over it.
    frequency : Frequency
    rng : numpy.random.Generator

    Returns
    -------
    DisplacementField
        Its largest component along the axes of `grid` is `frequency.theta` mm.
    """
    coarse = grid.isotropic(_FIELD_SPACING).pad((1, 1, 1), (1, 1, 1))
    impulses = np.zeros((3, *coarse.shape), dtype=np.float32)
    z, y, x = (rng.integers(0, n, frequency.points) for n in coarse.shape)
    impulses[:, z, y, x] = rng.uniform(-frequency.theta, frequency.theta, (3, frequency.points))
    sigma = frequency.sigma / _FIELD_SPACING
    smooth = np.stack([ndimage.gaussian_filter(i, sigma, mode="constant", truncate=5.0) for i in impulses])
    smooth *= frequency.theta / np.abs(smooth).max()
    return DisplacementField(np.moveaxis(smooth, 0, -1) @ coarse.direction_matrix.T.astype(np.float32), coarse)


def breathing_displacement(grid: Grid, lungs: Image, amplitude: float, rng: np.random.Generator) -> DisplacementField:
    """Return breathing-like motion: along the body's axis, growing from the apex of the lungs to their base.

    The chest also widens by a quarter of it, and the motion is uneven across the section.

    Parameters
    ----------
    grid : Grid
        The box to fill.
    lungs : Image
        Mask; says where apex and base are.
    amplitude : float
        Largest displacement in mm; negative for the other phase of breathing.
    rng : numpy.random.Generator
    """
    coarse = grid.isotropic(_FIELD_SPACING).pad((1, 1, 1), (1, 1, 1))
    points = coarse.points()
    inside = lungs.grid.index_to_point(np.argwhere(lungs.array)[::97, ::-1])
    low, high = np.percentile(inside[:, 2], (2, 98))  # LPS: z grows towards the head
    depth = np.clip((high - points[..., 2]) / (high - low), 0.0, 1.3)
    profile = depth * depth * (3 - 2 * depth / 1.3)
    uneven = ndimage.gaussian_filter(rng.normal(size=coarse.shape), 40 / _FIELD_SPACING, mode="nearest")
    profile = profile * (1 + 0.35 * uneven / np.abs(uneven).max())
    centre = inside.mean(axis=0)
    width = np.abs(inside - centre).max(axis=0)
    u = np.stack(
        [
            -0.15 * profile * (points[..., 0] - centre[0]) / width[0],
            -0.25 * profile * (points[..., 1] - centre[1]) / width[1],
            profile,
        ],
        axis=-1,
    )
    return DisplacementField((u * (amplitude / np.abs(u).max())).astype(np.float32), coarse)


def deformed_pair(image: Image, u: DisplacementField, noise: float, rng: np.random.Generator) -> SyntheticPair:
    """Deform an image by cubic B-spline interpolation and add Gaussian noise to both images.

    Parameters
    ----------
    image : Image
        The patient; becomes the moving image.
    u : DisplacementField
        mm, LPS.
    noise : float
        Standard deviation in HU; the paper has 5.
    rng : numpy.random.Generator
    """
    warped = image.resampled(image.grid, u.to_sitk_transform(), order=3, default=-1000.0)
    fixed, moving = (
        Image((i.array + rng.normal(0.0, noise, i.array.shape)).astype(np.float32), i.grid) for i in (warped, image)
    )
    return SyntheticPair(fixed, moving, u)
