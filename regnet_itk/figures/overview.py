"""Pictures to judge a registration by eye."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import OutputError
from regnet_itk.figures.slices import (
    INK,
    Plane,
    Shade,
    choose_difference_shade,
    choose_grey_shade,
    choose_planes,
    draw_outline,
    draw_slice,
)
from regnet_itk.metrics.measures import normalised_correlation
from regnet_itk.outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER = "white"
_PANEL_INCHES, _DPI = 2.6, 130
_SAME = 1e-2  # mm that voxels of the same grid may lie apart
_FAR_OFF = 3.0  # mm of expected error, the least at the bright end
_COMPARED = 3_000_000  # voxels at most by which images are compared: of a large one those on a lattice


@dataclass(frozen=True)
class _Column:
    """A column of the figure: its heading, one picture a plane, and its shade."""

    heading: str
    pictures: tuple[npt.NDArray[Any], ...]
    shade: Shade
    bar: bool = False
    landmarks: bool = False
    outline: bool = False


def draw_registration(
    fixed: Image,
    moving_before: Image | None,
    warped: Image,
    displacement: DisplacementField,
    path: str | Path,
    *,
    title: str = "",
    mask: Image | None = None,
    landmarks: FloatArray | None = None,
    expected_error: Callable[[FloatArray], FloatArray] | None = None,
) -> None:
    """Draw a registration: three planes of the images, their differences and the length of the displacement.

    Rows are the axial, coronal and sagittal plane, as radiologists see them; columns are fixed, moving, warped,
    the differences fixed - moving and fixed - warped, |u|, and the expected error, if it is known.

    Parameters
    ----------
    fixed : Image
        The fixed image.
    moving_before : Image or None
        The moving image; put on the fixed grid if it lies on another. None leaves its two columns out.
    warped : Image
        I_M(T(x)); put on the fixed grid if it lies on another.
    displacement : DisplacementField
        u in mm, on any grid.
    path : str or Path
        The file (.png; .pdf and .svg too); written whole or not at all.
    title : str
        A heading.
    mask : Image, optional
        On the fixed grid: where the planes are laid and the correlation is taken.
    landmarks : ndarray, shape (n, 3), optional
        Points of the fixed image in mm, LPS; those within 4 mm of a plane are drawn.

    expected_error : callable, optional
        Takes points (.., 3) of the fixed image in mm, LPS; returns the expected error (..) in mm. NaN is left white.

    Raises
    ------
    OutputError
        If the file cannot be written, or its suffix is unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("png", "pdf", "svg"):
        raise OutputError(f"cannot draw '{path}': name a .png, .pdf or .svg file")
    planes = choose_planes(fixed.grid, mask)
    images = _Images(fixed, moving_before, warped, mask)
    columns = [*_columns(images, planes), _lengths(displacement, fixed.grid, planes)]
    if expected_error is not None:
        columns.append(_errors(expected_error, planes))
    figure = Figure(facecolor=_PAPER)
    FigureCanvasAgg(figure)
    layout = _Layout(planes, len(columns), top=0.9 if title else 0.6)
    _lay_out(figure, layout, columns, title, _Overlay(landmarks, mask))
    write_whole(path, lambda part: figure.savefig(part, format=suffix, dpi=_DPI))


@dataclass(frozen=True)
class _Images:
    """The images of a figure, and where their correlation is taken."""

    fixed: Image
    before: Image | None
    after: Image
    mask: Image | None


def _columns(images: _Images, planes: tuple[Plane, ...]) -> list[_Column]:
    """Return the columns of the images and their differences, from left to right."""
    fixed, mask = images.fixed, images.mask
    named = {name: image for name, image in (("moving", images.before), ("warped", images.after)) if image is not None}
    thin = _thinned(fixed.grid, mask)
    compared = {name: _on_grid(image, thin) for name, image in named.items()}
    thin_fixed, thin_mask = _on_grid(fixed, thin), None if mask is None else _on_grid(mask, thin)
    shade = choose_grey_shade(fixed)
    contrast = choose_difference_shade(thin_fixed, next(iter(compared.values())))
    shown = [_Column("fixed", _cut(planes, fixed), shade, bar=True, landmarks=True)]
    differences = []
    for name, image in named.items():
        heading = f"fixed - {name}\ncorrelation {normalised_correlation(compared[name], thin_fixed, thin_mask):.3f}"
        cut = _cut(planes, image)
        pictures = tuple(b.astype(float) - a.astype(float) for a, b in zip(cut, shown[0].pictures, strict=True))
        shown.append(_Column(name, cut, shade, landmarks=name == "warped"))
        differences.append(_Column(heading, pictures, contrast, bar=True))
    return [*shown, *differences]


def _thinned(grid: Grid, mask: Image | None) -> Grid:
    """Return the voxels by which images are compared: all, if a mask shows none of fewer."""
    step = math.ceil((math.prod(grid.size) / _COMPARED) ** (1 / 3))
    shown = mask is None or bool(np.any(mask.array[::step, ::step, ::step]))
    return grid.every(step) if shown else grid


def _cut(planes: tuple[Plane, ...], image: Image) -> tuple[npt.NDArray[Any], ...]:
    """Return the slices of an image, whose own grid may be another one."""
    if image.grid.is_close(planes[0].grid, _SAME):
        return tuple(plane.slice(image.array) for plane in planes)
    return tuple(plane.slice(_on_grid(image, plane.grid).array) for plane in map(Plane.alone, planes))


