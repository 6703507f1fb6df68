"""Whole synthetic pairs, as in Sect. 2.2 of the paper, made with SimpleITK.

The undeformed image is the moving one; the fixed image is I_M(x + u(x)), so u is the label at the fixed voxel x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.world import CHEST_CT

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


NEW_MOVING = Frequency(35.0, 100)
"""The deformation that makes a new moving image, and the noise that is added to it, in HU."""
NEW_MOVING_NOISE = 3.0
PAIR_NOISE = 5.0


@dataclass(frozen=True)
class SyntheticPair:
    """Two images of one patient with the exact displacement between them.

    Parameters
    ----------
    fixed, moving : Image
    displacement : DisplacementField
        T(x) = x + u(x) maps the fixed to the moving image.
    name : str
        Of the deformation.
    fixed_mask : Image, optional
        The patient's mask, deformed like the fixed image.
    """

    fixed: Image
    moving: Image
    displacement: DisplacementField
    name: str = ""
    fixed_mask: Image | None = None


def paper_pairs(
    image: Image, rng: np.random.Generator, mask: Image | None = None, background: float = CHEST_CT.background
) -> Iterator[SyntheticPair]:
    """Make the six pairs of an image: three deformations of it, and three of a deformed version of it.

    With the image as the only moving image, all pairs would share it. So a new moving image is made by a deformation
    of low frequency, which stretches little, with a noise of 3 HU of its own. Noise of 5 HU is added to both images of
    every pair (Sect. 2.2 of the paper).

    Parameters
    ----------
    image : Image
        A patient.
    rng : numpy.random.Generator
        The same state gives the same pairs.
    mask : Image, optional
        Deformed along with the image.
    background : float
        What lies beyond the image; that of a CT by default.

    Yields
    ------
    SyntheticPair
        ``low``, ``medium``, ``high``, and ``deformed-low``, ``deformed-medium``, ``deformed-high``.
    """
    bend = draw_displacement(image.grid, NEW_MOVING, rng).to_sitk_transform()
    for prefix in ("", "deformed-"):
        if prefix:
            image = image.resampled(image.grid, bend, order=3, default=background)
            image = _with_noise(image, NEW_MOVING_NOISE, rng)
            mask = mask.resampled(mask.grid, bend, order=0) if mask else None
        for name, frequency in FREQUENCIES.items():
            u = draw_displacement(image.grid, frequency, rng)
            pair = deform_pair(image, u, PAIR_NOISE, rng, background)
            fixed_mask = mask.resampled(mask.grid, u.to_sitk_transform(), order=0) if mask else None
            yield replace(pair, name=prefix + name, fixed_mask=fixed_mask)


def draw_displacement(grid: Grid, frequency: Frequency, rng: np.random.Generator) -> DisplacementField:
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


def deform_pair(
    image: Image, u: DisplacementField, noise: float, rng: np.random.Generator, background: float = CHEST_CT.background
) -> SyntheticPair:
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
    background : float
        What lies beyond the image; that of a CT by default.
    """
    warped = image.resampled(image.grid, u.to_sitk_transform(), order=3, default=background)
    return SyntheticPair(_with_noise(warped, noise, rng), _with_noise(image, noise, rng), u)


def _with_noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    return Image((image.array + rng.normal(0.0, sigma, image.array.shape)).astype(np.float32), image.grid)
