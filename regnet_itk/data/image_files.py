"""Images read from files and DICOM folders, checked to be whole, and written."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, array_of, grid_of, plain_array
from regnet_itk.errors import ImageError

SLICE_TOLERANCE = 0.1  # share of the slice spacing by which the slices of a DICOM series may be off
_DICOM_POSITION = "0020|0032"


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
        With the values as stored (integers stay integers).

    Raises
    ------
    ImageError
        If it is missing, unreadable, not 3D or not scalar; the message names the file.
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.exists():
        raise ImageError(f"{role} '{path}' does not exist")
    if path.is_dir():
        return _read_dicom(path, role)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        dimension, components = reader.GetDimension(), reader.GetNumberOfComponents()
        if dimension != 3:
            raise ImageError(f"{role} '{path}' has {dimension} dimensions; regnet-itk registers 3D images only")
        if components != 1:
            raise ImageError(f"{role} '{path}' has {components} components a voxel; give a scalar image")
        check_complete(path, role, math.prod(reader.GetSize()) * bytes_per_value(reader.GetPixelID()))
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {_reason(error)}") from None
    return Image(array_of(image), grid_of(image))


def read_grid(path: str | Path, role: str = "image") -> Grid:
    """Read where the voxels of an image lie, without its values; it may have several components.

    Raises
    ------
    ImageError
        If it is missing, unreadable or not 3D; the message names the file.
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():  # a DICOM folder, or nothing
        return read_image(path, role).grid
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        return grid_of(reader)
    except ImageError as error:
        raise ImageError(f"{role} '{path}': {error}") from None
    except RuntimeError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {_reason(error)}") from None


def bytes_per_value(pixel_id: int) -> int:
    """Return the size of a voxel's value, or of each of its components, of SimpleITK's pixel type."""
    import SimpleITK as sitk

    size: int = sitk.Image([1, 1, 1], pixel_id).GetSizeOfPixelComponent()
    return size


def check_complete(path: Path, role: str, expected: int) -> None:
    """Refuse a file that was cut off; of a NIfTI file ITK would read the missing voxels as zero.

    Parameters
    ----------
    path : Path
        A MetaImage or NIfTI file; others are left to their reader.
    role : str
        For the message.
    expected : int
        Bytes of all its voxels.

    Raises
    ------
    ImageError
        With the number of bytes that there are and that there should be.
    """
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        found, expected = _meta_bytes(path, expected)
    elif name.endswith(".nii"):
        found, expected = path.stat().st_size, expected + 348
    elif name.endswith(".nii.gz"):
        found, expected = _unzipped_size(path, expected + 348), expected + 348
    else:
        return
    if found < expected:
        raise ImageError(f"{role} '{path}' is cut off: it has {found} of {expected} bytes; copy it again")


def _meta_bytes(path: Path, expected: int) -> tuple[int, int]:
    """Return how many bytes of voxels a MetaImage has, and how many it should have."""
    with path.open("rb") as file:
        head = file.read(65536)
    match = re.search(rb"^ElementDataFile\s*=\s*(.*?)\s*?\n", head, re.MULTILINE)
    if match is None:
        return 0, 0  # its reader knows what to say
    data = path if match[1].upper() == b"LOCAL" else path.parent / match[1].decode(errors="replace")
    if not data.is_file():
        return 0, 0
    size = re.search(rb"^CompressedDataSize\s*=\s*(\d+)", head[: match.start()], re.MULTILINE)
    compressed = re.search(rb"^CompressedData\s*=\s*True", head[: match.start()], re.MULTILINE)
    if compressed:
        expected = int(size[1]) if size else 0
    return data.stat().st_size - (match.end() if data == path else 0), expected


def _unzipped_size(path: Path, enough: int) -> int:
    """Return how many bytes a gzip file unpacks to; fewer if it is cut off."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - 4))
        if int.from_bytes(raw.read(4), "little") == enough + 4:  # what a whole file of one piece ends with
            return enough + 4
    count, piece = 0, zlib.decompressobj(wbits=31)
    with path.open("rb") as raw, contextlib.suppress(zlib.error):
        while chunk := raw.read(1 << 20):
            while chunk:
                count += len(piece.decompress(chunk))
                chunk = piece.unused_data
                if piece.eof:
                    piece = zlib.decompressobj(wbits=31)
    return count


def _read_dicom(folder: Path, role: str) -> Image:
    import SimpleITK as sitk

    with _without_warnings():
        series = list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not series:
        raise ImageError(f"{role} '{folder}' is a folder without a DICOM series; give an image file")
    if len(series) > 1:
        raise ImageError(
            f"{role} '{folder}' holds {len(series)} DICOM series; put the wanted one into a folder of its own"
        )
    reader = sitk.ImageSeriesReader()
    files = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        with _without_warnings():
            image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{role} '{folder}' cannot be read as a DICOM series: {_reason(error)}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{role} '{folder}' is not a scalar 3D series")
    _check_slices([_slice_position(reader, number) for number in range(len(files))], f"{role} '{folder}'")
    return Image(array_of(image), grid_of(image))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep ITK's warnings off the screen; what they tell is checked here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _slice_position(reader: Any, number: int) -> list[float] | None:
    try:
        return [float(text) for text in reader.GetMetaData(number, _DICOM_POSITION).split("\\")]
    except (RuntimeError, ValueError):
        return None


def _check_slices(positions: list[list[float] | None], what: str) -> None:
    """Refuse a series that has gaps: ITK would spread its slices evenly over them."""
    known = [position for position in positions if position is not None]
    if len(known) < 3 or len(known) < len(positions):
        return
    gaps = np.linalg.norm(np.diff(np.array(known), axis=0), axis=1)
    if gaps.max() - gaps.min() > SLICE_TOLERANCE * np.median(gaps):
        raise ImageError(
            f"{what} has slices that are {gaps.min():.2f} to {gaps.max():.2f} mm apart: one is missing, or they are "
            "not evenly spaced; resample the series to an even spacing"
        )


def _reason(error: RuntimeError) -> str:
    """Return the last telling line of an ITK exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ").rstrip(".") if lines else "unknown reason"


def write_image(image: Image, path: str | Path, compress: bool = True) -> None:
    """Write an image; the suffix chooses the format. The file appears whole or not at all.

    Parameters
    ----------
    image : Image
    path : str or Path
    compress : bool
        As far as the format can; a .nii.gz file always is.

    Raises
    ------
    OutputError
        If it cannot be written.
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
