"""What a report is made of: tables, figures and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regnet_itk.errors import ParameterError


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


@dataclass(frozen=True)
class Link:
    """A text that leads to a file.

    Parameters
    ----------
    text : str
    target : str
        Path of the file, relative to the page.
    """

    text: str
    target: str


Cell = str | int | float | Value | Link | None
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
