"""Sample data: a digital chest, breathed out and breathed in, with masks and landmarks."""

from __future__ import annotations

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.interfaces.napari.layers import LayerData, image_layer, labels_layer, landmarks_layer
from regnet_itk.interfaces.napari.results import FIXED_LOOK, MOVING_LOOK, OF_FIXED, OF_MOVING

SPACING = (3.0, 3.0, 3.0)
"""mm; a newcomer shall not have to wait."""


def make_sample() -> list[LayerData]:
    """Return the layers of a phantom pair; napari calls it."""
    phantom = make_phantom(seed=0, spacing=SPACING, oblique=False, landmarks=30)
    fixed, moving = phantom.fixed, phantom.moving
    return [
        image_layer(fixed, "fixed image", **FIXED_LOOK),
        image_layer(moving, "moving image", **MOVING_LOOK),
        labels_layer(phantom.fixed_mask, "fixed mask", visible=False),
        labels_layer(phantom.moving_mask, "moving mask", visible=False),
        landmarks_layer(
            Landmarks(phantom.fixed_landmarks), "fixed landmarks", fixed.grid, face_color=OF_FIXED, visible=False
        ),
        landmarks_layer(
            Landmarks(phantom.moving_landmarks), "moving landmarks", moving.grid, face_color=OF_MOVING,
            visible=False,
        ),
    ]  # fmt: skip
