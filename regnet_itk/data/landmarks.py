"""Landmarks: read and write the files in which elastix, VTK, 3D Slicer and spreadsheets hold them."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import LARGEST_LENGTH, FloatArray, Grid
from regnet_itk.errors import PointsError
from regnet_itk.inputs import why_no_file

_FLIP = np.array([-1.0, -1.0, 1.0])  # between LPS and RAS
# Python's float and int also take digits of other scripts and 1_000; other readers of these files do not
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+", re.ASCII)
_PLACED = "defined"  # of a point in Slicer's files; "undefined" and "missing" ones have no place
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points in the space of an image; each set equals itself only.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        In mm, LPS.
    names : tuple of str
        One for each point, or none at all.
    left_out : tuple of int
        Numbers, in the file, of points that it lists but that were never placed; they are not among the points.
    indices : ndarray, shape (n, 3), optional
        The voxel indices of the points, if these are what their file holds.
    trust_radii : ndarray, shape (n,), optional
        How far off each point may be, in mm: within its radius of trust it does not guide. NaN where none is told.

    Raises
    ------
    PointsError
        If the shape is another, a value is not finite, the number of names or radii does not fit, or a radius is not
        above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Landmarks
    >>> landmarks = Landmarks(np.array([[10.0, -20.0, 30.0]]), names=("carina",))
    >>> len(landmarks.points)
    1
    """

    points: FloatArray
    names: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    indices: FloatArray | None = None
    trust_radii: FloatArray | None = None

    def __post_init__(self) -> None:
        points = np.array(self.points, dtype=float)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "names", tuple(self.names))
        if self.trust_radii is not None:
            object.__setattr__(self, "trust_radii", _checked_radii(self.trust_radii, len(points)))
        if points.ndim != 2 or points.shape[1] != 3:
            raise PointsError(f"points need an array of shape (n, 3), not {points.shape}")
        if not np.isfinite(points).all():
            bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise PointsError(f"point {bad} is not finite: {points[bad].tolist()}")
        if self.names and len(self.names) != len(points):
            raise PointsError(f"{len(self.names)} names were given for {len(points)} points")

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        if not len(self):
            return "Landmarks(0 points)"
        ends = zip("xyz", self.points.min(axis=0), self.points.max(axis=0), strict=True)
        spans = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ends)
        return f"Landmarks({len(self)} points, {spans} mm)"


def _checked_radii(radii: npt.ArrayLike, count: int) -> FloatArray:
    found = np.array(radii, dtype=float)
    if found.shape != (count,):
        raise PointsError(f"radii of trust need an array of shape ({count},), one for each point, not {found.shape}")
    if bad := np.flatnonzero(~(found > 0.0) & ~np.isnan(found) | np.isinf(found)).tolist():
        raise PointsError(f"point {bad[0]}: its radius of trust is {found[bad[0]]:g} mm; it must be above 0")
    return found


# Reading


@dataclass
class _Rows:
    """Points as a file holds them: numbers with the line they came from."""

    source: str
    dimension: int = 3
    rows: list[tuple[float, ...]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)

    def add(self, texts: Sequence[Any], line: int, name: str = "", radius: str = "") -> None:
        where = f"{self.source}, line {line}" if line else f"{self.source}, point {len(self.rows)}"
        if len(texts) != self.dimension:
            raise PointsError(f"{where}: a point needs {self.dimension} coordinates, not {len(texts)}")
        if not all(isinstance(text, int | float) or _is_number(text) for text in texts):
            raise PointsError(f"{where}: expected {self.dimension} numbers, not '{' '.join(map(str, texts))}'")
        try:
            point = tuple(float(text) for text in texts)
        except OverflowError:  # of a whole number with hundreds of digits
            point = (math.inf,) * self.dimension
        if not all(abs(value) <= LARGEST_LENGTH for value in point):
            raise PointsError(
                f"{where}: the point {' '.join(map(str, point))} is not finite, or lies nowhere in a body"
            )
        if radius and not (_is_number(radius) and 0.0 < float(radius) <= LARGEST_LENGTH):
            raise PointsError(f"{where}: the radius of trust must be a length above 0 in mm, not '{radius}'")
        self.rows.append(point)
        self.names.append(name)
        self.radii.append(float(radius) if radius else math.nan)

    def array(self) -> FloatArray:
        if not self.rows:
            raise PointsError(f"landmark file '{self.source}' holds no points")
        return np.array(self.rows)

    def landmarks(self, convert: Callable[[FloatArray], FloatArray] | None = None) -> Landmarks:
        points = self.array()
        names = tuple(self.names) if any(self.names) else ()
        radii = None if np.isnan(self.radii).all() else np.array(self.radii)
        return Landmarks(convert(points) if convert else points, names, trust_radii=radii)


