"""Images and segmentations through a finished transform: I_M(T(x)) on the fixed grid, as transformix makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import INTERPOLATION_ORDERS, Image, check_finite
from regnet_itk.data.pixel_types import PIXEL_TYPES, cast_values, check_default, check_pixel_type, exact_up_to
from regnet_itk.errors import ImageError, ParameterError, did_you_mean
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.resampling import resample_through
from regnet_itk.transforms.resampling_keys import read_resampling_grid, result_pixel_type

Order = int | Literal["linear"]
"""0 takes the nearest voxel, 1 and more are B-splines, which are mirrored at the border of the image as elastix does;
"linear" equals 1 but for the outer half voxel, where the value stays that of the border."""

_INTERPOLATORS = ("FinalBSplineInterpolator", "FinalBSplineInterpolatorFloat")
_FIXED_ORDERS: dict[str, Order] = {"FinalLinearInterpolator": "linear", "FinalNearestNeighborInterpolator": 0}


@dataclass(frozen=True)
class WarpSettings:
    """How a transform file wants images to be resampled and written; the defaults are elastix's.

    Parameters
    ----------
    grid : Grid or None
        The fixed image's; None if the file does not say.
    order : {0, 1, 2, 3, 4, 5, "linear"}
        Of the interpolation, see `Order`.
    default : float
        Value outside the moving image.
    pixel_type : str or None
        elastix's name of the result's type; None keeps that of the input.
    format : str
        Suffix of the result, without the dot.
    compress : bool
    """

    grid: Grid | None
    order: Order = 3
    default: float = 0.0
    pixel_type: str | None = "short"
    format: str = "mhd"
    compress: bool = False

    @classmethod
    def of(cls, parameters: ParameterMap) -> WarpSettings:
        """Read the settings of a transform file; one of ITK's has none, and then the pixel type is the input's.

        Raises
        ------
        ParameterError
            If the file asks for an interpolator, order or pixel type that does not exist here.
        """
        grid = read_resampling_grid(parameters)
        if not parameters.values:
            return cls(grid, pixel_type=None, format="mha", compress=True)
        return cls(
            grid, _order(parameters), parameters.get_float("DefaultPixelValue", 0.0), result_pixel_type(parameters),
            parameters.get_str("ResultImageFormat", "mhd"), parameters.get_bool("CompressResultImage", False),
        )  # fmt: skip


def _order(parameters: ParameterMap) -> Order:
    name = parameters.get_str("ResampleInterpolator", "FinalBSplineInterpolator")
    if name in _FIXED_ORDERS:
        return _FIXED_ORDERS[name]
    if name not in _INTERPOLATORS:
        hint = did_you_mean(name, (*_INTERPOLATORS, *_FIXED_ORDERS)) or "; use FinalBSplineInterpolator"
        raise ParameterError(f"{parameters.source}: the ResampleInterpolator '{name}' is not supported{hint}")
    order = parameters.get_int("FinalBSplineInterpolationOrder", 3)
    if order not in INTERPOLATION_ORDERS:
        raise ParameterError(f"{parameters.source}: FinalBSplineInterpolationOrder is 0 to 5, not {order}")
    return order


def warp_image(
    image: Image,
    chain: TransformChain,
    grid: Grid,
    *,
    order: Order = 3,
    default: float = 0.0,
    pixel_type: str = "float",
) -> Image:
    """Return an image of the moving space on the fixed grid, I(T(x)).

    Parameters
    ----------
    image : Image
        In the space of the moving image; any grid.
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The wanted voxels, in the space of the fixed image.
    order : {0, 1, 2, 3, 4, 5, "linear"}
        See `Order`.
    default : float
        Value outside `image`.
    pixel_type : str
        elastix's name; see :func:`regnet_itk.data.pixel_types.cast_values`.

    Raises
    ------
    ImageError
        If the transform maps the whole grid outside of the image, if voxels are NaN or infinite and would spread over
        the result or cannot be in it, or if `order` is 0 and whole numbers are too large for the type of the result.
    ParameterError
        If `default` is no finite number and `pixel_type` one of whole numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> grid = regnet_itk.Grid(size=(8, 8, 4), spacing=(1.0, 1.0, 2.0))
    >>> moving = regnet_itk.Image(np.arange(256.0).reshape(grid.shape), grid)
    >>> regnet_itk.warp_image(moving, chain, grid, order="linear", default=-1.0).array[2, 0, :4].tolist()
    [98.0, 99.0, 100.0, 101.0]
    """
    import SimpleITK as sitk

    check_default(default, pixel_type)
    _check_interpolable(image, order, pixel_type)
    check_overlap(image.grid, chain, grid)
    if order == 3:
        return Image(cast_values(resample_through(image, chain, grid, order, default).array, pixel_type), grid)
    resampler = _resampler(chain, grid, _interpolator(order))
    if order == 0 and image.array.dtype.kind in "iu":
        found, outside = _nearest(image, resampler)
        values = cast_values(found, pixel_type)
        values[outside] = cast_values(np.array([float(default)]), pixel_type)
        return Image(values, grid)
    resampler.SetDefaultPixelValue(float(default))
    resampler.SetOutputPixelType(sitk.sitkFloat64 if order == 0 else sitk.sitkFloat32)
    return Image(cast_values(sitk.GetArrayFromImage(resampler.Execute(image.to_sitk())), pixel_type), grid)


def _check_interpolable(image: Image, order: Order, pixel_type: str) -> None:
    """Refuse what interpolation, or the type of the result, would change without a word."""
    array = image.array
    if order not in (0, 1, "linear"):
        check_finite(
            array, "the image", "splines would spread them over the whole result: replace them, or use `order` 0 or 1"
        )
    elif np.dtype(PIXEL_TYPES[check_pixel_type(pixel_type)]).kind != "f":
        check_finite(array, "the image", f"the type '{pixel_type}' cannot hold them: replace them, or ask for float")
    if order == 0 and array.dtype.kind in "iu" and array.size:
        largest, limit = max(int(array.max()), -int(array.min())), exact_up_to(pixel_type)
        if largest > limit and np.dtype(PIXEL_TYPES[pixel_type]).kind == "f":
            raise ImageError(
                f"the image holds whole numbers up to {largest}, and the type '{pixel_type}' changes those above "
                f"{limit}; ask for a type of whole numbers, or give `label`"
            )


def _nearest(image: Image, resampler: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the nearest voxel's whole number, and where the image is not.

    ITK's interpolators return float64, which does not hold all numbers of 64 bits: they go in two halves.
    """
    import SimpleITK as sitk

    array, dtype = image.array, image.array.dtype
    resampler.SetOutputPixelType(sitk.sitkFloat64)
    resampler.SetDefaultPixelValue(np.nan)

    def resampled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = sitk.GetArrayFromImage(resampler.Execute(Image(values, image.grid).to_sitk()))
        return found

    if dtype.itemsize < 8:
        found = resampled(array)
        outside = np.isnan(found)
        return np.where(outside, 0, found).astype(dtype), outside
    high, low = resampled((array >> 32).astype(np.float64)), resampled((array & 0xFFFFFFFF).astype(np.float64))
    outside = np.isnan(high)
    high, low = (np.where(outside, 0, half).astype(dtype) for half in (high, low))
    return (high << 32) | low, outside


