"""A registration in a process of its own: what it leaves, how it is stopped, and how its folder is copied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.data.landmarks import Landmarks, read_landmarks
from regnet_itk.errors import OutputError, RegistrationError
from regnet_itk.interfaces.napari.runs import Inputs, RunTask, Stopped, copy_run, run_apart
from regnet_itk.report.finished_run import read_finished_run
from regnet_itk.transforms.elastix_reading import read_chain


def never():
    return False


def children_of(process):
    """Return the processes that a process has started, and those that they have."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in found.splitlines()]
    direct = [child for child, parent in parents if parent == process]
    return direct + [below for child in direct for below in children_of(child)]


@pytest.fixture(scope="module")
def inputs(phantom_folder):
    """Images that no file has, as those of layers, and landmarks."""
    images = {name: read_image(phantom_folder / f"{name}.mha") for name in ("fixed", "moving", "fixed_mask")}
    points = {
        f"{role}_landmarks": Landmarks(read_landmarks(phantom_folder / f"{role}_points.txt").points)
        for role in ("fixed", "moving")
    }
    return Inputs(**images, **points)


@pytest.fixture(scope="module")
def registered(inputs, quick_affine, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    heard = []
    warnings = run_apart(RunTask(inputs, (str(quick_affine),), out), heard.append, never)
    return out, heard, warnings


def test_the_folder_is_that_of_a_run_and_holds_what_only_layers_held(registered, inputs):
    out, heard, warnings = registered
    assert warnings == []
    fractions = [now.fraction for now in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {now.text for now in heard} >= {"how far to trust it", "writing"}
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "TransformParameters.0.txt", "TransformParameters.0-Composite.h5", "result.0.mha", "errorMap.0.mha",
        "registration.json", "registration.png", "regnet-itk.log", "layer.fixed.mha", "layer.moving.mha",
        "layer.fixed_mask.mha", "layer.fixed_landmarks.csv", "layer.moving_landmarks.csv",
    }  # fmt: skip
    run = read_finished_run(out)
    assert run.warnings == ()
    assert run.record["verdict"]["word"] in ("good", "look", "failed")
    np.testing.assert_array_equal(run.pair.fixed.array, inputs.fixed.array)
    np.testing.assert_allclose(run.pair.moving_landmarks.points, inputs.moving_landmarks.points)


def test_it_finds_what_the_program_finds(registered, phantom_folder, quick_affine, tmp_path):
    from command import call

    words = ["-f", phantom_folder / "fixed.mha", "-m", phantom_folder / "moving.mha", "-p", quick_affine]
    words += ["-fMask", phantom_folder / "fixed_mask.mha", "-loglevel", "off", "-out", tmp_path]
    assert call("run", *words) == 0
    ours, theirs = (read_chain(folder / "TransformParameters.0.txt") for folder in (registered[0], tmp_path))
    points = read_image(phantom_folder / "fixed.mha").grid.corners()
    np.testing.assert_allclose(ours.map_points(points), theirs.map_points(points), atol=1e-3)


def test_a_copy_stands_on_its_own(registered, tmp_path):
    folder, copy = registered[0], tmp_path / "copy"
    (folder / "holiday.jpg").write_text("of the user")
    copy_run(folder, copy)
    (folder / "holiday.jpg").unlink()
    assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}
    away = folder.rename(folder.with_name("away"))
    try:
        run = read_finished_run(copy)
    finally:
        away.rename(folder)
    assert run.warnings == ()
    assert all(path.parent == copy for path in run.files.values())
    point = run.pair.fixed_landmarks.points[0]
    judge = sitk.ReadTransform(str(folder / "TransformParameters.0-Composite.h5"))
    np.testing.assert_allclose(run.pair.methods[-1].chain.map_points(point), judge.TransformPoint(point.tolist()))


