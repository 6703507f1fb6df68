"""Maps of ventilation and density over the fixed image, as a picture."""

from __future__ import annotations

import io

import numpy as np

from regnet_itk.data.image import Image
from regnet_itk.figures.canvas import LETTERS, new_figure
from regnet_itk.figures.slices import INK, Shade, choose_grey_shade, choose_planes, draw_slice
from regnet_itk.ventilation.maps import VentilationMaps

_PANEL_INCHES, _DPI = 2.4, 120
_CENTILE = 98.0
_TITLES = {
    "ventilation_jacobian.mha": ("ventilation from det J", "magma", "ΔV / V breathed out"),
    "ventilation_hu.mha": ("ventilation from HU", "magma", "ΔV / V breathed out"),
    "density_change.mha": ("change of density\n(moving - fixed)", "PuOr_r", "g/l"),
}


def draw_ventilation(fixed: Image, maps: VentilationMaps) -> bytes:
    """Return a picture (PNG): three planes of the fixed image and of each map, in the patient's directions.

    Parameters
    ----------
    fixed : Image
    maps : VentilationMaps
    """
    found = dict(maps.files())
    inside = np.zeros(fixed.grid.shape, dtype=bool)
    inside[maps.box] = maps.inside
    planes = choose_planes(fixed.grid, Image(inside, fixed.grid))
    grey = choose_grey_shade(fixed)
    shades = _shades(found)
    heights = [plane.size_mm[1] for plane in planes]
    widest = max(plane.size_mm[0] for plane in planes)
    figure = new_figure(_PANEL_INCHES * (1 + len(found)), _PANEL_INCHES * sum(heights) / widest + 0.9)
    axes = figure.subplots(3, 1 + len(found), squeeze=False, height_ratios=heights)
    for row, plane in zip(axes, planes, strict=True):
        picture = plane.slice(fixed.array)
        draw_slice(row[0], plane, picture, grey, letters=True)
        for axis, (name, image) in zip(row[1:], found.items(), strict=True):
            draw_slice(axis, plane, picture, grey, letters=False)
            shown = draw_slice(axis, plane, plane.slice(image.array), shades[name], letters=False)
            if plane is planes[-1]:
                bar = figure.colorbar(shown, ax=axes[:, list(found).index(name) + 1], location="bottom", shrink=0.8,
                                      aspect=25, pad=0.01)  # fmt: skip
                bar.ax.tick_params(labelsize=LETTERS - 1, colors=INK)
                bar.set_label(shades[name].unit, fontsize=LETTERS, color=INK)
    for axis, title in zip(axes[0], ("fixed", *(_TITLES[name][0] for name in found)), strict=True):
        axis.set_title(title, fontsize=LETTERS + 1, color=INK)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()


def _shades(found: dict[str, Image]) -> dict[str, Shade]:
    """Return how each map is shown: both kinds of ventilation alike, changes of density with white at none."""
    shades = {}
    of_ventilation = [name for name in found if name.startswith("ventilation")]
    values = np.concatenate([_known(found[name]) for name in of_ventilation])
    low, high = (float(v) for v in np.percentile(values, (100 - _CENTILE, _CENTILE)))
    for name in of_ventilation:
        shades[name] = Shade(min(low, 0.0), max(high, 0.05), _TITLES[name][1], _TITLES[name][2])
    for name in set(found) - set(of_ventilation):
        reach = max(float(np.percentile(np.abs(_known(found[name])), _CENTILE)), 5.0)
        shades[name] = Shade(-reach, reach, _TITLES[name][1], _TITLES[name][2])
    return shades


def _known(image: Image) -> np.ndarray:
    known: np.ndarray = image.array[np.isfinite(image.array)]
    return known if known.size else np.zeros(1, dtype=np.float32)
