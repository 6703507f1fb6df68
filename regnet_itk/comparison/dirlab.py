"""DIR-Lab's lung CTs (4DCT and COPDgene): raw voxels without a header, landmarks as voxel indices that begin with 1.

The files say neither size nor spacing: both are known for each case. Voxels are 16-bit whole numbers, little endian,
x fastest, then y, then z, 1024 above Hounsfield units. A landmark (i, j, k) is the centre of the voxel that is the
i-th along x, the j-th along y, and lies in the k-th slice of the file. x goes to the patient's left and y to the back;
along z the files may begin at the head or at the feet, for which breathing is the witness: see
:func:`slices_from_feet`. Image and landmarks turn together, so that they agree in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.errors import ImageError, ParameterError, PointsError
from regnet_itk.outputs import staged_folder
from regnet_itk.pairs import Pair, read_pairs, write_pairs

OFFSET = 1024
PAIRS_FILE = "PAIRS.csv"

_GROUPS = {"case": "DIR-Lab 4DCT", "copd": "DIR-Lab COPDgene"}
# size in voxels along x = y, slices, spacing in mm along x = y; slices are 2.5 mm apart in all
_4DCT = (
    (256, 94, 0.97), (256, 112, 1.16), (256, 104, 1.15), (256, 99, 1.13), (256, 106, 1.10),
    (512, 128, 0.97), (512, 136, 0.97), (512, 128, 0.88), (512, 128, 0.97), (512, 120, 0.97),
)  # fmt: skip
_COPD = (
    (512, 121, 0.625), (512, 102, 0.645), (512, 126, 0.652), (512, 126, 0.590), (512, 131, 0.647),
    (512, 119, 0.633), (512, 112, 0.625), (512, 115, 0.586), (512, 116, 0.664), (512, 135, 0.742),
)  # fmt: skip
CASES = {
    f"{kind}{number}": Grid((n, n, slices), (spacing, spacing, 2.5))
    for kind, cases in (("case", _4DCT), ("copd", _COPD))
    for number, (n, slices, spacing) in enumerate(cases, start=1)
}
"""Size and spacing of the images of each case."""

_PHASES = {"t00": "inhale", "t50": "exhale", "ibh": "inhale", "ebh": "exhale"}
_IMAGE = re.compile(r"(case|copd)(\d+)_(T00|T50|iBH|eBH)[^/]*\.img", re.IGNORECASE)
_POINTS = re.compile(r"(case|copd)(\d+)_(?:dirlab)?300_(T00|T50|iBH|eBH)_xyz[^/]*\.txt", re.IGNORECASE)
_LEAST_SHIFT = 0.25  # slices, on average, by which breathing out moves landmarks towards the head
_UNSHIFTED_SHARE = 0.02

Phase = Literal["inhale", "exhale"]
Slices = Literal["auto", "feet-first", "head-first"]


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case.

    Parameters
    ----------
    name : str
        "case1" .. "case10", "copd1" .. "copd10".
    images, landmarks : dict of Path
        By phase, "inhale" (T00, iBH) and "exhale" (T50, eBH).
    """

    name: str
    images: dict[str, Path]
    landmarks: dict[str, Path]

    @property
    def grid(self) -> Grid:
        """Size and spacing of both images."""
        return CASES[self.name]


