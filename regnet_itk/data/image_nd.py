"""Images of two, three or four dimensions, for what elastix computes alone; all else here is 3D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, array_of, plain_array
from regnet_itk.errors import ImageError

DIMENSIONS = (2, 3, 4)
"""Of the images that elastix registers."""


@dataclass(frozen=True, eq=False)
class ImageND:
    """A scalar image of two, three or four dimensions; each equals itself only.

    Parameters
    ----------
    array : ndarray, shape (.., z, y, x)
        Voxel values.
    spacing, origin : tuple of float
        x, y, z .., in mm, LPS.
    direction : ndarray, shape (d, d)
        Column i is the unit vector along which index i grows.
    """

    array: npt.NDArray[Any]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: FloatArray

    @property
    def size(self) -> tuple[int, ...]:
        """Number of voxels along x, y, z .."""
        return tuple(reversed(self.array.shape))

    def __repr__(self) -> str:
        size, spacing = " x ".join(map(str, self.size)), " x ".join(f"{s:g}" for s in self.spacing)
        return f"ImageND({size} voxels of {spacing} mm, {self.array.dtype})"

    def to_sitk(self) -> Any:
        """Return a SimpleITK image with the same voxels (copied) and place."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(plain_array(self.array), isVector=False)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction.ravel().tolist())
        return image

    def to_itk(self) -> Any:
        """Return an ``itk.Image`` with the same voxels (copied) and place."""
        import itk

        image = itk.image_from_array(np.ascontiguousarray(plain_array(self.array)))
        image.SetSpacing(list(self.spacing))
        image.SetOrigin(list(self.origin))
        image.SetDirection(itk.matrix_from_array(self.direction))
        return image

    def to_3d(self) -> Image:
        """Return a 3D image as the class that all of this package takes.

        Raises
        ------
        ImageError
            If it has another number of dimensions.
        """
        if self.array.ndim != 3:
            raise ImageError(f"the image has {self.array.ndim} dimensions; regnet-itk registers 3D images only")
        nx, ny, nz = self.size
        return Image(self.array, Grid((nx, ny, nz), self.spacing, self.origin, self.direction))  # type: ignore[arg-type]


def from_3d(image: Image) -> ImageND:
    """Return a 3D image as one that may have other dimensions too."""
    grid = image.grid
    return ImageND(image.array, grid.spacing, grid.origin, grid.direction_matrix)


def as_image_nd(image: Any) -> ImageND:
    """Take an :class:`Image` or :class:`ImageND`, an ITK image or a SimpleITK image.

    Raises
    ------
    ImageError
        If it is none of them, has more than one component, or has other dimensions than 2, 3 or 4.
    """
    if isinstance(image, ImageND):
        return image
    if isinstance(image, Image):
        return from_3d(image)
    if isinstance(image, np.ndarray):
        raise ImageError("a numpy array needs its grid: give regnet_itk.Image(array, Grid(size, spacing, ..))")
    if type(image).__module__.startswith("SimpleITK"):
        return _of_sitk(image)
    if hasattr(image, "GetLargestPossibleRegion"):
        return _of_itk(image)
    raise ImageError(f"expected an itk image, a SimpleITK image or regnet_itk.Image, not {type(image).__name__}")


def _of_sitk(image: Any) -> ImageND:
    import SimpleITK as sitk

    _check(image.GetDimension(), image.GetNumberOfComponentsPerPixel())
    return _placed(sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _of_itk(image: Any) -> ImageND:
    import itk

    image.Update()  # it may be the output of a filter that has not run yet
    _check(image.GetImageDimension(), image.GetNumberOfComponentsPerPixel())
    found = _placed(
        itk.array_from_image(image), image.GetSpacing(), image.GetOrigin(), np.asarray(image.GetDirection())
    )
    start = np.array([int(i) for i in image.GetLargestPossibleRegion().GetIndex()], dtype=float)
    if not start.any():
        return found
    first = np.asarray(found.origin) + (found.direction * np.asarray(found.spacing)) @ start
    return ImageND(found.array, found.spacing, tuple(first.tolist()), found.direction)


def nd_from_reader(reader: Any, array: npt.NDArray[Any]) -> ImageND:
    """Return an image with these voxels that lies where a ``SimpleITK.ImageFileReader`` says."""
    return _placed(array, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def read_own(path: str) -> ImageND:
    """Read an image that elastix has just written; the files of users are checked besides (`image_files`)."""
    import SimpleITK as sitk

    image = sitk.ReadImage(path)
    return _placed(array_of(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _placed(array: npt.NDArray[Any], spacing: Any, origin: Any, direction: Any) -> ImageND:
    spacing, origin = tuple(map(float, spacing)), tuple(map(float, origin))
    return ImageND(array, spacing, origin, np.asarray(direction, dtype=float).reshape(len(spacing), len(spacing)))


def _check(dimension: int, components: int) -> None:
    if dimension not in DIMENSIONS:
        raise ImageError(f"the image has {dimension} dimensions; elastix registers images of 2, 3 or 4")
    if components != 1:
        raise ImageError(f"the image has {components} components a voxel; regnet-itk registers scalar images")
