"""A report as one HTML file that needs neither network nor server: tables, figures, notes and a viewer of slices."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import OutputError, ParameterError
from regnet_itk.figures.slices import VIEWS, View
from regnet_itk.outputs import check_writable, write_whole
from regnet_itk.report.viewer import (
    FOLDED,
    LONGEST_AXIS,
    MARGIN,
    ViewerMethod,
    ViewerPair,
    first_shown,
    residuals,
    viewer_grid,
    viewer_volumes,
)

__all__ = ["Cell", "Column", "Figure", "Note", "Table", "Value", "ViewerMethod", "ViewerPair", "write_report"]

SHORTEST_AXIS = 16
"""The least that may be asked of the viewer, in voxels along its longest axis."""

# all are told apart by the colour-blind; the first is perceptually uniform, the others are white in the middle
_COLOUR_MAPS = {"displacement": "viridis", "difference": "RdBu_r", "jacobian": "PuOr"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    name : str
        Its heading.
    unit : str
        Shown behind the heading: "mm", "s" ..
    best : {"lowest", "highest"}, optional
        Which of its numbers is marked as the best.
    digits : int, optional
        Decimals of its numbers; by default three significant digits.
    """

    name: str
    unit: str = ""
    best: Literal["lowest", "highest"] | None = None
    digits: int | None = None


@dataclass(frozen=True)
class Value:
    """A number that is shown as a text of its own, such as "1.2 +- 0.4".

    Parameters
    ----------
    number : float
        What the column is sorted by.
    text : str
        What is shown.
    """

    number: float
    text: str


Cell = str | int | float | Value | None
"""A text, a number, or None where there is nothing to say (a number that is NaN says nothing either)."""


@dataclass(frozen=True)
class Table:
    """A table whose rows can be sorted by any column.

    Parameters
    ----------
    title : str
    columns : sequence of Column
    rows : sequence of sequences of Cell
        One cell a column.
    caption : str
        How to read it.

    Raises
    ------
    ParameterError
        If a row has more or fewer cells than there are columns.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ParameterError(
                    f"table '{self.title}', row {number}: {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Figure:
    """A picture.

    Parameters
    ----------
    title : str
    source : Path, str or bytes
        A .png, .svg or .jpg file, or its content.
    alt : str
        What it shows, for those who cannot see it.
    caption : str
        How to read it.
    """

    title: str
    source: Path | str | bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A text: versions, parameters, how things were measured.

    Parameters
    ----------
    title : str
    content : str or mapping of str to str
        A text, whose line breaks are kept, or names with their values.
    folded : bool
        Whether the reader has to open it; for long texts.
    """

    title: str
    content: str | Mapping[str, str]
    folded: bool = False


def write_report(
    path: str | Path,
    title: str,
    *,
    tables: Sequence[Table] = (),
    figures: Sequence[Figure] = (),
    pairs: Iterable[ViewerPair] = (),
    notes: Sequence[Note] = (),
    summary: str = "",
    longest_axis: int = LONGEST_AXIS,
) -> None:
    """Write a report as one HTML file, whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file (.html).
    title : str
        Its heading.
    tables, figures, notes : sequences
        Shown in their order: tables, then the viewer, figures and notes.
    pairs : iterable of ViewerPair
        What the viewer shows. A generator is read one pair at a time, so that the images of many pairs need not be in
        memory together.
    summary : str
        A sentence or two below the heading.
    longest_axis : int
        Voxels along the longest axis of the viewer's volumes, at most. A page of many pairs needs fewer: its size
        grows with the third power.

    Raises
    ------
    OutputError
        If it is no .html file or cannot be written; nothing is left behind.
    ParameterError
        If a figure is of an unknown type, or `longest_axis` is not at least 16.
    """
    path = Path(path)
    check_report_path(path)
    if longest_axis < SHORTEST_AXIS:
        raise ParameterError(
            f"the viewer needs at least {SHORTEST_AXIS} voxels along its longest axis, not {longest_axis}"
        )
    data = _viewer_data(pairs, longest_axis)
    parts = {
        "generator": f"regnet-itk {version('regnet-itk')}",
        "title": html.escape(title),
        "summary": f"<p>{html.escape(summary)}</p>" if summary else "",
        "style": _template("report.css") + _template("viewer.css"),
        "tables": "\n".join(map(_table_html, tables)),
        "viewer": _template("viewer.html") if data else "",
        "figures": "\n".join(map(_figure_html, figures)),
        "notes": "\n".join(map(_note_html, notes)),
        "data": data,
        "script": _template("tables.js") + (_template("viewer.js") if data else ""),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template("report.html"))
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))


