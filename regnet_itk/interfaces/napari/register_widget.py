"""The widget that registers two layers."""

from __future__ import annotations

import atexit
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox, Container, FileEdit, ProgressBar, PushButton
from napari.layers import Image, Labels, Layer, Points
from qtpy.QtWidgets import QFileDialog

from regnet_itk.data.grid import Grid
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import ParameterError
from regnet_itk.events import Progress
from regnet_itk.held_folders import HeldFolder
from regnet_itk.interfaces.napari.background import Course, end_work_at_exit, work_in_background
from regnet_itk.interfaces.napari.choices import LayerChoice, StatusLine, buttons_of, row_of, show_near_slices
from regnet_itk.interfaces.napari.geometry import grid_of_layer
from regnet_itk.interfaces.napari.layer_inputs import LayerInputs
from regnet_itk.interfaces.napari.layers import FILE, LayerData, displacement_layer, labels_layer, landmarks_layer
from regnet_itk.interfaces.napari.reading import read_image_layer
from regnet_itk.interfaces.napari.results import (
    FIXED_LOOK,
    MOVING_LOOK,
    OF_FIXED,
    OF_MOVING,
    describe_run,
    result_layers,
)
from regnet_itk.interfaces.napari.runs import RunTask, copy_run, run_apart
from regnet_itk.report.finished_run import FinishedRun, read_finished_run
from regnet_itk.stages.choice import ANY_STAGES, CHEST_CT_STAGES

if TYPE_CHECKING:
    from napari.viewer import Viewer

FROM_FILES = "parameter files .."

CHAINS: dict[str, tuple[str, ...] | None] = {
    "as the images ask for": None,
    "chest: regnet_multistage": CHEST_CT_STAGES,
    "chest, quick: regnet_multistage_fast": ("affine", "regnet_multistage_fast"),
    "any anatomy: regnet_general": ANY_STAGES,
    "elastix: bspline_3r": ("affine", "bspline_3r"),
    "elastix, two contrasts: bspline_mi": ("affine_mi", "bspline_mi"),
    "elastix: rigid": ("rigid",),
}
"""Chains of shipped stages by what they are for; None where the program chooses."""

_LOOKS = {"fixed image": FIXED_LOOK, "moving image": MOVING_LOOK}


@dataclass(frozen=True)
class _Found:
    """What a run has found, as it is shown."""

    run: FinishedRun
    layers: list[LayerData]
    warnings: list[str]


class _TemporaryFolders:
    """Folders for runs of which nobody has said where they go; none is left when the program ends."""

    def __init__(self) -> None:
        self._held: list[HeldFolder] = []
        atexit.register(self.keep, None)

    def make(self) -> Path:
        """Return a new one."""
        self._held.append(HeldFolder(tempfile.gettempdir(), "regnet-itk-napari-"))
        return self._held[-1].path

    def keep(self, run: Path | None) -> None:
        """Remove all but the one in which the folder of a run lies."""
        for held in [held for held in self._held if run is None or held.path not in run.parents]:
            held.remove()
            self._held.remove(held)


