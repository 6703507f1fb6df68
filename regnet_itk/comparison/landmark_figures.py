"""The paper's figures 3 and 4, of a comparison: distances and displacements of landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.outcomes import Comparison
from regnet_itk.comparison.records import as_array
from regnet_itk.data.grid import FloatArray
from regnet_itk.figures.canvas import LETTERS, new_figure
from regnet_itk.figures.slices import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS, _LINE = "#0072B2", "#D55E00"  # of Okabe and Ito's colours: they differ for all eyes, and in grey
_DOTS: dict[str, Any] = {"color": _POINTS, "markersize": 3.5, "alpha": 0.55, "markeredgewidth": 0}


def _distances(comparison: Comparison, method: Method, limit: float | None) -> FloatArray:
    found = [comparison.differences(pair, method, limit) for pair in comparison.pairs]
    return np.asarray(np.linalg.norm(np.concatenate(found), axis=1))


def draw_all_landmarks(comparison: Comparison) -> Figure:
    """Draw the distances of all landmarks, and those after each method against those after the reference stage."""
    methods = comparison.registered_methods
    columns = min(3, max(1, len(methods)))
    rows = -(-len(methods) // columns)
    figure = new_figure(7.2, 2.9 + 2.4 * rows)
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
    axes.set_xticks(range(1, len(methods) + 1), [_label(method) for method in methods], fontsize=LETTERS - 0.5)
    axes.set_ylabel("distance, mm", fontsize=LETTERS)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="y", labelsize=LETTERS)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    count = max(len(found) for found in lengths)
    axes.set_title(f"{count} landmarks" + (f" within {limit:g} mm" if limit else ""), fontsize=LETTERS + 0.5)


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
    axes.set_title(title, fontsize=LETTERS)
    axes.set_xlabel(across, fontsize=LETTERS)
    axes.set_ylabel(up, fontsize=LETTERS)
    axes.tick_params(labelsize=LETTERS - 0.5)


def draw_captured_landmarks(comparison: Comparison) -> Figure:
    """Draw the landmarks within the capture range, and their predicted against their true displacements."""
    methods = comparison.registered_methods
    columns = 1 if len(methods) <= 4 else 2  # so that they fit on a page
    rows = -(-len(methods) // columns)
    heights = [2.9, *[2.2 if columns == 1 else 1.65] * rows]
    figure = new_figure(7.2, sum(heights))
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


def _label(method: Method) -> str:
    """Return a name broken into lines that fit below a box."""
    return method.name.replace("+", " +\n").replace("_", "_\n" if len(method.name) > 14 else "_")
