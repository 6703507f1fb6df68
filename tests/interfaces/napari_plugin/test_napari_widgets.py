"""The widgets in a real viewer of napari, on a display: ``xvfb-run pytest tests/interfaces/napari_plugin``."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from documents import blocks

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    pytest.skip("there is no display: xvfb-run pytest ..", allow_module_level=True)
napari = pytest.importorskip("napari", reason="pip install 'regnet-itk[napari]'")
pytest.importorskip("qtpy", reason="pip install 'regnet-itk[napari]'")
pytest.importorskip("PyQt6", reason="pip install 'regnet-itk[napari]'")

from napari.utils.notifications import notification_manager  # noqa: E402
from npe2 import PluginManager, PluginManifest  # noqa: E402
from qtpy.QtWidgets import QApplication  # noqa: E402

import regnet_itk.interfaces.napari as plugin  # noqa: E402
from regnet_itk.data.image_files import read_image, write_image  # noqa: E402
from regnet_itk.data.landmarks import read_landmarks  # noqa: E402
from regnet_itk.interfaces.napari.geometry import image_of_layer, landmarks_of_layer  # noqa: E402
from regnet_itk.interfaces.napari.register_widget import CHAINS, FROM_FILES  # noqa: E402
from regnet_itk.report.finished_run import read_finished_run  # noqa: E402

LONGEST = 240  # seconds for a registration on a busy machine

pytestmark = pytest.mark.filterwarnings("ignore")  # of napari and of what it uses


def spin_until(true, seconds=LONGEST):
    """Let Qt work until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        QApplication.processEvents()
        time.sleep(0.01)


@pytest.fixture
def viewer():
    manager = PluginManager.instance()
    if "regnet-itk" not in manager:  # of a checkout that is not installed
        manager.register(PluginManifest.from_file(Path(plugin.__file__).with_name("napari.yaml")))
    notification_manager.records.clear()
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()
    QApplication.processEvents()


@pytest.fixture
def register(viewer):
    return viewer.window.add_plugin_dock_widget("regnet-itk", "Register two images")[1]


def choose_files(widget, folder, stage):
    """Choose the phantom's files, and one stage of a parameter file."""
    names = {
        "fixed": "fixed.mha", "moving": "moving.mha", "fixed_mask": "fixed_mask.mha",
        "fixed_landmarks": "fixed_points.txt", "moving_landmarks": "moving_points.txt",
    }  # fmt: skip
    for row, name in names.items():
        getattr(widget, row).open(folder / name)
    widget.chain.value = FROM_FILES
    widget.parameter_files.value = [stage]


def told(severity):
    return [note.message for note in notification_manager.records if note.severity == severity]


def test_a_registration_from_files_to_layers_and_a_saved_folder(
    viewer, register, phantom_folder, quick_affine, tmp_path
):
    choose_files(register, phantom_folder, quick_affine)
    assert [layer.name for layer in viewer.layers] == [
        "fixed image", "moving image", "fixed mask", "fixed landmarks", "moving landmarks",
    ]  # fmt: skip
    states = set()
    register.run_button.native.click()
    assert (register.run_button.enabled, register.stop_button.enabled) == (False, True)

    def is_done():
        states.add((register.progress.value, register.status.value.split(":")[0]))
        return not register.is_running

    spin_until(is_done)
    assert len(states) > 3  # it told how far it was
    assert register.status.value.startswith("Verdict: ")
    assert "Landmark error" in register.status.value
    assert told("error") == []
    assert (register.run_button.enabled, register.stop_button.enabled) == (True, False)
    layers = {layer.name: layer for layer in viewer.layers}
    assert {"warped", "checkerboard", "fixed - warped", "expected error, mm", "moving on the fixed grid"} <= set(layers)
    assert not layers["moving image"].visible
    register.save(tmp_path / "saved")
    run = read_finished_run(tmp_path / "saved")
    assert run.files["fixed"] == phantom_folder / "fixed.mha"  # which is as the layer shows it
    judge = sitk.ReadImage(str(tmp_path / "saved" / "result.0.mha"))
    warped = image_of_layer(layers["warped"])
    for index in ((0, 0, 0), (20, 30, 10), (5, 8, 25)):
        there = warped.grid.point_to_index(judge.TransformIndexToPhysicalPoint(index))
        assert np.abs(there - there.round()).max() * max(warped.grid.spacing) < 1e-3
        assert warped.to_sitk().GetPixel(there.round().astype(int).tolist()) == judge.GetPixel(index)
    transform = sitk.ReadTransform(str(tmp_path / "saved" / "TransformParameters.0-Composite.h5"))
    fixed = read_landmarks(phantom_folder / "fixed_points.txt").points
    found = landmarks_of_layer(layers["fixed landmarks in moving"]).points
    np.testing.assert_allclose(found, [transform.TransformPoint(p) for p in fixed.tolist()], atol=1e-3)
    register.vectors_button.native.click()
    assert viewer.layers[-1].name == "displacement, mm"
    again = [layer.name for layer in viewer.open(tmp_path / "saved", plugin="regnet-itk")]
    assert "warped [1]" in again
    assert any(text.startswith("Verdict: ") for text in told("info"))


