"""Chains as elastix's transform files, written and read.

elastix "Compose" applies the initial transform to the fixed point first: T(x) = C(T0(x)). An innermost field u, with
T(x) = T0(x + u(x)), is written as "Add" of v(x) = T0(x + u(x)) - T0(x).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import linalg

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import IDENTITY_DIRECTION, FloatArray, Grid
from regnet_itk.data.suffixes import FOREIGN_TRANSFORM_SUFFIXES, ITK_SUFFIXES
from regnet_itk.errors import ParameterError, RegNetItkError, TransformError, did_you_mean
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import ParameterMap, parse_parameter_text, parse_parameter_toml
from regnet_itk.transforms.chain import Link, TransformChain, sampled, with_matrix
from regnet_itk.transforms.itk_files import read_itk
from regnet_itk.transforms.types import BSplineTransform, MatrixTransform, Transform

INITIAL_KEYS = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
NO_INITIAL = "NoInitialTransform"
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
        If a file cannot be written.
    """
    folder = Path(folder)
    final = Path(final_folder if final_folder is not None else folder).resolve()
    written: list[Path] = []
    for i, link in enumerate(chain.links):
        initial = str(final / written[-1].name) if written else NO_INITIAL
        parts, how, initial = _for_elastix(TransformChain(chain.links[:i]), link, initial)
        for part, transform in enumerate(parts, start=1):
            tag = f"{first + i}" if part == len(parts) else f"{first + i}-part{part}"
            values = {
                **_elastix_values(transform, folder, final, f"deformationField.{tag}.mha"),
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


def _for_elastix(before: TransformChain, link: Link, initial: str) -> tuple[list[Transform], str, str]:
    """Return the transforms that elastix shall write for a link, how they combine, and what the first starts from."""
    how = "Add" if link.combine == "add" else "Compose"
    if link.combine != "innermost" or not before.links:
        return [link.transform], how, initial
    matrix = before.as_matrix()
    if matrix is not None and isinstance(link.transform, MatrixTransform):
        inner = link.transform  # P(C(x)) - P(x) + x is a matrix again
        change = matrix.matrix @ (inner.matrix - np.eye(3)) + np.eye(3)
        return [MatrixTransform(change, translation=matrix.matrix @ inner.offset)], "Add", initial
    if matrix is not None and not isinstance(link.transform, MatrixTransform):
        return [with_matrix(matrix.matrix, link.transform)], "Add", initial
    try:  # v(x) = P(C(x)) - P(x) is not on C's grid: state P(C(x)) itself, beginning with C
        return before.then(link).applied(), "Compose", NO_INITIAL
    except TransformError:  # P holds a sum
        return [_sampled_sum(before, link.transform)], "Add", initial


def _sampled_sum(before: TransformChain, transform: Transform) -> DisplacementField:
    """Return v(x) = P(C(x)) - P(x), sampled so finely that linear interpolation is good, if memory allows."""
    if isinstance(transform, MatrixTransform):
        raise TransformError(
            "a matrix inside a transform that is not a matrix cannot be written for elastix; write it for ITK (.h5)"
        )
    base = transform.grid
    factors = [k for k in (1, 3, 5) if k == 1 or k**3 * math.prod(base.size) <= MAX_FIELD_VOXELS]
    for factor in factors:
        grid = _refined(base, factor)
        error = _interpolation_error(before, transform, grid)
        if error <= FIELD_TOLERANCE:
            break
    else:
        _log.warning("the field written for elastix is off by up to %.3f mm between its voxels", error)
    return sampled(lambda points: _sum_at(before, transform, points), grid)


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


def _elastix_values(transform: Transform, folder: Path, final: Path, field_name: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(transform, DisplacementField):
        return transform.elastix_values()
    transform.write(folder / field_name)
    return {
        "Transform": ("DeformationFieldTransform",),
        "NumberOfParameters": ("0",),
        "DeformationFieldFileName": (str(final / field_name),),
        "DeformationFieldInterpolationOrder": ("1",),
        "UseDirectionCosines": ("true",),
    }


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


# Reading elastix's files


def _euler_matrix(angles: FloatArray, zyx: bool) -> FloatArray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x if zyx else z @ x @ y)


def _versor_matrix(versor: FloatArray) -> FloatArray:
    x, y, z = versor
    w = math.sqrt(max(0.0, 1.0 - float(versor @ versor)))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + 2 * w * cross + 2 * cross @ cross)


_MATRIX_PARAMETERS = {
    "TranslationTransform": 3,
    "EulerTransform": 6,
    "SimilarityTransform": 7,
    "AffineTransform": 12,
    "AffineLogTransform": 12,
}
_BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")
KNOWN_TRANSFORMS = (*_MATRIX_PARAMETERS, *_BSPLINES, "DeformationFieldTransform")


