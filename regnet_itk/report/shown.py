"""Tables and figures as a page shows them: texts of cells, which of them is the best, pictures as data."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from regnet_itk.errors import ParameterError
from regnet_itk.report.elements import Cell, Column, Figure, Link, Table, Value


@dataclass(frozen=True)
class ShownHeading:
    """The heading of a column, and whether there are numbers below it."""

    name: str
    unit: str
    numbers: bool


@dataclass(frozen=True)
class ShownCell:
    """A cell as text.

    Parameters
    ----------
    text : str
    number : float, optional
        What it is sorted by; None for a text.
    empty : bool
        Whether there is nothing to say.
    best : bool
        Whether it is the best number of its column.
    target : str
        The address where it leads to, if it leads anywhere.
    """

    text: str
    number: float | None
    empty: bool
    best: bool
    target: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table whose cells are texts."""

    title: str
    caption: str
    headings: Sequence[ShownHeading]
    rows: Sequence[Sequence[ShownCell]]


@dataclass(frozen=True)
class ShownFigure:
    """A picture as base64, with its media type."""

    title: str
    alt: str
    caption: str
    kind: str
    content: str


def show_table(table: Table) -> ShownTable:
    """Return a table as it is shown."""
    of_columns = [[row[number] for row in table.rows] for number in range(len(table.columns))]
    best = [_find_best(column, cells) for column, cells in zip(table.columns, of_columns, strict=True)]
    headings = [
        ShownHeading(column.name, column.unit, any(_number_of(cell) is not None for cell in cells))
        for column, cells in zip(table.columns, of_columns, strict=True)
    ]
    rows = [[_show_cell(*given) for given in zip(row, table.columns, best, strict=True)] for row in table.rows]
    return ShownTable(table.title, table.caption, headings, rows)


def _show_cell(cell: Cell, column: Column, best: float | None) -> ShownCell:
    number = _number_of(cell)
    return ShownCell(
        _text_of(cell, number, column),
        number,
        empty=number is None and not isinstance(cell, str | Link),
        best=number is not None and number == best,
        target=quote(cell.target) if isinstance(cell, Link) else "",
    )


def _number_of(cell: Cell) -> float | None:
    """Return what a cell is sorted by; None for a text, for nothing, and for NaN."""
    value = cell.number if isinstance(cell, Value) else cell
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _text_of(cell: Cell, number: float | None, column: Column) -> str:
    if isinstance(cell, Value | Link):
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


def _find_best(column: Column, cells: Sequence[Cell]) -> float | None:
    numbers = [number for number in map(_number_of, cells) if number is not None]
    if column.best is None or len(numbers) < 2:
        return None
    return min(numbers) if column.best == "lowest" else max(numbers)


def show_figure(figure: Figure) -> ShownFigure:
    """Return a figure as it is shown.

    Raises
    ------
    ParameterError
        If it cannot be read, or is neither PNG, SVG nor JPEG.
    """
    content, kind = _read_picture(figure)
    return ShownFigure(figure.title, figure.alt, figure.caption, kind, base64.b64encode(content).decode())


def _read_picture(figure: Figure) -> tuple[bytes, str]:
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
