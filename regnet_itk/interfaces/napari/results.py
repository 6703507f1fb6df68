"""A finished registration as layers."""

from __future__ import annotations

from collections.abc import Iterator

from regnet_itk.data.image import Image
from regnet_itk.data.pixel_types import pixel_type_of
from regnet_itk.interfaces.napari.layers import (
    FILE,
    LayerData,
    checkerboard_layer,
    difference_layer,
    error_layer,
    image_layer,
    labels_layer,
    landmarks_layer,
)
from regnet_itk.metrics.measures import summarise_errors
from regnet_itk.report.finished_run import FinishedRun, describe_verdict
from regnet_itk.report.viewer import measure_residuals
from regnet_itk.stage_report import describe_error
from regnet_itk.transforms.point_mapping import map_landmarks
from regnet_itk.transforms.warping import WarpSettings, warp_image

FIXED_LOOK = {"colormap": "green", "blending": "additive"}
MOVING_LOOK = {"colormap": "magenta", "blending": "additive"}
"""Where both images agree, the two make grey."""

OF_FIXED, OF_MOVING = "yellow", "cyan"
"""The colours of landmarks: those of the fixed and of the moving image."""


def input_layers(run: FinishedRun) -> Iterator[LayerData]:
    """Give the images, the mask and the landmarks that were registered."""
    pair = run.pair
    read_from = {name: {"metadata": {FILE: str(file)}} for name, file in run.files.items()}
    yield image_layer(pair.fixed, "fixed image", **FIXED_LOOK, **read_from["fixed"])
    yield image_layer(pair.moving, "moving image", **MOVING_LOOK, visible=False, **read_from["moving"])
    if pair.fixed_mask is not None:
        yield labels_layer(pair.fixed_mask, "fixed mask", visible=False, **read_from["fixed_mask"])
    if pair.fixed_landmarks is not None and pair.moving_landmarks is not None:
        cross = {"symbol": "cross", "visible": False}
        yield landmarks_layer(pair.fixed_landmarks, "fixed landmarks", pair.fixed.grid, **cross, face_color=OF_FIXED)
        yield landmarks_layer(
            pair.moving_landmarks, "moving landmarks", pair.moving.grid, **cross, face_color=OF_MOVING
        )


def result_layers(run: FinishedRun) -> Iterator[LayerData]:
    """Give what the last stage found: images on the fixed image's grid, the expected error, and landmarks both ways."""
    pair, last = run.pair, run.pair.methods[-1]
    warped = warp_as_written(run)
    before = pair.moving.resampled(pair.fixed.grid, default=float(pair.moving.array.min()))
    yield image_layer(before, "moving on the fixed grid", **MOVING_LOOK, visible=False)
    yield checkerboard_layer(pair.fixed, warped, "checkerboard", visible=False)
    yield difference_layer(pair.fixed, warped, "fixed - warped", visible=False)
    yield image_layer(warped, "warped", **MOVING_LOOK)
    if last.expected_error is not None:
        yield error_layer(last.expected_error, "expected error, mm", visible=False)
    if pair.fixed_landmarks is not None and pair.moving_landmarks is not None:
        there = map_landmarks(last.chain, pair.fixed_landmarks).landmarks()
        back = map_landmarks(last.chain, pair.moving_landmarks, True, pair.fixed.grid).landmarks()
        ring = {"symbol": "ring", "size": 8.0, "visible": False}  # around the cross of the partner, if all is well
        yield landmarks_layer(there, "fixed landmarks in moving", pair.moving.grid, **ring, face_color=OF_FIXED)
        yield landmarks_layer(back, "moving landmarks in fixed", pair.fixed.grid, **ring, face_color=OF_MOVING)


def warp_as_written(run: FinishedRun) -> Image:
    """Return the moving image on the fixed grid as the last transform file says, which is what the run has written."""
    pair, chain = run.pair, run.pair.methods[-1].chain
    settings = WarpSettings.of(chain.links[-1].parameters)
    kind = settings.pixel_type or pixel_type_of(pair.moving.array)
    return warp_image(
        pair.moving, chain, pair.fixed.grid, order=settings.order, default=settings.default, pixel_type=kind
    )


def describe_run(run: FinishedRun) -> str:
    """Return the verdict on a run in words, the expected error, and the landmark error before and after."""
    parts = describe_verdict(run.record) or ["There is no verdict on this registration."]
    errors = [measure_residuals(run.pair, method) for method in (None, run.pair.methods[-1])]
    told = [describe_error(summarise_errors(vectors)) for vectors in errors if vectors is not None]
    if told:
        parts.append(f"Landmark error {told[0]} before, {told[1]} after.")
    return " ".join(parts)
