"""A pair of images on a few thousand coarse voxels, where a transform is looked at within milliseconds.

What is compared is local: how the values around each voxel correlate. A lung that one image lacks, a contrast agent or
a table then costs no more than the part of the image that it fills, wherever all else lies. Nothing here depends on
the size of what is shown, and only the limits of the values on their unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.anatomy.hounsfield import AIR, is_hounsfield
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.stages.block_means import block_for, block_means

Mapping = Callable[[FloatArray], FloatArray]
"""T of points (n, 3), fixed to moving, mm, LPS."""

_VOXELS = 40_000  # of a coarse image, about: those of a chest have 9 mm
_SAMPLE = 200_000  # voxels that tell an image's limits
_DENSE_BONE = 1000.0  # HU
_WINDOW = 1.5  # standard deviation of the surroundings that are correlated, in coarse voxels
_FAINT = 0.01  # of the limits' width: structure as faint as this is taken for noise
_ENOUGH_OVERLAP = 0.5  # of the smaller body; with less, the score falls
_FEWEST_VOXELS = 500  # in common; with fewer, nothing is told

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def intensity_limits(image: Image) -> tuple[float, float]:
    """Return the values between which an image shows anatomy.

    Parameters
    ----------
    image : Image

    Returns
    -------
    low, high : float
        Air and dense bone for a CT in Hounsfield units. Else all but the lowest 1 % and the highest 0.5 % of the
        values above the lowest one, which often pads an image.
    """
    if is_hounsfield(image):
        return AIR, _DENSE_BONE
    step = max(1, round((image.array.size / _SAMPLE) ** (1 / 3)))
    values = image.array[::step, ::step, ::step].astype(np.float64).ravel()
    above = values[values > values.min()]
    low, high = np.quantile(above, [0.01, 0.995]) if above.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else (float(image.array.min()), float(image.array.max()))


def clip_image(image: Image) -> Image:
    """Return an image without the values below and above what anatomy has (`intensity_limits`)."""
    return Image(_clip(image.array, *intensity_limits(image)), image.grid)


def _clip(array: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[Any]:
    """Return values within limits, in the type that they have."""
    if array.dtype.kind not in "iu":
        return np.clip(array, low, high)
    known = np.iinfo(array.dtype)
    ends = array.dtype.type(max(math.floor(low), known.min)), array.dtype.type(min(math.ceil(high), known.max))
    return np.clip(array, *ends)


@dataclass(frozen=True, eq=False)
class CoarseImage:
    """An image of few voxels.

    Parameters
    ----------
    array : ndarray, shape (z, y, x)
        Its values from 0 to 1, between the limits.
    usable : ndarray, shape (z, y, x)
        1 where the image may be looked at, 0 outside of its mask and where it is to be ignored.
    body : bool array, shape (z, y, x)
        The mask where there is one, else what is brighter than the background, with the air that it encloses; without
        what is to be ignored.
    grid : Grid
    """

    array: Floats
    usable: Floats
    body: Bools
    grid: Grid

    @classmethod
    def of(cls, image: Image, mask: Image | None, ignored: Image | None = None) -> CoarseImage:
        """Return the coarse form of an image with its mask, and a mask of what is to be ignored in it."""
        low, high = intensity_limits(image)
        factor = block_for(image.grid, _VOXELS)
        array, grid = block_means(image.array, image.grid, factor, lambda block: _clip(block, low, high))
        array = (array - np.float32(low)) / np.float32(high - low)
        if mask is None:
            usable, body = np.ones_like(array), _find_body(array)
        else:
            share, _ = block_means(mask.array, image.grid, factor, lambda block: block != 0)
            body = ndimage.binary_dilation(share > 0.5 if (share > 0.5).any() else share > 0)
            usable = body.astype(np.float32)
        if ignored is not None:
            left, _ = block_means(ignored.array, image.grid, factor, lambda block: block == 0)
            usable, body = usable * left, body & (left > 0.5)
        return cls(array, usable, body, grid)

    def halved(self) -> CoarseImage:
        """Return the image on voxels twice as large."""
        factor = np.minimum(2, self.grid.size)
        array, grid = block_means(self.array, self.grid, factor)
        usable, _ = block_means(self.usable, self.grid, factor)
        body, _ = block_means(self.body, self.grid, factor)
        return CoarseImage(array, usable, body > 0.5, grid)

    @cached_property
    def volume(self) -> float:
        """The volume of the body in mm3."""
        return float(self.body.sum() * np.prod(self.grid.spacing))

    @cached_property
    def centre_of_body(self) -> FloatArray:
        """The point (3,) in mm in the middle of the body's voxels."""
        return self.grid.index_to_point(np.argwhere(self.body)[:, ::-1].mean(axis=0))

    @cached_property
    def centre(self) -> FloatArray:
        """The point (3,) in mm in the middle of what may be looked at: of the mask's box, or the image's."""
        found = np.argwhere(self.usable > 0)[:, ::-1]
        return self.grid.index_to_point((found.min(axis=0) + found.max(axis=0)) / 2)


