"""What napari saves with this plugin: an image or labels layer with its place in space, points in mm, LPS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import write_landmarks
from regnet_itk.interfaces.napari.geometry import image_of_layer, landmarks_of_layer


def write_image_layer(path: str, data: Any, settings: dict[str, Any]) -> list[str]:
    """Write an image layer; the suffix chooses the format. napari calls it.

    Returns
    -------
    list of str
        The file that was written.

    Raises
    ------
    ImageError
        If the layer is no scalar 3D image, or is sheared.
    OutputError
        If it cannot be written.
    """
    return _write_image(path, data, settings, "image")


def write_labels_layer(path: str, data: Any, settings: dict[str, Any]) -> list[str]:
    """Write a layer of labels; see `write_image_layer`."""
    return _write_image(path, data, settings, "labels")


def write_points_layer(path: str, data: Any, settings: dict[str, Any]) -> list[str]:
    """Write a layer of points as landmarks in mm, LPS; the suffix chooses the format. napari calls it.

    Raises
    ------
    PointsError
        If the points have not three coordinates, or there are none.
    OutputError
        If they cannot be written.
    """
    write_landmarks(landmarks_of_layer(_layer(data, settings, "points")), path)
    return [path]


def _write_image(path: str, data: Any, settings: dict[str, Any], kind: str) -> list[str]:
    write_image(image_of_layer(_layer(data, settings, kind)), Path(path))
    return [path]


def _layer(data: Any, settings: dict[str, Any], kind: str) -> Any:
    """Return the layer again that napari has taken to pieces: it knows best where its voxels lie."""
    from napari.layers import Layer

    return Layer.create(data, settings, kind)