def test_a_layer_that_was_moved_is_registered_where_it_is_shown(
    viewer, register, phantom_folder, quick_affine, tmp_path
):
    choose_files(register, phantom_folder, quick_affine)
    before = image_of_layer(register.moving.layer).grid.origin
    register.moving.layer.translate = (0.0, 0.0, 2.0)
    register.fixed.layer.colormap, register.moving.layer.colormap = "gray", "turbo"
    register.moving_landmarks.layer = register.fixed_landmarks.layer = None
    register.out.value = tmp_path / "run"
    register.start()
    spin_until(lambda: not register.is_running)
    assert register.status.value.startswith("Verdict: ")
    assert (register.fixed.layer.colormap.name, register.moving.layer.colormap.name) == ("green", "turbo")
    stored = sitk.ReadImage(str(tmp_path / "run" / "layer.moving.mha"))
    np.testing.assert_allclose(stored.GetOrigin(), image_of_layer(register.moving.layer).grid.origin, atol=1e-3)
    assert np.abs(np.array(stored.GetOrigin()) - before).max() > 2


def test_stop_stops(viewer, register, phantom_folder, tmp_path):
    for row in ("fixed", "moving"):
        getattr(register, row).open(phantom_folder / f"{row}.mha")
    register.chain.value = next(name for name, stages in CHAINS.items() if stages == ("affine", "bspline_3r"))
    register.out.value = tmp_path / "run"
    register.run_button.native.click()
    spin_until(lambda: register.progress.value > 0)
    register.stop_button.native.click()
    spin_until(lambda: not register.is_running, 30)
    assert register.status.value == "stopped; nothing was written"
    assert (register.run_button.enabled, register.save_button.enabled) == (True, False)
    assert not (tmp_path / "run").exists()
    assert len(viewer.layers) == 2
    assert told("error") == []


def test_who_closes_the_dock_stops_the_work(viewer, register, phantom_folder, tmp_path):
    for row in ("fixed", "moving"):
        getattr(register, row).open(phantom_folder / f"{row}.mha")
    register.out.value = tmp_path / "run"
    register.start()
    spin_until(lambda: register.progress.value > 0)
    viewer.window.remove_dock_widget(register.native)
    spin_until(lambda: not register.is_running, 60)
    assert register.status.value == "stopped; nothing was written"
    assert not (tmp_path / "run").exists()


def test_errors_are_one_line_in_the_widget_and_in_naparis_notifications(viewer, register, phantom_folder, tmp_path):
    register.run_button.native.click()
    assert register.status.value == "no fixed image is chosen; choose a layer, or open a file"
    assert told("error") == [register.status.value]
    register.fixed.open(tmp_path / "gone.mha")
    assert register.status.value == f"image '{tmp_path / 'gone.mha'}' does not exist"
    register.fixed.open(phantom_folder / "fixed.mha")
    register.moving.layer = viewer.add_image(np.zeros((5, 6)), name="a slice")
    register.start()
    assert "'a slice' has 2 dimensions" in register.status.value
    register.moving.layer = viewer.add_image(np.zeros((8, 8, 8)), name="flat")
    register.start()
    spin_until(lambda: not register.is_running)
    assert "the moving image is constant" in register.status.value
    register.chain.value = FROM_FILES
    register.start()
    assert "no parameter file was chosen" in register.status.value
    assert all("\n" not in text for text in told("error"))
    assert not register.is_running


def test_an_image_that_was_read_without_its_place_is_refused(viewer, register, phantom_folder):
    register.fixed.open(phantom_folder / "fixed.mha")
    (register.moving.layer,) = viewer.open(phantom_folder / "moving.mha", plugin="napari")
    assert register.moving.layer.scale.tolist() == [1, 1, 1]  # voxels alone
    register.start()
    assert not register.is_running
    assert "was read by 'napari' and does not lie where its file" in register.status.value
    register.moving.layer.units = ("mm",) * 3  # somebody has looked at it
    register.start()
    assert register.is_running
    register.stop()
    spin_until(lambda: not register.is_running)


def test_rows_choose_the_layers_that_have_their_names(viewer, register):
    viewer.open_sample("regnet-itk", "chest")
    rows = (register.fixed, register.moving, register.fixed_mask, register.moving_mask, register.fixed_landmarks)
    assert [row.layer.name for row in rows] == [
        "fixed image", "moving image", "fixed mask", "moving mask", "fixed landmarks",
    ]  # fmt: skip
    register.moving_mask.layer = None
    viewer.add_image(np.zeros((4, 4, 4)))
    assert register.moving_mask.layer is None  # what was chosen stays


