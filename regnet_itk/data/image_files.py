"""Images read from files and DICOM folders, checked to be whole, and written."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.dicom_folders import last_line, read_dicom_folder, without_warnings
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, array_of, grid_of, plain_array
from regnet_itk.data.image_nd import DIMENSIONS, ImageND, from_3d, nd_from_reader
from regnet_itk.data.meta_files import is_meta, read_meta_header, unpack_voxels
from regnet_itk.data.nifti_files import check_nifti_geometry, is_nifti, read_nifti_floats, read_nifti_header
from regnet_itk.errors import ImageError
from regnet_itk.inputs import why_no_file

_LONGEST_NRRD_HEADER = 1 << 20
_LONGEST_NRRD_LINE = 500
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")
_PIECE = 1 << 20  # bytes that are unpacked at once
_BEGINNINGS = {  # what files of a kind begin with
    "a gzip file": b"\x1f\x8b",
    "a NRRD file": b"NRRD",
    "an HDF5 file": b"\x89HDF",
    "a PNG file": b"\x89PNG",
    "a zip file": b"PK\x03\x04",
}
_EXPECTED = {".nii.gz": "a gzip file", ".nrrd": "a NRRD file", ".nii": "", ".mha": "", ".mhd": ""}


def read_image(path: str | Path, role: str = "image") -> Image:
    """Read a 3D scalar image from a file, or from a folder that holds one DICOM series.

    Parameters
    ----------
    path : str or Path
        A .mha, .mhd, .nii, .nii.gz or .nrrd file (or another that SimpleITK reads), or a DICOM folder.
    role : str
        What the image is, for the messages: "fixed image", "moving mask" ..

    Returns
    -------
    Image
        With the values as stored (integers stay integers), scaled if the file says so. NaN stays NaN.

    Raises
    ------
    ImageError
        If it is missing, unreadable, damaged, not 3D or not scalar, or if it says two things of where its voxels lie;
        the message names the file.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, read_image, write_image
    >>> write_image(Image(np.ones((2, 3, 4)), Grid((4, 3, 2), spacing=(1.0, 1.0, 2.5))), "ones.mha")
    >>> read_image("ones.mha").grid.spacing
    (1.0, 1.0, 2.5)
    """
    return _read(Path(path), role, (3,)).to_3d()


def read_image_nd(path: str | Path, role: str = "image") -> ImageND:
    """Read a scalar image of two, three or four dimensions, as `read_image` reads one of three.

    Raises
    ------
    ImageError
        As `read_image`, or if it has other dimensions.
    """
    return _read(Path(path), role, DIMENSIONS)


def _read(path: Path, role: str, dimensions: Sequence[int]) -> ImageND:
    if _kind(path, role) == "folder":
        return from_3d(read_dicom_folder(path, role))
    reader = open_image(path, role)
    dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if dimension not in dimensions:
        what = "regnet-itk registers 3D images only" if dimensions == (3,) else "elastix registers images of 2, 3 or 4"
        raise ImageError(f"{role} '{path}' has {dimension} dimensions; {what}")
    if components != 1:
        raise ImageError(f"{role} '{path}' has {components} components a voxel; give a scalar image")
    return nd_from_reader(reader, read_voxels(reader, path, role))


def read_grid(path: str | Path, role: str = "image") -> Grid:
    """Read where the voxels of an image lie, without its values; it may have several components.

    Raises
    ------
    ImageError
        If it is missing, unreadable or not 3D; the message names the file.
    """
    path = Path(path)
    if _kind(path, role) == "folder":
        return read_dicom_folder(path, role).grid
    reader = open_image(path, role)
    try:
        return grid_of(reader)
    except ImageError as error:
        raise ImageError(f"{role} '{path}': {error}") from None


def _kind(path: Path, role: str) -> str:
    """Return "file" or "folder"; refuse what is neither, as reading from a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ImageError(f"{role} '{path}' does not exist") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{role} '{str(path)[:200]}' cannot be read: {getattr(error, 'strerror', error)}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise ImageError(f"{role} '{path}' is neither a file nor a folder; give an image file")
    return "file"


