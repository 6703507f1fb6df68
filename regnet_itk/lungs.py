"""Body and lung masks of chest CT, by threshold and morphology (scikit-image)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import measure, morphology

from regnet_itk.errors import ImageError
from regnet_itk.geometry import Grid
from regnet_itk.images import Image

_WORKING_SPACING = 2.5  # mm; masks need no more, and it keeps a chest under two seconds
_AIR_OR_LUNG = -350.0  # HU
_TABLE_OPENING = 5.0  # mm; a couch or a sheet is thinner than this
_LARGEST_HOLE = 160  # pixels (10 cm2) of an axial section; a larger one is the mediastinum between touching lungs

BoolArray = npt.NDArray[np.bool_]


def body_mask(image: Image) -> Image:
    """Return the mask of the body in a CT, lungs and other air inside included.

    Parameters
    ----------
    image : Image
        CT in Hounsfield units.

    Returns
    -------
    Image
        Boolean, on the grid of `image`.

    Raises
    ------
    ImageError
        If there is nothing denser than air.
    """
    small = _small(image)
    return _on_grid(_body(small.array), small.grid, image.grid)


def lung_mask(image: Image) -> Image:
    """Return the mask of both lungs in a chest CT: parenchyma, vessels inside it and consolidated parts at its rim.

    Air enclosed in the body, without the table's and bowel's small pieces; closed over vessels and dense lesions.

    Parameters
    ----------
    image : Image
        Chest CT in Hounsfield units; a field of view that cuts the body is fine.

    Returns
    -------
    Image
        Boolean, on the grid of `image`.

    Raises
    ------
    ImageError
        If no lung is found.
    """
    small = _small(image)
    body = _body(small.array)
    air = (ndimage.gaussian_filter(small.array, 0.6) < _AIR_OR_LUNG) & body
    air = morphology.opening(air, morphology.ball(1))
    labels = measure.label(air)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max(initial=0) * _WORKING_SPACING**3 < 1e5:  # 0.1 litre
        raise ImageError("no lung was found in the image: is it a chest CT in Hounsfield units?")
    lungs = np.isin(labels, np.flatnonzero(sizes > 0.1 * sizes.max()))
    closed = _closed(lungs, radius=4)
    filled = np.stack([morphology.remove_small_holes(section, max_size=_LARGEST_HOLE) for section in closed])
    return _on_grid(np.asarray(filled & body), small.grid, image.grid)


def _small(image: Image) -> Image:
    return image.resampled(image.grid.isotropic(_WORKING_SPACING), default=-1000.0)


def _body(hounsfield: npt.NDArray[np.float32]) -> BoolArray:
    tissue = hounsfield > _AIR_OR_LUNG
    radius = max(1, round(_TABLE_OPENING / _WORKING_SPACING / 2))
    labels = measure.label(morphology.opening(tissue, morphology.ball(radius)))
    if labels.max() == 0:
        raise ImageError("no body was found in the image: every voxel is air; is it a CT in Hounsfield units?")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = _closed(labels == sizes.argmax(), radius=4)
    return np.stack([_filled_section(section) for section in largest])


def _filled_section(section: BoolArray) -> BoolArray:
    """Fill holes of an axial section, also those that the field of view cuts open on one side."""
    filled = ndimage.binary_fill_holes(section)
    for axis, end in ((0, 0), (0, -1), (1, 0), (1, -1)):
        open_side = np.pad(filled, [(1, 1) if a == axis else (0, 0) for a in range(2)])
        border = [slice(None), slice(None)]
        border[axis] = slice(end, None) if end else slice(0, 1)
        if section.take(end, axis=axis).mean() > 0.05:  # the body itself is cut by this side
            open_side[tuple(border)] = True
            inner = ndimage.binary_fill_holes(open_side)
            filled |= inner.take(range(1, inner.shape[axis] - 1), axis=axis)
    return np.asarray(filled)


def _closed(mask: BoolArray, radius: int) -> BoolArray:
    """Close by distance transforms: as a ball would, but its cost does not grow with the radius."""
    padded = np.pad(mask, radius + 1, mode="edge")
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(grown) > radius
    inside = (slice(radius + 1, -radius - 1),) * 3
    return np.asarray((closed | padded)[inside])


def _on_grid(mask: BoolArray, small: Grid, wanted: Grid) -> Image:
    smooth = Image(mask.astype(np.float32), small).resampled(wanted, default=0.0)
    return Image(smooth.array > 0.5, wanted)