def _on_grid(image: Image, grid: Grid) -> Image:
    """Return the image on a grid, or on every so-manyth of its own voxels; outside it has its lowest value."""
    step = max(1, round(grid.spacing[0] / image.grid.spacing[0]))
    if image.grid.every(step).is_close(grid, _SAME):
        return Image(image.array[::step, ::step, ::step], grid)
    return image.resampled(grid, default=float(image.array.min()))


def _lengths(displacement: DisplacementField, grid: Grid, planes: tuple[Plane, ...]) -> _Column:
    """Return |u| on the planes of the grid."""
    if displacement.grid.is_close(grid):
        vectors = tuple(plane.slice(displacement.vectors) for plane in planes)
    else:
        vectors = tuple(displacement.at(plane.points()) for plane in planes)
    lengths = tuple(np.linalg.norm(v, axis=-1) for v in vectors)
    highest = max(float(length.max()) for length in lengths)
    shade = Shade(0.0, highest if highest > 1e-6 else 1.0, "magma", "mm")
    return _Column("displacement", lengths, shade, bar=True, outline=True)


def _errors(expected_error: Callable[[FloatArray], FloatArray], planes: tuple[Plane, ...]) -> _Column:
    """Return the expected error on the planes; 3 mm or more is bright whatever else there is."""
    pictures = tuple(expected_error(plane.points()) for plane in planes)
    highest = max((float(np.nanmax(picture)) for picture in pictures if np.isfinite(picture).any()), default=0.0)
    return _Column("expected error", pictures, Shade(0.0, max(highest, _FAR_OFF), "magma", "mm"), bar=True)


@dataclass(frozen=True)
class _Overlay:
    """What is drawn over the pictures: points of the fixed image (n, 3) in mm, and the mask."""

    landmarks: FloatArray | None
    mask: Image | None


@dataclass(frozen=True)
class _Layout:
    """Where the panels lie, in inches; all have the same scale."""

    planes: tuple[Plane, ...]
    count: int
    left: float = 0.3
    top: float = 0.9
    bottom: float = 0.62
    gap: float = 0.06

    @property
    def scale(self) -> float:
        """Inches a mm."""
        return _PANEL_INCHES / max(plane.size_mm[0] for plane in self.planes)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure."""
        rows = sum(plane.size_mm[1] for plane in self.planes) * self.scale + self.gap * (len(self.planes) - 1)
        return self.left + self.count * (_PANEL_INCHES + self.gap) + self.gap, self.top + rows + self.bottom

    def panel(self, column: int, row: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height of a panel."""
        heights = [plane.size_mm[1] * self.scale for plane in self.planes[: row + 1]]
        y = self.size[1] - self.top - sum(heights) - row * self.gap
        return self.left + column * (_PANEL_INCHES + self.gap), y, _PANEL_INCHES, heights[-1]

    def share(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return a box in inches as shares of the figure."""
        (width, height), (x, y, w, h) = self.size, box
        return x / width, y / height, w / width, h / height


def _lay_out(figure: Figure, layout: _Layout, columns: list[_Column], title: str, overlay: _Overlay) -> None:
    """Place all panels, with headings above and colour bars below."""
    figure.set_size_inches(layout.size)
    if title:
        figure.text(0.5, 1 - 0.2 / layout.size[1], title, ha="center", va="center", fontsize=13, color=INK)
    for row, plane in enumerate(layout.planes):
        _, y, _, h = layout.share(layout.panel(0, row))
        figure.text(0.16 / layout.size[0], y + h / 2, plane.view.name, rotation=90, ha="center", va="center",
                    fontsize=10, color=INK)  # fmt: skip
    for number, column in enumerate(columns):
        _fill(figure, layout, number, column, overlay)


def _fill(figure: Figure, layout: _Layout, number: int, column: _Column, overlay: _Overlay) -> None:
    """Draw one column."""
    from matplotlib.ticker import MaxNLocator

    x, y, w, h = layout.share(layout.panel(number, 0))
    figure.text(x + w / 2, y + h + 0.06 / layout.size[1], column.heading, ha="center", va="bottom", fontsize=10,
                color=INK, linespacing=1.3)  # fmt: skip
    for row, (plane, picture) in enumerate(zip(layout.planes, column.pictures, strict=True)):
        axes = figure.add_axes(layout.share(layout.panel(number, row)))
        shown = draw_slice(axes, plane, picture, column.shade, letters=number == 0)
        if overlay.landmarks is not None and column.landmarks:
            _mark(axes, plane, overlay.landmarks)
        if overlay.mask is not None and column.outline:
            draw_outline(axes, plane, overlay.mask)
    if column.bar:
        left, _, width, _ = layout.panel(number, 0)
        bar = figure.add_axes(layout.share((left + 0.2, 0.4, width - 0.4, 0.1)))
        drawn = figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=MaxNLocator(4))
        drawn.ax.tick_params(labelsize=8, colors=INK)
        drawn.set_label(column.shade.unit, fontsize=8, color=INK, labelpad=1)


def _mark(axes: Axes, plane: Plane, landmarks: FloatArray) -> None:
    """Draw the landmarks near the plane."""
    spots, off = plane.place(landmarks)
    near = spots[np.abs(off) <= 4.0]
    axes.plot(near[:, 0], near[:, 1], "o", markersize=4.5, markerfacecolor="none", markeredgecolor="#ffb000",
              markeredgewidth=0.9)  # fmt: skip
