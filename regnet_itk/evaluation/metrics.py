"""How good a registration is: landmark errors, correlation, errors of a field, folding, overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import ImageError, PointsError
from regnet_itk.geometry import FloatArray, Triple
from regnet_itk.images import Image


class PointMap(Protocol):
    """Anything that maps points, such as a transform chain or a :class:`DisplacementField`."""

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T(x) (n, 3) of the points (n, 3), fixed to moving, mm, LPS."""


@dataclass(frozen=True)
class ErrorSummary:
    """Statistics of n error vectors; lengths in mm.

    Parameters
    ----------
    count : int
        n.
    mean, sd, median, p95, max : float
        Of the lengths in mm. `sd` is the sample's (divisor n - 1), 0 for one vector; `p95` interpolates linearly.
    above_2mm, above_5mm : float
        Share (0 to 1) of lengths above 2 mm and 5 mm.
    mean_absolute : tuple of float
        Mean absolute component along the physical axes x, y, z, mm.
    """

    count: int
    mean: float
    sd: float
    median: float
    p95: float
    max: float
    above_2mm: float
    above_5mm: float
    mean_absolute: Triple

    @property
    def mae(self) -> float:
        """Mean absolute component in mm: the mean of the three of `mean_absolute`."""
        return sum(self.mean_absolute) / 3


