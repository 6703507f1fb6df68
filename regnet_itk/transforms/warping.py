"""Images and segmentations through a finished transform: I_M(T(x)) on the fixed grid, as transformix makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import INTERPOLATION_ORDERS, Image
from regnet_itk.data.pixel_types import cast_values, check_default
from regnet_itk.errors import ImageError, ParameterError, did_you_mean
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.resampling_keys import read_resampling_grid, result_pixel_type

Order = int | Literal["linear"]
"""0 takes the nearest voxel, 1 and more are B-splines, which are mirrored at the border of the image as elastix does;
"linear" equals 1 but for the outer half voxel, where the value stays that of the border."""

_LARGEST_LABEL = 2**53  # ITK's interpolators return float64
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
        If the transform maps the whole grid outside of the image.
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
    check_overlap(image.grid, chain, grid)
    resampler = _resampler(chain, grid, _interpolator(order))
    resampler.SetDefaultPixelValue(float(default))
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    return Image(cast_values(sitk.GetArrayFromImage(resampler.Execute(image.to_sitk())), pixel_type), grid)


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
    if labels.array.dtype.itemsize == 8 and labels.array.size and np.abs(labels.array).max() > _LARGEST_LABEL:
        raise ImageError(f"the segmentation holds labels above {_LARGEST_LABEL}; give them smaller numbers")
    check_overlap(labels.grid, chain, grid)
    resampler = _resampler(chain, grid, sitk.sitkLabelLinear if linear else sitk.sitkNearestNeighbor)
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
