"""The pixel types of elastix's files, by both of their names, and the one way in which values become of such a type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.errors import ParameterError, did_you_mean

_ELASTIX_NAMES: dict[str, Any] = {
    "char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned int": np.uint32,
    "long": np.int64,
    "unsigned long": np.uint64,
    "float": np.float32,
    "double": np.float64,
}
PIXEL_TYPES: dict[str, Any] = {
    **_ELASTIX_NAMES,
    **{np.dtype(dtype).name: dtype for dtype in _ELASTIX_NAMES.values()},  # "int16" .., as of elastix 5.3
}


def check_pixel_type(name: str, complaint: str = "there is no pixel type") -> str:
    """Return `name` if it is a pixel type's.

    Parameters
    ----------
    name : str
        "short", "float" .., or "int16", "float32" ..
    complaint : str
        What the message begins with; the name follows.

    Raises
    ------
    ParameterError
        With the nearest name, or all of them.
    """
    if name not in PIXEL_TYPES:
        near = did_you_mean(name, PIXEL_TYPES) or f"; known are {', '.join(PIXEL_TYPES)}"
        raise ParameterError(f"{complaint} '{name}'{near}")
    return name


def pixel_type_of(array: npt.NDArray[Any]) -> str:
    """Return elastix's name of an array's type; "float" for types that it does not have."""
    return next((name for name, dtype in _ELASTIX_NAMES.items() if np.dtype(dtype) == array.dtype), "float")


def check_default(value: float, pixel_type: str, source: str = "") -> float:
    """Return the value outside of an image if voxels of a type can have it: whole numbers cannot be NaN or infinite.

    Raises
    ------
    ParameterError
    """
    if not math.isfinite(value) and np.dtype(PIXEL_TYPES[check_pixel_type(pixel_type)]).kind != "f":
        raise ParameterError(
            f"{source + ': ' if source else ''}outside of the image the result would be {value:g}, which voxels of the "
            f"type '{pixel_type}' cannot hold; give another value (`default`, DefaultPixelValue), or the type float"
        )
    return value


def exact_up_to(pixel_type: str) -> int:
    """Return up to which number a type holds all whole numbers that are not negative."""
    wanted = np.dtype(PIXEL_TYPES[check_pixel_type(pixel_type)])
    return int(np.iinfo(wanted).max) if wanted.kind in "iu" else 2 ** (np.finfo(wanted).nmant + 1)


def cast_values(values: npt.NDArray[Any], pixel_type: str) -> npt.NDArray[Any]:
    """Return an array of a pixel type.

    For integers, decimals are cut off, as elastix and transformix do. Values that the type cannot hold become the
    nearest that it can; elastix lets them wrap around, which makes the brightest voxels dark.

    Parameters
    ----------
    values : ndarray
    pixel_type : str
        One of :data:`PIXEL_TYPES`.

    Returns
    -------
    ndarray
        `values` itself if it is of that type and not an integer's.

    Raises
    ------
    ParameterError
        If there is no such type.
    """
    wanted = np.dtype(PIXEL_TYPES[check_pixel_type(pixel_type)])
    if wanted.kind == "f":
        return values.astype(wanted, copy=False)
    limits = np.iinfo(wanted)
    if values.dtype.kind in "iu":  # exactly, and so not by way of float64
        held = np.iinfo(values.dtype)
        return np.clip(values, max(limits.min, held.min), min(limits.max, held.max)).astype(wanted, copy=False)
    real = values if values.dtype.kind == "f" else values.astype(np.float64)
    top = real.dtype.type(limits.max)  # of the larger types rounded up, to a number that they do not hold
    found = np.clip(real, limits.min, np.nextafter(top, real.dtype.type(0))).astype(wanted)
    found[real >= top] = limits.max
    return found
