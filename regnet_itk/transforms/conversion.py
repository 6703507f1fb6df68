"""Transforms from one kind of file into another, saying whether that was exact and, if not, how far off it is.

Kinds, told by the suffix: elastix transform parameter files (.txt), ITK transforms (.h5, .hdf5, .tfm), and displacement
field images (.mha, .mhd, .nrrd, .nii, .nii.gz). T maps points of the fixed to the moving image, mm, LPS.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import interpolate

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import FloatArray, Grid, Triple
from regnet_itk.data.suffixes import FIELD_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES, known_suffix
from regnet_itk.errors import TransformError, did_you_mean
from regnet_itk.outputs import staged_folder
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import rename_elastix_files, write_elastix
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import resampling_grid, resampling_parameters

Vectors = Literal["lps", "ras"]
"""How the vectors of a NIfTI field are stored: along the axes L, P, S or R, A, S."""

ELASTIX_SUFFIX = ".txt"
SUFFIXES = (ELASTIX_SUFFIX, *ITK_SUFFIXES, *FIELD_SUFFIXES)
EXACT = 1e-3
"""mm; what float32 and decimal text may lose in a conversion that is called exact."""

_POINTS = 20_000
_SLAB_POINTS = 500_000
_SMOOTHING = 1e-6  # weight of second differences in the fit: for control points that hardly any voxel reaches
_INTENT_OFFSET, _DISPLACEMENT, _VECTOR = 68, 1006, 1007


@dataclass(frozen=True)
class Deviation:
    """How far two transforms are apart, as lengths in mm at random points of a grid.

    Parameters
    ----------
    mean, p95, max : float
        mm; `p95` is the length that 95 % of the points stay below.
    count : int
        Number of points.
    """

    mean: float
    p95: float
    max: float
    count: int


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Parameters
    ----------
    files : tuple of Path
        The file that was asked for first, then those that belong to it.
    kind : str
        What was written.
    exact : bool
        Whether the written file is the same transform, apart from rounding.
    deviation : Deviation
        Between what was read and what was written; it was measured in the written files.
    notes : tuple of str
        What a user of the file should know.
    """

    files: tuple[Path, ...]
    kind: str
    exact: bool
    deviation: Deviation
    notes: tuple[str, ...] = ()


def suffix_of(path: str | Path) -> str:
    """Return the suffix that says what kind of transform a file holds, in small letters.

    Raises
    ------
    TransformError
        If it is none of the known ones.
    """
    suffix = known_suffix(path, SUFFIXES)
    if suffix:
        return suffix
    given = Path(path).suffix.lower() or "no suffix"
    raise TransformError(
        f"'{path}': a transform file cannot have the suffix '{given}'"
        f"{did_you_mean(given, SUFFIXES) or ';'} known are {', '.join(SUFFIXES)}"
    )


def read_transform(path: str | Path, vectors: Vectors | None = None) -> TransformChain:
    """Read a transform of any kind, a displacement field image included.

    Parameters
    ----------
    path : str or Path
    vectors : {"lps", "ras"}, optional
        How a NIfTI field is stored. By default as its header says: RAS with the intent code 1006, else LPS, as ITK
        and ANTs write it.

    Raises
    ------
    TransformError
        If the file is missing, of no known kind, damaged, or does not hold a transform.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> from regnet_itk import read_transform
    >>> sitk.WriteImage(sitk.Image((4, 3, 2), sitk.sitkVectorFloat64, 3), "u.mha")
    >>> read_transform("u.mha").map_points([[1.0, 1.0, 0.5]]).tolist()
    [[1.0, 1.0, 0.5]]
    """
    path = Path(path)
    if not path.exists():
        raise TransformError(f"transform file '{path}' does not exist")
    if not path.is_file():
        raise TransformError(f"'{path}' is a folder; give a transform file in it")
    suffix = suffix_of(path)
    if suffix not in FIELD_SUFFIXES:
        return read_chain(path)
    field = read_field(path, vectors)
    return TransformChain((Link(field),))