class RegisterWidget(Container):
    """Registers two layers in the background, and shows what was found as layers.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer

    Attributes
    ----------
    fixed, moving, fixed_mask, moving_mask, fixed_landmarks, moving_landmarks : LayerChoice
    chain : ComboBox
        One of `CHAINS`, or `FROM_FILES`.
    parameter_files : FileEdit
    out : FileEdit
        Where to write; a temporary folder if it is empty.
    run_button, stop_button, vectors_button, save_button : PushButton
    progress : ProgressBar
        In percent.
    status : StatusLine
        What is being done; in the end the verdict, or why it failed.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer
        self._stop = threading.Event()
        self._folders = _TemporaryFolders()
        end_work_at_exit()  # before these folders are removed
        self._finished: FinishedRun | None = None
        self.is_running = self._was_docked = False
        self.status = StatusLine("Choose two images, and press Run.")
        masks = "Optional, on the grid of its image: voxels other than 0 count"
        points = "Optional, for both images or none: the error is told before and after"
        self.fixed = self._choice("fixed image", (Image,), self._open_image("fixed image"), "Stays where it is")
        self.moving = self._choice("moving image", (Image,), self._open_image("moving image"), "Is warped")
        self.fixed_mask = self._choice("fixed mask", (Labels, Image), self._open_mask("fixed mask"), masks)
        self.moving_mask = self._choice("moving mask", (Labels, Image), self._open_mask("moving mask"), masks)
        self.fixed_landmarks = self._choice(
            "fixed landmarks", (Points,), self._open_landmarks("fixed landmarks", self.fixed, OF_FIXED), points
        )
        self.moving_landmarks = self._choice(
            "moving landmarks", (Points,), self._open_landmarks("moving landmarks", self.moving, OF_MOVING), points
        )
        self.chain = ComboBox(
            choices=[*CHAINS, FROM_FILES], label="chain", tooltip="All but the rigid one begin with an affine stage"
        )
        self.parameter_files = FileEdit(mode="rm", label="parameter files", nullable=True)
        self.out = FileEdit(
            mode="d", label="output folder", nullable=True, tooltip="Empty: a temporary one, which Save copies"
        )
        self.run_button = PushButton(text="Run")
        self.stop_button = PushButton(text="Stop", enabled=False)
        self.vectors_button = PushButton(text="Show displacement", enabled=False, tooltip="As arrows")
        self.save_button = PushButton(text="Save ..", enabled=False, tooltip="All that regnet-itk run writes")
        self.progress = ProgressBar(value=0, max=100)
        self._files_row = row_of(self.parameter_files)
        self._files_row.visible = False
        chosen = (
            self.fixed, self.moving, self.fixed_mask, self.moving_mask, self.fixed_landmarks, self.moving_landmarks,
            self.chain,
        )  # fmt: skip
        super().__init__(
            widgets=[
                *map(row_of, chosen), self._files_row, row_of(self.out), buttons_of(self.run_button, self.stop_button),
                self.progress, self.status, buttons_of(self.vectors_button, self.save_button),
            ],
            labels=False,
        )  # fmt: skip
        self.chain.changed.connect(self._chain_chosen)
        self.run_button.changed.connect(self.start)
        self.stop_button.changed.connect(self.stop)
        self.vectors_button.changed.connect(self.show_displacement)
        self.save_button.changed.connect(self._ask_where_to_save)
        self.native.destroyed.connect(self._stop.set)  # who closes the window stops its work

    def _choice(
        self, label: str, kinds: tuple[type, ...], open_file: Callable[[Path], Layer], tooltip: str
    ) -> LayerChoice:
        return LayerChoice(self._viewer, kinds, label, self.status, open_file=open_file, tooltip=tooltip)

    # Files that become layers

    def _open_image(self, name: str) -> Callable[[Path], Layer]:
        return lambda path: self._add(read_image_layer(path, name, **_LOOKS[name]))

    def _open_mask(self, name: str) -> Callable[[Path], Layer]:
        def opened(path: Path) -> Layer:
            return self._add(labels_layer(read_image(path, name), name, metadata={FILE: str(path.resolve())}))

        return opened

    def _open_landmarks(self, name: str, image: LayerChoice, colour: str) -> Callable[[Path], Layer]:
        def opened(path: Path) -> Layer:
            grid: Grid | None = None if image.layer is None else grid_of_layer(image.layer)
            layer = self._add(landmarks_layer(read_landmarks(path, grid), name, grid, face_color=colour))
            show_near_slices(self._viewer)
            return layer

        return opened

    def _add(self, layer: LayerData) -> Layer:
        return self._viewer.add_layer(Layer.create(*layer))

    # Running

    def _chain_chosen(self, chosen: str) -> None:
        self._files_row.visible = chosen == FROM_FILES

    def _stages(self) -> tuple[str, ...] | None:
        if self.chain.value != FROM_FILES:
            return CHAINS[self.chain.value]
        files = tuple(map(str, self.parameter_files.value or ()))
        if not files:
            raise ParameterError("no parameter file was chosen; choose one for each stage, in their order")
        return files

    def start(self) -> None:
        """Register what is chosen; the buttons, the progress and the status say how it goes."""
        with self.status.telling_errors():
            inputs = LayerInputs.of({
                name: getattr(self, name).layer
                for name in ("fixed", "moving", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")
            })  # fmt: skip
            stages, out = self._stages(), self._output_folder()
            self._stop.clear()
            self._was_docked = self.native.parent() is not None
            self._set_running(True)
            self._colour()
            self.status.value = "reading the layers"
            work_in_background(
                lambda course: _run(inputs, stages, out, course),
                self._hear, self._show, self._failed, self._stop.is_set,
            )  # fmt: skip

    def _colour(self) -> None:
        """Give both images colours in which they can be told apart, unless somebody has given them others than grey."""
        for choice, look in ((self.fixed, FIXED_LOOK), (self.moving, MOVING_LOOK)):
            if choice.layer is not None and choice.layer.colormap.name == "gray":
                choice.layer.colormap, choice.layer.blending = look["colormap"], look["blending"]

    def _output_folder(self) -> Path:
        if self.out.value is not None:
            return Path(self.out.value).expanduser()
        return self._folders.make() / "run"

    def stop(self) -> None:
        """Stop the registration; its process is ended."""
        self._stop.set()
        self.status.value = "stopping .."

    def _hear(self, now: Progress) -> None:
        if self._was_docked and self.native.parent() is None:  # who closes the dock, too
            self._stop.set()
        self.progress.value = round(100 * now.fraction)
        if not self._stop.is_set():
            self.status.value = now.text

    def _set_running(self, running: bool) -> None:
        self.is_running = running
        self.run_button.enabled, self.stop_button.enabled = not running, running
        self.progress.value = 0
        for button in (self.vectors_button, self.save_button):
            button.enabled = not running and self._finished is not None

    def _failed(self, reason: str) -> None:
        self._set_running(False)
        self._folders.keep(None if self._finished is None else self._finished.folder)
        if self._stop.is_set():
            self.status.value = reason
        else:
            self.status.tell_error(reason)

    def _show(self, found: _Found) -> None:
        self._finished = found.run
        self._folders.keep(found.run.folder)
        self._set_running(False)
        self.progress.value = 100
        if self.moving.layer is not None:
            self.moving.layer.visible = False  # the warped image takes its place
        for layer in found.layers:
            self._add(layer)
        show_near_slices(self._viewer)
        self.status.value = "\n".join([describe_run(found.run), *found.warnings])

    # The last result

    def show_displacement(self) -> None:
        """Add the displacement of the last registration as arrows."""
        if self._finished is not None:
            pair = self._finished.pair
            self._add(displacement_layer(pair.methods[-1].chain, pair.fixed.grid, "displacement, mm"))

    def save(self, folder: str | Path) -> None:
        """Copy all that the last registration has written to a folder."""
        if self._finished is not None:
            with self.status.telling_errors():
                copy_run(self._finished.folder, Path(folder))
                self.status.value = f"saved to {folder}"

    def _ask_where_to_save(self) -> None:
        folder = QFileDialog.getExistingDirectory(self.native, "Save the registration to a folder")
        if folder:
            self.save(folder)


def _run(inputs: LayerInputs, stages: tuple[str, ...] | None, out: Path, course: Course) -> _Found:
    """Register, and read back what was written."""
    task = RunTask(inputs.read(), stages, out)
    task.check()
    warnings = run_apart(task, course.tell, course.is_stopped)
    course.tell(Progress(1.0, "reading the results"))
    run = read_finished_run(out)
    return _Found(run, list(result_layers(run)), [*warnings, *run.warnings])