def _read_matrix(name: str, values: ParameterMap) -> MatrixTransform:
    p = np.array(_parameters(values, _MATRIX_PARAMETERS[name]))
    kept = {k: values[k] for k in ("Transform", "NumberOfParameters", "TransformParameters") if k in values}
    if name == "TranslationTransform":
        return MatrixTransform(np.eye(3), np.zeros(3), p, name, kept)
    centre = np.array(_floats(values, "CenterOfRotationPoint", 3))
    kept["CenterOfRotationPoint"] = values["CenterOfRotationPoint"]
    if name == "EulerTransform":
        kept["ComputeZYX"] = (values.get_str("ComputeZYX", "false"),)
        matrix, translation = _euler_matrix(p[:3], values.get_bool("ComputeZYX", False)), p[3:]
    elif name == "SimilarityTransform":
        matrix, translation = p[6] * _versor_matrix(p[:3]), p[3:6]
    else:
        matrix, translation = p[:9].reshape(3, 3), p[9:]
        if name == "AffineLogTransform":
            matrix = linalg.expm(matrix)
    return MatrixTransform(matrix, centre, translation, name, kept)


def _parameters(values: ParameterMap, count: int) -> list[float]:
    found = _floats(values, "TransformParameters")
    declared = values.get_int("NumberOfParameters", len(found))
    if not len(found) == declared == count:
        raise TransformError(
            f"{values.source}: a {values.get_str('Transform')} has {count} parameters here, but the file declares "
            f"{declared} and holds {len(found)}; it may be cut off"
        )
    return found


def _floats(values: ParameterMap, key: str, count: int | None = None) -> list[float]:
    found = values.get_floats(key, count)
    if not all(math.isfinite(value) for value in found):
        raise TransformError(f"{values.source}: '{key}' holds a value that is not finite")
    return found


def _read_bspline(name: str, values: ParameterMap) -> BSplineTransform:
    if values.get_bool("UseCyclicTransform", False):
        raise TransformError(f"{values.source}: a cyclic B-spline transform is not supported")
    order = values.get_int("BSplineTransformSplineOrder", 3)
    if order not in (1, 2, 3):
        raise TransformError(f"{values.source}: the B-spline order {order} is not supported; known are 1, 2 and 3")
    nx, ny, nz = values.get_ints("GridSize", 3)
    direction = np.reshape(_floats(values, "GridDirection", 9), (3, 3)).T if "GridDirection" in values else None
    grid = Grid(
        (nx, ny, nz),
        tuple(_floats(values, "GridSpacing", 3)),  # type: ignore[arg-type]
        tuple(_floats(values, "GridOrigin", 3)),  # type: ignore[arg-type]
        IDENTITY_DIRECTION if direction is None else direction,  # type: ignore[arg-type]
    ).crop(values.get_ints("GridIndex", 3, (0, 0, 0)), (nx, ny, nz))
    found = np.array(_parameters(values, 3 * nx * ny * nz))
    return BSplineTransform(np.moveaxis(found.reshape(3, nz, ny, nx), 0, -1), grid, order, name)


def _read_field(values: ParameterMap, folder: Path) -> DisplacementField:
    if values.get_int("DeformationFieldInterpolationOrder", 0) != 1:
        raise TransformError(
            f"{values.source}: the deformation field is to be read with the nearest vector; "
            "set (DeformationFieldInterpolationOrder 1)"
        )
    name = values.get_str("DeformationFieldFileName")
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its deformation field '{name}' does not exist; correct the path")
    return read_displacement_field(path)


def _read_transform_of_itk(values: ParameterMap, folder: Path) -> Transform:
    """Return the transform that elastix (5.2 and later) left in an ITK file, or that 3D Slicer hands to it."""
    name = values.get_str("TransformFileName")
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its transform '{name}' does not exist; correct the path")
    chain = read_itk(path)
    whole = chain.as_matrix() if len(chain.links) != 1 else chain.links[0].transform
    if whole is None:
        raise TransformError(
            f"{values.source}: '{name}' holds {len(chain.links)} transforms, and elastix reads one; "
            "give the file itself"
        )
    return whole


def _read_transform(values: ParameterMap, folder: Path) -> Transform:
    name = values.get_str("Transform")
    if name in _MATRIX_PARAMETERS:
        return _read_matrix(name, values)
    if name in _BSPLINES:
        return _read_bspline(name, values)
    if name == "DeformationFieldTransform":
        return _read_field(values, folder)
    if name == "File":
        return _read_transform_of_itk(values, folder)
    near = did_you_mean(name, KNOWN_TRANSFORMS)
    raise TransformError(
        f"{values.source}: the transform type '{name}' is not supported{near or ';'} "
        f"known are {', '.join(KNOWN_TRANSFORMS)}"
    )


_OF_TRANSFORM = (
    *INITIAL_KEYS, "Transform", "NumberOfParameters", "TransformParameters", "CenterOfRotationPoint", "ComputeZYX",
    "GridSize", "GridIndex", "GridSpacing", "GridOrigin", "GridDirection", "BSplineTransformSplineOrder",
    "UseCyclicTransform", "DeformationFieldFileName", "DeformationFieldInterpolationOrder", "HowToCombineTransforms",
    "UseBinaryFormatForTransformationParameters", "TransformFileName",
)  # fmt: skip