def check_report_path(path: Path) -> None:
    """Make sure, before long work, that a report can be written to `path`.

    Raises
    ------
    OutputError
        If it is no .html file, is a folder, or its folder is missing or cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"cannot write the report '{path}': name an .html file")
    if path.is_dir():
        raise OutputError(f"cannot write the report '{path}': there is a folder of that name")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write the report '{path}': there is no folder '{path.parent}'")
    check_writable(path.parent)


def _template(name: str) -> str:
    return (files("regnet_itk.report") / "templates" / name).read_text(encoding="utf-8")


# Tables


def _table_html(table: Table) -> str:
    best = [_best(column, [row[number] for row in table.rows]) for number, column in enumerate(table.columns)]
    rows = []
    for row in table.rows:
        cells = [
            _cell_html(
                cell, column, header=number == 0, best=_number(cell) is not None and _number(cell) == best[number]
            )
            for number, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    headings = "".join(
        _heading_html(column, any(_number(row[number]) is not None for row in table.rows))
        for number, column in enumerate(table.columns)
    )
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<section class="table"><h2>{html.escape(table.title)}</h2>\n<div class="scroller" tabindex="0" role="region" '
        f'aria-label="{html.escape(table.title)}"><table class="sortable"><thead><tr>{headings}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody></table></div>{caption}</section>"
    )


def _heading_html(column: Column, numbers: bool) -> str:
    unit = f' <span class="unit">{html.escape(column.unit)}</span>' if column.unit else ""
    kind = ' class="number"' if numbers else ""
    return f'<th scope="col" aria-sort="none"{kind}><button>{html.escape(column.name)}{unit}</button></th>'


def _cell_html(cell: Cell, column: Column, header: bool, best: bool) -> str:
    number = _number(cell)
    text = html.escape(_cell_text(cell, number, column))
    if header:
        value = f' data-value="{number!r}"' if number is not None else ""
        return f'<th scope="row"{value}>{text}</th>'
    if number is None and not isinstance(cell, str):
        return '<td class="number none">&ndash;</td>'
    if number is None:
        return f"<td>{text}</td>"
    mark = '<span class="visually-hidden"> (best)</span>' if best else ""
    return f'<td class="number{" best" if best else ""}" data-value="{number!r}">{text}{mark}</td>'


def _number(cell: Cell) -> float | None:
    """Return what a cell is sorted by; None for a text, for nothing, and for NaN."""
    value = cell.number if isinstance(cell, Value) else cell
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _cell_text(cell: Cell, number: float | None, column: Column) -> str:
    if isinstance(cell, Value):
        return cell.text
    if number is None or isinstance(cell, str):
        return str(cell or "")
    if column.digits is not None:
        text = f"{number:.{column.digits}f}"
    elif isinstance(cell, int) or (abs(number) >= 1000 and math.isfinite(number)):
        text = f"{number:.0f}"
    else:
        text = f"{number:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _best(column: Column, cells: Sequence[Cell]) -> float | None:
    numbers = [number for number in map(_number, cells) if number is not None]
    if column.best is None or len(numbers) < 2:
        return None
    return min(numbers) if column.best == "lowest" else max(numbers)


# Figures and notes


def _figure_html(figure: Figure) -> str:
    content, kind = _figure_content(figure)
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>" if figure.caption else ""
    return (
        f'<section><h2>{html.escape(figure.title)}</h2>\n<figure class="figure"><img alt="{html.escape(figure.alt)}" '
        f'src="data:{kind};base64,{base64.b64encode(content).decode()}">{caption}</figure></section>'
    )


def _figure_content(figure: Figure) -> tuple[bytes, str]:
    """Return a figure's bytes and what they are."""
    if isinstance(figure.source, bytes):
        content, where = figure.source, f"the figure '{figure.title}'"
    else:
        where = f"the figure '{figure.source}'"
        try:
            content = Path(figure.source).read_bytes()
        except OSError as error:
            raise ParameterError(f"{where} cannot be read: {error.strerror}") from None
    for start, kind in ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg")):
        if content.startswith(start):
            return content, kind
    if b"<svg" in content[:4096]:
        return content, "image/svg+xml"
    raise ParameterError(f"{where} is neither PNG, SVG nor JPEG")


