"""Ventilation and density of whole regions: the lungs, and each lobe or label."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from regnet_itk.data.image import Image, check_same_grid
from regnet_itk.errors import ImageError
from regnet_itk.ventilation.maps import Floats, VentilationMaps

_MOST_LABELS = 200
_log = logging.getLogger(__name__)
_SAMPLE = 200_000  # voxels from which a correlation is taken, or a few more
WHOLE = "all"
"""What the region as a whole is called in the table."""


@dataclass(frozen=True)
class RegionRow:
    """What is told of a region; None where it is not known.

    Parameters
    ----------
    region : str
        `WHOLE`, or the value of its label.
    known_share : float
        Share (0 to 1) of it that the maps know.
    exhale_ml, inhale_ml : float
        Its volume in both images, of what is known.
    jacobian_ventilation : float
        (V_in - V_ex) / V_ex of it as a whole, from det J.
    jacobian_median, jacobian_sd : float
        Of the map.
    share_of_ventilation : float or None
        Its part (0 to 1) of the change of volume of all.
    hu_median, hu_sd : float or None
        Of the map of (V_in - V_ex) / V_ex from Hounsfield units.
    rank_correlation : float or None
        Spearman's, of both maps, where both are known; from some of the voxels if there are very many.
    fixed_density, moving_density : float or None
        Mass over volume in each image, g/l.
    fixed_mass, moving_mass : float or None
        g.
    density_change : float or None
        Mean of the map, g/l.
    """

    region: str
    known_share: float
    exhale_ml: float
    inhale_ml: float
    jacobian_ventilation: float
    jacobian_median: float
    jacobian_sd: float
    share_of_ventilation: float | None
    hu_median: float | None = None
    hu_sd: float | None = None
    rank_correlation: float | None = None
    fixed_density: float | None = None
    moving_density: float | None = None
    fixed_mass: float | None = None
    moving_mass: float | None = None
    density_change: float | None = None

    def describe(self) -> str:
        """Return the most important of it as one line."""
        text = (
            f"{self.region}: {self.exhale_ml:.0f} ml out, {self.inhale_ml:.0f} ml in ({self.jacobian_ventilation:+.1%})"
        )
        if self.hu_median is not None:
            text += f"; by HU {self.hu_median:+.1%} (median)"
        if self.density_change is not None:
            text += f", density {self.density_change:+.1f} g/l"
        return text


def tabulate_regions(maps: VentilationMaps, region: Image, labels: Image | None = None) -> list[RegionRow]:
    """Return the rows of the whole region and of each label.

    Parameters
    ----------
    maps : VentilationMaps
    region : Image
        From which the maps were made.
    labels : Image, optional
        Whole numbers on the fixed grid: lobes, or whatever else; 0 is none.

    Raises
    ------
    ImageError
        If the labels lie on another grid, are no whole numbers, or none of them lies where something is known.
    """
    wanted = region.array[maps.box] != 0
    work = _Work(maps)
    whole = work.row(WHOLE, wanted, None)
    assert whole is not None
    rows = [whole]
    if labels is None:
        return rows
    values = _values(labels, maps)
    part = labels.array[maps.box]
    change = whole.inhale_ml - whole.exhale_ml
    of_labels = [work.row(str(int(value)), wanted & (part == value), change) for value in values]
    found = [row for row in of_labels if row is not None]
    if not found:
        raise ImageError("the labels lie nowhere in the region; give labels of the fixed image")
    lacking = [str(int(value)) for value, row in zip(values, of_labels, strict=True) if row is None]
    if lacking:
        _log.warning("nothing is known where these labels lie, which have no row: %s", ", ".join(lacking))
    return rows + found


def _values(labels: Image, maps: VentilationMaps) -> npt.NDArray[np.float64]:
    check_same_grid(labels.grid, maps.grid, "the labels lie", "the fixed image")
    array = labels.array
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise ImageError("the labels have values that are no whole numbers; give a segmentation")
    values = np.unique(array[array != 0])
    if not len(values):
        raise ImageError("the labels are empty: every voxel is 0")
    if len(values) > _MOST_LABELS:
        raise ImageError(f"the labels have {len(values)} different values, as an image has; give a segmentation")
    return values


class _Work:
    """The maps, made once for all regions."""

    def __init__(self, maps: VentilationMaps) -> None:
        self._maps = maps
        self._jacobian = maps.jacobian_ventilation().array[maps.box]
        hounsfield, change = maps.hounsfield_ventilation(), maps.density_change()
        self._hounsfield = None if hounsfield is None else hounsfield.array[maps.box]
        self._change = None if change is None else change.array[maps.box]
        self._voxel = float(abs(np.linalg.det(maps.grid.index_to_point_matrix))) / 1000  # ml

    def row(self, name: str, wanted: npt.NDArray[np.bool_], change: float | None) -> RegionRow | None:
        """Return what is told of a region; None if nothing is known in it."""
        maps = self._maps
        inside = wanted & maps.inside
        if not inside.any():
            return None
        exhale, inhale = (
            self._voxel * float(each[inside].sum(dtype=float)) for each in (maps.exhale_volume, maps.inhale_volume)
        )
        jacobian = self._jacobian[inside]
        share = 1.0 if change is None else ((inhale - exhale) / change if change else None)
        row = RegionRow(
            name, float(inside.sum() / wanted.sum()), exhale, inhale, inhale / exhale - 1, float(np.median(jacobian)),
            float(jacobian.std(dtype=float)), share,
        )  # fmt: skip
        if maps.densities is None or self._hounsfield is None or self._change is None:
            return row
        return self._with_densities(row, inside, jacobian)

    def _with_densities(self, row: RegionRow, inside: npt.NDArray[np.bool_], jacobian: Floats) -> RegionRow:
        maps = self._maps
        assert maps.densities is not None and self._hounsfield is not None and self._change is not None
        hounsfield, change, determinant = self._hounsfield[inside], self._change[inside], maps.determinant[inside]
        known = np.isfinite(hounsfield)
        values, change = hounsfield[known], change[known]
        volumes = len(determinant), float(determinant.sum(dtype=float))
        masses = (
            float(maps.densities[0][inside].sum(dtype=float)),
            float((maps.densities[1][inside] * determinant).sum(dtype=float)),
        )
        some = len(values) > 0
        return replace(
            row, rank_correlation=_rank_correlation(values, jacobian[known]),
            hu_median=float(np.median(values)) if some else None,
            hu_sd=float(values.std(dtype=float)) if some else None,
            density_change=float(change.mean(dtype=float)) if some else None,
            fixed_density=1000 * masses[0] / volumes[0], moving_density=1000 * masses[1] / volumes[1],
            fixed_mass=self._voxel * masses[0], moving_mass=self._voxel * masses[1],
        )  # fmt: skip


def _rank_correlation(values: Floats, others: Floats) -> float | None:
    """Return Spearman's; None if there are too few values, or all are the same."""
    every = len(values) // _SAMPLE + 1
    values, others = values[::every], others[::every]
    if len(values) < 3 or not np.ptp(values) or not np.ptp(others):
        return None
    return float(stats.spearmanr(values, others).statistic)
