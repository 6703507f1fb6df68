"""The widget that applies a transform file to a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Container, FileEdit, PushButton
from napari.layers import Image, Labels, Layer, Points

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image as Voxels
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.data.pixel_types import pixel_type_of
from regnet_itk.errors import ParameterError, TransformError
from regnet_itk.interfaces.napari.background import end_work_at_exit, work_in_background
from regnet_itk.interfaces.napari.choices import LayerChoice, StatusLine, buttons_of, row_of, show_near_slices
from regnet_itk.interfaces.napari.geometry import grid_of_layer, image_of_layer, landmarks_of_layer
from regnet_itk.interfaces.napari.layers import (
    LayerData,
    displacement_layer,
    image_layer,
    labels_layer,
    landmarks_layer,
)
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.point_mapping import map_landmarks
from regnet_itk.transforms.reading import read_transform, transform_grid
from regnet_itk.transforms.warping import WarpSettings, warp_image, warp_labels

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from regnet_itk.transforms.chain import TransformChain

_LOOK = ("colormap", "contrast_limits", "blending")  # of an image, that its warped one gets


@dataclass(frozen=True)
class _Made:
    """A new layer, and what is to be said of it."""

    layer: LayerData
    told: str


class TransformWidget(Container):
    """Warps a layer to the fixed image, maps points either way, and shows a transform as arrows.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer

    Attributes
    ----------
    transform : FileEdit
        T, fixed to moving: elastix's .txt, ITK's .h5 or .tfm, DICOM's .dcm, or a displacement field.
    subject : LayerChoice
        An image or labels of the moving space, or points.
    fixed : LayerChoice
        The fixed image; needed only where the transform file does not say where its voxels lie.
    back : CheckBox
        Points go from the moving to the fixed image.
    apply_button, vectors_button : PushButton
    status : StatusLine
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self.is_running = False
        end_work_at_exit()
        self.status = StatusLine("Images and labels go to the fixed image, points from it, unless you turn them round.")
        self.transform = FileEdit(
            mode="r", label="transform", nullable=True,
            tooltip="TransformParameters.N.txt, .h5, .tfm, .dcm, or a displacement field (.mha, .nii.gz, .nrrd)",
        )  # fmt: skip
        self.subject = LayerChoice(napari_viewer, (Image, Labels, Points), "layer", self.status)
        self.fixed = LayerChoice(
            napari_viewer, (Image, Labels), "fixed image", self.status, tooltip="The voxels of the result"
        )
        self.back = CheckBox(text="points: moving to fixed", value=False, label="")
        self.apply_button = PushButton(text="Apply")
        self.vectors_button = PushButton(text="Show displacement", tooltip="As arrows")
        super().__init__(
            widgets=[
                *map(row_of, (self.transform, self.subject, self.fixed)), self.back,
                buttons_of(self.apply_button, self.vectors_button), self.status,
            ],
            labels=False,
        )  # fmt: skip
        self.apply_button.changed.connect(self.apply)
        self.vectors_button.changed.connect(self.show_displacement)

    def apply(self) -> None:
        """Add the chosen layer, transformed, as a new one."""
        with self.status.telling_errors():
            layer = self.subject.layer
            if layer is None:
                raise ParameterError("no layer is chosen that the transform is to be applied to")
            path, grid, back = self._transform_file(), self._grid(), self.back.value
            if isinstance(layer, Points):
                landmarks = landmarks_of_layer(layer)
                self._make(lambda: _mapped(read_transform(path), landmarks, grid, layer.name, back))
                return
            image = image_of_layer(layer)
            if isinstance(layer, Labels):
                self._make(lambda: _warped_labels(read_transform(path), image, grid, layer.name))
                return
            look = {key: getattr(layer, key) for key in _LOOK}
            self._make(lambda: _warped_image(read_transform(path), image, grid, layer.name, look))

    def show_displacement(self) -> None:
        """Add the transform's displacement as arrows."""
        with self.status.telling_errors():
            path, grid = self._transform_file(), self._grid()
            self._make(lambda: _arrows(read_transform(path), grid, path.name))

    def _transform_file(self) -> Path:
        if self.transform.value is None:
            raise TransformError("no transform file is chosen")
        return Path(self.transform.value)

    def _grid(self) -> Grid | None:
        return None if self.fixed.layer is None else grid_of_layer(self.fixed.layer)

    def _make(self, make: Callable[[], _Made]) -> None:
        self._set_running(True)
        self.status.value = "computing .."
        work_in_background(lambda _: make(), lambda _: None, self._show, self._failed)

    def _set_running(self, running: bool) -> None:
        self.is_running = running
        self.apply_button.enabled = self.vectors_button.enabled = not running

    def _show(self, made: _Made) -> None:
        self._set_running(False)
        self._viewer.add_layer(Layer.create(*made.layer))
        show_near_slices(self._viewer)
        self.status.value = made.told

    def _failed(self, reason: str) -> None:
        self._set_running(False)
        self.status.tell_error(reason)


def _fixed_grid(chain: TransformChain, chosen: Grid | None) -> Grid:
    grid = chosen or transform_grid(chain)
    if grid is None:
        raise TransformError("the transform file does not say where its voxels lie; choose the fixed image")
    return grid


def _warped_labels(chain: TransformChain, labels: Voxels, chosen: Grid | None, name: str) -> _Made:
    warped = warp_labels(labels, chain, _fixed_grid(chain, chosen))
    return _Made(labels_layer(warped, f"{name}, warped"), "Each voxel has the label of the nearest one.")


def _warped_image(chain: TransformChain, image: Voxels, chosen: Grid | None, name: str, look: dict[str, Any]) -> _Made:
    grid = _fixed_grid(chain, chosen)
    parameters = chain.links[-1].parameters if chain.links else ParameterMap({})
    settings = WarpSettings.of(parameters)
    default = settings.default if "DefaultPixelValue" in parameters else float(image.array.min())
    kind = settings.pixel_type or pixel_type_of(image.array)
    warped = warp_image(image, chain, grid, order=settings.order, default=default, pixel_type=kind)
    told = f"Interpolation of order {settings.order}, {default:g} outside, as {kind}."
    return _Made(image_layer(warped, f"{name}, warped", **look), told)


def _mapped(chain: TransformChain, landmarks: Landmarks, chosen: Grid | None, name: str, back: bool) -> _Made:
    fixed = chosen or transform_grid(chain)
    mapped = map_landmarks(chain, landmarks, back, fixed)
    told = f"{len(landmarks)} points, {'moving to fixed' if back else 'fixed to moving'}."
    if len(mapped.failed):
        lost = ", ".join(map(mapped.name, mapped.failed.tolist()))
        told += f" Left out, as they have no inverse: {lost}."
    where = "fixed" if back else "moving"
    return _Made(landmarks_layer(mapped.landmarks(), f"{name} in {where}", fixed if back else None), told)


def _arrows(chain: TransformChain, chosen: Grid | None, name: str) -> _Made:
    return _Made(
        displacement_layer(chain, _fixed_grid(chain, chosen), f"displacement, mm ({name})"),
        "Arrows lead from the fixed to the moving image.",
    )