def _link_from(values: ParameterMap, folder: Path) -> Link:
    """Return the link that one elastix transform map describes."""
    for key in ("FixedImageDimension", "MovingImageDimension"):
        if values.get_int(key, 3) != 3:
            raise TransformError(f"{values.source}: '{key}' is {values.get_str(key)}; only 3D transforms can be used")
    how = values.get_str("HowToCombineTransforms", "Compose")
    if how not in ("Compose", "Add"):
        raise TransformError(f"{values.source}: HowToCombineTransforms must be Compose or Add, not '{how}'")
    if not values.get_bool("UseDirectionCosines", True) and not _axis_aligned(values):
        raise TransformError(
            f'{values.source}: it was made with (UseDirectionCosines "false") on an image with a direction, '
            'and does not hold in physical space; register again with "true"'
        )
    transform = _read_transform(values, folder)
    return Link(transform, "add" if how == "Add" else "compose", values.without(*_OF_TRANSFORM))


def _axis_aligned(values: ParameterMap) -> bool:
    direction = values.get_floats("Direction", 9, np.eye(3).ravel())
    return bool(np.allclose(direction, np.eye(3).ravel(), atol=1e-6))


def _checked_link(values: ParameterMap, folder: Path) -> Link:
    try:
        return _link_from(values, folder)
    except (ParameterError, TransformError) as error:
        raise TransformError(str(error)) from None
    except (RegNetItkError, ValueError, OverflowError) as error:  # numbers that no grid can have
        raise TransformError(f"{values.source}: {error}") from None


def initial_file(values: ParameterMap) -> str | None:
    """Return the name of the file that a transform map starts from: the new spelling of the key wins, as in elastix."""
    for key in INITIAL_KEYS:
        if key in values:
            name = values.get_str(key)
            return None if name == NO_INITIAL else name
    return None


def locate_file(name: str, folder: Path) -> Path | None:
    """Find a file by its name in another: from the working directory, from that file's folder, or moved beside it."""
    for path in (Path(name), folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    return None


def read_chain(path: str | Path) -> TransformChain:
    """Read a transform with all that it starts from.

    Parameters
    ----------
    path : str or Path
        An elastix transform file (.txt or .toml), or an ITK transform file (.h5, .tfm).

    Raises
    ------
    TransformError
        If a file is missing, cut off, not 3D, of an unknown type, or refers to itself.
    """
    path = Path(path)
    if not path.is_file():
        raise TransformError(f"transform file '{path}' does not exist")
    if path.suffix.lower() in (*ITK_SUFFIXES, *FOREIGN_TRANSFORM_SUFFIXES):
        return read_itk(path)
    return _read_elastix(path, ())


def _read_elastix(path: Path, seen: tuple[Path, ...]) -> TransformChain:
    here = path.resolve()
    if here in seen:
        raise TransformError(f"transform file '{path}' has itself as initial transform; correct {INITIAL_KEYS[0]}")
    values = read_transform_map(path)
    if "Transform" not in values:
        raise TransformError(f"'{path}' is not a transform file: it has no (Transform ..)")
    return _initial_chain(values, here.parent, (*seen, here)).then(_checked_link(values, here.parent))


def _initial_chain(values: ParameterMap, folder: Path, seen: tuple[Path, ...]) -> TransformChain:
    name = initial_file(values)
    if name is None:
        return TransformChain()
    found = locate_file(name, folder)
    if found is None:
        raise TransformError(f"{values.source}: its initial transform '{name}' does not exist; correct the path")
    return read_itk(found) if found.suffix.lower() in ITK_SUFFIXES else _read_elastix(found, seen)


def read_transform_map(path: Path) -> ParameterMap:
    """Read the keys of one elastix transform file (.txt or .toml), without the files that it names.

    Raises
    ------
    TransformError
        If it cannot be read or is malformed.
    """
    parse = parse_parameter_toml if path.suffix.lower() == ".toml" else parse_parameter_text
    try:
        return parse(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise TransformError(f"'{path}' is not a transform file: it is not text") from None
    except OSError as error:
        raise TransformError(f"transform file '{path}' cannot be read: {error.strerror}") from None
    except ParameterError as error:
        raise TransformError(f"{error}; the transform file may be cut off") from None


def chain_from_maps(maps: Sequence[ParameterMap]) -> TransformChain:
    """Return the chain of the maps of one ParameterObject; the first is applied first.

    Parameters
    ----------
    maps : sequence of ParameterMap
        Only the first may name a file to start from, as in elastix's library.

    Raises
    ------
    TransformError
        As for `read_chain`.
    """
    chain = TransformChain()
    for i, values in enumerate(maps):
        if i == 0:
            chain = _initial_chain(values, Path.cwd(), ())
        chain = chain.then(_checked_link(values, Path.cwd()))
    return chain