def _resampler(chain: TransformChain, grid: Grid, interpolator: int) -> Any:
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.direction_matrix.ravel().tolist())
    resampler.SetTransform(chain.to_sitk(grid))
    resampler.SetInterpolator(interpolator)
    return resampler


def _interpolator(order: Order) -> int:
    import SimpleITK as sitk

    if order == "linear":
        return int(sitk.sitkLinear)
    splines = (sitk.sitkBSpline1, sitk.sitkBSpline2, sitk.sitkBSpline3, sitk.sitkBSpline4, sitk.sitkBSpline5)
    return int((sitk.sitkNearestNeighbor, *splines)[order])


def warp_labels(labels: Image, chain: TransformChain, grid: Grid, linear: bool = False) -> Image:
    """Return a segmentation of the moving space on the fixed grid; 0 outside of it, the type is kept.

    Parameters
    ----------
    labels : Image
        Whole numbers.
    chain : TransformChain
        T, fixed to moving.
    grid : Grid
        The wanted voxels, in the space of the fixed image.
    linear : bool
        Take the label whose membership, interpolated linearly, is the greatest (the smallest label of equals); its
        borders are smoother than those of the nearest voxel's label.

    Raises
    ------
    ImageError
        If a value is not a whole number, or the transform maps the whole grid outside of the image.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> grid = regnet_itk.Grid(size=(8, 8, 4), spacing=(1.0, 1.0, 2.0))
    >>> labels = regnet_itk.Image(np.tile(np.arange(8, dtype=np.uint8), (4, 8, 1)), grid)
    >>> regnet_itk.warp_labels(labels, chain, grid).array[2, 0].tolist()
    [2, 3, 4, 5, 6, 7, 0, 0]
    """
    import SimpleITK as sitk

    if labels.array.dtype.kind == "f" and not np.array_equal(labels.array, np.rint(labels.array)):
        raise ImageError("the segmentation holds values that are not whole numbers; leave `label` away for images")
    check_overlap(labels.grid, chain, grid)
    resampler = _resampler(chain, grid, sitk.sitkLabelLinear if linear else sitk.sitkNearestNeighbor)
    if labels.array.dtype.kind in "iu" and not linear:
        return Image(_nearest(labels, resampler)[0], grid)
    if labels.array.dtype.itemsize == 8 and linear:  # their numbers instead, which float64 holds
        known, numbers = np.unique(np.append(labels.array.ravel(), labels.array.dtype.type(0)), return_inverse=True)
        numbered = Image(numbers[:-1].reshape(labels.array.shape).astype(np.uint32), labels.grid)
        resampler.SetDefaultPixelValue(float(np.searchsorted(known, 0)))
        return Image(known[sitk.GetArrayFromImage(resampler.Execute(numbered.to_sitk()))], grid)
    warped = sitk.GetArrayFromImage(resampler.Execute(labels.to_sitk()))
    return Image(warped.astype(labels.array.dtype, copy=False), grid)


def check_overlap(image_grid: Grid, chain: TransformChain, grid: Grid) -> None:
    """Refuse an image that the transform does not reach.

    Raises
    ------
    ImageError
        If all that T maps `grid` to lies on one side of the image.
    """
    reached = image_grid.point_to_index(chain.map_points(grid.lattice(17, -0.5)))
    if (reached.max(axis=0) < -0.5).any() or (reached.min(axis=0) > np.asarray(image_grid.size) - 0.5).any():
        raise ImageError(
            "the transform maps the fixed image to a place outside of the input image; give the moving image of this "
            "registration, or an image in its space"
        )


def stem(path: str | Path) -> str:
    """Return the name of a file without the suffix of its format."""
    name = Path(path).name
    for suffix in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem
