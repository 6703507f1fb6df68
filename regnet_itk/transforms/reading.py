"""A transform from a file of any kind, told by its suffix: elastix's, ITK's, DICOM's, or a displacement field image.

T maps points of the fixed to the moving image, mm, LPS.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.nifti_files import NIFTI_DISPLACEMENT, read_nifti_intent
from regnet_itk.data.suffixes import FIELD_SUFFIXES, ITK_SUFFIXES, NIFTI_SUFFIXES, known_suffix
from regnet_itk.dicom.files import DICOM_SUFFIX
from regnet_itk.errors import TransformError, did_you_mean
from regnet_itk.inputs import why_no_file
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.resampling_keys import read_resampling_grid

Vectors = Literal["lps", "ras"]
"""How the vectors of a NIfTI field are stored: along the axes L, P, S or R, A, S."""

ELASTIX_SUFFIX = ".txt"
SUFFIXES = (ELASTIX_SUFFIX, *ITK_SUFFIXES, DICOM_SUFFIX, *FIELD_SUFFIXES)


def find_suffix(path: str | Path) -> str:
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
    if (why := why_no_file(path, "give a transform file")) is not None:
        raise TransformError(f"transform file '{path}' {why}")
    suffix = find_suffix(path)
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
    if find_suffix(path) not in NIFTI_SUFFIXES:
        return field
    intent, name = read_nifti_intent(Path(path))
    if name.startswith("NREG") and vectors is None:
        raise TransformError(
            f"'{path}' was written by NiftyReg, as vectors in RAS or as points; if it holds displacements, say so "
            "with `vectors` ras"
        )
    as_read: Vectors = "ras" if intent == NIFTI_DISPLACEMENT else "lps"  # ITK turns the first into LPS
    if (vectors or as_read) != as_read:
        return DisplacementField(flip_vectors(field.vectors), field.grid)
    return field


def flip_vectors(vectors: FloatArray) -> FloatArray:
    """Return vectors (.., 3) along L, P, S as along R, A, S, or the other way."""
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


def transform_grid(chain: TransformChain) -> Grid | None:
    """Return the voxels that a transform was made for: those its file names, or else those of its finest field."""
    for link in reversed(chain.links):
        grid = read_resampling_grid(link.parameters)
        if grid is not None:
            return grid
    fields = [link.transform.grid for link in chain.links if isinstance(link.transform, DisplacementField)]
    return min(fields, key=lambda grid: math.prod(grid.spacing), default=None)
