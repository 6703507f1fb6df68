"""Sets of image pairs: a CSV file with a row a pair."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from regnet_itk.data.image_files import read_grid
from regnet_itk.data.landmarks import check_landmarks, read_landmarks
from regnet_itk.errors import ImageError, OutputError, ParameterError, PointsError, did_you_mean
from regnet_itk.inputs import FOLDER, why_no_file
from regnet_itk.outputs import write_whole

_KNOWN = ("ignore", "rigid", "volume", "sliding")
"""Masks of what is known of an image."""

FILE_COLUMNS = (
    "fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks", "displacement",
    "fixed_labels", "moving_labels", "fixed_judge_landmarks", "moving_judge_landmarks", "fixed_judge_labels",
    "moving_judge_labels",
    *(f"{role}_{what}" for what in _KNOWN for role in ("fixed", "moving")),
)  # fmt: skip
COLUMNS = ("name", "group", *FILE_COLUMNS)
_NO_IMAGES = ("fixed_landmarks", "moving_landmarks", "fixed_judge_landmarks", "moving_judge_landmarks", "displacement")
_TOGETHER = tuple(
    (f"fixed_{what}", f"moving_{what}") for what in ("landmarks", "labels", "judge_landmarks", "judge_labels")
)


@dataclass(frozen=True)
class Pair:
    """Two images of one patient, and what is known about them.

    Parameters
    ----------
    name : str
        No two pairs of a set have the same.
    fixed, moving : Path
        Images.
    fixed_mask, moving_mask : Path, optional
        On the grids of their images.
    fixed_landmarks, moving_landmarks : Path, optional
        Corresponding points; both or none.
    displacement : Path, optional
        The true displacement field, T(x) - x in mm, LPS, on the fixed side.
    fixed_labels, moving_labels : Path, optional
        Segmentations, both or none: whole numbers, 0 is background.
    fixed_judge_landmarks, moving_judge_landmarks, fixed_judge_labels, moving_judge_labels : Path, optional
        The same, of which no registration knows. Where they are given, a comparison measures with them, and is guided
        by the others.
    fixed_ignore, fixed_rigid, fixed_volume, fixed_sliding : Path, optional
        Masks on the grid of the fixed image: what is to be ignored, moves rigidly, keeps its volume, or slides; see
        :class:`regnet_itk.Guides`.

        .. versionadded:: 0.2
    moving_ignore, moving_rigid, moving_volume, moving_sliding : Path, optional
        The same of the moving image.

        .. versionadded:: 0.2
    group : str
        "Validation", "Test" ..: the column "Data" of the paper's Table 1.
    where : str
        File and row, for messages.
    """

    name: str
    fixed: Path
    moving: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_landmarks: Path | None = None
    moving_landmarks: Path | None = None
    displacement: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_judge_landmarks: Path | None = None
    moving_judge_landmarks: Path | None = None
    fixed_judge_labels: Path | None = None
    moving_judge_labels: Path | None = None
    fixed_ignore: Path | None = None
    moving_ignore: Path | None = None
    fixed_rigid: Path | None = None
    moving_rigid: Path | None = None
    fixed_volume: Path | None = None
    moving_volume: Path | None = None
    fixed_sliding: Path | None = None
    moving_sliding: Path | None = None
    group: str = ""
    where: str = ""

    @property
    def file_name(self) -> str:
        """The name, as it may be part of a path."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip(".") or "pair"

    @property
    def judge_landmarks(self) -> tuple[Path, Path] | None:
        """The landmarks that measure: the judges, or else the others."""
        return _both(self.fixed_judge_landmarks, self.moving_judge_landmarks) or _both(
            self.fixed_landmarks, self.moving_landmarks
        )

    @property
    def judge_labels(self) -> tuple[Path, Path] | None:
        """The labels that measure: the judges, or else the others."""
        return _both(self.fixed_judge_labels, self.moving_judge_labels) or _both(self.fixed_labels, self.moving_labels)

    @property
    def guides(self) -> dict[str, Path]:
        """What guides a comparison, by column: masks of what is known; landmarks and labels if others judge."""
        files = self.files()
        kinds = [what for what in ("landmarks", "labels") if f"fixed_judge_{what}" in files]
        columns = [f"{role}_{what}" for what in (*kinds, *_KNOWN) for role in ("fixed", "moving")]
        return {column: files[column] for column in columns if column in files}

    def files(self) -> dict[str, Path]:
        """Return the files that are given, by their column."""
        given = ((column, getattr(self, column)) for column in FILE_COLUMNS)
        return {column: path for column, path in given if path is not None}

    def absolute(self) -> Pair:
        """Return the pair with whole paths, for processes that stand in other folders."""
        files: dict[str, Any] = {column: Path(os.path.abspath(path)) for column, path in self.files().items()}
        return replace(self, **files)


def _both(fixed: Path | None, moving: Path | None) -> tuple[Path, Path] | None:
    return None if fixed is None or moving is None else (fixed, moving)


