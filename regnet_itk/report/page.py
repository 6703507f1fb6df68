"""A report as one HTML file that needs neither network nor server: tables, figures, notes and a viewer of slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from regnet_itk.errors import OutputError, ParameterError
from regnet_itk.outputs import check_writable, write_whole
from regnet_itk.report.elements import Figure, Note, Table
from regnet_itk.report.shown import show_figure, show_table
from regnet_itk.report.viewer import LONGEST_AXIS, ViewerPair
from regnet_itk.report.viewer_data import pack_viewer

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SHORTEST_AXIS = 16
"""The least that may be asked of the viewer, in voxels along its longest axis."""


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
    viewer = pack_viewer(pairs, longest_axis)
    page = (
        _templates()
        .get_template("report.html")
        .render(
            generator=f"regnet-itk {version('regnet-itk')}",
            title=title,
            summary=summary,
            style=_read("report.css", "viewer.css"),
            tables=list(map(show_table, tables)),
            viewer=viewer,
            figures=list(map(show_figure, figures)),
            notes=notes,
            script=_read("tables.js", *(["viewer.js"] if viewer else [])),
        )
    )
    write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Return the templates; what is put into them is escaped, but for styles, scripts and JSON."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("regnet_itk.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=StrictUndefined,
    )  # fmt: skip


def _read(*names: str) -> Markup:
    """Return styles or scripts, one after the other, as they are to stand in the page."""
    from markupsafe import Markup

    loader = _templates().loader
    assert loader is not None
    return Markup("".join(loader.get_source(_templates(), name)[0] for name in names))


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
