"""Tables as text: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence

from regnet_itk.report.elements import Cell, Column, Link, Table, Value


def format_csv(table: Table) -> str:
    """Return a table as CSV, its cells as they are shown."""
    return format_rows([[_heading(column) for column in table.columns], *([*_texts(table, row)] for row in table.rows)])


def format_markdown(table: Table) -> str:
    """Return a table as Markdown, with its title and caption."""
    lines = [f"**{table.title}**", ""]
    lines.append(_markdown_line(map(_heading, table.columns)))
    lines.append("|" + "---|" * len(table.columns))
    lines += [_markdown_line(_texts(table, row)) for row in table.rows]
    return "\n".join([*lines, "", table.caption]).rstrip() + "\n"


def _markdown_line(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def format_latex(table: Table) -> str:
    r"""Return a table as LaTeX (plain ``tabular`` with ``\hline``), with its title and caption."""
    spec = "l" + "".join(
        "r" if any(_is_number(row[c]) for row in table.rows) else "l" for c in range(1, len(table.columns))
    )
    lines = [r"\begin{table}", r"\centering\small", rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\hline", _latex_line(map(_heading, table.columns)), r"\hline"]
    before = ""
    for row in table.rows:
        first, *rest = _texts(table, row)
        if table.columns[0].name == "Evaluation":  # named once, as in the paper
            if before and first != before:
                lines.append(r"\hline")
            first, before = ("" if first == before else first), first
        lines.append(_latex_line([first, *rest]))
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_line(cells: Sequence[str] | Iterator[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<=": r"$\le$", ">": r"$>$", "<": r"$<$",
    "|": r"$|$",
}  # fmt: skip


def _latex(text: str) -> str:
    out, position = [], 0
    while position < len(text):
        sign = next(s for s in ("<=", text[position]) if text.startswith(s, position))
        out.append(_LATEX.get(sign, sign))
        position += len(sign)
    return "".join(out)


def _heading(column: Column) -> str:
    return f"{column.name}, {column.unit}" if column.unit else column.name


def _texts(table: Table, row: Sequence[Cell]) -> Iterator[str]:
    """Yield the cells of a row as they are shown."""
    for column, cell in zip(table.columns, row, strict=True):
        if isinstance(cell, Value | Link):
            yield cell.text
        elif isinstance(cell, float):
            yield "" if math.isnan(cell) else f"{cell:.{3 if column.digits is None else column.digits}f}"
        else:
            yield "" if cell is None else str(cell)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, Value | int | float)


def format_number(value: float) -> str:
    """Return a number as CSV has it: six decimals at most; nothing for one that is not finite."""
    return repr(round(value, 6)) if math.isfinite(value) else ""


def format_rows(rows: Sequence[Sequence[object]]) -> str:
    """Return rows of cells as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
