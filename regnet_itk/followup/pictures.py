"""Lesions as pictures: at both dates side by side, each in its own image, and both on the fixed image."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.data.grid import FloatArray, Grid, Triple
from regnet_itk.data.image import Image
from regnet_itk.figures.canvas import LETTERS, new_figure
from regnet_itk.figures.slices import INK, Shade, choose_grey_shade
from regnet_itk.followup.findings import Finding
from regnet_itk.followup.lesions import Lesion
from regnet_itk.followup.visits import Role, Visits
from regnet_itk.transforms.chain import TransformChain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PIXELS = 160
_LEAST_WIDTH = 40.0  # mm
_AROUND = 3.2  # diameters
_PANEL_INCHES, _DPI = 2.1, 110
_ROLES: tuple[Role, Role] = ("fixed", "moving")
_BASELINE, _FOLLOW_UP = "#56b4e9", "#ffb000"  # told apart by the colour-blind


@dataclass(frozen=True, eq=False)
class Scans:
    """Both images and the transform between them.

    Parameters
    ----------
    fixed, moving : Image
    chain : TransformChain
        T, fixed to moving.
    """

    fixed: Image
    moving: Image
    chain: TransformChain

    def image(self, role: Role) -> Image:
        """Return the fixed or the moving image."""
        return self.fixed if role == "fixed" else self.moving

    @cached_property
    def shades(self) -> dict[Role, Shade]:
        """How both images are shown."""
        return {role: choose_grey_shade(self.image(role)) for role in _ROLES}


@dataclass(frozen=True, eq=False)
class _Panel:
    """A part of an axial plane of the patient, around a place."""

    grid: Grid
    picture: FloatArray
    shade: Shade
    lesions: tuple[tuple[Lesion, FloatArray, str], ...]  # with the panel's points in the lesion's space, and a colour
    cross: FloatArray | None = None


def draw_findings(findings: Sequence[Finding], visits: Visits, scans: Scans) -> bytes:
    """Return a picture (PNG) of findings, one a row: baseline, follow-up, and the warped image with both outlines.

    Parameters
    ----------
    findings : sequence of Finding
    visits : Visits
    scans : Scans
    """
    return _figure(findings, list(_rows(findings, visits, scans)), visits)


def draw_each(findings: Sequence[Finding], visits: Visits, scans: Scans) -> Iterator[bytes]:
    """Yield a picture (PNG) of each finding, as `draw_findings` draws one; images are prepared once for all."""
    for finding, panels in zip(findings, _rows(findings, visits, scans), strict=True):
        yield _figure([finding], [panels], visits)


def _figure(findings: Sequence[Finding], rows: Sequence[tuple[_Panel | None, ...]], visits: Visits) -> bytes:
    figure = new_figure(3 * _PANEL_INCHES, len(rows) * (_PANEL_INCHES + 0.25))
    axes = figure.subplots(len(rows), 3, squeeze=False)
    follow_up = "moving" if visits.baseline == "fixed" else "fixed"
    headings = (f"baseline ({visits.baseline})", f"follow-up ({follow_up})", "both, on the fixed image")
    for along, (finding, panels) in zip(axes, zip(findings, rows, strict=True), strict=True):
        for axis, panel, heading in zip(along, panels, headings, strict=True):
            _draw(axis, panel)
            axis.set_title(heading, fontsize=LETTERS, color=INK)
        along[0].text(0.02, 0.98, f"{finding.name}: {finding.status}", transform=along[0].transAxes, va="top",
                      fontsize=LETTERS, color="white", bbox={"facecolor": INK, "pad": 1.5, "linewidth": 0})  # fmt: skip
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()


def _rows(findings: Sequence[Finding], visits: Visits, scans: Scans) -> Iterator[tuple[_Panel | None, ...]]:
    """Yield the three panels of each finding; None for a place that is out of view."""
    follow_up: Role = "moving" if visits.baseline == "fixed" else "fixed"
    native = {role: _native(findings, visits, scans, role) for role in _ROLES}
    grids = [None if panel is None else panel.grid for panel in native["fixed"]]
    warped = _sampled(scans.moving, grids, scans.chain.to_sitk(scans.fixed.grid))
    for k, picture in enumerate(warped):
        panels = {role: native[role][k] for role in _ROLES}
        yield panels[visits.baseline], panels[follow_up], _common(findings[k], visits, scans, panels["fixed"], picture)


def _native(findings: Sequence[Finding], visits: Visits, scans: Scans, role: Role) -> list[_Panel | None]:
    """Return the panel of each finding in the fixed or the moving image, as that image is."""
    image = scans.image(role)
    places = [_place(finding, visits, role) for finding in findings]
    seen = [place if place is not None and image.grid.contains(place) else None for place in places]
    grids = [_grid(place, _width(finding)) for place, finding in zip(seen, findings, strict=True)]
    panels: list[_Panel | None] = []
    for finding, place, grid, picture in zip(findings, seen, grids, _sampled(image, grids), strict=True):
        if grid is None:
            panels.append(None)
            continue
        lesions, points = _lesions(finding, visits, role), grid.points()[0]
        shown = tuple((lesion, points, _colour(visits, role)) for lesion in lesions)
        panels.append(_Panel(grid, picture, scans.shades[role], shown, None if lesions else place))
    return panels


def _common(finding: Finding, visits: Visits, scans: Scans, fixed: _Panel | None, picture: FloatArray) -> _Panel | None:
    """Return the panel of the warped moving image on the plane of the fixed one, with the lesions of both."""
    if fixed is None:
        return None
    points = fixed.grid.points()[0]
    there = {"fixed": points, "moving": scans.chain.map_points(points)}
    shown = tuple(
        (lesion, there[role], _colour(visits, role)) for role in _ROLES for lesion in _lesions(finding, visits, role)
    )
    return _Panel(fixed.grid, picture, scans.shades["moving"], shown)


def _colour(visits: Visits, role: Role) -> str:
    return _BASELINE if visits.baseline == role else _FOLLOW_UP


def _lesions(finding: Finding, visits: Visits, role: Role) -> tuple[Lesion, ...]:
    return finding.baseline if visits.baseline == role else finding.follow_up


def _place(finding: Finding, visits: Visits, role: Role) -> FloatArray | None:
    """Return the middle of the lesions of an image, or where the transform says that they would lie."""
    lesions = _lesions(finding, visits, role)
    if not lesions:
        return finding.group.elsewhere
    return np.mean([lesion.centre for lesion in lesions], axis=0)


def _width(finding: Finding) -> float:
    sizes = [lesion.longest for lesion in (*finding.baseline, *finding.follow_up) if lesion.longest is not None]
    apart = [np.ptp([lesion.centre for lesion in side], axis=0).max() for side in (finding.baseline, finding.follow_up)
             if side]  # fmt: skip
    return max(_LEAST_WIDTH, _AROUND * max(sizes, default=0.0), max(apart) + _LEAST_WIDTH)


def _grid(place: FloatArray | None, width: float) -> Grid | None:
    if place is None:
        return None
    pixel = width / _PIXELS
    x, y, z = place.tolist()
    first: Triple = (x - (width - pixel) / 2, y - (width - pixel) / 2, z)
    return Grid((_PIXELS, _PIXELS, 1), (pixel, pixel, 1.0), first)


def _sampled(image: Image, grids: Sequence[Grid | None], transform: object = None) -> Iterator[FloatArray]:
    """Yield the values (rows, columns) of an image on planes; of none where there is none."""
    there = (grid for grid in grids if grid is not None)
    found = image.resampled_in_parts(there, transform, default=float(image.array.min()))
    for grid in grids:
        yield np.empty(0) if grid is None else next(found).array[0]


def _draw(axes: Axes, panel: _Panel | None) -> None:
    from matplotlib.patheffects import Normal, Stroke

    axes.set_xticks([])
    axes.set_yticks([])
    if panel is None:
        axes.set_facecolor("#dddddd")
        axes.set_box_aspect(1)
        axes.text(0.5, 0.5, "out of view", transform=axes.transAxes, ha="center", va="center", fontsize=LETTERS)
        return
    x, y, _ = panel.grid.origin
    pixel, width = panel.grid.spacing[0], panel.grid.spacing[0] * panel.grid.size[0]
    left, top = x - pixel / 2, y - pixel / 2
    extent = (left, left + width, top + width, top)  # the patient's right is at the left, anterior is up
    axes.imshow(panel.picture, cmap=panel.shade.colours, vmin=panel.shade.low, vmax=panel.shade.high, extent=extent)
    for lesion, points, colour in panel.lesions:
        if lesion.solid is None:
            away = np.linalg.norm(points - lesion.centre, axis=-1)
            row, column = np.unravel_index(int(away.argmin()), away.shape)
            sign = "+" if colour == _BASELINE else "x"  # so that both can be seen at one place
            axes.plot(x + column * pixel, y + row * pixel, sign, color=colour, markersize=11, markeredgewidth=2)
            continue
        depth = lesion.solid.at(points)
        if depth.min() < 0 < depth.max():
            axes.contour(depth, levels=[0.0], colors=colour, linewidths=1.1, origin="upper", extent=extent)
    if panel.cross is not None:
        axes.plot(*panel.cross[:2], "x", color="white", markersize=8)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    bar = 10.0  # mm
    axes.plot(
        [left + 0.05 * width, left + 0.05 * width + bar], [top + 0.95 * width] * 2, color="white", linewidth=2,
        path_effects=[Stroke(linewidth=4, foreground=INK), Normal()],
    )  # fmt: skip
