"""What ITK does not tell of a NIfTI file: its stored type, spacings that contradict each other, a shear, NaN.

ITK takes a spacing of 0 or NaN as 1, drops a shear and reads NaN as 0, all without a word. The header is read by hand:
nibabel knows it too, but takes half a second to import, at every start of the program.

References
----------
The NIfTI-1 data format: nifti1.h of the NIfTI initiative.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import FloatArray
from regnet_itk.data.suffixes import NIFTI_SUFFIXES
from regnet_itk.errors import ImageError

_SIZE = 348  # bytes of the header of NIfTI-1; ITK does not read NIfTI-2
_ENTRIES = {  # where each lies in the header, and its struct format
    "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "8f"), "vox_offset": (108, "f"),
    "scaling": (112, "2f"), "codes": (252, "2h"), "sform": (280, "12f"),
}  # fmt: skip
_INTENT_OFFSET = 68
_FIRST_VOXEL = 352  # bytes; before it are the header and what tells of extensions
_LARGEST_OFFSET = 2**31
NIFTI_DISPLACEMENT = 1006
"""The intent code of displacements along R, A, S."""

_FLOATS = {16: np.float32, 64: np.float64}  # by NIfTI's code of the datatype
_SPACING_TOLERANCE = 0.01  # relative
_SHEAR_TOLERANCE = 1e-3  # cosine of the angle between two axes; what float32 and some scanners leave is below


@dataclass(frozen=True)
class NiftiHeader:
    """The entries of a header that are checked here.

    Parameters
    ----------
    order : {"<", ">"}
        Byte order.
    size : tuple of int
        Voxels along every axis, those of one included.
    datatype : int
        NIfTI's code.
    bytes_per_value : int
        As stored, before any scaling.
    spacing : tuple of float
        x, y, z, as `pixdim` has them.
    offset : int
        Of the first voxel in the file.
    slope, intercept : float
        Value = stored * slope + intercept, if the slope is neither 0 nor NaN.
    sform : ndarray, shape (3, 4), or None
        Voxel to RAS millimetres, if the header has it.
    """

    order: Literal["<", ">"]
    size: tuple[int, ...]
    datatype: int
    bytes_per_value: int
    spacing: tuple[float, float, float]
    offset: int
    slope: float
    intercept: float
    sform: FloatArray | None

    @property
    def scaled(self) -> bool:
        """Whether the values are not those that are stored."""
        return bool(np.isfinite(self.slope)) and self.slope != 0.0 and (self.slope, self.intercept) != (1.0, 0.0)


def is_nifti(path: Path) -> bool:
    """Say whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti_header(path: Path, role: str) -> NiftiHeader:
    """Read a header.

    Raises
    ------
    ImageError
        If the file does not begin as a NIfTI file does.
    """
    with _opened(path) as file:
        try:
            head = file.read(_SIZE)
        except (OSError, EOFError, zlib.error) as error:
            raise ImageError(f"{role} '{path}' cannot be read: {error}") from None
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        if len(head) == _SIZE and struct.unpack_from(order + "i", head)[0] == _SIZE:
            break
    else:
        raise ImageError(f"{role} '{path}' cannot be read: it does not begin with a NIfTI-1 header")
    _check_layout(head, order, f"{role} '{path}'")
    found = {name: struct.unpack_from(order + form, head, at) for name, (at, form) in _ENTRIES.items()}
    dim, pixdim, codes = found["dim"], found["pixdim"], found["codes"]
    return NiftiHeader(
        order,
        tuple(int(n) for n in dim[1 : 1 + max(0, min(int(dim[0]), 7))]),
        int(found["datatype"][0]),
        int(found["bitpix"][0]) // 8,
        (float(pixdim[1]), float(pixdim[2]), float(pixdim[3])),
        int(found["vox_offset"][0]),
        float(found["scaling"][0]),
        float(found["scaling"][1]),
        np.array(found["sform"]).reshape(3, 4) if codes[1] > 0 else None,
    )


