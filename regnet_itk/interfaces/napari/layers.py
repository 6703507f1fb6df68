"""What is shown as layers: images, landmarks, displacements and errors, as the tuples of which napari makes layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ImageError
from regnet_itk.figures.slices import choose_difference_shade, choose_grey_shade
from regnet_itk.interfaces.napari.geometry import AXES, UNITS, affine_of, along_world, grid_along_world, points_to_data
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.trust.error_map import ErrorMap
from regnet_itk.trust.verdict import FAR_OFF

LayerData = tuple[Any, dict[str, Any], str]
"""The data of a layer, its settings, and its kind."""

FILE = "regnet_itk_file"
"""The key in a layer's metadata that says which file it was read from."""

VECTORS = 5000
"""About so many displacements are drawn."""

_POINT_MM = 12.0  # diameter; napari does not count an affine into the sizes of points
_SQUARES = 8  # of a checkerboard, along the longest side of the image


def _placed(grid: Grid, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "affine": affine_of(grid), "units": UNITS, "axis_labels": AXES, **settings}


def image_layer(image: Image, name: str, **settings: Any) -> LayerData:
    """Return an image as a layer, in the grey window of its modality.

    Parameters
    ----------
    image : Image
        Its voxels are not copied; the layer's axes go along the world's (`along_world`).
    name : str
        Of the layer.
    **settings
        Of ``napari.layers.Image``, in place of those that are chosen.
    """
    window = {}
    if "contrast_limits" not in settings and np.isfinite(image.array).all():  # else napari chooses
        shade = choose_grey_shade(image)
        window["contrast_limits"] = (shade.low, shade.high)
    shown = along_world(image)
    return shown.array, _placed(shown.grid, name, {"colormap": "gray", **window, **settings}), "image"


def labels_layer(labels: Image, name: str, **settings: Any) -> LayerData:
    """Return a mask or a segmentation as a layer of labels; see `image_layer`.

    Raises
    ------
    ImageError
        If a value is no whole number.
    """
    shown = along_world(labels)
    array = shown.array
    if array.dtype.kind not in "iu":
        if not np.array_equal(array, np.rint(array)):  # NaN is unequal to itself
            raise ImageError(f"the {name} has values that are no whole numbers; threshold it to 0 and 1")
        array = array.astype(np.int64)
    return array, _placed(shown.grid, name, {"opacity": 0.4, **settings}), "labels"


def landmarks_layer(landmarks: Landmarks, name: str, grid: Grid | None = None, **settings: Any) -> LayerData:
    """Return landmarks as a layer of points.

    Parameters
    ----------
    landmarks : Landmarks
        mm, LPS.
    name : str
    grid : Grid, optional
        Of the image that they belong to: the points are then counted in its voxels, so that they are drawn where its
        slices are. By default in mm of the world. They lie at the same places either way.
    **settings
        Of ``napari.layers.Points``.
    """
    grid = Grid((1, 1, 1)) if grid is None else grid_along_world(grid)
    # Points beside a slice are shown as far as the viewer's slices are thick, the smaller the further they are
    look = {"projection_mode": "rescale_linear", "symbol": "cross", "face_color": "yellow", "border_width": 0}
    settings = {"size": _POINT_MM, **look, **settings}
    if landmarks.names:
        settings["features"] = {"name": list(landmarks.names)}
    return points_to_data(landmarks.points, grid), _placed(grid, name, settings), "points"


def displacement_layer(chain: TransformChain, grid: Grid, name: str) -> LayerData:
    """Return the displacement T(x) - x as arrows, at every so many voxels of the fixed image.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving, mm, LPS.
    grid : Grid
        The fixed image's.
    name : str
        Of the layer.

    Returns
    -------
    LayerData
        Vectors (n, 2, 3), start and displacement, in the voxels of a grid that has about `VECTORS` of them.
    """
    size_mm = np.asarray(grid.size) * grid.spacing
    step = float(np.prod(size_mm) / VECTORS) ** (1 / 3)
    thin = grid_along_world(grid.with_spacing(np.clip(step, grid.spacing, size_mm).tolist()))
    start = thin.points()
    u = chain.displacement_on(thin).vectors.astype(float)
    ends = [points_to_data(points.reshape(-1, 3), thin) for points in (start, start + u)]
    length = np.linalg.norm(u, axis=-1).ravel()
    settings = {
        "features": {"length_mm": length}, "edge_color": "length_mm", "edge_colormap": "turbo",
        "edge_contrast_limits": (0.0, max(float(length.max()), 1e-3)),
        "edge_width": 0.25, "vector_style": "arrow", "projection_mode": "none",
    }  # fmt: skip
    return np.stack([ends[0], ends[1] - ends[0]], axis=1), _placed(thin, name, settings), "vectors"


def error_layer(errors: ErrorMap, name: str, **settings: Any) -> LayerData:
    """Return the expected error as a layer, in mm; NaN, which is not drawn, where nothing is known."""
    shown = Image(errors.expected, errors.grid)
    highest = float(errors.expected[errors.known].max()) if errors.known.any() else 0.0
    colours = {"colormap": "inferno", "contrast_limits": (0.0, max(highest, FAR_OFF)), "opacity": 0.6}
    return image_layer(shown, name, **{**colours, "blending": "translucent", **settings})


def difference_layer(fixed: Image, warped: Image, name: str, **settings: Any) -> LayerData:
    """Return fixed - warped as a layer; both images lie on one grid."""
    shade = choose_difference_shade(fixed, warped)
    difference = Image((fixed.array.astype(np.float32) - warped.array).astype(np.float32), fixed.grid)
    return image_layer(
        difference, name, **{"contrast_limits": (shade.low, shade.high), "colormap": "RdBu_r", **settings}
    )


def checkerboard_layer(fixed: Image, warped: Image, name: str, **settings: Any) -> LayerData:
    """Return both images in turn in the cubes of a checkerboard, each in its own grey window, from 0 to 1."""
    windowed = [_windowed(image) for image in (fixed, warped)]
    edge = max(np.asarray(fixed.grid.size) * fixed.grid.spacing) / _SQUARES
    cubes = [(np.arange(n) * s // edge).astype(int) for n, s in zip(fixed.grid.size, fixed.grid.spacing, strict=True)]
    odd = (cubes[2][:, None, None] + cubes[1][:, None] + cubes[0]) % 2 == 1
    return image_layer(
        Image(np.where(odd, windowed[1], windowed[0]), fixed.grid), name, **{"contrast_limits": (0.0, 1.0), **settings}
    )


def _windowed(image: Image) -> npt.NDArray[np.float32]:
    shade = choose_grey_shade(image)
    values = (image.array.astype(np.float32) - shade.low) / np.float32(shade.high - shade.low)
    return np.asarray(np.clip(values, 0, 1), dtype=np.float32)