def find_cases(folders: Iterable[str | Path]) -> list[CaseFiles]:
    """Find the cases in folders as DIR-Lab packs them, and in the folders below.

    Parameters
    ----------
    folders : iterable of str or Path
        ``Case1Pack``, ``copd1`` .., or a folder that holds such folders.

    Raises
    ------
    ParameterError
        If a folder does not exist, there is no case in them, or one lacks a file or has it twice; names what is
        missing.
    """
    found: dict[str, CaseFiles] = {}
    given = [Path(folder) for folder in folders]
    for folder in given:
        if not folder.is_dir():
            raise ParameterError(f"the folder '{folder}' does not exist")
        for file in sorted(folder.rglob("*")):
            _sort_in(file, found)
    if not found:
        raise ParameterError(
            f"no DIR-Lab case in {', '.join(map(str, given))}: expected files such as case1_T00_s.img, copd1_iBHCT.img "
            "and case1_300_T00_xyz.txt"
        )
    for case in found.values():
        for what, files in (("image", case.images), ("landmarks", case.landmarks)):
            lacking = [phase for phase in ("inhale", "exhale") if phase not in files]
            if lacking:
                raise ParameterError(
                    f"{case.name}: the {what} of the {lacking[0]} phase (T00, iBH: inhale) are missing"
                )
    return sorted(found.values(), key=lambda case: list(CASES).index(case.name))


def _sort_in(file: Path, found: dict[str, CaseFiles]) -> None:
    """Add a file to the case that it belongs to, if it is one of DIR-Lab's."""
    for pattern, what in ((_IMAGE, "images"), (_POINTS, "landmarks")):
        match = pattern.fullmatch(file.name)
        name = f"{match[1].lower()}{int(match[2])}" if match else ""
        if match is None or name not in CASES:
            continue
        files = getattr(found.setdefault(name, CaseFiles(name, {}, {})), what)
        phase = _PHASES[match[3].lower()]
        if phase in files:
            raise ParameterError(f"{name}: two files for the {phase} phase, '{files[phase]}' and '{file}'; keep one")
        files[phase] = file


def read_raw(path: str | Path, grid: Grid, offset: int = OFFSET) -> Image:
    """Read a raw image: 16-bit little endian, x fastest.

    Parameters
    ----------
    path : str or Path
    grid : Grid
        Its voxels.
    offset : int
        Is subtracted to get Hounsfield units; what is then below -1024 (outside the scanner's field) becomes -1024.

    Returns
    -------
    Image
        int16, Hounsfield units.

    Raises
    ------
    ImageError
        If the file has another size than the grid (with both), or its values look like Hounsfield units already.
    """
    path = Path(path)
    expected = 2 * int(np.prod(grid.size))
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ImageError(f"image '{path}' cannot be read: {error.strerror}") from None
    if found != expected:
        nx, ny, nz = grid.size
        raise ImageError(f"image '{path}' has {found} bytes; {nx} x {ny} x {nz} voxels of 16 bits are {expected}")
    values = np.fromfile(path, dtype="<i2").reshape(grid.shape).astype(np.int32)
    if offset and ((values > -1100) & (values < -700)).mean() > _UNSHIFTED_SHARE:
        raise ImageError(f"image '{path}' looks like Hounsfield units already, not {offset} above; give `offset` 0")
    return Image(np.clip(values - offset, -1024, 32767).astype(np.int16), grid)