def _check_layout(head: bytes, order: str, where: str) -> None:
    """Refuse a header that says wrongly where the voxels are: ITK reads others then, and does not say so."""
    count, *size = struct.unpack_from(order + "8h", head, 40)
    offset = struct.unpack_from(order + "f", head, 108)[0]
    if head[344:348] != b"n+1\0":
        raise ImageError(f"{where} cannot be read: it is no NIfTI-1 file of one piece; convert it")
    if not 1 <= count <= 7 or min(size[:count]) < 1:
        raise ImageError(
            f"{where} has dim = {count} {' '.join(map(str, size))} in its header, which is no size of an image"
        )
    if not (offset >= _FIRST_VOXEL and float(offset).is_integer() and offset < _LARGEST_OFFSET):
        raise ImageError(f"{where} has voxels from byte {offset:g} on by its header (vox_offset), where none can be")


def check_nifti_geometry(header: NiftiHeader, path: Path, role: str) -> None:
    """Refuse a header whose voxels have no size, or one place by one entry and another by the next.

    Raises
    ------
    ImageError
        Says which entries are at fault.
    """
    where = f"{role} '{path}'"
    spacing = np.array(header.spacing[: max(1, min(3, len(header.size)))])
    if not (np.isfinite(spacing).all() and (spacing != 0).all()):
        told = " x ".join(f"{value:g}" for value in header.spacing)
        raise ImageError(f"{where} has voxels of {told} mm by its header (pixdim); correct the header")
    if header.sform is None or len(header.size) < 3:
        return
    columns = header.sform[:, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ImageError(f"{where} has an sform that is singular or not finite; correct the header")
    if (np.abs(lengths - np.abs(spacing)) > _SPACING_TOLERANCE * lengths).any():
        raise ImageError(
            f"{where} contradicts itself: its voxels are {_in_mm(np.abs(spacing))} by pixdim and {_in_mm(lengths)} by "
            "its sform; correct the header"
        )
    axes = columns / lengths
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > _SHEAR_TOLERANCE:
        angle = np.degrees(np.arccos(min(1.0, shear)))
        raise ImageError(
            f"{where} is sheared: two axes of its sform meet at {angle:.1f} degrees, which ITK and elastix cannot "
            "express; resample it to a straight grid"
        )


def _in_mm(lengths: FloatArray) -> str:
    return " x ".join(f"{value:g}" for value in lengths) + " mm"


def read_nifti_floats(header: NiftiHeader, path: Path, role: str) -> npt.NDArray[Any] | None:
    """Read the values of a file that stores floats, with its NaN; None if it stores whole numbers.

    Returns
    -------
    ndarray, shape (.., z, y, x)
        All axes of the file, the last one first.

    Raises
    ------
    ImageError
        If the file is damaged.
    """
    if header.datatype not in _FLOATS:
        return None
    dtype = np.dtype(_FLOATS[header.datatype])
    wanted = int(np.prod(header.size)) * dtype.itemsize
    try:
        with _opened(path) as file:
            file.seek(header.offset)
            raw = file.read(wanted)
            file.read()  # to its end: only there gzip checks that nothing was altered
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{role} '{path}' is damaged: {error}") from None
    if len(raw) < wanted:
        raise ImageError(f"{role} '{path}' is cut off: it has {len(raw)} of {wanted} bytes of voxels; copy it again")
    values = np.frombuffer(bytearray(raw), dtype.newbyteorder(header.order)).reshape(header.size[::-1])
    values = values.astype(dtype, copy=False)
    return values * dtype.type(header.slope) + dtype.type(header.intercept) if header.scaled else values


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def read_nifti_intent(path: Path) -> tuple[int, str]:
    """Return the intent code and the intent name in the header of a NIfTI file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    found = {key: reader.GetMetaData(key) for key in ("intent_code", "intent_name") if reader.HasMetaDataKey(key)}
    return int(found.get("intent_code") or 0), found.get("intent_name", "").strip()


def set_nifti_intent(path: Path, code: int) -> None:
    """Change the intent code in the header of a NIfTI file; the bytes of SimpleITK's own files are little-endian."""
    zipped = path.name.lower().endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    content[_INTENT_OFFSET : _INTENT_OFFSET + 2] = code.to_bytes(2, "little")
    path.write_bytes(gzip.compress(content, 6) if zipped else content)
