"""Draw the pictures of docs/napari.md: the plugin registers the digital chest in a real napari.

``xvfb-run -a -s "-screen 0 1400x900x24" python pipelines/draw_napari.py --out docs`` needs no screen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from regnet_itk.interfaces.napari.geometry import landmarks_of_layer

WINDOW = (1240, 760)
DOCK = 380
CHAIN = "chest: regnet_multistage"
RUNNING = 60  # percent, when the second picture is taken
NEAR = 10.0  # mm; landmarks so close to the slice count


def main() -> None:
    """Write napari_before.png, napari_running.png, napari_after.png and napari_landmarks.png."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW)
    dock, widget = viewer.window.add_plugin_dock_widget("regnet-itk", "Register two images")
    viewer.open_sample("regnet-itk", "chest")
    viewer.window._qt_window.resizeDocks([dock], [DOCK], Qt.Orientation.Horizontal)
    look_from_the_front(viewer)
    take(viewer, out / "napari_before.png")
    widget.chain.value = CHAIN
    widget.run_button.native.click()
    spin(lambda: widget.progress.value >= RUNNING)
    take(viewer, out / "napari_running.png")
    spin(lambda: not widget.is_running)
    print(widget.status.value)
    take(viewer, out / "napari_after.png")
    show_landmarks(viewer)
    take(viewer, out / "napari_landmarks.png")
    viewer.close()


def look_from_the_front(viewer: napari.Viewer) -> None:
    """Show the coronal plane, the patient's head up, at the landmarks."""
    points = landmarks_of_layer(viewer.layers["fixed landmarks"]).points
    y = points[:, 1]
    here = y[np.argmax((np.abs(y - y[:, None]) < NEAR).sum(axis=1))]
    viewer.dims.order = (1, 0, 2)
    viewer.scene.camera.orientation2d = ("up", "right")
    viewer.dims.set_point(1, here)
    spin(lambda: False, 1.0)
    viewer.reset_view()


def show_landmarks(viewer: napari.Viewer) -> None:
    """Show the fixed landmarks, as crosses, and where the moving ones come to lie, as rings."""
    for name in ("fixed landmarks", "moving landmarks in fixed"):
        viewer.layers[name].visible = True
    viewer.scene.camera.zoom *= 1.3


def take(viewer: napari.Viewer, path: Path) -> None:
    """Write a picture of the whole window."""
    spin(lambda: False, 1.0)
    picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def spin(until: Callable[[], bool], seconds: float = 600.0) -> None:
    """Let Qt work until something is so, or the time is over."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
