"""What is to be registered, taken from layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ImageError, PointsError, RegNetItkError
from regnet_itk.interfaces.napari.geometry import along_world, image_of_layer, landmarks_of_layer
from regnet_itk.interfaces.napari.layers import FILE
from regnet_itk.interfaces.napari.runs import Inputs


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What layers show, and the files that they may have come from.

    Parameters
    ----------
    shown : mapping of str to Image or Landmarks
        By what they are: "fixed", "moving", "fixed_mask" ..
    files : mapping of str to Path
        Of some of them.
    """

    shown: Mapping[str, Image | Landmarks]
    files: Mapping[str, Path]

    @classmethod
    def of(cls, layers: Mapping[str, Any]) -> LayerInputs:
        """Take what layers show now.

        Parameters
        ----------
        layers : mapping of str to napari.layers.Layer or None
            By what they are; the landmarks' are Points.

        Raises
        ------
        ImageError, PointsError
            If an image or the landmarks of one image are missing, both images are one layer, or one cannot be taken.
        """
        for role in ("fixed", "moving"):
            if layers.get(role) is None:
                raise ImageError(f"no {role} image is chosen; choose a layer, or open a file")
        if layers["fixed"] is layers["moving"]:
            raise ImageError("the fixed and the moving image are the same layer; choose another for one of them")
        there = {name: layer for name, layer in layers.items() if layer is not None}
        if ("fixed_landmarks" in there) != ("moving_landmarks" in there):
            raise PointsError("landmarks are chosen for one image only; choose them for both, or for none")
        return cls(
            {
                name: landmarks_of_layer(layer) if name.endswith("landmarks") else image_of_layer(layer)
                for name, layer in there.items()
            },
            {name: Path(path) for name, layer in there.items() if (path := _file_of(layer))},
        )

    def read(self) -> Inputs:
        """Return the file of each image that a file holds just as the layer shows it, and the others as they are.

        A run's record then names the file, as it does when ``regnet-itk run`` is given it.
        """
        given: dict[str, Any] = dict(self.shown)
        for name, path in self.files.items():
            shown = self.shown[name]
            if isinstance(shown, Image) and _holds(path, shown):
                given[name] = path
        return Inputs(**given)


def _file_of(layer: Any) -> str | None:
    found = layer.metadata.get(FILE) or layer.source.path
    return None if found is None else str(found)


def _holds(path: Path, shown: Image) -> bool:
    """Say whether a file holds an image as a layer shows it, which may have been moved or painted on."""
    try:
        stored = along_world(read_image(path))
    except RegNetItkError:
        return False
    return shown.grid.is_close(stored.grid) and np.array_equal(shown.array, stored.array)
