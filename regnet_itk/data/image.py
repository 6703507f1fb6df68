"""Images and masks: an array with its grid, files, and exchange with ITK and SimpleITK."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Grid
from regnet_itk.errors import ImageError

INTERPOLATION_ORDERS = range(6)
SMALLEST_SIZE = 4


@dataclass(frozen=True, eq=False)
class Image:
    """A scalar 3D image; each equals itself only.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        Voxel values.
    grid : Grid
        Where the voxels lie.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image
    >>> image = Image(np.zeros((2, 3, 4), dtype=np.int16), Grid((4, 3, 2), spacing=(1.0, 1.0, 2.5)))
    >>> image
    Image(4 x 3 x 2 voxels of 1 x 1 x 2.5 mm, int16, 0 to 0)
    >>> image.to_sitk().GetSize()
    (4, 3, 2)
    """

    array: npt.NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ImageError(
                f"an array of shape (z, y, x) = {self.array.shape} does not fit a grid of "
                f"size (x, y, z) = {self.grid.size}"
            )

    def __repr__(self) -> str:
        array = self.array
        span = f", {float(array.min()):g} to {float(array.max()):g}" if array.dtype.kind in "biuf" else ""
        return f"Image({self.grid.describe()}, {array.dtype}{span})"

    def to_sitk(self) -> Any:
        """Return a SimpleITK image with the same voxels (copied) and grid."""
        import SimpleITK as sitk

        return place(sitk.GetImageFromArray(plain_array(self.array)), self.grid)

    def to_itk(self) -> Any:
        """Return an ``itk.Image`` with the same voxels (copied) and grid."""
        import itk

        array = plain_array(self.array)
        if array.dtype == np.int64:  # itk's wheels have no images of it
            small = np.iinfo(np.int32)
            fits = small.min <= array.min() and array.max() <= small.max
            if not fits and np.abs(array).max() > 2**53:
                raise ImageError("ITK's Python package has no images of whole numbers above 2^53; give smaller ones")
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


def plain_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
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


def check_registrable(image: Image, role: str) -> None:
    """Refuse an image that no registration can use.

    Raises
    ------
    ImageError
        If it has fewer voxels along an axis than cubic splines need, a value is NaN or infinite, or all are equal.
    """
    thin = [f"{n} along {axis}" for n, axis in zip(image.grid.size, "xyz", strict=True) if n < SMALLEST_SIZE]
    if thin:
        raise ImageError(
            f"the {role} has too few voxels ({', '.join(thin)}); 3D registration needs {SMALLEST_SIZE} along every axis"
        )
    check_values(image.array, role)


def check_values(array: npt.NDArray[Any], role: str) -> None:
    """Refuse voxels that no registration can use.

    Parameters
    ----------
    array : ndarray
        Of any shape.
    role : str
        What the image is, for the messages.

    Raises
    ------
    ImageError
        If the values are no plain numbers, one is NaN or infinite, or all are equal.
    """
    if array.dtype.kind not in "biuf":
        raise ImageError(f"the {role} has values of the type {array.dtype}; give an image of plain numbers")
    check_finite(array, f"the {role}")
    if array.min() == array.max():
        raise ImageError(f"the {role} is constant (every voxel is {array.flat[0]}); nothing can be registered")


def check_finite(array: npt.NDArray[Any], what: str, instead: str = "replace them (air is -1000 HU)") -> None:
    """Refuse voxels that are NaN or infinite.

    Parameters
    ----------
    array : ndarray
        Of any shape.
    what : str
        What the image is, for the message.
    instead : str
        What to do, for the message.

    Raises
    ------
    ImageError
        Says how many there are.
    """
    if np.issubdtype(array.dtype, np.floating) and not (finite := np.isfinite(array)).all():
        bad = int(np.size(array) - finite.sum())
        raise ImageError(f"{what} has {bad} voxels that are NaN or infinite; {instead}")


def check_same_grid(grid: Grid, of_image: Grid, what: str, image: str) -> None:
    """Refuse what belongs to an image and lies on another grid.

    Parameters
    ----------
    grid, of_image : Grid
    what, image : str
        What lies on each, for the message: "the fixed mask lies", "the fixed image".

    Raises
    ------
    ImageError
        With both grids in the message.
    """
    if not grid.is_close(of_image, tolerance=1e-2):
        raise ImageError(
            f"{what} on another grid than {image}: size {grid.size}, spacing {grid.spacing}, origin {grid.origin} "
            f"against {of_image.size}, {of_image.spacing}, {of_image.origin}; resample it to its image"
        )


def check_mask(mask: Image, image: Image, role: str) -> None:
    """Refuse a mask that is empty, holds anything but whole numbers, or does not lie on the grid of its image.

    Voxels other than 0 count. NaN, or the small values that an interpolation leaves around a mask, would therefore
    select what nobody meant.

    Raises
    ------
    ImageError
        With both grids in the message, or with what the values would select.
    """
    check_same_grid(mask.grid, image.grid, f"the {role} mask lies", f"the {role} image")
    values = mask.array
    if values.dtype.kind == "f":
        bad = int(np.count_nonzero(values != np.rint(values)))  # NaN is unequal to itself; infinity is not
        bad += int(np.count_nonzero(np.isinf(values)))
        if bad:
            raise ImageError(
                f"the {role} mask has {bad} voxels that are NaN or no whole numbers, and would select "
                f"{np.count_nonzero(values) / values.size:.0%} of the image; threshold it to 0 and 1"
            )
    if not np.any(values):
        raise ImageError(f"the {role} mask is empty: no voxel differs from 0")
