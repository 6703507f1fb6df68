"""The foreground of an image of any kind: the body, head or organ that stands out from a dark surround.

Li and Tam, "An iterative algorithm for minimum cross entropy thresholding", Pattern Recognition Letters 1998; it takes
the darker tissues of an MR as well, where Otsu's threshold parts the bright ones from the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import filters, measure, morphology

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError

_WORKING_SPACING = 4.0  # mm; or a 64th of the image, if that is less
_CLIPPED = (0.5, 99.5)  # percentiles: padding and metal would draw the threshold away
_SMALLEST_PART = 0.1  # of the largest one

BoolArray = npt.NDArray[np.bool_]


def foreground_mask(image: Image, grid: Grid | None = None) -> Image:
    """Return the mask of what stands out from the dark surround, with what it encloses.

    Parameters
    ----------
    image : Image
        Of any modality in which air or nothing is dark.
    grid : Grid, optional
        Where the mask is wanted; the grid of `image` by default.

    Returns
    -------
    Image
        Boolean, on `grid`. Everything, where nothing stands out.

    Raises
    ------
    ImageError
        If all values are alike.
    """
    extent = np.multiply(image.grid.size, image.grid.spacing)
    spacing = min(_WORKING_SPACING, float(extent.min()) / 16)
    small = image.resampled(image.grid.isotropic(max(spacing, min(image.grid.spacing))), default=float("nan"))
    seen = np.isfinite(small.array)
    values = small.array[seen]
    low, high = np.percentile(values, _CLIPPED) if values.size else (0.0, 0.0)
    if not low < high:
        raise ImageError("the image's values are alike nearly everywhere: nothing stands out")
    clipped = np.clip(np.where(seen, small.array, low), low, high)
    found = _solid(clipped > filters.threshold_li(clipped[seen]))
    mask = Image(found.astype(np.uint8), small.grid)
    return Image(mask.resampled(grid or image.grid, order=0).array > 0, grid or image.grid)


def _solid(bright: BoolArray) -> BoolArray:
    """Return the large parts, closed and filled: couches and specks go, dark organs stay."""
    ball = morphology.ball(1)
    opened = ndimage.binary_opening(bright, ball)
    padded = np.pad(opened if opened.any() else bright, 3)
    closed = ndimage.binary_closing(padded, ball, iterations=2)[3:-3, 3:-3, 3:-3]
    labels = measure.label(closed)
    sizes = np.bincount(labels.ravel())[1:]
    kept = np.flatnonzero(sizes >= _SMALLEST_PART * sizes.max()) + 1 if sizes.size else np.array([], dtype=int)
    large = np.isin(labels, kept)
    if not large.any():
        return np.ones_like(bright)
    return _filled_in_sections(large)


def _filled_in_sections(mask: BoolArray) -> BoolArray:
    """Fill what is enclosed in the sections across two axes or more: a lung may open where the image ends."""
    enclosed = np.zeros(mask.shape, dtype=np.uint8)
    for axis in range(3):
        sections = np.moveaxis(mask, axis, 0)
        np.moveaxis(enclosed, axis, 0)[:] += np.stack([ndimage.binary_fill_holes(section) for section in sections])
    return mask | (enclosed >= 2)
