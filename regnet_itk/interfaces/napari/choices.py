"""Rows of the widgets: layers to choose from, files that become layers, and a line that says what has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import ComboBox, Container, Label, PushButton
from napari.utils.notifications import show_error
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QSizePolicy

from regnet_itk.errors import RegNetItkError

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

_NEAR_MM = 10.0
_BUTTON_WIDTH = 60
_LABEL_WIDTH = 135
_STATUS_HEIGHT = 120  # pixels: a verdict with its reasons is long


def show_near_slices(viewer: Viewer) -> None:
    """Let napari show points that lie some mm beside a slice, unless somebody has chosen how thick slices are."""
    dims = viewer.dims
    if not any((*dims.margin_left, *dims.margin_right)):
        dims.margin_left = dims.margin_right = (0.0,) * (dims.ndim - 3) + (_NEAR_MM,) * 3


class StatusLine(Label):
    """Says what has happened, in as many lines as it takes."""

    def __init__(self, text: str = "") -> None:
        super().__init__(value=text)
        self.native.setWordWrap(True)
        self.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.native.setMinimumHeight(_STATUS_HEIGHT)
        self.native.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.native.setAlignment(Qt.AlignmentFlag.AlignTop)

    def tell_error(self, reason: str) -> None:
        """Say why something went wrong, here and where napari shows errors."""
        self.value = reason
        show_error(reason)

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Tell the errors that users can cause, in one line each."""
        try:
            yield
        except RegNetItkError as error:
            self.tell_error(str(error))


def row_of(widget: Any) -> Container:
    """Return a widget with its label before it; the labels of all rows are of one width."""
    row = Container(widgets=[Label(value=widget.label), widget], layout="horizontal", labels=False)
    row[0].native.setFixedWidth(_LABEL_WIDTH)
    row.margins = (0, 0, 0, 0)
    return row


def buttons_of(*buttons: PushButton) -> Container:
    """Return buttons side by side."""
    return Container(widgets=buttons, layout="horizontal", labels=False)


class LayerChoice(Container):
    """A list of the layers of some kinds, and a button that opens a file as one.

    A new layer that has the name of the row is chosen if none has been yet.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
    kinds : tuple of type
        Of layers.
    label : str
        The name of the row.
    status : StatusLine
        Is told the errors.
    open_file : callable, optional
        Opens a file as a layer and returns that; None leaves the button out.
    tooltip : str
    """

    def __init__(
        self,
        viewer: Viewer,
        kinds: tuple[type, ...],
        label: str,
        status: StatusLine,
        *,
        open_file: Callable[[Path], Layer] | None = None,
        tooltip: str = "",
    ) -> None:
        self._layers: Callable[[], list[Layer]] = lambda: [one for one in viewer.layers if isinstance(one, kinds)]
        self._seen: list[Layer] = []
        self._status, self._open_file = status, open_file
        self._choice = ComboBox(choices=lambda _: self._layers(), nullable=True, tooltip=tooltip)
        widgets: list[Any] = [self._choice]
        if open_file is not None:
            button = PushButton(text="File ..", tooltip="Open a file as a layer, and choose it")
            button.changed.connect(self._ask)
            button.native.setMaximumWidth(_BUTTON_WIDTH)
            widgets.append(button)
        super().__init__(widgets=widgets, layout="horizontal", labels=False, label=label)
        self.margins = (0, 0, 0, 0)
        self.reset_choices()

    @property
    def layer(self) -> Layer | None:
        """The chosen layer, if there is one."""
        return self._choice.value

    @layer.setter
    def layer(self, layer: Layer | None) -> None:
        self.reset_choices()
        self._choice.value = layer

    def reset_choices(self, *_: object) -> None:
        """Offer the layers that there are now."""
        super().reset_choices()
        layers = self._layers()
        named = [layer for layer in layers if layer not in self._seen and layer.name == self.label]
        if named and self._choice.value is None:
            self._choice.value = named[0]
        self._seen = layers

    def open(self, path: str | Path) -> None:
        """Open a file as a layer, and choose it; say so if it cannot be read."""
        assert self._open_file is not None
        with self._status.telling_errors():
            self.layer = self._open_file(Path(path))

    def _ask(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self.native, f"{self.label}: choose a file")
        if path:
            self.open(path)
