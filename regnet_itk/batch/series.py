"""A series of 3D images in one 4D file: all frames registered to one of them, and the series of what comes out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from regnet_itk.batch.records import FileMark
from regnet_itk.batch.work import PAIRS
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, read_image_nd, write_image
from regnet_itk.data.image_nd import ImageND
from regnet_itk.data.suffixes import RESULT_FORMATS
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.outputs import write_whole
from regnet_itk.pairs import Pair
from regnet_itk.result_files import RECORD

FRAMES = "frames"
"""The folder of the frames, in that of the batch."""

REGISTERED = "registered.mha"
"""The series of all frames on the fixed one's voxels."""

_OF = "series.json"


def split_series(path: str | Path, out: str | Path, fixed_frame: int = 0) -> list[Pair]:
    """Write the frames of a series as images, unless they are there, and return the pairs to register.

    Parameters
    ----------
    path : str or Path
        A 4D image; time, or what else tells the frames apart, is its fourth axis.
    out : str or Path
        The frames become ``frames/frame-000.mha`` .. in it.
    fixed_frame : int
        The frame, from 0, that the others are registered to.

    Returns
    -------
    list of Pair
        Each has its frame's name.

    Raises
    ------
    ImageError
        If it is no 4D image of at least two frames, or its fourth axis has a part in the other three.
    ParameterError
        If there is no such frame.
    OutputError, OSError
        If the frames cannot be written.
    """
    path, folder = Path(path), Path(out) / FRAMES
    count = _write_frames(path, folder)
    if not 0 <= fixed_frame < count:
        raise ParameterError(f"'{path}' has no frame {fixed_frame}: give `fixed_frame` from 0 to {count - 1}")
    files = [folder / f"{_name(number, count)}.mha" for number in range(count)]
    return [Pair(file.stem, files[fixed_frame], file) for n, file in enumerate(files) if n != fixed_frame]


def _write_frames(path: Path, folder: Path) -> int:
    """Write the frames of a series, unless those of the same one are there; return how many there are."""
    try:
        kept = json.loads((folder / _OF).read_text(encoding="utf-8"))
        mark, count = FileMark(**kept["mark"]), int(kept["frames"])
        there = all((folder / f"{_name(number, count)}.mha").is_file() for number in range(count))
        if there and mark.is_same(path):
            return count
    except (OSError, ValueError, TypeError, KeyError):
        pass  # there are none, or of a process that was killed
    series = read_image_nd(path, "series")
    mark = FileMark.of(path)
    frames = _frames(series, path)
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        write_image(frame, folder / f"{_name(number, len(frames))}.mha")
    content = json.dumps({"mark": asdict(mark), "frames": len(frames)}) + "\n"
    write_whole(folder / _OF, lambda part: part.write_text(content, encoding="utf-8"))
    return len(frames)


def _name(number: int, count: int) -> str:
    return f"frame-{number:0{max(3, len(str(count - 1)))}d}"


def _frames(series: ImageND, path: Path) -> list[Image]:
    if series.array.ndim != 4 or len(series.array) < 2:
        raise ImageError(
            f"'{path}' is no series of at least two 3D images in a 4D file; to register two images use regnet-itk run"
        )
    direction = series.direction
    if np.abs(direction[:3, 3]).max() > 1e-6 or np.abs(direction[3, :3]).max() > 1e-6:
        raise ImageError(f"the fourth axis of '{path}' is not apart from the other three: its frames lie nowhere")
    size, spacing, origin = series.size[:3], series.spacing[:3], series.origin[:3]
    grid = Grid(size, spacing, origin, direction[:3, :3])  # type: ignore[arg-type]
    return [Image(frame, grid) for frame in series.array]


def join_series(path: str | Path, out: str | Path, pairs: list[Pair]) -> Path:
    """Write all frames on the voxels of the fixed one as one series, whose fourth axis is that of the given one.

    Parameters
    ----------
    path : str or Path
        The series that was registered.
    out : str or Path
    pairs : list of Pair
        As `split_series` returned them, all of them registered.

    Returns
    -------
    Path
        ``registered.mha``.

    Raises
    ------
    ImageError, OutputError
        If a frame's result image cannot be read, or the series not be written.
    """
    out = Path(out)
    series = read_image_nd(path, "series")
    warped = {pair.moving.name: read_image(_result(out / PAIRS / pair.file_name), "result image") for pair in pairs}
    fixed = read_image(pairs[0].fixed)
    warped[pairs[0].fixed.name] = fixed
    arrays = [warped[name].array for name in sorted(warped)]
    joined = np.stack(arrays).astype(np.result_type(*arrays))
    write_image(ImageND(joined, series.spacing, series.origin, series.direction), out / REGISTERED)
    return out / REGISTERED


def _result(folder: Path) -> Path:
    """Return the result image of the last stage of a registration."""
    last = len(json.loads((folder / RECORD).read_text(encoding="utf-8"))["stages"]) - 1
    files = (folder / f"result.{last}.{suffix}" for suffix in RESULT_FORMATS)
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ImageError(f"'{folder}' holds no result image of the last stage: (WriteResultImage \"false\") was given")
    return found
