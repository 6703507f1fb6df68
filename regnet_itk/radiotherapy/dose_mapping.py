"""Dose carried from the moving to the fixed image: as values, or as energy in mass.

Value mapping gives D(T(x)): a piece of tissue keeps its dose. Energy mapping lets it keep its energy D rho dV instead,
and divides by the mass that the fixed image shows there: D(T(x)) rho_M(T(x)) det J(x) / rho_F(x). Where the transform
keeps mass, both are the same.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Box, Grid
from regnet_itk.data.image import Image
from regnet_itk.radiotherapy.dose import Dose
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.jacobian import jacobian_determinant_on
from regnet_itk.transforms.warping import Order, check_overlap, warp_image

_HOUNSFIELD = (-1000.0, 0.0, 100.0, 1000.0, 3000.0)
_DENSITY = (0.0012, 1.0, 1.076, 1.609, 2.793)
"""g/cm3. Air, water, and for bone 1.017 + 0.592 HU / 1000 (Schneider et al., Phys. Med. Biol. 45, 2000)."""

_LEAST_DENSITY = 0.05
"""g/cm3; what is thinner is air, whose dose means nothing, and the quotient would be noise."""

_SLAB_VOXELS = 2_000_000
_log = logging.getLogger(__name__)


def map_dose(dose: Dose, chain: TransformChain, grid: Grid, order: Order = "linear") -> Image:
    """Return a dose on the fixed image, D(T(x)), in Gy; 0 outside of the dose's voxels.

    Parameters
    ----------
    dose : Dose
        In the space of the moving image.
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The wanted voxels.
    order : {0, 1, 2, 3, 4, 5, "linear"}
        Of the interpolation.

    Raises
    ------
    ImageError
        If the transform maps the whole grid outside of the dose.
    """
    image = warp_image(dose.image, chain, grid, order=order)
    return Image(np.maximum(image.array, 0), grid)  # splines may go below


def map_energy(dose: Dose, chain: TransformChain, grid: Grid, fixed: Image, moving: Image) -> Image:
    """Return a dose on the fixed image that keeps the energy of every part of the moving one, in Gy.

    Energy and mass are summed over parts of each voxel that are no larger than the voxels of the fixed image.

    Parameters
    ----------
    dose : Dose
        In the space of the moving image.
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The wanted voxels.
    fixed, moving : Image
        CTs, Hounsfield units.

    Raises
    ------
    ImageError
        If the transform maps the whole grid outside of the dose.
    """
    check_overlap(dose.image.grid, chain, grid)
    of_fixed, of_moving = (Image(mass_density(image.array), image.grid) for image in (fixed, moving))
    parts = _parts(grid, fixed.grid)
    mapped = np.empty(grid.shape, dtype=np.float32)
    folded = 0

    def averaged(values: npt.NDArray[np.float32], box: Box) -> npt.NDArray[np.float32]:
        nz, ny, nx = (along.stop - along.start for along in box)
        shape = (nz, parts[2], ny, parts[1], nx, parts[0])
        mean: npt.NDArray[np.float32] = values.reshape(shape).mean(axis=(1, 3, 5))
        return mean

    for box in grid.slabs(_SLAB_VOXELS // int(np.prod(parts))):
        fine = grid.part(box).with_spacing((np.asarray(grid.spacing) / parts).tolist())
        there = chain.to_sitk(fine)
        values = dose.image.resampled(fine, there).array
        determinant = jacobian_determinant_on(chain, fine).array
        folded += int((determinant < 0).sum())
        energy = values * of_moving.resampled(fine, there).array * np.maximum(determinant, 0)
        mass = averaged(of_fixed.resampled(fine).array, box)
        solid = mass > _LEAST_DENSITY
        mapped[box] = np.where(solid, averaged(energy, box) / np.where(solid, mass, 1), averaged(values, box))
    if folded:
        _log.warning("the transform folds at %d points, where energy cannot be kept", folded)
    return Image(mapped, grid)


def mass_density(hounsfield: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return mass density in g/cm3 of Hounsfield units, by one curve for all scanners.

    It is good to a few percent: dose in Gy depends on the quotient of two densities of one kind of tissue.
    """
    return np.interp(hounsfield, _HOUNSFIELD, _DENSITY).astype(np.float32)


def _parts(grid: Grid, fixed: Grid) -> npt.NDArray[np.int_]:
    """Return in how many parts to cut the voxels along x, y, z, so that none is larger than the fixed image's."""
    edge = min(fixed.spacing)
    return np.maximum(1, np.ceil(np.asarray(grid.spacing) / edge - 1e-6)).astype(int)
