"""The distributions of what the pairs of a batch say about themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.batch.records import PairRecord
from regnet_itk.figures.canvas import LETTERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AFTER, _BEFORE = "#1b6ca8", "#b0b0b0"
_BINS = 40


def draw_distributions(records: Sequence[PairRecord]) -> bytes:
    """Draw histograms of the similarity, the folding, the landmark error and the time.

    Parameters
    ----------
    records : sequence of PairRecord
        Of pairs that are done, at least one.

    Returns
    -------
    bytes
        A PNG file. What no pair tells is left out.
    """
    facts = [record.facts for record in records]
    panels: list[tuple[str, Sequence[float | None], Sequence[float | None]]] = [
        ("similarity", [f.similarity_before for f in facts], [f.similarity_after for f in facts]),
        ("det J ≤ 0, % of the voxels", [], [None if f.folding is None else 100 * f.folding for f in facts]),
        ("TRE, mm", [f.tre_before for f in facts], [f.tre_after for f in facts]),
        ("time, s", [], [record.seconds for record in records]),
    ]
    shown = [(label, _known(before), _known(after)) for label, before, after in panels]
    shown = [panel for panel in shown if len(panel[2])]
    figure = new_figure(2.9 * len(shown), 2.4)
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        _draw(axes, *panel)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and np.isfinite(value)]


def _draw(axes: Axes, label: str, before: list[float], after: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = min([*before, *after]), max([*before, *after])
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1).tolist()
    axes.hist(before, edges, color=_BEFORE)
    axes.hist(after, edges, color=_AFTER, alpha=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label, fontsize=LETTERS)
    axes.set_ylabel("pairs", fontsize=LETTERS)
    axes.tick_params(labelsize=LETTERS - 1)
    axes.spines[["top", "right"]].set_visible(False)