def test_a_copy_of_a_chain_of_files_names_its_own_files(finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "copy")
    text = (tmp_path / "copy" / "TransformParameters.1.txt").read_text(encoding="utf-8")
    assert str(finished_run) not in text
    assert text.count(str(tmp_path / "copy")) >= 2  # the displacement field, and the transform before it
    assert read_finished_run(tmp_path / "copy").files["fixed"] == read_finished_run(finished_run).files["fixed"]


def test_nothing_is_copied_over_the_files_of_others(registered, tmp_path):
    (tmp_path / "result.0.mha").write_text("of another program")
    with pytest.raises(OutputError, match="of another program"):
        copy_run(registered[0], tmp_path)
    with pytest.raises(RegistrationError, match=r"has no registration\.json"):
        copy_run(tmp_path, tmp_path / "copy")


@pytest.mark.skipif(sys.platform != "linux", reason="asks ps")
def test_who_stops_it_ends_its_processes_and_finds_nothing_left(inputs, tmp_path):
    seen = []

    def is_stopped():
        seen.extend(child for child in children_of(os.getpid()) if "worker.py" in _command(child))
        return bool(seen)

    with pytest.raises(Stopped):
        run_apart(RunTask(inputs, ("affine", "regnet_multistage"), tmp_path / "run"), lambda _: None, is_stopped)
    assert seen  # elastix was at work
    left = [_command(child) for child in children_of(os.getpid())]
    assert [command for command in left if "worker.py" in command or "spawn_main" in command] == []
    assert not (tmp_path / "run").exists()


def test_what_is_being_written_is_written_to_its_end(inputs, quick_affine, tmp_path):
    heard = []
    task = RunTask(inputs, (str(quick_affine),), tmp_path / "run")
    run_apart(task, heard.append, lambda: any(now.text == "writing" for now in heard))
    assert read_finished_run(tmp_path / "run").warnings == ()


def _command(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_failure_is_one_line_and_leaves_nothing(tmp_path):
    grid = Grid((8, 8, 8))
    flat = Image(np.zeros(grid.shape), grid)
    task = RunTask(Inputs(flat, flat), ("affine",), tmp_path / "run")
    with pytest.raises(RegistrationError, match="the fixed image is constant") as error:
        run_apart(task, lambda _: None, never)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_chain_of_which_nothing_can_be_shown_is_refused_before_it_runs(inputs, tmp_path):
    path = tmp_path / "weighted.txt"
    path.write_text('(Registration "MultiResolutionRegistration")\n(Transform "WeightedCombinationTransform")\n')
    with pytest.raises(RegistrationError, match="use `regnet-itk run`"):
        run_apart(RunTask(inputs, (str(path),), tmp_path / "run"), lambda _: None, never)


def test_a_folder_is_checked_before_the_work(inputs, tmp_path):
    fixed = tmp_path / "layer.moving.mha"
    write_image(inputs.fixed, fixed)
    with pytest.raises(OutputError, match="would be overwritten"):
        RunTask(Inputs(fixed, inputs.moving), None, tmp_path).check()
    RunTask(Inputs(inputs.fixed, fixed), None, tmp_path).check()  # that file stays
    (tmp_path / "a file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        RunTask(inputs, None, tmp_path / "a file").check()


def test_a_script_that_does_not_ask_for_its_name_runs_once(tmp_path, phantom_folder, quick_affine):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from regnet_itk.interfaces.napari.runs import Inputs, RunTask, run_apart\n"
        "print('once')\n"
        f"inputs = Inputs(Path({str(phantom_folder / 'fixed.mha')!r}), Path({str(phantom_folder / 'moving.mha')!r}))\n"
        f"task = RunTask(inputs, ({str(quick_affine)!r},), Path({str(tmp_path / 'run')!r}))\n"
        "run_apart(task, lambda _: None, lambda: False)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr
    record = json.loads((tmp_path / "run" / "registration.json").read_text(encoding="utf-8"))
    assert record["inputs"]["fixed"] == str(phantom_folder / "fixed.mha")
    assert not list((tmp_path / "run").glob("layer.*"))
