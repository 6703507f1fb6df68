"""The paper's figures 2 to 5, of a comparison: displacements, landmark distances, and images with their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.anatomy.hounsfield import AIR
from regnet_itk.comparison.pairs import Pair
from regnet_itk.comparison.records import as_array
from regnet_itk.comparison.run import Comparison, Method
from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.image_files import read_image
from regnet_itk.figures.slices import (
    INK,
    Plane,
    Shade,
    difference_shade,
    draw_outline,
    draw_slice,
    grey_shade,
    planes_through,
)
from regnet_itk.metrics.measures import normalised_correlation
from regnet_itk.outputs import write_whole
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_PAIRS = 3
"""Pairs in the figures of images, at most."""

_DPI = 160
_SIZE = 8.5  # of letters, in points
_POINTS, _LINE = "#0072B2", "#D55E00"  # of Okabe and Ito's colours: they differ for all eyes, and in grey
_DOTS: dict[str, Any] = {"color": _POINTS, "markersize": 3.5, "alpha": 0.55, "markeredgewidth": 0}
_CORONAL = 1
_MARGIN = 25.0  # mm around the mask


@dataclass(frozen=True)
class Drawn:
    """A figure as files.

    Parameters
    ----------
    title, caption : str
    png, svg : Path
    """

    title: str
    caption: str
    png: Path
    svg: Path


def write_figures(comparison: Comparison, folder: Path) -> list[Drawn]:
    """Draw the figures for which the pairs have what is needed, as PNG and SVG.

    Parameters
    ----------
    comparison : Comparison
    folder : Path
        Must exist. ``fig2_displacement``, ``fig3_landmarks``, ``fig4_capture_range`` and ``fig5_images`` are written
        there, those of images for the first pair of each group, three at most.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    examples = [_Example.read(comparison, pair) for pair in _shown(comparison)]
    landmarks = any(len(comparison.differences(pair, comparison.methods[0])) for pair in comparison.pairs)
    moved = [method.name for method in _registered(comparison)]
    drawn = []
    if examples and moved:
        caption = (
            "Length of the displacement, in mm, beyond that of the first stage, on a coronal slice: the true one where "
            "it is known, and each method's. The line is the border of the fixed mask."
        )
        figure = _displacements(examples, moved)
        drawn.append(_write(figure, folder / "fig2_displacement", "Fig. 2: displacements", caption))
    if landmarks:
        limit = f"{comparison.capture_range:g} mm"
        caption = (
            "Distances of all landmarks after registration. Boxes: quartiles and median; whiskers: 5th and 95th "
            f"percentile. Below, each landmark after a method against after {comparison.reference}; below the diagonal "
            f"it came nearer. The dotted line is the capture range of {limit}."
        )
        drawn.append(_write(_all_landmarks(comparison), folder / "fig3_landmarks", "Fig. 3: all landmarks", caption))
        caption = (
            f"The landmarks within {limit} after {comparison.reference}: their distances, and the predicted against "
            f"the true displacement beyond {comparison.reference} along each axis."
        )
        figure = _captured_landmarks(comparison)
        drawn.append(_write(figure, folder / "fig4_capture_range", "Fig. 4: landmarks in the capture range", caption))
    if examples:
        caption = (
            "Results (upper rows) and the differences fixed - result (lower rows) on a coronal slice; r is the "
            "correlation with the fixed image on this slice, inside the mask if there is one."
        )
        drawn.append(_write(_images(examples), folder / "fig5_images", "Fig. 5: results and differences", caption))
    return drawn