def summarise_errors(differences: FloatArray) -> ErrorSummary:
    """Summarise error vectors (n, 3) in mm.

    Raises
    ------
    PointsError
        If there are none, or one is not finite.
    """
    vectors = np.asarray(differences, dtype=float)
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not len(vectors):
        raise PointsError(f"errors are summarised over one vector (x, y, z) or more, not an array of {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise PointsError(f"{int((~np.isfinite(vectors).all(axis=1)).sum())} of {len(vectors)} errors are not finite")
    length = np.linalg.norm(vectors, axis=1)
    x, y, z = np.abs(vectors).mean(axis=0).tolist()
    return ErrorSummary(
        count=len(length),
        mean=float(length.mean()),
        sd=float(length.std(ddof=1)) if len(length) > 1 else 0.0,
        median=float(np.median(length)),
        p95=float(np.percentile(length, 95)),
        max=float(length.max()),
        above_2mm=float((length > 2.0).mean()),
        above_5mm=float((length > 5.0).mean()),
        mean_absolute=(x, y, z),
    )


def landmark_differences(
    mapping: PointMap | Callable[[FloatArray], FloatArray] | None, fixed: npt.ArrayLike, moving: npt.ArrayLike
) -> FloatArray:
    """Return T(x_i) - y_i (n, 3) in mm.

    Parameters
    ----------
    mapping : object with ``map_points``, callable, or None
        T, from the fixed to the moving image; None is the identity (the error before registration).
    fixed, moving : array_like, shape (n, 3)
        Landmarks x_i of the fixed and y_i of the moving image, mm, LPS, in the same order.

    Raises
    ------
    PointsError
        If the numbers of landmarks differ, there are none, or one is not three finite numbers.
    """
    starts, ends = _landmarks(fixed, "fixed"), _landmarks(moving, "moving")
    if len(starts) != len(ends):
        raise PointsError(f"{len(starts)} fixed and {len(ends)} moving landmarks; give them in pairs")
    if mapping is None:
        return starts - ends
    mapped = mapping.map_points(starts) if hasattr(mapping, "map_points") else mapping(starts)
    return np.asarray(mapped, dtype=float) - ends


def _landmarks(points: npt.ArrayLike, role: str) -> FloatArray:
    array = np.asarray(points, dtype=float)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise PointsError(f"the {role} landmarks have the shape {array.shape}; give (n, 3) with n of 1 or more")
    if not np.isfinite(array).all():
        raise PointsError(f"a {role} landmark is not finite; remove it and its partner")
    return array


def target_registration_error(
    mapping: PointMap | Callable[[FloatArray], FloatArray] | None, fixed: npt.ArrayLike, moving: npt.ArrayLike
) -> FloatArray:
    """Return the distances |T(x_i) - y_i| (n,) in mm of landmarks; see :func:`landmark_differences`.

    Raises
    ------
    PointsError
        If the landmarks are not pairs of finite points.
    """
    return np.asarray(np.linalg.norm(landmark_differences(mapping, fixed, moving), axis=1))


def displacement_error(
    predicted: DisplacementField, true: DisplacementField, mask: Image | None = None
) -> ErrorSummary:
    """Summarise predicted minus true displacement over the voxels of the true field.

    Parameters
    ----------
    predicted : DisplacementField
        On any grid; taken linearly at the voxels of `true`, zero outside its own.
    true : DisplacementField
        The reference.
    mask : Image, optional
        On the grid of `true`; only voxels that are not 0 count.

    Raises
    ------
    ImageError
        If the mask is empty or lies on another grid.
    """
    inside = _mask(mask, true.grid.shape)
    if mask is not None and not mask.grid.is_close(true.grid, 1e-2):
        raise ImageError("the mask does not lie on the grid of the true displacement field; resample it")
    if predicted.grid.is_close(true.grid):
        values = predicted.vectors[inside]
    else:
        values = predicted.at(true.grid.points()[inside])
    return summarise_errors(np.asarray(values, dtype=float) - true.vectors[inside])


def normalised_correlation(a: Image, b: Image, mask: Image | None = None) -> float:
    """Return Pearson's correlation of the values of two images on one grid, -1 to 1.

    Parameters
    ----------
    a, b : Image
        On the same grid.
    mask : Image, optional
        On the same grid; only voxels that are not 0 count.

    Returns
    -------
    float
        NaN if one of the images is constant there.

    Raises
    ------
    ImageError
        If the grids differ or the mask is empty.
    """
    _same_grid(a, b)
    if mask is not None:
        _same_grid(a, mask)
    inside = _mask(mask, a.array.shape)
    x, y = a.array[inside].astype(np.float64), b.array[inside].astype(np.float64)
    x -= x.mean()
    y -= y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def folding_share(field: DisplacementField | Image, mask: Image | None = None) -> float:
    """Return the share (0 to 1) of voxels where T folds: where det(dT/dx) is 0 or less.

    Parameters
    ----------
    field : DisplacementField or Image
        u of T(x) = x + u(x), or det(dT/dx) itself.
    mask : Image, optional
        On the same grid; only voxels that are not 0 count.

    Raises
    ------
    ImageError
        If the mask is empty or lies on another grid.
    """
    determinant = field.array if isinstance(field, Image) else field.jacobian_determinant()
    if mask is not None and not mask.grid.is_close(field.grid, 1e-2):
        raise ImageError("the mask does not lie on the grid of the field; resample it")
    return float((determinant[_mask(mask, determinant.shape)] <= 0).mean())


def dice(a: Image, b: Image) -> float:
    """Return the overlap 2 |A and B| / (|A| + |B|) of two masks on one grid, 0 to 1; NaN if both are empty.

    Raises
    ------
    ImageError
        If the grids differ.
    """
    _same_grid(a, b)
    first, second = a.array != 0, b.array != 0
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else float("nan")


def _same_grid(a: Image, b: Image) -> None:
    if not a.grid.is_close(b.grid, 1e-2):
        raise ImageError(
            f"the images lie on different grids: size {a.grid.size}, origin {a.grid.origin} against "
            f"{b.grid.size}, {b.grid.origin}; resample one to the other"
        )


def _mask(mask: Image | None, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the mask as booleans, all true without a mask."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    if mask.array.shape != shape:
        raise ImageError(f"a mask of shape {mask.array.shape} (z, y, x) does not fit an image of {shape}")
    inside = np.asarray(mask.array != 0)
    if not inside.any():
        raise ImageError("the mask is empty: no voxel differs from 0")
    return inside
