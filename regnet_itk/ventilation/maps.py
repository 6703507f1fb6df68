"""Ventilation and change of density at every place, from det J of the transform and from Hounsfield units.

A piece of tissue has the volume V_F in the fixed and V_M = det J V_F in the moving image. With "ex" for the image
breathed out and "in" for that breathed in, both maps of ventilation are (V_in - V_ex) / V_ex:

- from det J: V_in / V_ex is det J if the fixed image is breathed out, and its inverse if it is breathed in;
- from Hounsfield units: if a piece keeps its mass, V_in / V_ex = rho_ex / rho_in, with the density rho = 1 + HU / 1000
  in g/ml. As blood comes and goes with a breath, rho_in is first multiplied by the one factor that gives all of the
  parenchyma the same mass in both images (the mass correction).

The change of density is the mass that a piece has won, for each of its volume in the fixed image: rho_M det J - rho_F.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.data.grid import Box, Grid
from regnet_itk.data.image import Image, bounding_box, check_same_grid
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.jacobian import jacobian_determinant_on

SMOOTHING = 3.0
"""mm; standard deviation of the Gaussian by which densities are smoothed, inside of the region."""

WIDEST_SMOOTHING = 30.0
"""mm; wider ones leave nothing of what is local."""

_ALIKE = 0.02  # a change of the whole volume that is no breath
_VESSEL = -250.0  # HU; what is denser is no parenchyma
_LEAST_DENSITY = 0.01  # g/ml
_LEAST_WEIGHT = 1e-12  # against a division by zero; a voxel inside counts itself

Role = Literal["fixed", "moving"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class VentilationMaps:
    """How much each place of a region is ventilated.

    Parameters
    ----------
    grid : Grid
        Of the fixed image.
    box : tuple of slice
        The part (z, y, x) of the fixed image that holds the region; the arrays are of this part.
    inside : ndarray of bool
        Where something is known: in the region, where T leads to the moving image and does not fold.
    determinant : ndarray
        det J of T.
    inhale : {"fixed", "moving"}
        The image breathed in.
    densities : tuple of ndarray, or None
        g/ml, of the fixed image and of the moving one at T(x), not smoothed; None if the images are no CTs.
    smoothed : tuple of ndarray, or None
        The same of parenchyma alone, smoothed; NaN where there is none: in vessels, and in the voxels beside them and
        at the border of the region, which are half of something else.
    mass_factor : float or None
        By which the density of the image breathed in is multiplied, so that the parenchyma keeps its mass.
    smoothing : float
        mm.
    beyond : float
        Share (0 to 1) of the region that the transform leads out of the moving image.
    folded : float
        Share of the region where det J <= 0.
    """

    grid: Grid
    box: Box
    inside: npt.NDArray[np.bool_]
    determinant: Floats
    inhale: Role
    densities: tuple[Floats, Floats] | None
    smoothed: tuple[Floats, Floats] | None
    mass_factor: float | None
    smoothing: float
    beyond: float
    folded: float

    def __repr__(self) -> str:
        kinds = "det J and HU" if self.densities is not None else "det J"
        return f"VentilationMaps({self.grid.describe()}, by {kinds}, breathed in: the {self.inhale} image)"

    @property
    def exhale_volume(self) -> Floats:
        """The volume of each voxel's tissue in the image breathed out, as part of the voxel."""
        return np.ones_like(self.determinant) if self.inhale == "moving" else self.determinant

    @property
    def inhale_volume(self) -> Floats:
        """The volume of each voxel's tissue in the image breathed in, as part of the voxel."""
        return self.determinant if self.inhale == "moving" else np.ones_like(self.determinant)

    def jacobian_ventilation(self) -> Image:
        """Return (V_in - V_ex) / V_ex from det J, on the fixed grid; NaN where nothing is known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._whole(self.inhale_volume / self.exhale_volume - 1)

    def hounsfield_ventilation(self) -> Image | None:
        """Return (V_in - V_ex) / V_ex from Hounsfield units, mass-corrected and smoothed; None if there are none."""
        found = self._hounsfield_ventilation()
        return None if found is None else self._whole(found)

    def _hounsfield_ventilation(self) -> Floats | None:
        if self.smoothed is None or self.mass_factor is None:
            return None
        exhale, inhale = self.smoothed if self.inhale == "moving" else self.smoothed[::-1]
        ratio: Floats = np.maximum(exhale, _LEAST_DENSITY) / np.maximum(self.mass_factor * inhale, _LEAST_DENSITY)
        return ratio - 1

    def density_change(self) -> Image | None:
        """Return rho_M det J - rho_F in g/l (of water, 1 g/l is 1 HU), smoothed; None without Hounsfield units."""
        if self.smoothed is None:
            return None
        return self._whole(1000 * (self.smoothed[1] * self.determinant - self.smoothed[0]))

    def _whole(self, values: Floats) -> Image:
        whole = np.full(self.grid.shape, np.nan, dtype=np.float32)
        whole[self.box] = np.where(self.inside, values, np.nan)
        return Image(whole, self.grid)

    def files(self) -> Iterator[tuple[str, Image]]:
        """Give each map with the name of its file."""
        yield "ventilation_jacobian.mha", self.jacobian_ventilation()
        found = (("ventilation_hu.mha", self.hounsfield_ventilation()), ("density_change.mha", self.density_change()))
        for name, image in found:
            if image is not None:
                yield name, image


def find_ventilation(
    fixed: Image,
    moving: Image,
    chain: TransformChain,
    region: Image,
    *,
    inhale: str | None = None,
    smoothing: float = SMOOTHING,
) -> VentilationMaps:
    """Tell how much each place of the lungs expands with a breath, and how its density changes.

    Parameters
    ----------
    fixed, moving : Image
        One breathed out, the other breathed in; only of CTs in Hounsfield units there are maps of density.
    chain : TransformChain
        T, fixed to moving.
    region : Image
        The lungs, on the fixed image's grid; voxels other than 0 count.
    inhale : {"fixed", "moving"}, optional
        The image breathed in; by default that in which the region is larger.
    smoothing : float
        mm; of the densities, see `SMOOTHING`. det J is not smoothed. 0 for none.

    Raises
    ------
    ImageError
        If the region lies on another grid, is empty, or T leads all of it out of the moving image.
    ParameterError
        If nobody says which image is breathed in, and the region is as large in both; or the smoothing is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> grid = regnet_itk.Grid(size=(30, 30, 20))
    >>> lungs = regnet_itk.Image(np.ones(grid.shape, dtype=np.uint8), grid)
    >>> exhale = regnet_itk.Image(np.full(grid.shape, -700.0), grid)
    >>> inhale = regnet_itk.Image(np.full((20, 36, 30), -750.0), regnet_itk.Grid(size=(30, 36, 20)))
    >>> chain = regnet_itk.chain_from_sitk(sitk.ScaleTransform(3, (1.0, 1.2, 1.0)))
    >>> maps = regnet_itk.find_ventilation(exhale, inhale, chain, lungs)
    >>> round(float(np.nanmean(maps.jacobian_ventilation().array)), 3)  # 20 % more volume
    0.2
    >>> round(float(np.nanmean(maps.hounsfield_ventilation().array)), 3)  # 0.3 g/ml to 0.25
    0.2

    References
    ----------
    Reinhardt et al., "Registration-based estimates of local lung tissue expansion compared to xenon CT measures of
    specific ventilation", Medical Image Analysis 2008, for det J. Simon, "Non-invasive imaging of regional lung
    function using X-ray computed tomography", Journal of Clinical Monitoring and Computing 2000, and Guerrero et al.,
    "Dynamic ventilation imaging from four-dimensional computed tomography", Physics in Medicine and Biology 2006, for
    Hounsfield units.
    """
    _check(region, fixed, inhale, smoothing)
    box = bounding_box(region.array != 0, 0)
    part = fixed.grid.part(box)
    wanted = region.array[box] != 0
    there = moving.resampled(part, chain.to_sitk(fixed.grid), default=np.nan).array
    determinant = jacobian_determinant_on(chain, part).array
    seen, upright = np.isfinite(there), determinant > 0
    inside = wanted & seen & upright
    if not inside.any():
        raise ImageError(
            "the transform leads all of the region out of the moving image, or folds there; give a mask of the lungs "
            "in the fixed image"
        )
    breathed_in: Role = _larger(determinant[inside]) if inhale is None else ("fixed" if inhale == "fixed" else "moving")
    beyond, folded = (float((wanted & ~good).sum() / wanted.sum()) for good in (seen, upright))
    densities: tuple[Floats, Floats] | None = None
    smoothed: tuple[Floats, Floats] | None = None
    factor = None
    if is_hounsfield(fixed) and is_hounsfield(moving):
        of_fixed = fixed.array[box].astype(np.float32)
        of_moving = np.where(seen, there, np.float32(0))
        parenchyma = _parenchyma(inside, of_fixed, of_moving)
        densities = _density(of_fixed), _density(of_moving)
        smoothed = tuple(_smooth(values, parenchyma, part, smoothing) for values in densities)  # type: ignore[assignment]
        factor = _mass_factor(densities, determinant, parenchyma, breathed_in)
    return VentilationMaps(
        fixed.grid, box, inside, determinant, breathed_in, densities, smoothed, factor, smoothing, beyond, folded
    )


def _check(region: Image, fixed: Image, inhale: str | None, smoothing: float) -> None:
    check_same_grid(region.grid, fixed.grid, "the region lies", "the fixed image")
    if not (region.array != 0).any():
        raise ImageError("the region is empty: no voxel differs from 0; give a mask of the lungs")
    if inhale not in (None, "fixed", "moving"):
        raise ParameterError(f"the image breathed in is the fixed or the moving one, not '{inhale}'; correct `inhale`")
    if not 0 <= smoothing <= WIDEST_SMOOTHING:
        raise ParameterError(f"a smoothing of {smoothing} mm; give 0 to {WIDEST_SMOOTHING:g}")


def _larger(determinants: Floats) -> Role:
    change = float(determinants.mean(dtype=float)) - 1
    if abs(change) < _ALIKE:
        raise ParameterError(
            f"the lungs have nearly the same volume in both images ({change:+.1%} in the moving one), so that it does "
            "not tell which is breathed in; say it with `inhale`"
        )
    return "moving" if change > 0 else "fixed"


def _parenchyma(inside: npt.NDArray[np.bool_], fixed: Floats, moving: Floats) -> npt.NDArray[np.bool_]:
    """Return where both images show parenchyma, without the voxels beside all else, which are half of it."""
    thin = inside & (fixed < _VESSEL) & (moving < _VESSEL)
    eroded: npt.NDArray[np.bool_] = ndimage.binary_erosion(thin)
    return eroded if eroded.any() else thin


def _density(hounsfield: Floats) -> Floats:
    return np.maximum(1 + hounsfield / np.float32(1000), np.float32(0))


def _smooth(values: Floats, inside: npt.NDArray[np.bool_], grid: Grid, smoothing: float) -> Floats:
    """Return the mean of what lies inside, weighted by a Gaussian; NaN elsewhere."""
    if not smoothing:
        return np.where(inside, values, np.float32(np.nan))
    sigma = [smoothing / s for s in reversed(grid.spacing)]
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    mean = ndimage.gaussian_filter(np.where(inside, values, np.float32(0)), sigma, mode="constant")
    found: Floats = np.where(inside, mean / np.maximum(weight, _LEAST_WEIGHT), np.float32(np.nan))
    return found


def _mass_factor(
    densities: tuple[Floats, Floats], determinant: Floats, inside: npt.NDArray[np.bool_], inhale: Role
) -> float:
    fixed = float(densities[0][inside].sum(dtype=float))
    moving = float((densities[1] * determinant)[inside].sum(dtype=float))
    if min(fixed, moving) <= 0:
        raise ImageError("the lungs have no mass in one of the images; are they CTs in Hounsfield units?")
    return fixed / moving if inhale == "moving" else moving / fixed