def _write(figure: Figure, base: Path, title: str, caption: str) -> Drawn:
    files = [base.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        write_whole(file, lambda part: figure.savefig(part, dpi=_DPI))
    return Drawn(title, caption, *files)


def _figure(width: float, height: float) -> Figure:
    """Return a figure (inches) that no window belongs to, and whose panels find their places by themselves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _label(method: Method) -> str:
    """Return a name broken into lines that fit below a box."""
    return method.name.replace("+", " +\n").replace("_", "_\n" if len(method.name) > 14 else "_")


# Landmarks


def _registered(comparison: Comparison) -> list[Method]:
    """Return the methods that go beyond the reference stage."""
    return [method for method in comparison.methods if method.stages and method.labels != (comparison.reference,)]


def _distances(comparison: Comparison, method: Method, limit: float | None) -> FloatArray:
    found = [comparison.differences(pair, method, limit) for pair in comparison.pairs]
    return np.asarray(np.linalg.norm(np.concatenate(found), axis=1))


def _all_landmarks(comparison: Comparison) -> Figure:
    methods = _registered(comparison)
    columns = min(3, max(1, len(methods)))
    rows = -(-len(methods) // columns)
    figure = _figure(7.2, 2.9 + 2.4 * rows)
    heights = [2.9, 2.4 * rows] if rows else [2.9]
    upper, *lower = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _boxes(upper.subplots(), comparison, comparison.methods, None)
    reach = _reach([_distances(comparison, method, None) for method in comparison.methods[1:]])
    for part in lower:
        panels = part.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(methods) :]:
            axes.set_axis_off()
        for axes, method in zip(panels, methods, strict=False):
            _before_after(axes, comparison, method, reach)
    return figure


def _boxes(axes: Axes, comparison: Comparison, methods: Sequence[Method], limit: float | None) -> None:
    lengths = [_distances(comparison, method, limit) for method in methods]
    axes.boxplot(
        lengths, whis=(5, 95), widths=0.6, patch_artist=True, boxprops={"facecolor": "#BFD9EA", "edgecolor": INK},
        medianprops={"color": _LINE, "linewidth": 1.6}, flierprops={"marker": ".", "markersize": 2.5, "alpha": 0.6},
    )  # fmt: skip
    axes.set_xticks(range(1, len(methods) + 1), [_label(method) for method in methods], fontsize=_SIZE - 0.5)
    axes.set_ylabel("distance, mm", fontsize=_SIZE)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="y", labelsize=_SIZE)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    count = max(len(found) for found in lengths)
    axes.set_title(f"{count} landmarks" + (f" within {limit:g} mm" if limit else ""), fontsize=_SIZE + 0.5)


def _reach(values: Sequence[FloatArray]) -> float:
    """Return where the axes of scatter plots end."""
    return 1.05 * max((float(value.max()) for value in values if len(value)), default=1.0) or 1.0


def _before_after(axes: Axes, comparison: Comparison, method: Method, reach: float) -> None:
    """Draw the distance of each landmark after a method against that after the reference stage."""
    for pair in comparison.pairs:
        after, record = comparison.differences(pair, method), comparison.reference_record(pair)
        if len(after) and record is not None:
            lengths = [np.linalg.norm(found, axis=1) for found in (as_array(record.measures.differences), after)]
            axes.plot(*lengths, ".", **_DOTS)
    axes.axvline(comparison.capture_range, color=INK, linewidth=0.9, linestyle=":")
    _diagonal(axes, 0.0, reach)
    _name_axes(axes, method.name, f"after {comparison.reference}, mm", "after, mm")


def _diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color=_LINE, linewidth=1.0, linestyle="--")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def _name_axes(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=_SIZE)
    axes.set_xlabel(across, fontsize=_SIZE)
    axes.set_ylabel(up, fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 0.5)


def _captured_landmarks(comparison: Comparison) -> Figure:
    methods = _registered(comparison)
    columns = 1 if len(methods) <= 4 else 2  # so that they fit on a page
    rows = -(-len(methods) // columns)
    heights = [2.9, *[2.2 if columns == 1 else 1.65] * rows]
    figure = _figure(7.2, sum(heights))
    upper, *lower = figure.subfigures(1 + rows, 1, height_ratios=heights, squeeze=False)[:, 0]
    _boxes(upper.subplots(), comparison, comparison.methods, comparison.capture_range)
    found = [_displacements_of_landmarks(comparison, method) for method in methods]
    reach = _reach([np.abs(values) for both in found for values in both])
    parts = [part for row in lower for part in row.subfigures(1, columns, squeeze=False)[0]]
    for part, method, (true, predicted) in zip(parts, methods, found, strict=False):
        for axis, axes in enumerate(part.subplots(1, 3)):
            axes.plot(true[:, axis], predicted[:, axis], ".", **_DOTS)
            _diagonal(axes, -reach, reach)
            axes.locator_params(nbins=4)
            title = method.name if axis == 1 else ""  # above the middle one
            _name_axes(axes, title, f"true {'xyz'[axis]}, mm", "predicted, mm" if axis == 0 else "")
    return figure


def _displacements_of_landmarks(comparison: Comparison, method: Method) -> tuple[FloatArray, FloatArray]:
    """Return y_i - A(x_i) and T(x_i) - A(x_i) (n, 3) in mm, where A is the reference stage."""
    true, predicted = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for pair in comparison.pairs:
        outcome, record = comparison.outcome(pair, method), comparison.reference_record(pair)
        if outcome is None or record is None:
            continue
        start = as_array(record.measures.mapped)
        error = as_array(record.measures.differences)
        near = np.linalg.norm(error, axis=1) <= comparison.capture_range
        true.append(-error[near])
        predicted.append((as_array(outcome.last.measures.mapped) - start)[near])
    return np.concatenate(true), np.concatenate(predicted)


# Images


def _shown(comparison: Comparison) -> list[Pair]:
    """Return the first pair of each group on which something succeeded beyond the reference stage."""
    found: dict[str, Pair] = {}
    for pair in comparison.pairs:
        if any(comparison.outcome(pair, method) for method in comparison.methods[1:]):
            found.setdefault(pair.group, pair)
    return list(found.values())[:SHOWN_PAIRS]


@dataclass(frozen=True)
class _Example:
    """A coronal slice of a pair, as it is shown.

    Parameters
    ----------
    pair : Pair
    fixed, moving : Image
        `fixed` is cut to the surroundings of its mask.
    mask : Image or None
    plane : Plane
        Of `fixed`.
    reference : TransformChain
        The first stage.
    chains : dict
        Of each method that succeeded, by its name.
    truth : DisplacementField or None
    """

    pair: Pair
    fixed: Image
    moving: Image
    mask: Image | None
    plane: Plane
    reference: TransformChain
    chains: dict[str, TransformChain]
    truth: DisplacementField | None

    @classmethod
    def read(cls, comparison: Comparison, pair: Pair) -> _Example:
        fixed, moving = read_image(pair.fixed, "fixed image"), read_image(pair.moving, "moving image")
        mask = read_image(pair.fixed_mask, "fixed mask") if pair.fixed_mask else None
        found = ((method.name, comparison.outcome(pair, method)) for method in comparison.methods)
        chains = {name: outcome.chain() for name, outcome in found if outcome is not None}
        first = comparison.outcomes[pair.name, comparison.methods[1].name]
        record = comparison.reference_record(pair)
        folder = first.folder.parent / comparison.reference
        reference = read_chain(folder / record.transform) if record is not None else TransformChain()
        if mask is not None:
            mask = Image((mask.array != 0).astype(np.uint8), fixed.grid)
            fixed, mask = _surroundings(fixed, mask)
        truth = read_displacement_field(pair.displacement) if pair.displacement else None
        plane = planes_through(fixed.grid, mask)[_CORONAL]
        return cls(pair, fixed, moving, mask, plane, reference, chains, truth)

    @property
    def slice_grid(self) -> Grid:
        """The grid of the slice, one voxel thick."""
        start, size = [0, 0, 0], list(self.fixed.grid.size)
        start[self.plane.axes[0]], size[self.plane.axes[0]] = self.plane.index, 1
        return self.fixed.grid.crop(start, size)

    def warped(self, chain: TransformChain) -> FloatArray:
        """Return the slice (rows, columns) of the warped moving image."""
        default = float(max(self.moving.array.min(), AIR))
        found = self.moving.resampled(self.slice_grid, chain.to_sitk(self.fixed.grid), default=default)
        return np.asarray(replace(self.plane, grid=self.slice_grid, index=0).slice(found.array))

    def correlation(self, picture: FloatArray) -> float:
        """Return the correlation of a slice (rows, columns) with that of the fixed image, inside the mask."""
        inside = None if self.mask is None else self.plane.slice(self.mask.array)
        fixed = _as_image(self.plane.slice(self.fixed.array).astype(float))
        return normalised_correlation(_as_image(picture), fixed, None if inside is None else _as_image(inside))

    def lengths(self, chain: TransformChain | None) -> FloatArray:
        """Return |T(x) - A(x)| in mm on the slice (rows, columns); of the truth if there is no chain."""
        points = self.plane.points()
        start = self.reference.map_points(points)
        ends = chain.map_points(points) if chain is not None else points + self._true(points)
        return np.asarray(np.linalg.norm(ends - start, axis=-1))

    def _true(self, points: FloatArray) -> FloatArray:
        assert self.truth is not None
        return self.truth.at(points)


def _surroundings(fixed: Image, mask: Image) -> tuple[Image, Image]:
    """Return the parts of an image and its mask around the mask."""
    box = bounding_box(mask.array != 0, [round(_MARGIN / spacing) for spacing in reversed(mask.grid.spacing)])
    grid = fixed.grid.part(box)
    return Image(fixed.array[box], grid), Image(mask.array[box], grid)


def _panels(examples: Sequence[_Example], columns: int, rows_each: int) -> tuple[Figure, Any]:
    """Return a figure with a sub-figure for each example, all panels as wide as a page allows."""
    width = max(7.2, 1.35 * columns)
    heights = []
    for example in examples:
        across, down = example.plane.size_mm
        heights.append(rows_each * width / columns * down / across + 0.55)
    figure = _figure(width, sum(heights))
    return figure, figure.subfigures(len(examples), 1, height_ratios=heights, squeeze=False)[:, 0]


def _displacements(examples: Sequence[_Example], names: list[str]) -> Figure:
    """Draw the displacements of the named methods, after the true ones."""
    known = any(example.truth is not None for example in examples)
    figure, parts = _panels(examples, len(names) + known, 1)
    for part, example in zip(parts, examples, strict=True):
        pictures = {"true": example.lengths(None)} if example.truth is not None else {}
        pictures |= {name: example.lengths(example.chains[name]) for name in names if name in example.chains}
        highest = max((float(np.percentile(picture, 99.5)) for picture in pictures.values()), default=1.0)
        shade = Shade(0.0, highest if highest > 1e-6 else 1.0, "magma")
        panels = part.subplots(1, len(names) + known, squeeze=False)[0]
        part.suptitle(example.pair.name, fontsize=_SIZE + 0.5)
        shown = None
        for axes, name in zip(panels, [*(["true"] if known else []), *names], strict=False):
            axes.set_axis_off()
            if name in pictures:
                shown = draw_slice(axes, example.plane, pictures[name], shade, letters=axes is panels[0])
                if example.mask is not None:
                    draw_outline(axes, example.plane, example.mask)
            axes.set_title(_heading(name), fontsize=_SIZE - 1)
        if shown is not None:
            _bar(part, shown, panels, "mm")
    return figure


def _heading(name: str) -> str:
    return name.replace("+", " +\n")


def _bar(part: Any, shown: Any, panels: Any, unit: str) -> None:
    bar = part.colorbar(shown, ax=list(panels), shrink=0.85, aspect=18, pad=0.01)
    bar.set_label(unit, fontsize=_SIZE)
    bar.ax.tick_params(labelsize=_SIZE - 0.5)


def _images(examples: Sequence[_Example]) -> Figure:
    """Draw the images before and after each method, with their differences from the fixed image."""
    names = list(dict.fromkeys(name for example in examples for name in example.chains))
    figure, parts = _panels(examples, 1 + len(names), 2)
    for part, example in zip(parts, examples, strict=True):
        part.suptitle(example.pair.name, fontsize=_SIZE + 0.5)
        panels = part.subplots(2, 1 + len(names), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        fixed = example.plane.slice(example.fixed.array).astype(float)
        results = {name: example.warped(example.chains[name]) for name in names if name in example.chains}
        grey, difference = (
            grey_shade(example.fixed),
            difference_shade(_as_image(fixed), _as_image(next(iter(results.values())))),
        )
        draw_slice(panels[0, 0], example.plane, fixed, grey, letters=True)
        panels[0, 0].set_title("fixed", fontsize=_SIZE - 1)
        shown = None
        for (upper, lower), name in zip(panels.T[1:], names, strict=True):
            upper.set_title(_heading(name), fontsize=_SIZE - 1)
            if name in results:
                draw_slice(upper, example.plane, results[name], grey, letters=False)
                shown = draw_slice(lower, example.plane, fixed - results[name], difference, letters=False)
                lower.set_title(f"r = {example.correlation(results[name]):.3f}", fontsize=_SIZE - 1)
        if shown is not None:
            _bar(part, shown, panels[1], difference.unit)
    return figure


def _as_image(picture: FloatArray) -> Image:
    """Return a slice (rows, columns) as an image one voxel thick."""
    return Image(picture[None], Grid((picture.shape[1], picture.shape[0], 1)))
