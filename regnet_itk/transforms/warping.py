"""Images and segmentations through a finished transform: I_M(T(x)) on the fixed grid, as transformix makes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Box, FloatArray, Grid
from regnet_itk.data.image import INTERPOLATION_ORDERS, Image
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.errors import ImageError, ParameterError, did_you_mean
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.resampling_keys import resampling_grid, result_pixel_type

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
        grid = resampling_grid(parameters)
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

    check_overlap(image.grid, chain, grid)
    warped = sitk.Resample(
        image.to_sitk(), grid.size, chain.to_sitk(grid), _interpolator(order), grid.origin, grid.spacing,
        grid.direction_matrix.ravel().tolist(), float(default), sitk.sitkFloat32,
    )  # fmt: skip
    return Image(cast_values(sitk.GetArrayFromImage(warped), pixel_type), grid)


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
    from regnet_itk.transforms.sampler import fill_in_blocks, voxel_points  # torch is slow to start

    if labels.array.dtype.kind == "f" and not np.array_equal(labels.array, np.rint(labels.array)):
        raise ImageError("the segmentation holds values that are not whole numbers; leave --label away for images")
    check_overlap(labels.grid, chain, grid)
    sampler = chain.sampler()
    found = np.empty(grid.shape, dtype=labels.array.dtype)

    def fill(box: Box, part: Grid) -> None:
        index = labels.grid.point_to_index(sampler.map(voxel_points(part)).numpy())
        found[box] = _label_at(labels.array, index, linear).reshape(part.shape)

    fill_in_blocks(fill, grid)
    return Image(found, grid)


def _label_at(labels: npt.NDArray[Any], index: FloatArray, linear: bool) -> npt.NDArray[Any]:
    """Return the labels at indices (n, 3), x first; 0 outside the box that the voxels fill."""
    last = np.array(labels.shape[::-1]) - 1
    inside = ((index >= -0.5) & (index < last + 0.5)).all(axis=1)
    nearest = np.clip(np.floor(index + 0.5), 0, last).astype(int)
    found = labels[nearest[:, 2], nearest[:, 1], nearest[:, 0]]
    if linear:
        low = np.clip(np.floor(index), 0, last).astype(int)
        high = np.minimum(low + 1, last)
        part = np.clip(index - low, 0, 1)
        corners, weights = [], []
        for corner in np.ndindex(2, 2, 2):
            x, y, z = np.where(corner, high, low).T
            corners.append(labels[z, y, x])
            weights.append(np.where(corner, part, 1 - part).prod(axis=1))
        found = _heaviest(np.array(corners), np.array(weights))
    found[~inside] = 0
    return found


def _heaviest(labels: npt.NDArray[Any], weights: FloatArray) -> npt.NDArray[Any]:
    """Return the label of the greatest total weight among the candidates (8, n); the smallest of equals."""
    total = np.array([(weights * (labels == label)).sum(axis=0) for label in labels])
    equal = total >= total.max(axis=0) - 1e-9
    largest = np.where(equal, labels, labels.max(axis=0))
    return np.asarray(largest.min(axis=0), dtype=labels.dtype)


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
