"""Slices of images, drawn as a radiologist would see them: planes, grey levels, outlines, letters of the directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.anatomy.display import find_display
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # ends of the patient's axes x, y, z: low, high
INK = "#1a1a1a"


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

    def alone(self) -> Plane:
        """Return the same slice of a grid that has no other."""
        start = [0, 0, 0]
        size = list(self.grid.size)
        start[self.axes[0]], size[self.axes[0]] = self.index, 1
        return Plane(self.view, self.grid.crop(start, size), self.axes, self.flips, 0)

    def points(self) -> FloatArray:
        """Return the points (rows, columns, 3) of the slice in mm, LPS, as they are shown."""
        plane = self.alone()
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


def choose_planes(grid: Grid, mask: Image | None = None) -> tuple[Plane, Plane, Plane]:
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


def choose_grey_shade(image: Image) -> Shade:
    """Return the window of the image's modality, else the 1st to 99th percentile."""
    display = find_display(image)
    if display is not None:
        return Shade(*display.window, unit=display.unit)
    low, high = np.percentile(image.array[::2, ::2, ::2].astype(float), (1, 99)).tolist()
    return Shade(low, high if high > low else low + 1.0)


def choose_difference_shade(fixed: Image, other: Image) -> Shade:
    """Return the shade of differences, white at 0 and as dark on both sides."""
    display = find_display(fixed)
    if display is not None:
        return Shade(-display.difference, display.difference, "RdBu_r", display.unit)
    values = other.array.astype(float) - fixed.array
    reach = float(np.percentile(np.abs(values), 99.5)) or 1.0
    return Shade(-reach, reach, "RdBu_r")


def draw_outline(axes: Axes, plane: Plane, mask: Image) -> None:
    """Draw the border of a mask on its slice, if it has one there.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    plane : Plane
        Of the mask's grid.
    mask : Image
        Voxels other than 0 count.
    """
    inside = plane.slice(mask.array != 0).astype(float)
    if inside.any() and not inside.all() and min(inside.shape) > 1:
        width, height = plane.size_mm
        axes.contour(inside, levels=[0.5], colors="white", linewidths=0.7, origin="upper", extent=(0, width, height, 0))


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