def open_image(path: Path, role: str) -> Any:
    """Return a ``SimpleITK.ImageFileReader`` that has read the header of a file, which is checked to be sound.

    Raises
    ------
    ImageError
        If the file is missing, is not what its suffix says, or has a header that cannot be trusted.
    """
    import SimpleITK as sitk

    try:
        _check_contents(path, role)
        if is_meta(path):
            read_meta_header(path, role)
        elif path.name.lower().endswith((".nrrd", ".nhdr")):
            _check_nrrd_header(path, role)
        elif is_nifti(path):
            check_nifti_geometry(read_nifti_header(path, role), path, role)
    except OSError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {error.strerror}") from None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with without_warnings():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {last_line(error)}") from None
    return reader


def _check_contents(path: Path, role: str) -> None:
    """Refuse a file whose suffix says another format than it has: readers go by either."""
    suffix = next((s for s in sorted(_EXPECTED, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is None:
        return
    with path.open("rb") as file:
        start = file.read(8)
    found = next((kind for kind, begins in _BEGINNINGS.items() if start.startswith(begins)), "")
    if found != _EXPECTED[suffix]:
        raise ImageError(
            f"{role} '{path}' cannot be read: it is {found or 'something else'}, not what its suffix {suffix} says; "
            "rename or convert it"
        )


def read_voxels(reader: Any, path: Path, role: str) -> npt.NDArray[Any]:
    """Return the values of the image that a reader of :func:`open_image` has open.

    Returns
    -------
    ndarray, shape (z, y, x), with the components as last axis if there are several

    Raises
    ------
    ImageError
        If the file is cut off or damaged, or is NIfTI of vectors with NaN.
    """
    components = reader.GetNumberOfComponents()
    check_complete(path, role, math.prod(reader.GetSize()) * components * bytes_per_value(reader.GetPixelID()))
    if is_meta(path) and (header := read_meta_header(path, role)).compressed and header.data.is_file():
        shape = (*reversed(reader.GetSize()), *([components] if components > 1 else []))
        return unpack_voxels(header, shape, value_type(reader.GetPixelID()), path, role)
    if is_nifti(path):
        floats = read_nifti_floats(read_nifti_header(path, role), path, role)
        if floats is not None and components == 1 and math.prod(reader.GetSize()) == floats.size:
            return floats.reshape(tuple(reversed(reader.GetSize())))
        if floats is not None and not np.isfinite(floats).all():
            raise ImageError(f"{role} '{path}' holds values that are NaN or infinite, which ITK would read as 0")
    if path.name.lower().endswith((".nrrd", ".nhdr")):
        _check_packed_nrrd(path, role)
    try:
        with without_warnings():
            image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {last_line(error)}") from None
    return array_of(image)


def value_type(pixel_id: int) -> npt.DTypeLike:
    """Return numpy's type of a voxel's value, or of each of its components, of SimpleITK's pixel type."""
    import SimpleITK as sitk

    dtype: npt.DTypeLike = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], pixel_id)).dtype
    return dtype


def bytes_per_value(pixel_id: int) -> int:
    """Return the size of a voxel's value, or of each of its components, of SimpleITK's pixel type."""
    return np.dtype(value_type(pixel_id)).itemsize


def check_complete(path: Path, role: str, expected: int) -> None:
    """Refuse a file that was cut off; of a NIfTI file ITK would read the missing voxels as zero.

    Parameters
    ----------
    path : Path
        A MetaImage or NIfTI file; others are left to their reader.
    role : str
        For the message.
    expected : int
        Bytes of all its voxels, as they are in memory.

    Raises
    ------
    ImageError
        With the number of bytes that there are and that there should be.
    """
    if is_meta(path):
        found, expected = _meta_bytes(path, role, expected)
    elif is_nifti(path):
        header = read_nifti_header(path, role)
        expected = header.offset + math.prod(header.size) * header.bytes_per_value  # as stored: it may be scaled
        packed = path.name.lower().endswith(".gz")
        found = _unzipped_size(path, expected) if packed else path.stat().st_size
    else:
        return
    if found < expected:
        raise ImageError(f"{role} '{path}' is cut off: it has {found} of {expected} bytes; copy it again")


