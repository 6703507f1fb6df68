"""Body and lung masks of chest CT, by threshold and morphology (scikit-image)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage import measure, morphology

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.data.distances import distance_to
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError

_WORKING_SPACING = 2.5  # mm; masks need no more, and it keeps a chest under two seconds
_AIR = -1000.0  # HU
_AIR_OR_LUNG = -350.0
_GLANCE_SPACING = 5.0  # mm
_LEAST_LUNG = 0.02  # of a section of the body: less may be bowel
_LUNG_AT_MOST = -600.0  # HU
_AIR_AT_MOST = -945.0  # HU
_TABLE_OPENING = 5.0  # mm; a couch or a sheet is thinner than this
_LONGEST_GAP = 30.0  # mm along z; a chest wall thinner than the opening may be open there
_LARGEST_HOLE = 160  # pixels (10 cm2) of an axial section; a larger one is the mediastinum between touching lungs

BoolArray = npt.NDArray[np.bool_]


def body_mask(image: Image, grid: Grid | None = None) -> Image:
    """Return the mask of the body in a CT, lungs and other air inside included.

    Parameters
    ----------
    image : Image
        CT in Hounsfield units.
    grid : Grid, optional
        Where the mask is wanted; the grid of `image` by default.

    Returns
    -------
    Image
        Boolean, on `grid`.

    Raises
    ------
    ImageError
        If there is nothing denser than air.
    """
    return ChestMasks(image).body(grid)


def lung_mask(image: Image, grid: Grid | None = None) -> Image:
    """Return the mask of both lungs in a chest CT: parenchyma, vessels inside it and consolidated parts at its rim.

    Air enclosed in the body, without the table's and bowel's small pieces; closed over vessels and dense lesions.

    Parameters
    ----------
    image : Image
        Chest CT in Hounsfield units; a field of view that cuts the body is fine.
    grid : Grid, optional
        Where the mask is wanted; the grid of `image` by default.

    Returns
    -------
    Image
        Boolean, on `grid`.

    Raises
    ------
    ImageError
        If no lung is found.
    """
    return ChestMasks(image).lungs(grid)


def shows_lungs(image: Image) -> bool:
    """Say whether an image looks like a CT of the chest: lung in at least half of its axial sections.

    A glance at every few voxels, for the choice of a model; :func:`lung_mask` looks closely.
    """
    if not is_hounsfield(image):
        return False
    along = int(np.abs(image.grid.direction_matrix[2]).argmax())  # the axis of the image that is nearest to the body's
    steps = tuple(slice(None, None, max(1, round(_GLANCE_SPACING / s))) for s in reversed(image.grid.spacing))
    values = np.moveaxis(image.array[steps], 2 - along, 0)
    tissue = ndimage.binary_closing(np.pad(values > _AIR_OR_LUNG, 1))[1:-1, 1:-1, 1:-1]  # a thin wall is one still
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(~tissue, in_plane)
    numbers = np.arange(count + 1)
    # a lung is enclosed by tissue, or, where it reaches the end of the image, denser than air
    at_end = np.isin(numbers, np.concatenate([labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel()]))
    dense = ndimage.median(values, labels, numbers) > _AIR_AT_MOST
    is_lung = (dense | ~at_end) & (numbers > 0)
    lung = ndimage.binary_opening(is_lung[labels] & (values < _LUNG_AT_MOST))
    share = lung.sum(axis=(1, 2)) / np.maximum((tissue | lung).sum(axis=(1, 2)), 1)
    return bool(np.mean(share > _LEAST_LUNG) >= 0.5)


class ChestMasks:
    """The masks of a chest CT, each found when it is asked for, and no part of the work done twice.

    Parameters
    ----------
    image : Image
        Chest CT in Hounsfield units.
    """

    def __init__(self, image: Image) -> None:
        self._image = image

    @cached_property
    def _small(self) -> Image:
        return _small(self._image)

    @cached_property
    def _body(self) -> BoolArray:
        return _body(self._small.array)

    def body(self, grid: Grid | None = None) -> Image:
        """Return what :func:`body_mask` does."""
        return _on_grid(self._body, self._small.grid, grid or self._image.grid)

    def lungs(self, grid: Grid | None = None) -> Image:
        """Return what :func:`lung_mask` does."""
        return _on_grid(_lungs(self._small.array, self._body), self._small.grid, grid or self._image.grid)


def _lungs(hounsfield: npt.NDArray[np.float32], body: BoolArray) -> BoolArray:
    air = (ndimage.gaussian_filter(hounsfield, 0.6) < _AIR_OR_LUNG) & body
    air = morphology.opening(air, morphology.ball(1))
    labels = measure.label(air)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max(initial=0) * _WORKING_SPACING**3 < 1e5:  # 0.1 litre
        raise ImageError(
            "no lung was found in the image: is it a chest CT in Hounsfield units? If it is, give a mask of its lungs"
        )
    lungs = np.isin(labels, np.flatnonzero(sizes > 0.1 * sizes.max()))
    closed = _closed(lungs, radius=4)
    filled = np.stack([_without_small_holes(section) for section in closed])
    return np.asarray(filled & body)


def _small(image: Image) -> Image:
    """Resample to the working grid. Its last voxels may lie past the image, where the image goes on, not the air."""
    grid = image.grid.isotropic(_WORKING_SPACING)
    array = image.resampled(grid, default=_AIR).array
    last = image.grid.point_to_index(grid.index_to_point(np.asarray(grid.size) - 1))
    for axis in range(3):  # counts x, y, z
        if last[axis] > image.grid.size[axis] - 0.5 - 1e-3 and grid.size[axis] > 1:
            along = np.moveaxis(array, 2 - axis, 0)
            along[-1] = along[-2]
    return Image(array, grid)


def _body(hounsfield: npt.NDArray[np.float32]) -> BoolArray:
    tissue = hounsfield > _AIR_OR_LUNG
    radius = max(1, round(_TABLE_OPENING / _WORKING_SPACING / 2))
    labels = measure.label(morphology.opening(tissue, morphology.ball(radius)))
    if labels.max() == 0:
        raise ImageError("no body was found in the image: every voxel is air; is it a CT in Hounsfield units?")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = _closed(labels == sizes.argmax(), radius=4)
    filled = np.stack([_filled_section(section) for section in largest])
    return _continued(filled, round(_LONGEST_GAP / _WORKING_SPACING))


def _continued(body: BoolArray, sections: int) -> BoolArray:
    """Fill what only a few axial sections lack, as where a wall is too thin to be seen and its lung runs out."""
    padded = np.pad(body, ((sections, sections), (0, 0), (0, 0)), mode="edge")
    closed = ndimage.binary_closing(padded, np.ones((sections + 1, 1, 1), dtype=bool))
    return np.asarray(closed[sections:-sections] | body)


def _filled_section(section: BoolArray) -> BoolArray:
    """Fill holes of an axial section, also those that the field of view cuts open.

    Opposite sides are closed together, as both lungs may be cut and meet in the middle; but not neighbouring sides,
    which would enclose the air at a corner.
    """
    filled = ndimage.binary_fill_holes(section)
    for axis in (0, 1):
        cut = [section.take(end, axis=axis).mean() > 0.05 for end in (0, -1)]  # the body itself reaches this side
        if any(cut):
            sides = [np.full_like(section.take([0], axis=axis), is_cut) for is_cut in cut]
            closed = ndimage.binary_fill_holes(np.concatenate([sides[0], section, sides[1]], axis=axis))
            filled |= closed.take(range(1, closed.shape[axis] - 1), axis=axis)
    return np.asarray(filled)


def _without_small_holes(section: BoolArray) -> BoolArray:
    """Fill holes of an axial section up to the largest size (scikit-image's own function changed its arguments)."""
    holes = measure.label(~section, connectivity=1)
    small = np.bincount(holes.ravel()) <= _LARGEST_HOLE
    return np.asarray(section | small[holes])


def _closed(mask: BoolArray, radius: int) -> BoolArray:
    """Close by distance transforms: as a ball would, but its cost does not grow with the radius."""
    padded = np.pad(mask, radius + 1, mode="edge")
    grown = distance_to(padded) <= radius
    if grown.all():
        return np.ones_like(mask)
    closed = distance_to(~grown) > radius
    inside = (slice(radius + 1, -radius - 1),) * 3
    return np.asarray((closed | padded)[inside])


def _on_grid(mask: BoolArray, small: Grid, wanted: Grid) -> Image:
    smooth = Image(mask.astype(np.float32), small).resampled(wanted, default=0.0)
    return Image(smooth.array > 0.5, wanted)
