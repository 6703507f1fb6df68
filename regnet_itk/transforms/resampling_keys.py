"""The keys of an elastix transform file that say how the moving image is resampled."""

from __future__ import annotations

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.pixel_types import check_pixel_type
from regnet_itk.parameters import ParameterMap, as_values


def make_resampling_parameters(
    grid: Grid, order: int = 3, default: float = -1000, pixel_type: str = "short", format: str = "mha"
) -> dict[str, tuple[str, ...]]:
    """Return the keys of an elastix transform file that say how the moving image is resampled.

    Parameters
    ----------
    grid : Grid
        The fixed image's.
    order : int
        Order of the B-spline interpolation; 1 is linear, 0 takes the nearest voxel (labels).
    default : float
        Value outside the moving image.
    pixel_type, format : str
        Type and file suffix of the result image.
    """
    return {
        "FixedImageDimension": ("3",),
        "MovingImageDimension": ("3",),
        "FixedInternalImagePixelType": ("float",),
        "MovingInternalImagePixelType": ("float",),
        **grid_keys(grid),
        "UseDirectionCosines": ("true",),
        "ResampleInterpolator": ("FinalBSplineInterpolator",),
        "FinalBSplineInterpolationOrder": as_values(order),
        "Resampler": ("DefaultResampler",),
        "DefaultPixelValue": as_values(default),
        "ResultImageFormat": (format,),
        "ResultImagePixelType": (pixel_type,),
        "CompressResultImage": ("true",),
    }


def grid_keys(grid: Grid) -> dict[str, tuple[str, ...]]:
    """Return the keys of an elastix transform file that say on which voxels the result is."""
    return {
        "Size": as_values(grid.size),
        "Index": ("0", "0", "0"),
        "Spacing": as_values(grid.spacing),
        "Origin": as_values(grid.origin),
        "Direction": as_values(grid.direction_matrix.T.ravel()),
    }


def result_pixel_type(parameters: ParameterMap) -> str:
    """Return the ``ResultImagePixelType`` that a stage or a transform file asks for, by default "short" as in elastix.

    Raises
    ------
    ParameterError
        If there is no such type.
    """
    name = parameters.get_str("ResultImagePixelType", "short")
    return check_pixel_type(name, f"{parameters.source}: there is no ResultImagePixelType")


def read_resampling_grid(parameters: ParameterMap) -> Grid | None:
    """Return the grid on which an elastix transform file resamples the moving image, or None if it does not say.

    Raises
    ------
    ParameterError, ImageError
        If the keys are there and are no grid.
    """
    if not all(key in parameters for key in ("Size", "Spacing", "Origin")):
        return None
    nx, ny, nz = parameters.get_ints("Size", 3)
    sx, sy, sz = parameters.get_floats("Spacing", 3)
    x, y, z = parameters.get_floats("Origin", 3)
    direction = np.reshape(parameters.get_floats("Direction", 9, np.eye(3).ravel()), (3, 3)).T
    grid = Grid((nx, ny, nz), (sx, sy, sz), (x, y, z), direction)  # type: ignore[arg-type]
    return grid.crop(parameters.get_ints("Index", 3, (0, 0, 0)), (nx, ny, nz))