def _meta_bytes(path: Path, role: str, expected: int) -> tuple[int, int]:
    """Return how many bytes of voxels a MetaImage has, and how many it should have."""
    header = read_meta_header(path, role)
    if (why := why_no_file(header.data)) is not None:
        if header.data.exists() and not header.data.is_dir():
            raise ImageError(f"{role} '{path}': the file of its voxels, '{header.data}', {why}")
        return 0, 0  # a list of files, or a missing one: its reader knows what to say
    if header.compressed:
        size = header.values.get("CompressedDataSize", "")
        expected = int(size) if size.isascii() and size.isdigit() else 0
    return header.data.stat().st_size - header.offset, expected


def _unzipped_size(path: Path, enough: int) -> int:
    """Return how many bytes a gzip file unpacks to; fewer if it is cut off."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - 4))
        if int.from_bytes(raw.read(4), "little") == enough:  # what a whole file of one piece ends with
            return enough
    count, piece = 0, zlib.decompressobj(wbits=31)
    with path.open("rb") as raw, contextlib.suppress(zlib.error):
        while chunk := raw.read(_PIECE):
            while chunk:
                count += len(piece.decompress(chunk))
                chunk = piece.unused_data
                if piece.eof:
                    piece = zlib.decompressobj(wbits=31)
    return count


def _check_nrrd_header(path: Path, role: str) -> None:
    """Refuse a header with lines that are no text or longer than any: ITK's reader crashes at them."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_NRRD_HEADER)
    lines = head.split(b"\n")
    end = next((number for number, line in enumerate(lines) if line in (b"", b"\r")), None)
    if end is None and (path.name.lower().endswith(".nrrd") or len(head) == _LONGEST_NRRD_HEADER):
        raise ImageError(f"{role} '{path}' cannot be read: its header has no end")
    for line in lines[:end]:
        if b":=" not in line and (len(line) > _LONGEST_NRRD_LINE or _CONTROL.search(line.rstrip(b"\r"))):
            raise ImageError(
                f"{role} '{path}' is damaged: its header has a line of {len(line)} characters that is no text"
            )


def _check_packed_nrrd(path: Path, role: str) -> None:
    """Refuse a packed NRRD file whose checksum is wrong: its reader takes one in ten of them."""
    with path.open("rb") as file:
        head = file.read(65_536)
        ends = [at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := head.find(end)) >= 0]
        start = min(ends, default=0)
        lines = head[:start].lower().splitlines()
        packed = any(line.replace(b" ", b"") in (b"encoding:gzip", b"encoding:gz") for line in lines)
        if not packed or any(line.startswith((b"data file:", b"datafile:")) for line in lines):
            return
        file.seek(start)
        piece = zlib.decompressobj(wbits=31)
        try:
            while (chunk := file.read(_PIECE)) and not piece.eof:
                while chunk:  # a little at a time: a damaged file may unpack to any size
                    piece.decompress(chunk, _PIECE)
                    chunk = piece.unconsumed_tail
        except zlib.error as error:
            raise ImageError(f"{role} '{path}' cannot be read: it is damaged ({error}); copy it again") from None
    if not piece.eof:
        raise ImageError(f"{role} '{path}' cannot be read: it is cut off; copy it again")


def write_image(image: Image | ImageND, path: str | Path, compress: bool = True) -> None:
    """Write an image; the suffix chooses the format. The file appears whole or not at all.

    Parameters
    ----------
    image : Image or ImageND
    path : str or Path
    compress : bool
        As far as the format can; a .nii.gz file always is.

    Raises
    ------
    OutputError
        If it cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, write_image
    >>> write_image(Image(np.ones((2, 3, 4)), Grid((4, 3, 2), spacing=(1.0, 1.0, 2.5))), "ones.nii.gz")
    """
    import SimpleITK as sitk

    from regnet_itk.outputs import write_whole

    def write(part: Path) -> None:
        sitk.WriteImage(image.to_sitk(), str(part), useCompression=compress)
        try:  # ITK does not notice when the disk is full while it writes NIfTI
            check_complete(part, "image", plain_array(image.array).nbytes)
        except ImageError:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None

    write_whole(path, write)