def read_pairs(path: str | Path, *, check_files: bool = True) -> list[Pair]:
    """Read a set of pairs, and check that its files exist.

    Parameters
    ----------
    path : str or Path
        A CSV file (comma or semicolon) whose first row names the columns: `fixed` and `moving`, and any of `name`,
        `group`, `fixed_mask`, `moving_mask`, `fixed_landmarks`, `moving_landmarks`, `displacement`, `fixed_labels`,
        `moving_labels`, the judges of both, and the masks of :class:`Pair`. Cells may be empty. Paths are relative to
        the CSV file.
    check_files : bool
        False to leave it open whether the files exist: of many thousands, one that is missing shall not stop the rest.

        .. versionadded:: 0.2

    Raises
    ------
    ParameterError
        If the file, a column, or a file that it names is missing, or two pairs have the same name; with the row as a
        spreadsheet counts it (the header is row 1).
    """
    path = Path(path)
    if (why := why_no_file(path)) is not None:
        raise ParameterError(f"the list of pairs '{path}' {why}")
    rows = _rows(path)
    if not rows:
        raise ParameterError(f"{path}: holds no pair; give a row of column names, then a row a pair")
    pairs = [_pair(path, number, row, check_files) for number, row in rows]
    for what in ("name", "file_name"):
        counts = Counter(getattr(pair, what) for pair in pairs)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise ParameterError(f"{path}: {count} pairs are called '{name}'; give each a name of its own")
    return pairs


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ParameterError(f"the list of pairs '{path}' is not a text file; save it as CSV") from None
    except OSError as error:
        raise ParameterError(f"the list of pairs '{path}' cannot be read: {error.strerror}") from None
    lines = text.splitlines()
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader(lines, delimiter=delimiter)
    columns = [cell.strip().lower() for cell in next(reader, [])]
    _check_columns(path, columns)
    found = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            raise ParameterError(f"{path}, row {reader.line_num}: {len(cells)} cells for {len(columns)} columns")
        found.append((reader.line_num, dict(zip(columns, (cell.strip() for cell in cells), strict=False))))
    return found


def _check_columns(path: Path, columns: list[str]) -> None:
    unknown = [column for column in columns if column and column not in COLUMNS]
    if unknown:
        near = did_you_mean(unknown[0], COLUMNS) or f"; known are {', '.join(COLUMNS)}"
        raise ParameterError(f"{path}, row 1: there is no column '{unknown[0]}'{near}")
    missing = [column for column in ("fixed", "moving") if column not in columns]
    if missing:
        raise ParameterError(f"{path}, row 1: the column '{missing[0]}' is missing; it names an image a row")
    if len(set(columns)) < len(columns):
        raise ParameterError(f"{path}, row 1: a column is named twice: {', '.join(columns)}")


def _pair(path: Path, number: int, row: dict[str, str], check_files: bool) -> Pair:
    where = f"{path}, row {number}"
    files: dict[str, Path] = {}
    for column in FILE_COLUMNS:
        if row.get(column):
            files[column] = path.parent / row[column]
            why = why_no_file(files[column]) if check_files else None
            if why is not None and not (why == FOLDER and column not in _NO_IMAGES):  # of a DICOM series
                raise ParameterError(f"{where}: the {column.replace('_', ' ')} '{files[column]}' {why}")
        elif column in ("fixed", "moving"):
            raise ParameterError(f"{where}: the {column} image is not given")
    for first, second in _TOGETHER:
        if (first in files) != (second in files):
            there, lacking = (first, second) if first in files else (second, first)
            raise ParameterError(f"{where}: '{there}' is given and '{lacking}' is not; give both or none")
    name = row.get("name") or f"pair-{number - 1}"
    return Pair(name, group=row.get("group", ""), where=where, **files)


def write_pairs(pairs: Sequence[Pair], path: str | Path) -> None:
    """Write a set of pairs as a CSV file, whole or not at all; columns that no pair has are left out.

    Paths inside the file's folder are written relative to it, others as they are, made absolute.

    Raises
    ------
    OutputError
        If it cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from regnet_itk import Pair, write_pairs
    >>> write_pairs([Pair("p01", Path("baseline.mha"), Path("followup.mha"))], "pairs.csv")
    >>> Path("pairs.csv").exists()
    True
    """
    path = Path(path)
    used = [c.name for c in fields(Pair) if c.name != "where" and any(getattr(pair, c.name) for pair in pairs)]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(used)
            writer.writerows([_cell(getattr(pair, column), path.parent) for column in used] for pair in pairs)

    write_whole(path, write)


def _cell(value: Path | str | None, folder: Path) -> str:
    if not isinstance(value, Path):
        return value or ""
    relative = os.path.relpath(value, folder)
    return str(value.resolve()) if relative.startswith("..") else Path(relative).as_posix()


def check_inputs_outside(pairs: Iterable[Pair], folder: Path) -> None:
    """Refuse pairs of which a file lies in the folder where results are written, and earlier ones removed.

    Raises
    ------
    OutputError
    """
    target = folder.resolve()
    inside: dict[Path, bool] = {}  # of the folders, as many files lie in the same one
    for file in (file for pair in pairs for file in pair.files().values()):
        where = Path(os.path.realpath(file)).parent if file.is_symlink() else file.parent
        if where not in inside:
            parent = where.resolve()
            inside[where] = target in (parent, *parent.parents)
        if inside[where]:
            raise OutputError(f"'{file}' lies in '{target}', where earlier results are removed; give another folder")


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Find, before hours of work, landmarks that do not correspond or lie outside their images.

    Reads the landmarks and the headers of their images.

    Raises
    ------
    ParameterError
        With the row of the pair.
    """
    for pair in pairs:
        files = (pair.fixed_landmarks, pair.moving_landmarks), (pair.fixed_judge_landmarks, pair.moving_judge_landmarks)
        given = [(fixed, moving) for fixed, moving in files if fixed is not None and moving is not None]
        if not given:
            continue
        try:
            grids = read_grid(pair.fixed, "fixed image"), read_grid(pair.moving, "moving image")
            for fixed, moving in given:
                check_landmarks(read_landmarks(fixed, grids[0]), read_landmarks(moving, grids[1]), *grids)
        except (ImageError, PointsError) as error:
            raise ParameterError(f"{pair.where or pair.name}: {error}") from None