def read_landmarks(path: str | Path, grid: Grid | None = None) -> Landmarks:
    """Read landmarks.

    Parameters
    ----------
    path : str or Path
        elastix's text (``point`` or ``index``, the count, the coordinates), a .vtk polydata file in ASCII, a .csv
        file with the columns x, y, z in mm, LPS, and if wanted name and trust_radius in mm, or Slicer's .fcsv and
        .mrk.json.
    grid : Grid, optional
        The grid of the image that the points lie in; only files of voxel indices need it.

    Raises
    ------
    PointsError
        If the file is missing or malformed, with file and line, or if it holds indices and there is no grid.

    Examples
    --------
    >>> from regnet_itk import Landmarks, read_landmarks, write_landmarks
    >>> write_landmarks(Landmarks([[10.0, -20.0, 30.0]]), "points.txt")
    >>> read_landmarks("points.txt").points.tolist()
    [[10.0, -20.0, 30.0]]
    """
    path = Path(path)
    return _reader(path)(_read_text(path), str(path), grid)


def _read_text(path: Path) -> str:
    if (why := why_no_file(path)) is not None:
        raise PointsError(f"landmark file '{path}' {why}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PointsError(f"landmark file '{path}' is not a text file; write it in ASCII") from None
    except OSError as error:
        raise PointsError(f"landmark file '{path}' cannot be read: {error.strerror}") from None
    if not text.strip():
        raise PointsError(f"landmark file '{path}' is empty")
    return text


def _reader(path: Path) -> Callable[[str, str, Grid | None], Landmarks]:
    name = path.name.lower()
    if name.endswith(".json"):
        return _read_json
    readers = {".txt": _read_elastix, ".pts": _read_elastix, ".vtk": _read_vtk, ".csv": _read_csv, ".fcsv": _read_fcsv}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise PointsError(f"landmark file '{path}' needs the suffix .txt, .vtk, .csv, .fcsv or .mrk.json")
    return readers[suffix]


def _need_grid(source: str, grid: Grid | None) -> Grid:
    if grid is None:
        raise PointsError(f"landmark file '{source}' holds voxel indices; give the image that they belong to")
    return grid


def _lines(text: str) -> list[tuple[int, list[str]]]:
    """Return the words of every line that is not blank, with its number."""
    return [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _read_elastix(text: str, source: str, grid: Grid | None) -> Landmarks:
    kind, found = _parse_elastix(text, _Rows(source))
    if kind == "point":
        return found.landmarks()
    landmarks = found.landmarks(_need_grid(source, grid).index_to_point)
    return replace(landmarks, indices=found.array())


def _parse_elastix(text: str, found: _Rows) -> tuple[str, _Rows]:
    """Return what the coordinates of elastix's text are, "point" or "index", and fill the rows with them."""
    lines, source = _lines(text), found.source
    kind = "index"  # elastix's choice when the first line is the count
    if lines[0][1][0].lower() in ("point", "index") and len(lines[0][1]) == 1:
        kind = lines.pop(0)[1][0].lower()
    if not lines:
        raise PointsError(f"{source}: the count of points is missing after '{kind}'")
    number, words = lines.pop(0)
    count = _count(words[0]) if len(words) == 1 else None
    if count is None:
        raise PointsError(f"{source}, line {number}: expected 'point', 'index' or the count, not '{' '.join(words)}'")
    for line, coordinates in lines:
        found.add(coordinates, line)
    if len(found.rows) != count:
        raise PointsError(f"{source}, line {number}: {words[0]} points are announced and {len(found.rows)} follow")
    return kind, found


def elastix_points_text(landmarks: Landmarks) -> str:
    """Return landmarks as elastix reads them: as voxel indices if their file holds whole ones, else in mm."""
    indices = landmarks.indices
    if indices is None or not np.array_equal(indices, np.rint(indices)):
        return _elastix_text(landmarks)
    return _points_text("index", indices)


def read_points_text(path: str | Path, dimension: int) -> str:
    """Read elastix's text of points of any dimension, and return it in a form that elastix cannot take for another.

    Raises
    ------
    PointsError
        If it is missing or malformed, with file and line, or has another suffix than .txt or .pts.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".pts"):
        raise PointsError(f"landmark file '{path}' needs the suffix .txt for images of {dimension} dimensions")
    kind, found = _parse_elastix(_read_text(path), _Rows(str(path), dimension))
    return _points_text(kind, found.array())


def points_text(points: npt.ArrayLike, dimension: int) -> str:
    """Return points (n, d) in mm as elastix's text.

    Raises
    ------
    PointsError
        If the shape is another, or a value is not finite.
    """
    found = np.array(points, dtype=float)
    if found.ndim != 2 or found.shape[1] != dimension or not np.isfinite(found).all():
        raise PointsError(f"points need an array of finite numbers of shape (n, {dimension}), not {found.shape}")
    return _points_text("point", found)


_VTK_SECTIONS = ("VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS", "POINT_DATA", "CELL_DATA", "METADATA", "FIELD")


def _read_vtk(text: str, source: str, grid: Grid | None) -> Landmarks:
    lines = _lines(text)
    upper = [" ".join(words).upper() for _, words in lines[:4]]
    if not upper[0].startswith("# VTK") or "ASCII" not in upper:
        raise PointsError(f"{source}: expected a legacy VTK file (.vtk) in ASCII")
    if "DATASET POLYDATA" not in upper:
        raise PointsError(f"{source}: expected DATASET POLYDATA")
    start = next((i for i, (_, words) in enumerate(lines) if words[0].upper() == "POINTS"), None)
    count = _count(lines[start][1][1]) if start is not None and len(lines[start][1]) == 3 else None
    if start is None or count is None:
        raise PointsError(f"{source}: the line 'POINTS count type' is missing")
    number = lines[start][0]
    values: list[tuple[int, str]] = []
    for line, words in lines[start + 1 :]:
        if words[0].upper() in _VTK_SECTIONS:
            break
        values += [(line, word) for word in words]
    if len(values) != 3 * count:  # one number too many would shift all points after it
        raise PointsError(
            f"{source}, line {number}: {count} points are announced and {len(values) // 3} follow"
            + (f", with {len(values) % 3} numbers more" if len(values) % 3 else "")
        )
    found = _Rows(source)
    for i in range(0, len(values), 3):
        found.add([word for _, word in values[i : i + 3]], values[i][0])
    return found.landmarks()


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and _NUMBER.fullmatch(text) is not None


def _count(text: str) -> int | None:
    """Return a whole number of ASCII digits, or None."""
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _cells(text: str, source: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of every row with its line number; refuse a quote that is not closed and swallows rows."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    before = 0
    try:
        for row in reader:
            if reader.line_num > before + 1:
                raise PointsError(f"{source}, line {before + 1}: a cell spans several lines; is a quote not closed?")
            before = reader.line_num
            yield before, [cell.strip() for cell in row]
    except csv.Error as error:
        raise PointsError(f"{source}, line {before + 1}: {error}; is a quote not closed?") from None


def _read_csv(text: str, source: str, grid: Grid | None) -> Landmarks:
    found = _Rows(source)
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    delimiter = next((d for d in (";", "\t") if d in first), ",")
    header: list[str] | None = None
    columns = _Columns()
    rows: list[tuple[int, list[str]]] = []
    for line, cells in _cells(text, source, delimiter):
        if not any(cells) or cells[0].startswith("#"):
            continue
        if header is None:
            header = cells
            columns = _csv_header(cells, f"{source}, line {line}", delimiter)
            if not any(map(_is_number, cells)) and not any(map(_DECIMAL_COMMA.fullmatch, cells)):
                continue
        if max(columns.axes) >= len(cells):
            raise PointsError(f"{source}, line {line}: a point needs 3 coordinates, not {len(cells)}")
        if any(cells[len(header) :]):
            hint = "; are the decimals commas? Then separate the columns by semicolons" if delimiter == "," else ""
            raise PointsError(f"{source}, line {line}: {len(cells)} cells under a header of {len(header)}{hint}")
        rows.append((line, cells))
    texts = [text for _, cells in rows for text in columns.numbers(cells)]
    commas = delimiter != "," and any(map(_DECIMAL_COMMA.fullmatch, texts))
    if commas and any("." in text for text in texts):
        raise PointsError(f"{source}: some numbers have a comma and some a point; write them all with a point")
    for line, cells in rows:
        x, y, z, radius = (text.replace(",", ".") if commas else text for text in columns.numbers(cells))
        found.add((x, y, z), line, _cell(cells, columns.name), radius)
    return found.landmarks()


@dataclass(frozen=True)
class _Columns:
    """Which cells of a row hold what."""

    axes: tuple[int, int, int] = (0, 1, 2)
    name: int | None = None
    radius: int | None = None

    def numbers(self, cells: list[str]) -> list[str]:
        """Return the texts of x, y, z and of the radius, which may be empty."""
        return [*(cells[i] for i in self.axes), _cell(cells, self.radius)]


def _cell(cells: list[str], column: int | None) -> str:
    return cells[column] if column is not None and column < len(cells) else ""


def _csv_header(cells: list[str], where: str, delimiter: str) -> _Columns:
    """Return the columns of x, y, z, the name and the radius; without a header there are just x, y, z."""
    if any(map(_is_number, cells)) or any(map(_DECIMAL_COMMA.fullmatch, cells)):
        if len(cells) != 3:
            hint = "; decimal commas need columns separated by semicolons" if len(cells) in (4, 5, 6) else ""
            hint = hint if delimiter == "," else ""
            raise PointsError(f"{where}: a point needs 3 coordinates, not {len(cells)}; name the columns x, y, z{hint}")
        return _Columns()
    lower = [cell.lower().removesuffix("_mm") for cell in cells]
    if not {"x", "y", "z"} <= set(lower):
        raise PointsError(f"{where}: expected the columns x, y and z, not '{', '.join(cells)}'")
    x, y, z = (lower.index(axis) for axis in "xyz")
    label = next((lower.index(name) for name in ("name", "label") if name in lower), None)
    return _Columns((x, y, z), label, lower.index("trust_radius") if "trust_radius" in lower else None)


def _coordinates(system: str, source: str, grid: Grid | None) -> Callable[[FloatArray], FloatArray] | None:
    """Return what turns points of Slicer's coordinate system into LPS."""
    system = system.strip().upper()
    if system in ("RAS", "0"):
        return lambda points: points * _FLIP
    if system in ("LPS", "1"):
        return None
    if system in ("IJK", "2"):
        return _need_grid(source, grid).index_to_point
    raise PointsError(f"{source}: the coordinate system must be RAS, LPS or IJK, not '{system}'")


def _read_fcsv(text: str, source: str, grid: Grid | None) -> Landmarks:
    found = _Rows(source)
    system = "RAS"  # Slicer's own, if the file does not say
    columns = ["id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label"]
    for number, row in _cells(text, source):
        if not row or not any(row):
            continue
        if row[0].startswith("#"):
            key, _, value = ",".join(row).lstrip("# ").partition("=")
            if key.strip().lower() == "coordinatesystem":
                system = value
            elif key.strip().lower() == "columns":
                columns = [name.strip().lower() for name in value.split(",")]
            continue
        cells = dict(zip_longest(columns, (cell.strip() for cell in row[: len(columns)]), fillvalue=""))
        texts = [cells[axis] for axis in "xyz" if cells.get(axis)]
        found.add(texts, number, str(cells.get("label", "")))
    return found.landmarks(_coordinates(system, source, grid))


def _read_json(text: str, source: str, grid: Grid | None) -> Landmarks:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise PointsError(f"{source}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise PointsError(f"{source}: not a markups file of 3D Slicer: it is nested too deeply") from None
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not markups or not isinstance(markups[0], dict):
        raise PointsError(f"{source}: expected a markups file of 3D Slicer; 'markups' is missing")
    if len(markups) > 1:
        raise PointsError(f"{source}: holds {len(markups)} markups; give a file with one list of points")
    control = markups[0].get("controlPoints")
    if not isinstance(control, list):
        raise PointsError(f"{source}: 'controlPoints' is missing")
    found = _Rows(source)
    left_out = []
    for number, point in enumerate(control):
        if not isinstance(point, dict):
            raise PointsError(f"{source}, point {number}: expected a point with its 'position'")
        label = str(point.get("label", ""))
        if str(point.get("positionStatus", _PLACED)).lower() != _PLACED:
            left_out.append(number)
            _log.warning("%s: point %d, '%s', was never placed and is left out", source, number, label)
            continue
        position = point.get("position")
        found.add(position if isinstance(position, list) else [], 0, label)
    landmarks = found.landmarks(_coordinates(str(markups[0].get("coordinateSystem", "LPS")), source, grid))
    return replace(landmarks, left_out=tuple(left_out))


# Writing


def write_landmarks(landmarks: Landmarks, path: str | Path) -> None:
    """Write landmarks in mm; the suffix chooses the format, as in `read_landmarks`. Whole or not at all.

    Raises
    ------
    PointsError
        If the suffix is unknown.
    OutputError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Landmarks, read_landmarks, write_landmarks
    >>> write_landmarks(Landmarks(np.array([[10.0, -20.0, 30.0]]), names=("carina",)), "points.fcsv")
    >>> read_landmarks("points.fcsv").names
    ('carina',)
    """
    from regnet_itk.outputs import write_whole

    path = Path(path)
    name = path.name.lower()
    writers: dict[str, Callable[[Landmarks], str]] = {
        ".txt": _elastix_text, ".pts": _elastix_text, ".vtk": _vtk_text, ".csv": _csv_text, ".fcsv": _fcsv_text,
    }  # fmt: skip
    writer = _json_text if name.endswith(".mrk.json") else writers.get(path.suffix.lower())
    if writer is None:
        raise PointsError(f"cannot write landmarks to '{path}': use the suffix .txt, .vtk, .csv, .fcsv or .mrk.json")
    if landmarks.trust_radii is not None and writer is not _csv_text:
        _log.warning("'%s' cannot hold the landmarks' radii of trust, which are left out: a .csv file keeps them", path)
    text = writer(landmarks)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _rows_text(points: FloatArray, separator: str = " ") -> list[str]:
    return [separator.join(repr(float(value)) for value in point) for point in points]


def _elastix_text(landmarks: Landmarks) -> str:
    return _points_text("point", landmarks.points)


def _points_text(kind: str, values: FloatArray) -> str:
    return "\n".join([kind, str(len(values)), *_rows_text(values)]) + "\n"


def _vtk_text(landmarks: Landmarks) -> str:
    n = len(landmarks)
    head = ["# vtk DataFile Version 3.0", "landmarks", "ASCII", "DATASET POLYDATA", f"POINTS {n} double"]
    vertices = [f"VERTICES {n} {2 * n}", *(f"1 {i}" for i in range(n))]
    return "\n".join([*head, *_rows_text(landmarks.points), *vertices]) + "\n"


def _csv_text(landmarks: Landmarks) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns: list[Sequence[str]] = [[repr(value) for value in axis] for axis in landmarks.points.T.tolist()]
    head = ["x", "y", "z"]
    if landmarks.names:
        head, columns = [*head, "name"], [*columns, landmarks.names]
    if landmarks.trust_radii is not None:
        head = [*head, "trust_radius"]
        columns = [*columns, ["" if math.isnan(radius) else repr(radius) for radius in landmarks.trust_radii.tolist()]]
    writer.writerows([head, *zip(*columns, strict=True)])
    return out.getvalue()


def _labels(landmarks: Landmarks) -> tuple[str, ...]:
    return landmarks.names or tuple(f"P-{i + 1}" for i in range(len(landmarks)))


def _fcsv_text(landmarks: Landmarks) -> str:
    out = io.StringIO()
    out.write("# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
    out.write("# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n")
    writer = csv.writer(out, lineterminator="\n")
    for i, (point, name) in enumerate(zip(landmarks.points.tolist(), _labels(landmarks), strict=True)):
        writer.writerow([i + 1, *map(repr, point), 0, 0, 0, 1, 1, 1, 0, name, "", ""])
    return out.getvalue()


def _json_text(landmarks: Landmarks) -> str:
    points = [
        {"id": str(i + 1), "label": name, "position": point, "selected": True, "locked": False, "visibility": True}
        for i, (point, name) in enumerate(zip(landmarks.points.tolist(), _labels(landmarks), strict=True))
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    return json.dumps({"@schema": schema, "markups": [markup]}, indent=1) + "\n"


# Checking


def check_landmarks(
    fixed: Landmarks, moving: Landmarks, fixed_grid: Grid | None = None, moving_grid: Grid | None = None
) -> None:
    """Refuse landmarks that do not correspond, or that lie outside their images.

    Parameters
    ----------
    fixed, moving : Landmarks
        Point i of one corresponds to point i of the other.
    fixed_grid, moving_grid : Grid, optional
        The images' grids; without them only the counts are compared.

    Raises
    ------
    PointsError
        With both counts, or with the number of points that lie outside and which they are.
    """
    if fixed.left_out != moving.left_out:
        told = " and ".join(
            f"{', '.join(map(str, points.left_out)) or 'none'} of the {role} file"
            for role, points in (("fixed", fixed), ("moving", moving))
        )
        raise PointsError(f"points were never placed: {told}; remove them, with their partners, from both files")
    if len(fixed) != len(moving):
        raise PointsError(
            f"there are {len(fixed)} fixed and {len(moving)} moving landmarks; they must correspond one to one"
        )
    for role, landmarks, grid in (("fixed", fixed, fixed_grid), ("moving", moving, moving_grid)):
        if grid is not None:
            check_inside(landmarks, grid, role)


def check_inside(landmarks: Landmarks, grid: Grid, role: str) -> None:
    """Refuse landmarks outside an image.

    Raises
    ------
    PointsError
        Says how many, which, and whether they look like RAS coordinates.
    """
    outside = np.flatnonzero(~grid.contains(landmarks.points))
    if not len(outside):
        return
    which = ", ".join(map(str, outside[:5])) + (" .." if len(outside) > 5 else "")
    message = f"{len(outside)} of {len(landmarks)} {role} landmarks lie outside the {role} image (point {which})"
    if grid.contains(landmarks.points * _FLIP).all():
        raise PointsError(f"{message}; they look like RAS: change the sign of x and y, since LPS is meant")
    raise PointsError(f"{message}; points are in mm, LPS, in the space of their own image")