def read_indices(path: str | Path, grid: Grid) -> FloatArray:
    """Read landmarks as indices (n, 3), x, y, z, that begin with 0 as those of a :class:`Grid` do.

    Raises
    ------
    PointsError
        If the file cannot be read, a line is not three numbers, or one lies outside `grid`; with the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        raise PointsError(f"landmark file '{path}' cannot be read as text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            x, y, z = (float(word) for word in line.split())
        except ValueError:
            raise PointsError(f"{path}, line {number}: expected three indices, not '{line.strip()}'") from None
        if not all(1 <= value <= n for value, n in zip((x, y, z), grid.size, strict=True)):
            raise PointsError(
                f"{path}, line {number}: the index {x:g} {y:g} {z:g} lies outside 1 .. {grid.size}; is it of another "
                "case?"
            )
        rows.append((x - 1, y - 1, z - 1))
    if not rows:
        raise PointsError(f"landmark file '{path}' holds no points")
    return np.array(rows)


def slices_from_feet(inhale: FloatArray, exhale: FloatArray) -> bool:
    """Say whether the slices go from the feet to the head: breathing out moves the lungs towards the head.

    Parameters
    ----------
    inhale, exhale : ndarray, shape (n, 3)
        Indices of the same landmarks.

    Raises
    ------
    ParameterError
        If they move by less than a quarter of a slice on average: then it has to be said.
    """
    shift = float((exhale - inhale)[:, 2].mean())
    if abs(shift) < _LEAST_SHIFT:
        raise ParameterError(
            f"the landmarks move by {shift:.2f} slices only: whether the slices begin at the feet or the head cannot "
            "be told; give `slices` feet-first or head-first"
        )
    return shift > 0


def placed(grid: Grid, from_feet: bool) -> Grid:
    """Return the grid in LPS: x to the left, y to the back, and z, towards the head, with or against the slices."""
    z = 1.0 if from_feet else -1.0
    return Grid(grid.size, grid.spacing, direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, z)))


def import_case(
    case: CaseFiles,
    out: str | Path,
    *,
    fixed: Phase = "inhale",
    slices: Slices = "auto",
    offset: int = OFFSET,
    lung_masks: bool = False,
) -> Pair:
    """Write a case as images (.mha, Hounsfield units) and elastix's point files (mm, LPS) into ``out/NAME``.

    Parameters
    ----------
    case : CaseFiles
    out : str or Path
    fixed : {"inhale", "exhale"}
        Which phase is the fixed image; DIR-Lab's errors are of the inhale landmarks, mapped.
    slices : {"auto", "feet-first", "head-first"}
        Which way the slices of the file go; "auto" asks the landmarks, see :func:`slices_from_feet`.
    offset : int
        See :func:`read_raw`.
    lung_masks : bool
        Find the lungs, and write their masks.

    Returns
    -------
    Pair
        A row for the list of pairs.

    Raises
    ------
    ImageError, PointsError, ParameterError, OutputError
        If a file does not fit the case, or nothing can be written.
    """
    indices = {phase: read_indices(path, case.grid) for phase, path in case.landmarks.items()}
    if len(indices["inhale"]) != len(indices["exhale"]):
        raise PointsError(
            f"{case.name}: {len(indices['inhale'])} inhale and {len(indices['exhale'])} exhale landmarks; they must "
            "correspond one to one"
        )
    feet = slices_from_feet(indices["inhale"], indices["exhale"]) if slices == "auto" else slices == "feet-first"
    grid = placed(case.grid, feet)
    folder = Path(out) / case.name
    moving = "exhale" if fixed == "inhale" else "inhale"
    with staged_folder(folder) as stage:
        for phase in (fixed, moving):
            image = Image(read_raw(case.images[phase], case.grid, offset).array, grid)
            write_image(image, stage / f"{phase}.mha")
            write_landmarks(Landmarks(grid.index_to_point(indices[phase])), stage / f"{phase}_points.txt")
            if lung_masks:
                from regnet_itk.anatomy.lungs import lung_mask

                write_image(lung_mask(image), stage / f"{phase}_lungs.mha")
    return Pair(
        case.name,
        folder / f"{fixed}.mha",
        folder / f"{moving}.mha",
        fixed_mask=folder / f"{fixed}_lungs.mha" if lung_masks else None,
        moving_mask=folder / f"{moving}_lungs.mha" if lung_masks else None,
        fixed_landmarks=folder / f"{fixed}_points.txt",
        moving_landmarks=folder / f"{moving}_points.txt",
        group=_GROUPS[case.name[:4]],
    )


def add_pairs(pairs: Sequence[Pair], path: str | Path) -> None:
    """Write pairs into a list of pairs; those that it holds already stay, but for those of the same names.

    Raises
    ------
    ParameterError
        If there is such a file, and it is no list of pairs.
    OutputError
        If it cannot be written.
    """
    names = {pair.name for pair in pairs}
    before = [pair for pair in read_pairs(path) if pair.name not in names] if Path(path).is_file() else []
    write_pairs([*before, *pairs], path)
