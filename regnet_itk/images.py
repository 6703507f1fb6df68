"""Images and masks: an array with its grid, files, and exchange with ITK and SimpleITK."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.errors import ImageError
from regnet_itk.geometry import Grid

INTERPOLATION_ORDERS = range(6)
SMALLEST_SIZE = 4
SLICE_TOLERANCE = 0.1  # share of the slice spacing by which the slices of a DICOM series may be off
_DICOM_POSITION = "0020|0032"
IMAGE_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")


@dataclass(frozen=True)
class Image:
    """A scalar 3D image.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        Voxel values.
    grid : Grid
        Where the voxels lie.
    """

    array: npt.NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ImageError(
                f"an array of shape (z, y, x) = {self.array.shape} does not fit a grid of "
                f"size (x, y, z) = {self.grid.size}"
            )

    def to_sitk(self) -> Any:
        """Return a SimpleITK image with the same voxels (copied) and grid."""
        import SimpleITK as sitk

        return place(sitk.GetImageFromArray(_plain(self.array)), self.grid)

    def to_itk(self) -> Any:
        """Return an ``itk.Image`` with the same voxels (copied) and grid."""
        import itk

        array = _plain(self.array)
        if array.dtype == np.int64:  # itk's wheels have no images of it
            small = np.iinfo(np.int32)
            fits = small.min <= array.min() and array.max() <= small.max
            array = array.astype(np.int32 if fits else np.float64)
        image = itk.image_from_array(np.ascontiguousarray(array))
        image.SetSpacing(list(self.grid.spacing))
        image.SetOrigin(list(self.grid.origin))
        image.SetDirection(itk.matrix_from_array(self.grid.direction_matrix))
        return image

    def resampled(self, grid: Grid, transform: Any = None, order: int = 1, default: float = 0.0) -> Image:
        """Return this image on another grid, as float32.

        Parameters
        ----------
        grid : Grid
            The wanted voxels, in the space that `transform` starts from.
        transform : SimpleITK.Transform, optional
            Maps points of `grid` to points of this image (mm, LPS). Identity by default.
        order : {0, 1, 2, 3, 4, 5}
            0 takes the nearest voxel, 1 is linear, 2 and more are B-splines.
        default : float
            Value where the transformed point falls outside this image.
        """
        (found,) = self.resampled_in_parts([grid], transform, order, default)
        return found

    def resampled_in_parts(
        self, grids: Iterable[Grid], transform: Any = None, order: int = 1, default: float = 0.0
    ) -> Iterator[Image]:
        """Yield this image on one grid after the other, as :meth:`resampled` does, but prepared only once."""
        import SimpleITK as sitk

        if order not in INTERPOLATION_ORDERS:
            raise ImageError(f"an image can be interpolated with orders 0 to {max(INTERPOLATION_ORDERS)}, not {order}")
        splines = (sitk.sitkBSpline2, sitk.sitkBSpline3, sitk.sitkBSpline4, sitk.sitkBSpline5)
        interpolator = (sitk.sitkNearestNeighbor, sitk.sitkLinear, *splines)[order]
        source = self.to_sitk()
        for grid in grids:
            reference = _reference_arguments(grid)
            moved = sitk.Resample(
                source, *reference[:1], transform or sitk.Transform(3, sitk.sitkIdentity), interpolator,
                *reference[1:], float(default), sitk.sitkFloat32,
            )  # fmt: skip
            yield Image(array_of(moved), grid)


class _Voxels:
    """The voxels of a SimpleITK image as numpy's array interface, which keep the image alive."""

    def __init__(self, image: Any) -> None:
        import SimpleITK as sitk

        self._image = image
        interface = sitk.GetArrayViewFromImage(image).__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def array_of(image: Any) -> npt.NDArray[Any]:
    """Return the voxels of a SimpleITK image that nobody else uses, without a copy.

    Parameters
    ----------
    image : SimpleITK.Image
        It must not be changed afterwards.

    Returns
    -------
    ndarray, shape (z, y, x) or (z, y, x, component)
        It may be written to.
    """
    return np.asarray(_Voxels(image))


def bounding_box(mask: npt.NDArray[np.bool_], margin: int | Sequence[int]) -> tuple[slice, slice, slice]:
    """Return the part z, y, x of an array that holds what is true, and `margin` voxels around it; all, if nothing is.

    Parameters
    ----------
    mask : bool array, shape (z, y, x)
    margin : int or sequence of int
        Voxels, for z, y, x alike or one after the other; it ends at the array's border.
    """
    margins = [margin] * 3 if isinstance(margin, int) else margin
    spans = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (there[0], there[-1]) if there.size else (0, mask.shape[axis] - 1)
        spans.append(slice(max(0, int(first) - margins[axis]), min(mask.shape[axis], int(last) + 1 + margins[axis])))
    return spans[0], spans[1], spans[2]


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array with the same values, of a type and byte order that ITK has."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _reference_arguments(grid: Grid) -> tuple[Any, ...]:
    return grid.size, grid.origin, grid.spacing, grid.direction_matrix.ravel().tolist()


def place(image: Any, grid: Grid) -> Any:
    """Give a SimpleITK image the spacing, origin and direction of `grid`, and return it."""
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction_matrix.ravel().tolist())
    return image


def grid_of(image: Any) -> Grid:
    """Return the grid of a SimpleITK or ITK image.

    Raises
    ------
    ImageError
        If the image is not three-dimensional.
    """
    if hasattr(image, "GetLargestPossibleRegion"):
        size = list(image.GetLargestPossibleRegion().GetSize())
        start = list(image.GetLargestPossibleRegion().GetIndex())
        dimension = len(size)
    else:
        size, start, dimension = list(image.GetSize()), None, image.GetDimension()
    if dimension != 3:
        raise ImageError(f"the image has {dimension} dimensions; regnet-itk registers 3D images only")
    direction = np.asarray(image.GetDirection(), dtype=float).reshape(3, 3)
    grid = Grid(tuple(size), tuple(image.GetSpacing()), tuple(image.GetOrigin()), direction)  # type: ignore[arg-type]
    return grid.crop(start, size) if start is not None and any(start) else grid


def as_image(image: Any, grid: Grid | None = None) -> Image:
    """Take an :class:`Image`, an ITK image, a SimpleITK image, or an array together with its grid.

    Raises
    ------
    ImageError
        If it is none of them, has more than one component, or is not three-dimensional.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, np.ndarray):
        if grid is None:
            raise ImageError("a numpy array needs its grid: give regnet_itk.Image(array, Grid(size, spacing, ..))")
        return Image(image, grid)
    module = type(image).__module__
    if module.startswith("SimpleITK"):
        import SimpleITK as sitk

        return _scalar(sitk.GetArrayFromImage(image), grid_of(image), image.GetNumberOfComponentsPerPixel())
    if module.startswith("itk") or hasattr(image, "GetLargestPossibleRegion"):
        import itk

        image.Update()  # it may be the output of a filter that has not run yet
        grid_found = grid_of(image)
        return _scalar(itk.array_from_image(image), grid_found, image.GetNumberOfComponentsPerPixel())
    raise ImageError(f"expected an itk image, a SimpleITK image or regnet_itk.Image, not {type(image).__name__}")


def _scalar(array: npt.NDArray[Any], grid: Grid, components: int) -> Image:
    if components != 1:
        raise ImageError(f"the image has {components} components a voxel; regnet-itk registers scalar images")
    return Image(array, grid)


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
            check_complete(part, "image", _plain(image.array).nbytes)
        except ImageError:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None

    write_whole(path, write)


def check_registrable(image: Image, role: str) -> None:
    """Refuse an image that no registration can use.

    Raises
    ------
    ImageError
        If it has fewer voxels along an axis than cubic splines need, a value is NaN or infinite, or all are equal.
    """
    array = image.array
    if array.dtype.kind not in "biuf":
        raise ImageError(f"the {role} has values of the type {array.dtype}; give an image of plain numbers")
    thin = [f"{n} along {axis}" for n, axis in zip(image.grid.size, "xyz", strict=True) if n < SMALLEST_SIZE]
    if thin:
        raise ImageError(
            f"the {role} has too few voxels ({', '.join(thin)}); 3D registration needs {SMALLEST_SIZE} along every axis"
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise ImageError(f"the {role} has {bad} voxels that are NaN or infinite; replace them (air is -1000 HU)")
    if array.min() == array.max():
        raise ImageError(f"the {role} is constant (every voxel is {array.flat[0]}); nothing can be registered")


def check_mask(mask: Image, image: Image, role: str) -> None:
    """Refuse a mask that is empty or does not lie on the grid of its image.

    Raises
    ------
    ImageError
        With both grids in the message.
    """
    if not mask.grid.is_close(image.grid, tolerance=1e-2):
        raise ImageError(
            f"the {role} mask lies on another grid than the {role} image: size {mask.grid.size}, spacing "
            f"{mask.grid.spacing}, origin {mask.grid.origin} against {image.grid.size}, {image.grid.spacing}, "
            f"{image.grid.origin}; resample the mask to its image"
        )
    if not np.any(mask.array):
        raise ImageError(f"the {role} mask is empty: no voxel differs from 0")
