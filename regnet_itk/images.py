"""Images and masks: an array with its grid, files, and exchange with ITK and SimpleITK."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.errors import ImageError
from regnet_itk.geometry import Grid

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

        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
        return place(sitk.GetImageFromArray(array), self.grid)

    def to_itk(self) -> Any:
        """Return an ``itk.Image`` with the same voxels (copied) and grid."""
        import itk

        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
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
        order : {0, 1, 2, 3}
            0 takes the nearest voxel, 1 is linear, 2 and 3 are B-splines.
        default : float
            Value where the transformed point falls outside this image.
        """
        import SimpleITK as sitk

        interpolator = (sitk.sitkNearestNeighbor, sitk.sitkLinear, sitk.sitkBSpline2, sitk.sitkBSpline3)[order]
        source = self.to_sitk()
        reference = _reference_arguments(grid)
        moved = sitk.Resample(
            source, *reference[:1], transform or sitk.Transform(3, sitk.sitkIdentity), interpolator,
            *reference[1:], float(default), sitk.sitkFloat32,
        )  # fmt: skip
        return Image(sitk.GetArrayFromImage(moved), grid)


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

        image.UpdateOutputInformation()
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
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{role} '{path}' cannot be read: {_reason(error)}") from None
    return Image(sitk.GetArrayFromImage(image), grid_of(image))


def _read_dicom(folder: Path, role: str) -> Image:
    import SimpleITK as sitk

    series = list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    if not series:
        raise ImageError(f"{role} '{folder}' is a folder without a DICOM series; give an image file")
    if len(series) > 1:
        raise ImageError(
            f"{role} '{folder}' holds {len(series)} DICOM series; put the wanted one into a folder of its own"
        )
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{role} '{folder}' cannot be read as a DICOM series: {_reason(error)}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{role} '{folder}' is not a scalar 3D series")
    return Image(sitk.GetArrayFromImage(image), grid_of(image))


def _reason(error: RuntimeError) -> str:
    """Return the last telling line of an ITK exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ").rstrip(".") if lines else "unknown reason"


def write_image(image: Image, path: str | Path) -> None:
    """Write an image; the suffix chooses the format. The file appears whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    import SimpleITK as sitk

    from regnet_itk.outputs import write_whole

    write_whole(path, lambda part: sitk.WriteImage(image.to_sitk(), str(part), useCompression=True))


def check_registrable(image: Image, role: str) -> None:
    """Refuse an image that no registration can use.

    Raises
    ------
    ImageError
        If a value is NaN or infinite, or all values are equal.
    """
    array = image.array
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