def _note_html(note: Note) -> str:
    if isinstance(note.content, str):
        body = f"<pre>{html.escape(note.content)}</pre>"
    else:
        items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in note.content.items())
        body = f"<dl>{items}</dl>"
    title = html.escape(note.title)
    if note.folded:
        return f'<section class="note"><details><summary>{title}</summary>{body}</details></section>'
    return f'<section class="note"><h2>{title}</h2>{body}</section>'


# The viewer


def _viewer_data(pairs: Iterable[ViewerPair], longest_axis: int) -> str:
    """Return the elements that hold the volumes, and the one that describes them; nothing without pairs."""
    described: list[dict[str, Any]] = []
    elements: list[str] = []
    for number, pair in enumerate(pairs):
        grid = viewer_grid(pair, longest_axis)
        folded, heads = [], {}
        for volume in viewer_volumes(pair, grid):
            heads[volume.name] = {"low": volume.low, "high": volume.high}
            if volume.name.endswith("jacobian"):
                folded.append(int((volume.codes == FOLDED).sum()))
            text = base64.b64encode(volume.packed()).decode()
            elements.append(f'<script type="text/plain" id="pair-{number}-{volume.name}">{text}</script>')
        described.append({**_described(pair, grid), "volumes": heads, "methods": _methods(pair, folded)})
    if not described:
        return ""
    content = {"pairs": described, "planes": [_plane(view) for view in VIEWS], "colours": _colours()}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return "\n".join([*elements, f'<script type="application/json" id="viewer-data">{text}</script>'])


def _described(pair: ViewerPair, grid: Grid) -> dict[str, Any]:
    hounsfield = is_hounsfield(pair.fixed) and is_hounsfield(pair.moving)
    landmarks = pair.fixed_landmarks
    return {
        "name": pair.name,
        "size": grid.size,
        "spacing": grid.spacing[0],
        "origin": grid.origin,
        "unit": "HU" if hounsfield else "",
        "shown": first_shown(pair, grid),
        "landmarks": None if landmarks is None else landmarks.points.round(3).tolist(),
        "names": None if landmarks is None else landmarks.names,
        "before": _rounded(residuals(pair, None)),
        "remark": _remark(pair, grid, hounsfield),
    }


def _remark(pair: ViewerPair, grid: Grid, hounsfield: bool) -> str:
    """Say what was made of the images for the viewer."""
    sx, sy, sz = pair.fixed.grid.spacing
    corners = pair.fixed.grid.corners()
    is_part = (np.ptp(corners, axis=0) > (np.asarray(grid.size) + 1) * grid.spacing).any()
    region = f"fixed mask and {MARGIN:.0f} mm around it" if pair.fixed_mask is not None else "body"
    part = f"cut to the {region}, " if is_part else ""
    steps = " between -1024 and 500 HU, in steps of 6 HU" if hounsfield else ""
    return (
        f"To look at, not to measure: the fixed image ({sx:.3g} x {sy:.3g} x {sz:.3g} mm) is {part}resampled to cubes "
        f"of {grid.spacing[0]:.3g} mm along the patient's axes, with values of 8 bits{steps}; the others likewise. "
        "det J is taken by central differences between these voxels. Positions are in the space of the fixed image, "
        "in mm to the right or left (R, L), front or back (A, P), and feet or head (F, H) of its zero."
    )


def _methods(pair: ViewerPair, folded: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"name": method.name, "residuals": _rounded(residuals(pair, method)), "folded": count}
        for method, count in zip(pair.methods, folded, strict=True)
    ]


def _rounded(vectors: FloatArray | None) -> list[list[float]] | None:
    rounded: list[list[float]] | None = None if vectors is None else vectors.round(3).tolist()
    return rounded


def _plane(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "across": view.across,
        "right": view.right,
        "down": view.down,
        "sign": view.down_sign,
        "letters": view.edge_letters,
    }


def _colours() -> dict[str, str]:
    """Return 256 colours (r, g, b) for each coloured map, in base64."""
    from matplotlib import colormaps

    return {
        mode: base64.b64encode(colormaps[name](range(256), bytes=True)[:, :3].tobytes()).decode()
        for mode, name in _COLOUR_MAPS.items()
    }
