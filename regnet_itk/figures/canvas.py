"""What figures of numbers and of images have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = 8.5
"""Size of letters, in points."""


def new_figure(width: float, height: float) -> Figure:
    """Return a figure (inches) that no window belongs to, and whose panels find their places by themselves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure
