"""Where the voxels and points of layers lie: napari's world is (z, y, x), in mm, of our points (x, y, z), LPS.

A layer's whole way from its data to the world counts (scale, rotation, shear, translation, affine and unit), so layers
of other readers, and layers that a user has moved, are taken as they are shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_grid
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.data.suffixes import IMAGE_SUFFIXES, known_suffix
from regnet_itk.errors import ImageError, PointsError

PLUGIN = "regnet-itk"
"""What napari calls this plugin."""

UNITS = ("mm", "mm", "mm")
AXES = ("z", "y", "x")

_SHEAR = 1e-4  # cosine of the angle between two axes; what files round is far below
_LENGTHLESS = ("pixel", "dimensionless", "")  # units of a layer of which nobody said one


def affine_of(grid: Grid) -> FloatArray:
    """Return the matrix (4, 4) that leads from the indices (z, y, x) of a grid's array to napari's world (z, y, x), mm.

    Examples
    --------
    >>> from regnet_itk import Grid
    >>> affine_of(Grid((4, 3, 2), spacing=(1.0, 1.5, 2.5), origin=(10.0, 20.0, 30.0))).tolist()
    [[2.5, 0.0, 0.0, 30.0], [0.0, 1.5, 0.0, 20.0], [0.0, 0.0, 1.0, 10.0], [0.0, 0.0, 0.0, 1.0]]
    """
    matrix = np.eye(4)
    matrix[:3, :3] = grid.index_to_point_matrix[::-1, ::-1]
    matrix[:3, 3] = grid.origin[::-1]
    return matrix


def affine_of_layer(layer: Any) -> FloatArray:
    """Return the matrix (4, 4) that leads from a layer's data (z, y, x) to the world (z, y, x), mm.

    Parameters
    ----------
    layer : napari.layers.Layer
        Of three dimensions.

    Raises
    ------
    ImageError
        If one of its units is no length.
    """
    ends = np.array([layer.data_to_world(point) for point in (np.zeros(3), *np.eye(3))], dtype=float)
    matrix = np.eye(4)
    matrix[:3, :3] = (ends[1:] - ends[0]).T
    matrix[:3, 3] = ends[0]
    matrix[:3] *= _millimetres(layer)[:, None]
    return matrix


def _millimetres(layer: Any) -> FloatArray:
    """Return how many mm the layer's unit has along each axis."""
    found = []
    for unit in layer.units[-3:]:
        if str(unit) in _LENGTHLESS:
            found.append(1.0)
            continue
        try:
            found.append(float((1.0 * unit).to("millimeter").magnitude))
        except Exception as error:  # pint is napari's, not ours: whatever it finds wrong
            raise ImageError(f"the layer '{layer.name}' has the unit '{unit}', which is no length: {error}") from None
    return np.array(found)


def grid_of_layer(layer: Any) -> Grid:
    """Return where the voxels of a layer lie.

    Parameters
    ----------
    layer : napari.layers.Image or Labels

    Raises
    ------
    ImageError
        If it is of another kind, has other dimensions than three, colours or several resolutions, or is sheared; if
        it has no unit, and does not lie where the file of a medical image says from which another reader took it.
    """
    from napari.layers import Image as ImageLayer
    from napari.layers import Labels

    named = f"the layer '{layer.name}'"
    if not isinstance(layer, ImageLayer | Labels):
        raise ImageError(f"{named} is no image; choose an image or labels layer")
    if layer.multiscale:
        raise ImageError(f"{named} has several resolutions; give one of them as a layer of its own")
    if getattr(layer, "rgb", False):
        raise ImageError(f"{named} is a colour image; give a scalar one (split its channels)")
    if layer.ndim != 3:
        what = "a slice" if layer.ndim < 3 else "a series, of which one image can be taken"
        raise ImageError(f"{named} has {layer.ndim} dimensions and is {what}; 3D images are registered here")
    matrix = affine_of_layer(layer)
    axes = matrix[2::-1, 2::-1]
    spacing = np.linalg.norm(axes, axis=0)
    if not (spacing > 0).all():
        raise ImageError(f"{named} has voxels without an extent: correct its scale or affine")
    direction = axes / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _SHEAR:
        raise ImageError(f"{named} is sheared, which no image file can say; resample it, or take its shear away")
    grid = Grid(tuple(reversed(layer.data.shape)), tuple(spacing), tuple(matrix[2::-1, 3]), direction)
    _check_read_with_its_place(layer, grid)
    return grid


def _check_read_with_its_place(layer: Any, grid: Grid) -> None:
    """Refuse the layer of a medical image of which another reader, as napari's own, took the voxels alone."""
    path, reader = layer.source.path, layer.source.reader_plugin
    if path is None or reader == PLUGIN or not known_suffix(path, IMAGE_SUFFIXES) or _has_unit(layer):
        return
    try:
        stored = grid_along_world(read_grid(path))
    except ImageError:  # it is no longer there, or no 3D image
        return
    if not grid.is_close(stored):
        raise ImageError(
            f"the layer '{layer.name}' was read by '{reader}' and does not lie where its file '{path}' says; open that "
            f"with {PLUGIN}, or give the layer its unit if it lies where it should"
        )


def _has_unit(layer: Any) -> bool:
    return any(str(unit) not in _LENGTHLESS for unit in layer.units)


def image_of_layer(layer: Any) -> Image:
    """Return the image that a layer shows, with its place; see `grid_of_layer`."""
    return Image(np.asarray(layer.data), grid_of_layer(layer))


def landmarks_of_layer(layer: Any) -> Landmarks:
    """Return the points of a layer in mm, LPS, with what its feature "name" calls them.

    Parameters
    ----------
    layer : napari.layers.Points

    Raises
    ------
    PointsError
        If they have other dimensions than three, or there are none.
    """
    points = np.asarray(layer.data, dtype=float)
    if layer.ndim != 3:
        raise PointsError(f"the points of the layer '{layer.name}' have {layer.ndim} coordinates; 3 are needed")
    if not len(points):
        raise PointsError(f"the layer '{layer.name}' has no points")
    matrix = affine_of_layer(layer)
    names = tuple(map(str, layer.features["name"])) if "name" in layer.features else ()
    return Landmarks((points @ matrix[:3, :3].T + matrix[:3, 3])[:, ::-1], names)


def points_to_data(points: FloatArray, grid: Grid) -> FloatArray:
    """Return points (n, 3), mm, LPS, as the data (z, y, x) of a layer that has the affine of `grid`."""
    return grid.point_to_index(points)[:, ::-1]


def grid_along_world(grid: Grid) -> Grid:
    """Return a grid with its axes in the order x, y, z of the world that they follow best; see `along_world`."""
    order = _order(grid)
    size, spacing = ([values[i] for i in order] for values in (grid.size, grid.spacing))
    return Grid(tuple(size), tuple(spacing), grid.origin, grid.direction_matrix[:, order])  # type: ignore[arg-type]


def along_world(image: Image) -> Image:
    """Return an image with its axes in the order in which napari's sliders go through the world.

    The slowest axis of a sagittal series, say, is x: napari would show its slices as if they were axial. The voxels are
    the same, and not copied, and lie at the same places; axes may still run backwards or be oblique.
    """
    backwards = [2 - axis for axis in reversed(_order(image.grid))]  # of arrays, whose axes are (z, y, x)
    return Image(np.transpose(image.array, backwards), grid_along_world(image.grid))


def _order(grid: Grid) -> list[int]:
    """Return which index goes along x, which along y, and which along z."""
    _, order = linear_sum_assignment(-np.abs(grid.direction_matrix))
    return [int(axis) for axis in order]