def _find_body(array: Floats) -> Bools:
    """Return what is brighter than Otsu's threshold, with its holes in axial sections filled; all, if nothing is."""
    from skimage.filters import threshold_otsu

    bright = array > threshold_otsu(array)
    if not bright.any():
        return np.ones(array.shape, dtype=bool)
    return np.stack([ndimage.binary_fill_holes(section) for section in bright])


@dataclass(frozen=True)
class Look:
    """What a pair looks like under a transform.

    Parameters
    ----------
    similarity : float
        Mean local correlation in the common region: 1 for images that are alike.
    overlap : float
        The share of the smaller body (or mask), 0 to 1, that lies in both images.
    """

    similarity: float = 0.0
    overlap: float = 0.0

    @property
    def score(self) -> float:
        """The similarity, less where little overlaps."""
        return self.similarity * min(1.0, self.overlap / _ENOUGH_OVERLAP)


@dataclass(frozen=True, eq=False)
class CoarsePair:
    """Two coarse images.

    Parameters
    ----------
    fixed, moving : CoarseImage
    any_contrast : bool
        Whether bright in one image may be dark in the other, as between modalities: correlations are then squared.
    """

    fixed: CoarseImage
    moving: CoarseImage
    any_contrast: bool = False

    @classmethod
    def of(
        cls, fixed: Image, moving: Image, fixed_mask: Image | None = None, moving_mask: Image | None = None,
        *, fixed_ignored: Image | None = None, moving_ignored: Image | None = None,
    ) -> CoarsePair:  # fmt: skip
        """Return the coarse form of two images with their masks, and masks of what is to be ignored in them."""
        return cls(
            CoarseImage.of(fixed, fixed_mask, fixed_ignored), CoarseImage.of(moving, moving_mask, moving_ignored)
        )

    def halved(self) -> CoarsePair:
        """Return the pair on voxels twice as large."""
        return replace(self, fixed=self.fixed.halved(), moving=self.moving.halved())

    @cached_property
    def _points(self) -> FloatArray:
        return self.fixed.grid.points().reshape(-1, 3)

    def look(self, mapping: Mapping) -> Look:
        """Look at the pair under a transform.

        Parameters
        ----------
        mapping : callable
            T, of points (n, 3) in mm, LPS, fixed to moving.
        """
        index = self.moving.grid.point_to_index(mapping(self._points))[:, ::-1].T
        shape = self.fixed.array.shape
        last = np.asarray(self.moving.array.shape)[:, None] - 0.5
        seen = ((index >= -0.5) & (index <= last)).all(axis=0).reshape(shape)
        moving, usable = (
            ndimage.map_coordinates(values, index, order=1, mode="nearest").reshape(shape)
            for values in (self.moving.array, self.moving.usable)
        )
        weight = seen * usable * self.fixed.usable
        if weight.sum() < _FEWEST_VOXELS:
            return Look()
        overlap = float((weight * self.fixed.body).sum()) * float(np.prod(self.fixed.grid.spacing))
        smaller = min(self.fixed.volume, self.moving.volume / max(abs(_determinant(mapping, self.fixed.centre)), 1e-6))
        return Look(self._correlation(moving, weight), min(1.0, overlap / max(smaller, 1e-6)))

    def _correlation(self, moving: Floats, weight: Floats) -> float:
        """Return the mean of the local correlations, where there is structure in an image."""
        fixed, noise = self.fixed.array, np.float32(_FAINT**2)

        def around(values: Floats) -> Floats:
            return np.asarray(ndimage.gaussian_filter(weight * values, _WINDOW, truncate=2.5, mode="constant"))

        mass = around(np.ones_like(weight)) + np.float32(1e-6)
        mean_f, mean_m = around(fixed) / mass, around(moving) / mass
        variance_f = np.maximum(around(fixed * fixed) / mass - mean_f * mean_f, 0)
        variance_m = np.maximum(around(moving * moving) / mass - mean_m * mean_m, 0)
        covariance = around(fixed * moving) / mass - mean_f * mean_m
        correlation = covariance / np.sqrt((variance_f + noise) * (variance_m + noise))
        if self.any_contrast:
            correlation = correlation * correlation
        strongest = np.maximum(variance_f, variance_m)
        weight = weight * np.sqrt(strongest / (strongest + 25 * noise))
        return float((weight * correlation).sum() / max(float(weight.sum()), 1e-6))


def _determinant(mapping: Mapping, point: FloatArray) -> float:
    """Return det J of a transform around a point, by central differences of 2 mm."""
    ends = mapping(np.concatenate([point + np.eye(3), point - np.eye(3)]))
    return float(np.linalg.det((ends[:3] - ends[3:]) / 2))