def read_field(path: str | Path, vectors: Vectors | None = None) -> DisplacementField:
    """Read a displacement field image; see `read_transform`.

    Raises
    ------
    TransformError
        If it is missing, damaged, not a field, holds NaN, or is a NIfTI file of NiftyReg and `vectors` is not given.
    """
    try:
        field = read_displacement_field(path)
    except TransformError as error:
        raise error if str(path) in str(error) else TransformError(f"'{path}': {error}") from None
    if suffix_of(path) not in NIFTI_SUFFIXES:
        return field
    intent, name = nifti_intent(Path(path))
    if name.startswith("NREG") and vectors is None:
        raise TransformError(
            f"'{path}' was written by NiftyReg, as vectors in RAS or as points; if it holds displacements, say so "
            "with --nifti-vectors ras"
        )
    as_read: Vectors = "ras" if intent == _DISPLACEMENT else "lps"  # ITK turns the first into LPS
    if (vectors or as_read) != as_read:
        return DisplacementField(_flipped(field.vectors), field.grid)
    return field


def nifti_intent(path: Path) -> tuple[int, str]:
    """Return the intent code and the intent name in the header of a NIfTI file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    found = {key: reader.GetMetaData(key) for key in ("intent_code", "intent_name") if reader.HasMetaDataKey(key)}
    return int(found.get("intent_code") or 0), found.get("intent_name", "").strip()


def _flipped(vectors: FloatArray) -> FloatArray:
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


def transform_grid(chain: TransformChain) -> Grid | None:
    """Return the voxels that a transform was made for: those its file names, or else those of its finest field."""
    for link in reversed(chain.links):
        grid = resampling_grid(link.parameters)
        if grid is not None:
            return grid
    fields = [link.transform.grid for link in chain.links if isinstance(link.transform, DisplacementField)]
    return min(fields, key=lambda grid: math.prod(grid.spacing), default=None)


def deviation(first: TransformChain, second: TransformChain, grid: Grid, seed: int = 0) -> Deviation:
    """Measure how far two transforms are apart, at random points between the voxels of a grid.

    Parameters
    ----------
    first, second : TransformChain
    grid : Grid
        The points lie anywhere between the centres of its first and last voxels.
    seed : int
        Of the points.
    """
    points = grid.random_points(_POINTS, np.random.default_rng(seed))
    length = np.linalg.norm(first.map_points(points) - second.map_points(points), axis=1)
    return Deviation(float(length.mean()), float(np.percentile(length, 95)), float(length.max()), _POINTS)


# B-splines


def fit_bspline(chain: TransformChain, grid: Grid, spacing: float) -> TransformChain:
    """Return the cubic B-spline transform nearest to `chain`, in the sense of least squares over the voxels of `grid`.

    What the chain's matrices alone do is kept as it is, so that it holds beyond the grid as well; the B-splines are
    added to it: T(x) = A(x) + B(x). elastix can compute derivatives of that, and it cannot of a displacement field.

    Parameters
    ----------
    chain : TransformChain
    grid : Grid
        The voxels at which the two shall agree, those of the fixed image.
    spacing : float
        Distance of the control points in mm, along the axes of the grid.

    Raises
    ------
    TransformError
        If the control points would be closer than the voxels.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> spline = regnet_itk.fit_bspline(chain, regnet_itk.Grid(size=(8, 8, 4)), spacing=4.0)
    >>> spline.map_points([[3.0, 3.0, 2.0]]).round(3).tolist()
    [[5.0, 3.0, 1.0]]
    """
    if not spacing >= max(grid.spacing):
        raise TransformError(
            f"B-spline control points every {spacing:g} mm cannot be found from voxels of "
            f"{' x '.join(f'{s:g}' for s in grid.spacing)} mm; give a larger spacing"
        )
    matrices = TransformChain(tuple(link for link in chain.links if isinstance(link.transform, MatrixTransform)))
    keys = chain.links[-1].parameters if chain.links else ParameterMap({})
    base = TransformChain()
    if matrices.links:
        whole = matrices.links[0].transform if len(matrices.links) == 1 else matrices.as_matrix()
        assert isinstance(whole, MatrixTransform)
        base = TransformChain((Link(whole, parameters=keys),))
    control = _control_grid(grid, spacing)
    spline = BSplineTransform(
        _coefficients(lambda points: chain.map_points(points) - base.map_points(points), grid, control), control
    )
    return base.then(Link(spline, "add" if base.links else "compose", keys))


def _control_grid(grid: Grid, spacing: float) -> Grid:
    """Return control points whose B-splines cover the box that the voxels fill, in its middle."""
    step = spacing / np.asarray(grid.spacing)
    nx, ny, nz = np.ceil(np.asarray(grid.size) / step + 1e-6).astype(int) + 3
    first = (np.asarray(grid.size) - 1) / 2 - (np.array([nx, ny, nz]) - 1) / 2 * step
    x, y, z = grid.index_to_point(first)
    return Grid((nx, ny, nz), (spacing,) * 3, (x, y, z), grid.direction)


def _coefficients(displacement: Callable[[FloatArray], FloatArray], grid: Grid, control: Grid) -> FloatArray:
    """Return the coefficients (z, y, x, 3) that fit best at the voxels; the fit is one of each axis after the other."""
    first = control.point_to_index(np.asarray(grid.origin))
    step = np.asarray(grid.spacing) / np.asarray(control.spacing)
    fit_x, fit_y, fit_z = (_axis_fit(first[a] + step[a] * np.arange(grid.size[a]), control.size[a]) for a in range(3))
    found = np.zeros((control.size[2], 3, control.size[0], control.size[1]))
    for box in grid.slabs(_SLAB_POINTS):
        slab = displacement(grid.part(box).points())  # z, y, x, 3
        along_x = np.tensordot(slab, fit_x, axes=(2, 1))  # z, y, 3, X
        along_y = np.tensordot(along_x, fit_y, axes=(1, 1))  # z, 3, X, Y
        found += np.tensordot(fit_z[:, box[0]], along_y, axes=(1, 0))
    return np.ascontiguousarray(found.transpose(0, 3, 2, 1))


def _axis_fit(index: FloatArray, count: int) -> FloatArray:
    """Return the matrix (count, n) from n values at control-point indices to the coefficients of cubic B-splines."""
    knots = np.arange(-2, count + 2, dtype=float)
    basis = interpolate.BSpline.design_matrix(index, knots, 3).toarray()
    bend = np.diff(np.eye(count), n=2, axis=0)
    system = np.vstack([basis, _SMOOTHING * bend])
    wanted = np.vstack([np.eye(len(index)), np.zeros((len(bend), len(index)))])
    return np.asarray(np.linalg.lstsq(system, wanted, rcond=None)[0])


# Writing


def convert(
    source: str | Path | TransformChain,
    target: str | Path,
    *,
    like: Grid | None = None,
    spacing: Sequence[float] | None = None,
    bspline_spacing: float | None = None,
    vectors: Vectors | None = None,
    max_error: float | None = None,
) -> Conversion:
    """Write a transform as a file of another kind, whole or not at all.

    Parameters
    ----------
    source : str, Path or TransformChain
    target : str or Path
        Its suffix says the kind.
    like : Grid
        The fixed image's grid, for fields and for the resampling keys of elastix files. By default the one that the
        source names, or that of its field.
    spacing : sequence of float, optional
        Of a field's voxels in mm, one or three numbers.
    bspline_spacing : float, optional
        Fit a cubic B-spline with control points at this distance in mm, and write that (.txt, .h5, .tfm).
    vectors : {"lps", "ras"}, optional
        How a NIfTI field is, or shall be, stored. It is written as LPS by default.
    max_error : float, optional
        Write nothing if the result is further off than this anywhere, in mm.

    Raises
    ------
    TransformError
        If the source cannot be read, a grid is needed and unknown, or `max_error` is exceeded.
    OutputError
        If the target cannot be written.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> from regnet_itk import Grid, convert
    >>> sitk.WriteTransform(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)), "shift.tfm")
    >>> convert("shift.tfm", "u.mha", like=Grid(size=(8, 8, 4))).deviation.max < 1e-6
    True
    """
    suffix, target = suffix_of(target), Path(target)
    chain = source if isinstance(source, TransformChain) else read_transform(source, vectors)
    grid = like or transform_grid(chain)
    _check_options(suffix, spacing, bspline_spacing)
    wanted = chain if bspline_spacing is None else fit_bspline(chain, _needed(grid, target), bspline_spacing)
    with staged_folder(target.parent) as stage:
        if suffix == ELASTIX_SUFFIX:
            written, exact = _write_elastix(wanted, stage, target, _needed(grid, target), bool(like)), True
        elif suffix in ITK_SUFFIXES:
            written, exact = _write_itk(wanted, stage / target.name, grid)
        else:
            voxels = _spaced(_needed(grid, target), spacing) if spacing else _needed(grid, target)
            written, exact = _write_field(wanted, stage / target.name, voxels, vectors)
        found = deviation(chain, written, grid or Grid((200, 200, 200), origin=(-100.0, -100.0, -100.0)))
        if max_error is not None and not found.max <= max_error:
            raise TransformError(
                f"'{target}' would be off by up to {found.max:.3g} mm, more than the {max_error:g} mm allowed; "
                "nothing was written"
            )
        names = sorted((file.name for file in stage.iterdir()), key=lambda name: (name != target.name, name))
    exact = exact and bspline_spacing is None and found.max <= EXACT
    notes = _notes(wanted, suffix, exact, vectors)
    files = tuple(target.parent / name for name in names)
    return Conversion(files, _kind(suffix, written, bspline_spacing), exact, found, notes)


def _check_options(suffix: str, spacing: Sequence[float] | None, bspline_spacing: float | None) -> None:
    is_field = suffix in FIELD_SUFFIXES
    if spacing is not None and not is_field:
        raise TransformError(
            f"--spacing is that of a displacement field; a {suffix} file has none (--bspline-spacing?)"
        )
    if bspline_spacing is not None and is_field:
        raise TransformError(f"--bspline-spacing makes a B-spline transform, which a {suffix} image cannot hold")


def _needed(grid: Grid | None, target: Path) -> Grid:
    if grid is None:
        raise TransformError(
            f"'{target}' needs the fixed image's grid, which the transform does not name; give it with --like IMAGE"
        )
    return grid


def _spaced(grid: Grid, spacing: Sequence[float]) -> Grid:
    """Return the grid with voxels of another size, one or three numbers of mm, that fills the same box."""
    if len(spacing) not in (1, 3) or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise TransformError(f"a spacing is one or three numbers of mm above 0, not {', '.join(map(str, spacing))}")
    return grid.with_spacing(np.broadcast_to(np.asarray(spacing, dtype=float), 3).tolist())


def _write_elastix(chain: TransformChain, stage: Path, target: Path, grid: Grid, replace_grid: bool) -> TransformChain:
    """Write elastix files: `target` for the whole, and with its name and a number for what it begins with."""
    keys = resampling_parameters(grid)
    of_grid = {key: keys[key] for key in ("Size", "Index", "Spacing", "Origin", "Direction")}
    links = []
    for link in chain.links or (Link(MatrixTransform(np.eye(3))),):
        if "Size" not in link.parameters:
            links.append(replace(link, parameters=link.parameters.with_(keys)))
        else:
            links.append(replace(link, parameters=link.parameters.with_(of_grid)) if replace_grid else link)
    last = write_elastix(TransformChain(tuple(links)), stage)[-1]
    written = read_chain(last)
    stem = target.name[: -len(ELASTIX_SUFFIX)]
    new_names = {file.name: f"{stem}.{file.name.split('.', 1)[1]}" for file in stage.iterdir()}
    new_names[last.name] = target.name
    rename_elastix_files(stage, new_names, target.parent.resolve(), stage)
    return written


def _write_itk(chain: TransformChain, part: Path, grid: Grid | None) -> tuple[TransformChain, bool]:
    try:
        write_itk(chain, part)
        exact = True
    except TransformError:  # a sum, or a type that ITK cannot express: it has to be sampled
        write_itk(chain, part, _needed(grid, Path(part.name)))
        exact = False
    return read_chain(part), exact


def _write_field(chain: TransformChain, part: Path, grid: Grid, vectors: Vectors | None) -> tuple[TransformChain, bool]:
    only = chain.links[0].transform if len(chain.links) == 1 else None
    same = isinstance(only, DisplacementField) and only.grid.is_close(grid, 1e-6)
    field = only if isinstance(only, DisplacementField) and same else chain.displacement_on(grid)
    if suffix_of(part) in NIFTI_SUFFIXES and vectors == "ras":
        DisplacementField(_flipped(field.vectors), field.grid).write(part)
        _set_nifti_intent(part, _DISPLACEMENT)
    else:
        field.write(part)
    back = read_field(part)
    if not back.grid.is_close(grid):
        raise TransformError(
            f"'{part.name}': a file of this kind cannot hold the grid of the field (a sheared or otherwise unusual "
            "direction); write .mha"
        )
    return TransformChain((Link(back),)), same


def _set_nifti_intent(path: Path, code: int) -> None:
    zipped = path.name.lower().endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    content[_INTENT_OFFSET : _INTENT_OFFSET + 2] = code.to_bytes(2, "little")
    path.write_bytes(gzip.compress(content, 6) if zipped else content)


def _kind(suffix: str, written: TransformChain, bspline_spacing: float | None) -> str:
    parts = ", ".join(link.transform.describe() for link in written.links)
    if suffix in FIELD_SUFFIXES:
        return parts
    made_by = "elastix transform" if suffix == ELASTIX_SUFFIX else "ITK composite transform"
    fitted = f" (control points every {bspline_spacing:g} mm)" if bspline_spacing else ""
    return f"{made_by}: {parts}{fitted}"


def _notes(chain: TransformChain, suffix: str, exact: bool, vectors: Vectors | None) -> tuple[str, ...]:
    notes = []
    if suffix in FIELD_SUFFIXES and not exact:
        notes.append("outside its grid a displacement field is the identity, whatever the transform did there")
    if suffix in NIFTI_SUFFIXES:
        how = "RAS, intent code 1006" if vectors == "ras" else "LPS, intent code 1007, as ITK, SimpleITK and ANTs do"
        notes.append(
            f"NIfTI vectors were written as {how}; programs differ in how they read them, so check one landmark "
            "in yours, or use .mha or .nrrd"
        )
    if suffix == ELASTIX_SUFFIX:
        notes.append("elastix files name each other by absolute paths; after moving them: regnet-itk repair FOLDER")
        if any("Size" not in link.parameters for link in chain.links):
            notes.append('images are resampled with (DefaultPixelValue -1000) and (ResultImagePixelType "short")')
    return tuple(notes)


def parse_spacing(text: str) -> Triple | tuple[float]:
    """Return the numbers of "2" or "1,1,2.5", in mm.

    Raises
    ------
    TransformError
        If it is not one or three numbers.
    """
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1:
        return (values[0],)
    if len(values) == 3:
        return values[0], values[1], values[2]
    raise TransformError(f"a spacing is one number of mm, or three with commas (1,1,2.5), not '{text}'")
