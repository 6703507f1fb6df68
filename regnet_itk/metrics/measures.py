"""How good a registration is: landmark errors, correlation, errors of a field, folding, overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Triple
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, PointsError

_SLAB_VOXELS = 2_000_000


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
    mean_absolute, sd_absolute : tuple of float
        Mean and standard deviation of the absolute components along the physical axes x, y, z, mm.
    guided : bool
        Whether the points guided the registration: then they are no measure of it.
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
    sd_absolute: Triple
    guided: bool = False

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
    components = np.abs(vectors)
    x, y, z = components.mean(axis=0).tolist()
    sx, sy, sz = components.std(axis=0, ddof=1).tolist() if len(length) > 1 else (0.0, 0.0, 0.0)
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
        sd_absolute=(sx, sy, sz),
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

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> regnet_itk.target_registration_error(chain, [[0.0, 0.0, 0.0]], [[2.0, 0.0, 2.0]]).tolist()
    [3.0]
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

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import DisplacementField, Grid, displacement_error
    >>> grid = Grid(size=(4, 3, 2))
    >>> true = DisplacementField(np.zeros((*grid.shape, 3)), grid)
    >>> found = DisplacementField(np.full((*grid.shape, 3), (0.0, 3.0, 4.0)), grid)
    >>> displacement_error(found, true).mean
    5.0
    """
    inside = _mask(mask, true.grid.shape)
    if mask is not None and not mask.grid.is_close(true.grid, 1e-2):
        raise ImageError("the mask does not lie on the grid of the true displacement field; resample it")
    if predicted.grid.is_close(true.grid):
        values = predicted.vectors[inside]
    else:
        values = predicted.at(true.grid.points()[inside])
    return summarise_errors(np.asarray(values, dtype=float) - true.vectors[inside])


