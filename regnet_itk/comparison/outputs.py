"""What a comparison writes: tables, figures, and a report to look through."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

from regnet_itk.comparison.figures import Drawn, write_figures
from regnet_itk.comparison.outcomes import Comparison
from regnet_itk.comparison.tables import (
    format_errors_csv,
    format_measures_csv,
    tabulate_differences,
    tabulate_errors,
    tabulate_failures,
    tabulate_quality,
    tabulate_verdicts,
)
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.pairs import Pair
from regnet_itk.report.elements import Figure, Note, Table
from regnet_itk.report.page import write_report
from regnet_itk.report.table_text import format_csv, format_latex, format_markdown
from regnet_itk.report.viewer import ViewerMethod, ViewerPair

VIEWER_VOXELS = 32e6
"""Voxels of all volumes of a report together, about; more pairs are shown more coarsely."""

COMPARISON_FILES = OutputFiles(
    r"table\.(csv|md|tex)|(quality|differences|measures)\.csv|fig\d_\w+\.(png|svg)|report\.html|comparison\.json",
    "comparison.json",
    exclusive=False,
)
"""What a comparison writes, beside the folder `pairs` with what is kept from one to the next."""


def write_comparison(comparison: Comparison, folder: str | Path, title: str = "Comparison") -> None:
    """Write ``table.csv``, ``table.md``, ``table.tex``, ``measures.csv``, the figures, and ``report.html``.

    Parameters
    ----------
    comparison : Comparison
    folder : str or Path
        Created if needed.
    title : str
        Of the report.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    tables = [table for table in _tables(comparison) if table.rows]
    with staged_folder(folder, COMPARISON_FILES) as stage:
        (stage / "table.csv").write_text(format_errors_csv(comparison), encoding="utf-8")
        (stage / "quality.csv").write_text(format_csv(tabulate_quality(comparison)), encoding="utf-8")
        (stage / "differences.csv").write_text(format_csv(tabulate_differences(comparison)), encoding="utf-8")
        (stage / "measures.csv").write_text(format_measures_csv(comparison), encoding="utf-8")
        (stage / "table.md").write_text("\n".join(map(format_markdown, tables)), encoding="utf-8")
        (stage / "table.tex").write_text("\n".join(map(format_latex, tables)), encoding="utf-8")
        (stage / "comparison.json").write_text(json.dumps(_facts(comparison), indent=1) + "\n", encoding="utf-8")
        drawn = write_figures(comparison, stage)
        _write_html(comparison, stage / "report.html", title, tables, drawn)


def _tables(comparison: Comparison) -> list[Table]:
    return [
        tabulate_errors(comparison),
        tabulate_quality(comparison),
        tabulate_verdicts(comparison),
        tabulate_differences(comparison),
        tabulate_failures(comparison),
    ]


def _facts(comparison: Comparison) -> dict[str, object]:
    """Return what the numbers depend on."""
    return {
        "versions": _versions(comparison),
        "settings": _settings(comparison),
        "methods": {method.name: _chain(method.labels) for method in comparison.methods},
        "parameters": _parameters(comparison),
        "pairs": {pair.name: {key: str(path) for key, path in pair.files().items()} for pair in comparison.pairs},
    }


def _versions(comparison: Comparison) -> dict[str, str]:
    return {"python": platform.python_version(), **comparison.versions}


def _settings(comparison: Comparison) -> dict[str, object]:
    return {**vars(comparison.settings), "capture_range_mm": comparison.capture_range}


def _parameters(comparison: Comparison) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the parameters of each stage by its chain, so that stages of the same name are told apart."""
    return {
        f"{method.name}, {label}": dict(stage.parameters.values)
        for method in comparison.methods
        for label, stage in zip(method.labels, method.stages, strict=True)
    }


def _chain(labels: tuple[str, ...]) -> str:
    return ", then ".join(labels) or "no registration"


def _write_html(comparison: Comparison, path: Path, title: str, tables: list[Table], drawn: list[Drawn]) -> None:
    notes = [
        Note("Methods", {method.name: _chain(method.labels) for method in comparison.methods}),
        Note("Settings", {name: str(value) for name, value in _settings(comparison).items()}),
        Note("Versions", _versions(comparison), folded=True),
        Note("Parameters", json.dumps(_parameters(comparison), indent=1), folded=True),
    ]
    failed = len({pair.name for pair, *_ in comparison.failures})
    summary = f"{len(comparison.pairs)} pairs, {len(comparison.methods) - 1} methods."
    if failed:
        summary += f" On {failed} of the pairs something failed; the last table says what."
    figures = [Figure(d.title, d.png, alt=d.caption, caption=d.caption) for d in drawn]
    volumes = len(comparison.pairs) * (2 + 3 * len(comparison.methods))
    longest = int(min(192, max(48, (VIEWER_VOXELS / volumes) ** (1 / 3))))
    write_report(
        path, title, tables=tables, figures=figures, pairs=_viewer_pairs(comparison), notes=notes, summary=summary,
        longest_axis=longest,
    )  # fmt: skip


def _viewer_pairs(comparison: Comparison) -> Iterator[ViewerPair]:
    """Yield the pairs on which something succeeded, each read when it is asked for."""
    for pair in comparison.pairs:
        outcomes = ((method, comparison.outcome(pair, method)) for method in comparison.methods if method.stages)
        methods = [ViewerMethod(method.name, outcome.chain()) for method, outcome in outcomes if outcome is not None]
        if methods:
            yield _viewer_pair(pair, methods)


def _viewer_pair(pair: Pair, methods: list[ViewerMethod]) -> ViewerPair:
    fixed, moving = read_image(pair.fixed, "fixed image"), read_image(pair.moving, "moving image")
    mask = read_image(pair.fixed_mask, "fixed mask") if pair.fixed_mask else None
    files = pair.judge_landmarks or ()
    landmarks = [read_landmarks(path, image.grid) for path, image in zip(files, (fixed, moving), strict=False)]
    return ViewerPair(pair.name, fixed, moving, methods, mask, *landmarks)
