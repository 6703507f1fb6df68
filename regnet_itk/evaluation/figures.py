"""Pictures to judge a registration by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import OutputError
from regnet_itk.evaluation.metrics import normalised_correlation
from regnet_itk.geometry import FloatArray, Grid
from regnet_itk.images import Image
from regnet_itk.outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # ends of the patient's axes x, y, z: low, high
INK, _PAPER = "#1a1a1a", "white"
_PANEL_INCHES, _DPI = 2.6, 130


@dataclass(frozen=True)
class View:
    """One of the three planes in which patients are shown.

    Parameters
    ----------
    name : str
        "axial", "coronal" or "sagittal".
    across, right, down : int
        Patient axis (0 x, 1 y, 2 z) through the plane, to the right and downwards in the picture.
    down_sign : {1, -1}
        Whether the patient axis grows downwards or upwards.
    """

    name: str
    across: int
    right: int
    down: int
    down_sign: int

    @property
    def edge_letters(self) -> tuple[str, str, str, str]:
        """Letters at the left, right, top and bottom edge of the picture."""
        low, high = _LETTERS[self.down][:: self.down_sign]
        return (*_LETTERS[self.right], low, high)


#: Radiological convention: the patient's right at the left, anterior up or left, head up.
VIEWS = (View("axial", 2, 0, 1, 1), View("coronal", 1, 0, 2, -1), View("sagittal", 0, 1, 2, -1))


@dataclass(frozen=True)
class Plane:
    """A slice of a grid, turned as it is shown.

    Parameters
    ----------
    view : View
        What it shows.
    grid : Grid
        The grid that is sliced.
    axes : tuple of int
        Grid axis (0 x, 1 y, 2 z) through the plane, to the right, and downwards.
    flips : tuple of bool
        Whether the grid index falls to the right, and downwards.
    index : int
        Index of the slice.
    """

    view: View
    grid: Grid
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    index: int

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the slice in mm."""
        _, right, down = self.axes
        size, spacing = self.grid.size, self.grid.spacing
        return size[right] * spacing[right], size[down] * spacing[down]

    def slice(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the slice (rows, columns, ...) of an array (z, y, x, ...) on the grid, as it is shown."""
        across, right, down = self.axes
        cut = np.take(array, self.index, axis=2 - across)
        if right > down:  # axes of an array run the other way: the higher grid axis comes first
            cut = np.swapaxes(cut, 0, 1)
        return cut[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]

    def points(self) -> FloatArray:
        """Return the points (rows, columns, 3) of the slice in mm, LPS, as they are shown."""
        start = [0, 0, 0]
        size = list(self.grid.size)
        start[self.axes[0]], size[self.axes[0]] = self.index, 1
        plane = Plane(self.view, self.grid.crop(start, size), self.axes, self.flips, 0)
        return np.asarray(plane.slice(plane.grid.points()))

    def place(self, points: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return where points (n, 3) lie: (right, down) in mm from the corner of the picture, and mm off the plane."""
        index = self.grid.point_to_index(np.asarray(points, dtype=float).reshape(-1, 3))
        shown = []
        for axis, flip in zip(self.axes[1:], self.flips, strict=True):
            at = (self.grid.size[axis] - 0.5 - index[:, axis]) if flip else (index[:, axis] + 0.5)
            shown.append(at * self.grid.spacing[axis])
        off = (index[:, self.axes[0]] - self.index) * self.grid.spacing[self.axes[0]]
        return np.stack(shown, axis=-1), off


def planes_through(grid: Grid, mask: Image | None = None) -> tuple[Plane, Plane, Plane]:
    """Return the axial, coronal and sagittal slice near the middle of a mask, or through that of the grid.

    Parameters
    ----------
    grid : Grid
        Its axes may run along any patient axis, in any direction; each is given to the nearest patient axis.
    mask : Image, optional
        On the same grid. Without one, or with an empty one, the middle of the grid is taken.
    """
    from scipy.optimize import linear_sum_assignment

    _, grid_axis = linear_sum_assignment(-np.abs(grid.direction_matrix))
    middle = _middle(grid, mask)
    axial, coronal, sagittal = (_plane(view, grid, grid_axis.tolist(), middle) for view in VIEWS)
    return axial, coronal, sagittal


def _plane(view: View, grid: Grid, grid_axis: list[int], middle: Sequence[int]) -> Plane:
    across, right, down = (grid_axis[axis] for axis in (view.across, view.right, view.down))
    direction = grid.direction_matrix
    flips = direction[view.right, right] < 0, direction[view.down, down] * view.down_sign < 0
    return Plane(view, grid, (across, right, down), (bool(flips[0]), bool(flips[1])), middle[across])


def _middle(grid: Grid, mask: Image | None) -> list[int]:
    """Return the index (x, y, z) to slice at: of the wide slices of the mask, the one nearest to its middle."""
    if mask is None or not np.any(mask.array):
        return [n // 2 for n in grid.size]
    chosen = []
    for axis in range(3):
        area = np.count_nonzero(mask.array, axis=tuple(a for a in range(3) if a != 2 - axis))
        found = np.nonzero(area)[0]
        wide = np.nonzero(area >= 0.85 * area.max())[0]  # between two lungs there is little to see
        chosen.append(int(wide[np.argmin(np.abs(wide - (found[0] + found[-1]) / 2))]))
    return chosen


@dataclass(frozen=True)
class Shade:
    """How values become colours: those from `low` to `high`, with a colour map of matplotlib."""

    low: float
    high: float
    colours: str = "gray"
    unit: str = ""


@dataclass(frozen=True)
class _Column:
    """A column of the figure: its heading, one picture a plane, and its shade."""

    heading: str
    pictures: tuple[npt.NDArray[Any], ...]
    shade: Shade
    bar: bool = False
    landmarks: bool = False
    outline: bool = False


def registration_figure(
    fixed: Image,
    moving_before: Image | None,
    warped: Image,
    displacement: DisplacementField,
    path: str | Path,
    *,
    title: str = "",
    mask: Image | None = None,
    landmarks: FloatArray | None = None,
) -> None:
    """Draw a registration: three planes of the images, their differences and the length of the displacement.

    Rows are the axial, coronal and sagittal plane, as radiologists see them; columns are fixed, moving, warped,
    the differences fixed - moving and fixed - warped, and |u|.

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
    planes = planes_through(fixed.grid, mask)
    images = _Images(fixed, moving_before, warped, mask)
    columns = [*_columns(images, planes), _lengths(displacement, fixed.grid, planes)]
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
    fixed, after = images.fixed, _on_grid(images.after, images.fixed)
    before = None if images.before is None else _on_grid(images.before, fixed)
    shade, contrast = grey_shade(fixed), difference_shade(fixed, before or after)
    shown = [_Column("fixed", _cut(planes, fixed.array), shade, bar=True, landmarks=True)]
    differences = []
    for name, image in (("moving", before), ("warped", after)):
        if image is None:
            continue
        heading = f"fixed - {name}\ncorrelation {normalised_correlation(image, fixed, images.mask):.3f}"
        pairs = zip(_cut(planes, image.array), _cut(planes, fixed.array), strict=True)
        pictures = tuple(b.astype(float) - a.astype(float) for a, b in pairs)
        shown.append(_Column(name, _cut(planes, image.array), shade, landmarks=name == "warped"))
        differences.append(_Column(heading, pictures, contrast, bar=True))
    return [*shown, *differences]


def _cut(planes: tuple[Plane, ...], array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    return tuple(plane.slice(array) for plane in planes)


def _on_grid(image: Image, fixed: Image) -> Image:
    """Return the image on the grid of `fixed`; outside it has its lowest value."""
    if image.grid.is_close(fixed.grid, 1e-2):
        return Image(image.array, fixed.grid)
    return image.resampled(fixed.grid, default=float(image.array.min()))


def _lengths(displacement: DisplacementField, grid: Grid, planes: tuple[Plane, ...]) -> _Column:
    """Return |u| on the planes of the grid."""
    if displacement.grid.is_close(grid):
        vectors = _cut(planes, displacement.vectors)
    else:
        vectors = tuple(displacement.at(plane.points()) for plane in planes)
    lengths = tuple(np.linalg.norm(v, axis=-1) for v in vectors)
    highest = max(float(length.max()) for length in lengths)
    shade = Shade(0.0, highest if highest > 1e-6 else 1.0, "magma", "mm")
    return _Column("displacement", lengths, shade, bar=True, outline=True)


def is_hounsfield(image: Image) -> bool:
    """Say whether the values look like Hounsfield units: some are as low as those of air or lung."""
    return bool(image.array.min() < -500)


def grey_shade(image: Image) -> Shade:
    """Return the lung window for Hounsfield units, else the 1st to 99th percentile."""
    if is_hounsfield(image):
        return Shade(-1350.0, 150.0, unit="HU")
    low, high = np.percentile(image.array[::2, ::2, ::2].astype(float), (1, 99)).tolist()
    return Shade(low, high if high > low else low + 1.0)


def difference_shade(fixed: Image, other: Image) -> Shade:
    """Return the shade of differences, white at 0 and as dark on both sides."""
    if is_hounsfield(fixed):
        return Shade(-500.0, 500.0, "RdBu_r", "HU")
    values = other.array.astype(float) - fixed.array
    reach = float(np.percentile(np.abs(values), 99.5)) or 1.0
    return Shade(-reach, reach, "RdBu_r")


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
            _outline(axes, plane, overlay.mask)
    if column.bar:
        left, _, width, _ = layout.panel(number, 0)
        bar = figure.add_axes(layout.share((left + 0.2, 0.4, width - 0.4, 0.1)))
        drawn = figure.colorbar(shown, cax=bar, orientation="horizontal", ticks=MaxNLocator(4))
        drawn.ax.tick_params(labelsize=8, colors=INK)
        drawn.set_label(column.shade.unit, fontsize=8, color=INK, labelpad=1)


def draw_slice(axes: Axes, plane: Plane, picture: npt.NDArray[Any], shade: Shade, letters: bool) -> Any:
    """Draw one slice in mm, in the middle of its panel, and return what a colour bar needs.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    plane : Plane
    picture : ndarray, shape (rows, columns)
        As `plane.slice` gives it.
    shade : Shade
    letters : bool
        Whether to write the ends of the patient's axes at the edges.
    """
    from matplotlib.patheffects import Normal, Stroke

    width, height = plane.size_mm
    shown = axes.imshow(
        picture, cmap=shade.colours, vmin=shade.low, vmax=shade.high, extent=(0, width, height, 0),
        aspect="equal", interpolation="nearest",
    )  # fmt: skip
    axes.set_anchor("C")
    axes.set_axis_off()
    if letters:
        left, right, top, bottom = plane.view.edge_letters
        spots = ((0.04, 0.5, left), (0.96, 0.5, right), (0.5, 0.95, top), (0.5, 0.05, bottom))
        for x, y, letter in spots:
            axes.text(x, y, letter, transform=axes.transAxes, ha="center", va="center", fontsize=9,
                      color="#ffd75e", fontweight="bold",
                      path_effects=[Stroke(linewidth=2, foreground=INK), Normal()])  # fmt: skip
    return shown


def _mark(axes: Axes, plane: Plane, landmarks: FloatArray) -> None:
    """Draw the landmarks near the plane."""
    spots, off = plane.place(landmarks)
    near = spots[np.abs(off) <= 4.0]
    axes.plot(near[:, 0], near[:, 1], "o", markersize=4.5, markerfacecolor="none", markeredgecolor="#ffb000",
              markeredgewidth=0.9)  # fmt: skip


def _outline(axes: Axes, plane: Plane, mask: Image) -> None:
    """Draw the border of the mask."""
    inside = plane.slice(mask.array != 0).astype(float)
    if inside.any() and not inside.all() and min(inside.shape) > 1:
        width, height = plane.size_mm
        axes.contour(inside, levels=[0.5], colors="white", linewidths=0.7, origin="upper", extent=(0, width, height, 0))