@dataclass(frozen=True)
class ErrorMoments:
    """What is kept of millions of error vectors e in mm, so that those of several pairs can be pooled.

    Parameters
    ----------
    count : int
        Number of vectors.
    sums, squares : tuple of float
        Sums, and sums of squares, of |e|, of |e_x| + |e_y| + |e_z|, and of |e_x|, |e_y|, |e_z|.
    """

    count: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]

    @classmethod
    def of(cls, differences: FloatArray) -> ErrorMoments:
        """Take error vectors (n, 3) in mm; there may be none."""
        vectors = np.asarray(differences, dtype=float)
        components = np.abs(vectors)
        values = np.column_stack([np.linalg.norm(vectors, axis=1), components.sum(axis=1), components])
        return cls(len(vectors), tuple(values.sum(axis=0).tolist()), tuple((values**2).sum(axis=0).tolist()))

    def __add__(self, other: ErrorMoments) -> ErrorMoments:
        sums, squares = (
            tuple(a + b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((self.sums, other.sums), (self.squares, other.squares))
        )
        return ErrorMoments(self.count + other.count, sums, squares)

    @property
    def means(self) -> tuple[float, ...]:
        """Means in mm: of |e|, of |e_x| + |e_y| + |e_z|, and of each of these three."""
        return tuple(total / self.count for total in self.sums)

    @property
    def sds(self) -> tuple[float, ...]:
        """Standard deviations in mm (divisor n - 1), in the same order."""
        divisor = max(1, self.count - 1)
        return tuple(
            math.sqrt(max(0.0, square - total**2 / self.count) / divisor)
            for total, square in zip(self.sums, self.squares, strict=True)
        )


def transform_error(mapping: PointMap, true: DisplacementField, mask: Image | None = None) -> ErrorMoments:
    """Return the errors T(x) - x - u(x) of a transform at the voxels x of its true displacement field u.

    Computed at the voxels themselves, slab by slab, so that nothing is interpolated and memory is bounded.

    Parameters
    ----------
    mapping : object with ``map_points``
        T, fixed to moving.
    true : DisplacementField
        u in mm.
    mask : Image, optional
        On the grid of `true`; only voxels that are not 0 count.

    Raises
    ------
    ImageError
        If the mask is empty or lies on another grid.
    """
    if mask is not None and not mask.grid.is_close(true.grid, 1e-2):
        raise ImageError("the mask does not lie on the grid of the true displacement field; resample it")
    inside = _mask(mask, true.grid.shape)
    found = ErrorMoments.of(np.zeros((0, 3)))
    for slab in true.grid.slabs(_SLAB_VOXELS):
        points = true.grid.part(slab).points()[inside[slab]]
        if len(points):
            found += ErrorMoments.of(mapping.map_points(points) - points - true.vectors[slab][inside[slab]])
    return found


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

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, normalised_correlation
    >>> image = Image(np.arange(24.0).reshape(2, 3, 4), Grid(size=(4, 3, 2)))
    >>> round(normalised_correlation(image, Image(5.0 - 2.0 * image.array, image.grid)), 6)
    -1.0
    """
    _same_grid(a, b)
    if mask is not None:
        _same_grid(a, mask)
    inside = None if mask is None else _mask(mask, a.array.shape)
    count, sums, products = 0, np.zeros(2), np.zeros((2, 2))
    middle: FloatArray | None = None
    for slab in a.grid.slabs(_SLAB_VOXELS):
        parts = [image.array[slab].ravel() if inside is None else image.array[slab][inside[slab]] for image in (a, b)]
        values = np.stack(parts, dtype=np.float64, casting="unsafe")
        if values.size and middle is None:  # a value near all others, against cancellation
            middle = values[:, :1].copy()
        if middle is not None:
            values -= middle
        count, sums, products = count + values.shape[1], sums + values.sum(axis=1), products + values @ values.T
    covariance = products - np.outer(sums, sums) / count
    scale = math.sqrt(covariance[0, 0] * covariance[1, 1]) if (np.diag(covariance) > 0).all() else 0.0
    return float(np.clip(covariance[0, 1] / scale, -1.0, 1.0)) if scale > 0 else float("nan")


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

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import DisplacementField, Grid, folding_share
    >>> grid = Grid(size=(4, 3, 2))
    >>> folding_share(DisplacementField(np.zeros((*grid.shape, 3)), grid))
    0.0
    """
    return float((_determinants(field, mask) <= 0).mean())


def log_jacobian_sd(field: DisplacementField | Image, mask: Image | None = None) -> float:
    """Return the standard deviation (divisor n - 1) of log det(dT/dx), over the voxels where it is positive.

    The others have no logarithm; :func:`folding_share` counts them.

    Parameters
    ----------
    field : DisplacementField or Image
        u of T(x) = x + u(x), or det(dT/dx) itself.
    mask : Image, optional
        On the same grid; only voxels that are not 0 count.

    Returns
    -------
    float
        NaN if fewer than two voxels are left.

    Raises
    ------
    ImageError
        If the mask is empty or lies on another grid.
    """
    values = _determinants(field, mask)
    positive = values[values > 0].astype(float)
    return float(np.log(positive).std(ddof=1)) if len(positive) > 1 else float("nan")


def _determinants(field: DisplacementField | Image, mask: Image | None) -> FloatArray:
    """Return det(dT/dx) (n,) of the voxels inside the mask."""
    determinant = field.array if isinstance(field, Image) else field.jacobian_determinant()
    if mask is not None and not mask.grid.is_close(field.grid, 1e-2):
        raise ImageError("the mask does not lie on the grid of the field; resample it")
    return np.asarray(determinant[_mask(mask, determinant.shape)])


def label_dice(a: Image, b: Image) -> dict[int, float]:
    """Return the overlap 2 |A and B| / (|A| + |B|) of each label of `a` but 0, on one grid; 0 where `b` lacks it.

    Raises
    ------
    ImageError
        If the grids differ.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, label_dice
    >>> grid = Grid(size=(4, 1, 1))
    >>> label_dice(Image(np.array([[[1, 1, 2, 0]]]), grid), Image(np.array([[[0, 1, 2, 0]]]), grid))
    {1: 0.6666666666666666, 2: 1.0}
    """
    _same_grid(a, b)
    found = {}
    for label in np.unique(a.array):
        if label != 0:
            first, second = a.array == label, b.array == label
            found[int(label)] = 2.0 * int((first & second).sum()) / (int(first.sum()) + int(second.sum()))
    return found


def dice(a: Image, b: Image) -> float:
    """Return the overlap 2 |A and B| / (|A| + |B|) of two masks on one grid, 0 to 1; NaN if both are empty.

    Raises
    ------
    ImageError
        If the grids differ.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import Grid, Image, dice
    >>> grid = Grid(size=(4, 1, 1))
    >>> dice(Image(np.array([[[1, 1, 0, 0]]]), grid), Image(np.array([[[0, 1, 1, 0]]]), grid))
    0.5
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
