"""Chains written as elastix's transform files.

elastix "Compose" applies the initial transform to the fixed point first: T(x) = C(T0(x)). An innermost field u, with
T(x) = T0(x + u(x)), is written as "Add" of v(x) = T0(x + u(x)) - T0(x).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from regnet_itk.data.field import DisplacementField, WriteBeside
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import TransformError
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.base import Transform
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, NO_INITIAL, check_nameable

FIELD_TOLERANCE = 2e-3  # mm; a sampled field is made this fine, if that is possible
MAX_FIELD_VOXELS = 40_000_000

_log = logging.getLogger(__name__)


def write_elastix(
    chain: TransformChain, folder: str | Path, final_folder: str | Path | None = None, first: int = 0
) -> list[Path]:
    """Write a chain as ``TransformParameters.N.txt``, with ``deformationField.N.mha`` for fields.

    Each of these files stands for the chain up to its link. An innermost link on top of a chain that holds more
    than matrices needs further files, ``TransformParameters.N-part1.txt`` .., so that elastix can have it exactly.

    Parameters
    ----------
    chain : TransformChain
    folder : str or Path
        Where to write; it must exist.
    final_folder : str or Path, optional
        Where the files will lie in the end, if `folder` is a temporary one. elastix needs absolute paths.
    first : int
        Number of the first file.

    Returns
    -------
    list of Path
        The transform files, one for each link; the last one stands for the whole chain.

    Raises
    ------
    OutputError
        If a file cannot be written, or the path of the folder cannot stand in it.
    """
    folder = Path(folder)
    final = Path(final_folder if final_folder is not None else folder).resolve()
    check_nameable(final)
    written: list[Path] = []
    for i, link in enumerate(chain.links):
        initial = str(final / written[-1].name) if written else NO_INITIAL
        parts, how, initial = _for_elastix(TransformChain(chain.links[:i]), link, initial)
        for part, transform in enumerate(parts, start=1):
            tag = f"{first + i}" if part == len(parts) else f"{first + i}-part{part}"
            values = {
                **transform.elastix_values(_writer_beside(folder, final, tag)),
                "HowToCombineTransforms": (how,),
                **dict.fromkeys(INITIAL_KEYS, (initial,)),
                "FixedImageDimension": ("3",),
                "MovingImageDimension": ("3",),
            }
            rest = {key: value for key, value in link.parameters.values.items() if key not in values}
            file = folder / f"TransformParameters.{tag}.txt"
            _write_text(file, ParameterMap({**values, **rest}).to_text())
            initial = str(final / file.name)
        written.append(file)
    return written


def _writer_beside(folder: Path, final: Path, tag: str) -> WriteBeside:
    """Return what writes the further files of a transform, named after its number."""

    def write_beside(name: str, suffix: str, write: Callable[[Path], object]) -> str:
        file = f"{name}.{tag}{suffix}"
        write(folder / file)
        return str(final / file)

    return write_beside


def _for_elastix(before: TransformChain, link: Link, initial: str) -> tuple[list[Transform], str, str]:
    """Return the transforms that elastix shall write for a link, how they combine, and what the first starts from."""
    how = "Add" if link.combine == "add" else "Compose"
    if link.combine != "innermost" or not before.links:
        return [link.transform], how, initial
    matrix = before.as_matrix()
    added = link.transform.times_matrix(matrix.matrix) if matrix is not None else None
    if added is not None:  # P(C(x)) - P(x) is P's matrix times C(x) - x
        return [added], "Add", initial
    try:  # v(x) = P(C(x)) - P(x) is not on C's grid: state P(C(x)) itself, beginning with C
        return before.then(link).applied(), "Compose", NO_INITIAL
    except TransformError:  # P holds a sum
        return [_sampled_sum(before, link)], "Add", initial


def _sampled_sum(before: TransformChain, link: Link) -> DisplacementField:
    """Return v(x) = P(C(x)) - P(x), sampled so finely that linear interpolation is good, if memory allows."""
    if not isinstance(link.transform, BSplineTransform | DisplacementField):
        raise TransformError(
            f"a transform ({link.transform.describe()}) inside of one that is not a matrix cannot be written for "
            "elastix; write it for ITK (.h5)"
        )
    from regnet_itk.transforms.sampler import sample_field  # torch is slow to start

    base = link.transform.grid
    factors = [k for k in (1, 3, 5) if k == 1 or k**3 * math.prod(base.size) <= MAX_FIELD_VOXELS]
    for factor in factors:
        grid = _refined(base, factor)
        error = _interpolation_error(before, link.transform, grid)
        if error <= FIELD_TOLERANCE:
            break
    else:
        _log.warning("the field written for elastix is off by up to %.3f mm between its voxels", error)
    whole, part = before.then(link).sampler(), before.sampler()
    return sample_field(lambda points: whole.map(points) - part.map(points), grid)


def _sum_at(before: TransformChain, transform: Transform, points: FloatArray) -> FloatArray:
    return before.map_points(transform.map_points(points)) - before.map_points(points)


def _refined(grid: Grid, factor: int) -> Grid:
    """Return the grid that fills the same box with voxels `factor` (odd) times smaller; old centres remain centres."""
    nx, ny, nz = (n * factor for n in grid.size)
    sx, sy, sz = (s / factor for s in grid.spacing)
    first = -0.5 + 0.5 / factor
    return Grid((nx, ny, nz), (sx, sy, sz), tuple(grid.index_to_point([first] * 3)), grid.direction)


def _interpolation_error(before: TransformChain, transform: Transform, grid: Grid, samples: int = 4000) -> float:
    """Return how far, in mm, linear interpolation on `grid` is off (99 % of points in random voxels)."""
    rng = np.random.default_rng(0)
    corner = np.floor(rng.random((samples, 3)) * (np.asarray(grid.size) - 1))
    inside = rng.random((samples, 3))
    mixed = np.zeros((samples, 3))
    for offset in np.ndindex(2, 2, 2):
        weight = np.where(offset, inside, 1 - inside).prod(axis=1)
        mixed += weight[:, None] * _sum_at(before, transform, grid.index_to_point(corner + offset))
    exact = _sum_at(before, transform, grid.index_to_point(corner + inside))
    return float(np.percentile(np.linalg.norm(mixed - exact, axis=1), 99))


def rename_elastix_files(
    folder: Path, new_names: Mapping[str, str], final_folder: Path, written_for: Path | None = None
) -> None:
    """Give a chain's elastix files other names, also where one of them names another by its path.

    Parameters
    ----------
    folder : Path
        Where the files are.
    new_names : mapping
        Old name to new name.
    final_folder : Path
        Where the files will lie in the end.
    written_for : Path, optional
        The folder by which they name each other now; `final_folder` by default.
    """
    before = written_for or final_folder
    new_paths = {f'"{before / old}"': f'"{final_folder / new}"' for old, new in new_names.items()}
    mentioned = re.compile("|".join(map(re.escape, new_paths)))
    for old in new_names:
        (folder / old).rename(folder / f"{old}.old")
    for old, new in new_names.items():
        (folder / f"{old}.old").rename(folder / new)
        if old.endswith(".txt"):
            text = (folder / new).read_text(encoding="utf-8")
            changed = mentioned.sub(lambda match: new_paths[match[0]], text)
            (folder / new).write_text(changed, encoding="utf-8")


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
