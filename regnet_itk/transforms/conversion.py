"""Transforms from one kind of file into another, saying whether that was exact and, if not, how far off it is.

Kinds, told by the suffix: elastix transform parameter files (.txt), ITK transforms (.h5, .hdf5, .tfm), DICOM
registrations (.dcm), and displacement field images (.mha, .mhd, .nrrd, .nii, .nii.gz). T maps points of the fixed to
the moving image, mm, LPS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid, Triple
from regnet_itk.data.nifti_files import NIFTI_DISPLACEMENT, set_nifti_intent
from regnet_itk.data.suffixes import FIELD_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES
from regnet_itk.dicom.files import DICOM_SUFFIX
from regnet_itk.dicom.series import Series, read_both_series
from regnet_itk.errors import TransformError
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.dicom_registration import read_registration, write_registration
from regnet_itk.transforms.elastix_keys import check_nameable
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import rename_elastix_files, write_elastix
from regnet_itk.transforms.fitting import Deviation, fit_bspline, measure_deviation
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.reading import (
    ELASTIX_SUFFIX,
    Vectors,
    find_suffix,
    flip_vectors,
    read_field,
    read_transform,
    transform_grid,
)
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

EXACT = 1e-3
"""mm; what float32 and decimal text may lose in a conversion that is called exact."""


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


def convert(
    source: str | Path | TransformChain,
    target: str | Path,
    *,
    like: Grid | None = None,
    spacing: Sequence[float] | None = None,
    bspline_spacing: float | None = None,
    vectors: Vectors | None = None,
    max_error: float | None = None,
    fixed_series: str | Path | None = None,
    moving_series: str | Path | None = None,
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
        Of a field's voxels in mm, one or three numbers; a field in a DICOM registration included.
    bspline_spacing : float, optional
        Fit a cubic B-spline with control points at this distance in mm, and write that (.txt, .h5, .tfm).
    vectors : {"lps", "ras"}, optional
        How a NIfTI field is, or shall be, stored. It is written as LPS by default.
    max_error : float, optional
        Write nothing if the result is further off than this anywhere, in mm.
    fixed_series, moving_series : str or Path, optional
        Folders with the DICOM series of the two images: a DICOM registration that is written refers to them, and one
        that is read is checked against them.

        .. versionadded:: 0.2

    Raises
    ------
    TransformError, DicomError
        If the source cannot be read, a grid is needed and unknown, or `max_error` is exceeded; or if the series are
        missing, of two patients, or not those of the registration.
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
    suffix, target = find_suffix(target), Path(target)
    _check_options(suffix, spacing, bspline_spacing)
    series = _series(source, suffix, fixed_series, moving_series)
    chain = source if isinstance(source, TransformChain) else _read(source, vectors, series)
    grid = like or transform_grid(chain)
    own = converted_files(target)
    given = [] if isinstance(source, TransformChain) else [source]
    own.check(target.parent, [*given, *(link.parameters.source for link in chain.links)])
    if suffix == ELASTIX_SUFFIX:
        check_nameable(target.parent)
    wanted = chain if bspline_spacing is None else fit_bspline(chain, _needed(grid, target), bspline_spacing)
    with staged_folder(target.parent, own) as stage:
        if suffix == ELASTIX_SUFFIX:
            written, exact = _write_elastix(wanted, stage, target, _needed(grid, target), bool(like)), True
        elif suffix in ITK_SUFFIXES:
            written, exact = _write_itk(wanted, stage / target.name, grid)
        elif suffix == DICOM_SUFFIX:
            voxels = _spaced(_needed(grid, target), spacing) if spacing else grid
            written, exact = _write_dicom(wanted, stage / target.name, series, voxels, spacing is not None)
        else:
            voxels = _spaced(_needed(grid, target), spacing) if spacing else _needed(grid, target)
            written, exact = _write_field(wanted, stage / target.name, voxels, vectors)
        found = measure_deviation(chain, written, grid or Grid((200, 200, 200), origin=(-100.0, -100.0, -100.0)))
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


def converted_files(target: Path) -> OutputFiles:
    """Return what a conversion calls its files: the target, and what it is made of."""
    stem, suffix = target.name[: -len(find_suffix(target))], find_suffix(target)
    names = re.escape(target.name)
    if suffix == ELASTIX_SUFFIX:
        names += rf"|{re.escape(stem)}\.\d+(-part\d+)?\.(txt|mha)"
    elif suffix in (".mhd", ".nhdr"):
        names += rf"|{re.escape(stem)}\.(z?raw|raw\.gz)"
    return OutputFiles(names, target.name, exclusive=suffix == ELASTIX_SUFFIX)


_BothSeries = tuple[Series, Series] | None


def _series(
    source: str | Path | TransformChain, suffix: str, fixed: str | Path | None, moving: str | Path | None
) -> _BothSeries:
    """Return the headers of the series that a DICOM registration refers to; None if there is no need of them."""
    from_dicom = not isinstance(source, TransformChain) and Path(source).suffix.lower() == DICOM_SUFFIX
    if (fixed or moving) and not (from_dicom or suffix == DICOM_SUFFIX):
        raise TransformError("`fixed_series` and `moving_series` are for DICOM registrations, and neither file is one")
    if fixed and moving:
        return read_both_series(fixed, moving)
    if fixed or moving or suffix == DICOM_SUFFIX:
        raise TransformError(
            "a DICOM registration refers to the series of both images; give their folders with `fixed_series` and "
            "`moving_series`"
        )
    return None


def _read(source: str | Path, vectors: Vectors | None, series: _BothSeries) -> TransformChain:
    if series is None or Path(source).suffix.lower() != DICOM_SUFFIX:
        return read_transform(source, vectors)
    return read_registration(source, *(each.frame_of_reference for each in series))


def _write_dicom(
    chain: TransformChain, part: Path, series: _BothSeries, grid: Grid | None, resample: bool
) -> tuple[TransformChain, bool]:
    assert series is not None
    exact = write_registration(chain, part, *series, grid=grid, resample=resample)
    return read_registration(part, *(each.frame_of_reference for each in series)), exact


def _check_options(suffix: str, spacing: Sequence[float] | None, bspline_spacing: float | None) -> None:
    is_field = suffix in FIELD_SUFFIXES
    if spacing is not None and not is_field and suffix != DICOM_SUFFIX:
        raise TransformError(
            f"`spacing` is that of a displacement field; a {suffix} file has none (`bspline_spacing`?)"
        )
    if bspline_spacing is not None and is_field:
        raise TransformError(f"`bspline_spacing` makes a B-spline transform, which a {suffix} image cannot hold")


def _needed(grid: Grid | None, target: Path) -> Grid:
    if grid is None:
        raise TransformError(
            f"'{target}' needs the fixed image's grid, which the transform does not name; give it with `like`"
        )
    return grid


def _spaced(grid: Grid, spacing: Sequence[float]) -> Grid:
    """Return the grid with voxels of another size, one or three numbers of mm, that fills the same box."""
    if len(spacing) not in (1, 3) or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise TransformError(f"a spacing is one or three numbers of mm above 0, not {', '.join(map(str, spacing))}")
    return grid.with_spacing(np.broadcast_to(np.asarray(spacing, dtype=float), 3).tolist())


def _write_elastix(chain: TransformChain, stage: Path, target: Path, grid: Grid, replace_grid: bool) -> TransformChain:
    """Write elastix files: `target` for the whole, and with its name and a number for what it begins with."""
    keys = make_resampling_parameters(grid)
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
    if find_suffix(part) in NIFTI_SUFFIXES and vectors == "ras":
        DisplacementField(flip_vectors(field.vectors), field.grid).write(part)
        set_nifti_intent(part, NIFTI_DISPLACEMENT)
    else:
        field.write(part)
    back = read_field(part)
    if not back.grid.is_close(grid):
        raise TransformError(
            f"'{part.name}': a file of this kind cannot hold the grid of the field (a sheared or otherwise unusual "
            "direction); write .mha"
        )
    return TransformChain((Link(back),)), same


def _kind(suffix: str, written: TransformChain, bspline_spacing: float | None) -> str:
    parts = ", ".join(link.transform.describe() for link in written.links)
    if suffix in FIELD_SUFFIXES:
        return parts
    made_by = {ELASTIX_SUFFIX: "elastix transform", DICOM_SUFFIX: "DICOM registration"}.get(
        suffix, "ITK composite transform"
    )
    fitted = f" (control points every {bspline_spacing:g} mm)" if bspline_spacing else ""
    return f"{made_by}: {parts}{fitted}"


def _notes(chain: TransformChain, suffix: str, exact: bool, vectors: Vectors | None) -> tuple[str, ...]:
    notes = []
    if suffix in FIELD_SUFFIXES and not exact:
        notes.append("outside its grid a displacement field is the identity, whatever the transform did there")
    if suffix == DICOM_SUFFIX and not exact:
        notes.append("outside the grid of the deformation only the matrix of the transform is left")
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