def test_points_near_a_slice_are_shown_unless_somebody_chose_otherwise(viewer, register, phantom_folder):
    register.fixed.open(phantom_folder / "fixed.mha")
    register.fixed_landmarks.open(phantom_folder / "fixed_points.txt")
    assert viewer.dims.margin_left[0] > 0
    viewer.dims.margin_left = viewer.dims.margin_right = (1.0, 1.0, 1.0)
    register.moving_landmarks.open(phantom_folder / "moving_points.txt")
    assert viewer.dims.margin_left[0] == 1.0


@pytest.fixture
def transform(viewer):
    return viewer.window.add_plugin_dock_widget("regnet-itk", "Warp a layer or points")[1]


def applied(viewer, transform):
    """Press the button, and return the new layer."""
    count = len(viewer.layers)
    transform.apply_button.native.click()
    spin_until(lambda: not transform.is_running)
    assert len(viewer.layers) == count + 1, transform.status.value
    return viewer.layers[-1]


@pytest.mark.parametrize("name", ["TransformParameters.1.txt", "TransformParameters.1-Composite.h5"])
def test_a_transform_warps_images_labels_and_points(viewer, transform, finished_run, name):
    run = read_finished_run(finished_run)
    viewer.open([run.files["fixed"], run.files["moving"]], plugin="regnet-itk")
    transform.transform.value = finished_run / name
    transform.fixed.layer, transform.subject.layer = viewer.layers[0], viewer.layers[1]
    warped = image_of_layer(applied(viewer, transform))
    judge = sitk.ReadTransform(str(finished_run / "TransformParameters.1-Composite.h5"))
    fixed, moving = (sitk.ReadImage(str(run.files[role])) for role in ("fixed", "moving"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, judge, sitk.sitkBSpline3, float(warped.array.min())))
    index = warped.grid.point_to_index(run.pair.fixed.grid.points()).round().astype(int)
    ours = warped.array[index[..., 2], index[..., 1], index[..., 0]]
    inner = (slice(4, -4),) * 3
    assert np.median(np.abs(ours.astype(float) - theirs)[inner]) <= 1
    mask = viewer.open(run.files["moving"].with_name("moving_mask.mha"), plugin="regnet-itk")[0]
    labels = viewer.add_labels(np.asarray(mask.data).astype(int), affine=mask.affine, name="lungs")
    transform.subject.layer = labels
    new = applied(viewer, transform)
    assert (type(new).__name__, new.name, set(np.unique(new.data))) == ("Labels", "lungs, warped", {0, 1})


def test_points_go_both_ways(viewer, transform, finished_run):
    judge = sitk.ReadTransform(str(finished_run / "TransformParameters.1-Composite.h5"))
    transform.transform.value = finished_run / "TransformParameters.1.txt"
    points = read_finished_run(finished_run).pair.fixed_landmarks.points
    transform.subject.layer = viewer.add_points(points[:, ::-1], name="marks")
    there = landmarks_of_layer(applied(viewer, transform)).points
    np.testing.assert_allclose(there, [judge.TransformPoint(p) for p in points.tolist()], atol=1e-3)
    assert transform.status.value == f"{len(points)} points, fixed to moving."
    transform.subject.layer = viewer.add_points(there[:, ::-1], name="moved")
    transform.back.value = True
    np.testing.assert_allclose(landmarks_of_layer(applied(viewer, transform)).points, points, atol=1e-2)


def test_a_transform_without_voxels_asks_for_the_fixed_image(viewer, transform, phantom_folder, tmp_path):
    path = tmp_path / "shift.tfm"
    sitk.WriteTransform(sitk.TranslationTransform(3, (3.0, 0.0, 0.0)), str(path))
    transform.vectors_button.native.click()
    assert transform.status.value == "no transform file is chosen"
    transform.transform.value = path
    transform.vectors_button.native.click()
    spin_until(lambda: not transform.is_running)
    assert "choose the fixed image" in transform.status.value
    transform.apply_button.native.click()
    assert "no layer is chosen" in transform.status.value
    write_image(read_image(phantom_folder / "fixed.mha"), tmp_path / "fixed.nrrd")
    (transform.fixed.layer,) = viewer.open(tmp_path / "fixed.nrrd", plugin="regnet-itk")
    transform.vectors_button.native.click()
    spin_until(lambda: not transform.is_running)
    assert viewer.layers[-1].name == "displacement, mm (shift.tfm)"
    np.testing.assert_allclose(viewer.layers[-1].features["length_mm"], 3.0, atol=1e-5)


def test_the_script_of_the_page_shows_a_run(viewer, finished_run, tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[3] / "docs" / "napari.md"
    (script,) = [block.code for block in blocks(page.read_text(encoding="utf-8"), "python") if block.file]
    shutil.copytree(finished_run, tmp_path / "result")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(napari, "run", lambda: None)
    names = {}
    exec(compile(script, page, "exec"), names)
    assert "warped" in names["viewer"].layers
    assert list(names["viewer"].window.dock_widgets) == ["Warp a layer or points (regnet-itk)"]
    names["viewer"].close()
