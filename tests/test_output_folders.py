"""A folder holds the files of one run and not of two, and nothing that is read is overwritten."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from command import call
from transform_cases import CHAINS, FIXED, SETTINGS, affine, moving_image, plain, smooth_field

from regnet_itk.comparison.run import compare
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import OutputError
from regnet_itk.held_folders import HeldFolder
from regnet_itk.outputs import staged_folder, write_whole
from regnet_itk.pairs import Pair
from regnet_itk.parameters import ParameterMap
from regnet_itk.registration import register
from regnet_itk.stages.base import Stage, StageResult
from regnet_itk.transforms.chain import link_field
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix


@dataclass(frozen=True)
class Given(Stage):
    """A stage that knows its result."""

    link: object = None

    @property
    def name(self):
        return "given"

    def run(self, pair, initial, options):
        return StageResult(initial.then(self.link), 0.0, pair.fixed)


MATRIX = Given(ParameterMap({"ResultImageFormat": ("mha",)}), plain(affine()))
FIELD = Given(ParameterMap({"ResultImageFormat": ("nrrd",)}), link_field(smooth_field(), SETTINGS))
HU = Image(np.random.default_rng(0).integers(-1000, 500, FIXED.shape).astype(np.int16), FIXED)
ONE = {"TransformParameters.0.txt", "TransformParameters.0-Composite.h5", "result.0.mha", "registration.json",
       "registration.png", "regnet-itk.log", "errorMap.0.mha"}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_image(HU, folder / "fixed.mha")
    write_image(moving_image(), folder / "moving.mha")
    return folder


def registered(*stages, **more):
    return register(HU, HU, stages, **more)


def names(folder):
    return {file.name for file in folder.iterdir()}


# One run, not two


def test_a_registration_takes_the_place_of_another_in_its_folder(tmp_path):
    out = tmp_path / "out"
    registered(MATRIX, FIELD, both_ways=True).write(out)
    assert {"TransformParameters.1.txt", "deformationField.1.mha", "result.1.nrrd", "backward"} <= names(out)
    (out / "mine.txt").write_text("stays")
    (out / "report.html").write_text("of the first")
    registered(MATRIX).write(out)
    assert names(out) == {*ONE, "mine.txt"}
    np.testing.assert_allclose(read_chain(out / "TransformParameters.0.txt").map_points([[1, 2, 3]]),
                               affine().map_points([[1, 2, 3]]))  # fmt: skip


def test_a_registration_that_fails_to_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    registered(MATRIX, FIELD).write(tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr("regnet_itk.results.write_itk", lambda *_: (_ for _ in ()).throw(OutputError("no")))
    with pytest.raises(OutputError, match="no"):
        registered(MATRIX).write(tmp_path)
    assert names(tmp_path) == before


def test_files_of_another_program_are_neither_mixed_with_ours_nor_removed(images, tmp_path, capsys):
    write_elastix(CHAINS["affine, field"], tmp_path)
    before = names(tmp_path)
    with pytest.raises(OutputError, match=r"holds 'TransformParameters.0.txt', which is of another program"):
        registered(MATRIX).write(tmp_path)
    pair = ("-f", images / "fixed.mha", "-m", images / "moving.mha")
    (tmp_path / "t").mkdir()
    start = write_elastix(CHAINS["affine"], tmp_path / "t")[-1]
    for arguments in (("run", *pair), ("invert", "-tp", start, "--like", images / "fixed.mha")):
        assert call(*arguments, "-out", tmp_path) == 1
        assert "give another folder, or empty this one" in capsys.readouterr().err
    assert names(tmp_path) - {"t"} == before


def test_an_inverse_takes_the_place_of_another(tmp_path):
    for name in ("affine, field", "affine"):
        (tmp_path / name).mkdir()
        chain = write_elastix(CHAINS[name], tmp_path / name)[-1]
        assert call("invert", "-tp", chain, "-out", tmp_path / "i") == 0
    assert names(tmp_path / "i") == {"TransformParameters.0.txt", "TransformParameters.0-Composite.h5", "inverse.json"}


def test_a_conversion_takes_the_place_of_another(tmp_path):
    convert(CHAINS["affine, field"], tmp_path / "t.txt")
    assert names(tmp_path) == {"t.txt", "t.0.txt", "t.1.mha"}
    convert(CHAINS["affine"], tmp_path / "t.txt")
    assert names(tmp_path) == {"t.txt"}
    (tmp_path / "u.0.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'u.0.txt'"):
        convert(CHAINS["affine, field"], tmp_path / "u.txt")


def test_points_in_another_format_take_the_place_of_earlier_ones(images, tmp_path):
    chain = write_elastix(CHAINS["affine"], tmp_path)[-1]
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n")
    (tmp_path / "p.txt").write_text("point\n1\n1 2 3\n")
    out = tmp_path / "out"
    assert call("transform", "-tp", chain, "-def", tmp_path / "p.csv", "-in", images / "moving.mha", "-out", out) == 0
    assert names(out) == {"outputpoints.txt", "outputpoints.csv", "result.mha", "transformix.log"}
    assert call("transform", "-tp", chain, "-def", tmp_path / "p.txt", "-out", out) == 0
    assert names(out) == {"outputpoints.txt", "result.mha", "transformix.log"}


def test_pairs_of_other_images_are_not_mixed(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\nother_1,a.mha,b.mha\n")
    write_image(HU, tmp_path / "mine.mha")
    assert call("synthesize", tmp_path / "mine.mha", "-out", tmp_path) == 1
    assert "lists pairs of other images ('other_1'); give another folder" in capsys.readouterr().err


# Nothing that is read is overwritten


@pytest.mark.parametrize("way", ["as it is", "dots", "link to the file", "link to the folder"])
def test_an_input_where_the_result_would_be(way, images, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("result.0.mha", "result.mha", "outputpoints.txt"):
        shutil.copy(images / "moving.mha", folder / name)
    (tmp_path / "link.mha").symlink_to(folder / "result.0.mha")
    (tmp_path / "folder").symlink_to(folder)
    given = {"dots": folder / ".." / "in" / "result.0.mha", "link to the file": tmp_path / "link.mha"}.get(
        way, folder / "result.0.mha"
    )
    out = tmp_path / "folder" if way == "link to the folder" else folder
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    (tmp_path / "t").mkdir()
    chain = write_elastix(CHAINS["affine"], tmp_path / "t")[-1]
    for arguments in (
        ("run", "-f", given, "-m", images / "moving.mha"),
        ("run", "-f", images / "fixed.mha", "-m", images / "moving.mha", "-mMask", given),
        ("transform", "-tp", chain, "-in", folder / "result.mha"),
        ("transform", "-tp", chain, "-def", folder / "outputpoints.txt"),
    ):
        assert call(*arguments, "-out", out) == 1
        assert "is read, and lies in the output folder" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_a_transform_to_start_from_where_the_result_would_be(images, tmp_path, capsys):
    start = write_elastix(CHAINS["affine, field"], tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(start[1], elsewhere / "last.txt")
    for given in (start[1], elsewhere / "last.txt"):  # the second names a file in the output folder
        assert call("run", "-f", images / "fixed.mha", "-m", images / "moving.mha", "-t0", given, "-out", tmp_path) == 1
        assert "is read, and lies in the output folder" in capsys.readouterr().err
    assert call("convert", start[1], start[0]) == 1
    assert "is read, and lies in the output folder" in capsys.readouterr().err


def test_images_among_what_a_comparison_may_throw_away(images, tmp_path):
    inner = tmp_path / "pairs" / "one" / "fixed.mha"
    inner.parent.mkdir(parents=True)
    shutil.copy(images / "fixed.mha", inner)
    with pytest.raises(OutputError, match=r"'.*fixed.mha' lies in '.*pairs', where earlier results are removed"):
        compare([Pair("one", inner, inner)], [], tmp_path)


def test_the_list_of_pairs_where_a_table_would_be(tmp_path, capsys):
    (tmp_path / "measures.csv").write_text("fixed,moving\n")
    assert call("compare", tmp_path / "measures.csv", "-out", tmp_path) == 1
    assert "is read, and lies in the output folder" in capsys.readouterr().err


# Where results cannot be


@pytest.mark.parametrize(
    ("out", "status", "message"),
    [
        ("", 2, "-out is empty"),
        (" ", 2, "-out is empty"),
        ('a"b', 1, "a double quote in its path"),
        ("a\nb", 1, "a line break in its path"),
        ("a\u2028b", 1, "a line break in its path"),
        ("a\udcffb", 2, r"'a\udcffb' is not UTF-8"),
        ("x" * 300, 1, "File name too long"),
    ],
)
def test_folders_that_cannot_be_named(out, status, message, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("run", "-f", images / "fixed.mha", "-m", images / "moving.mha", "-out", out) == status
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert message in printed[0]
    assert names(tmp_path) == set()


def test_a_folder_that_elastix_cannot_name_is_refused_where_files_are_written_too(tmp_path):
    for write in (
        lambda folder: registered(MATRIX).write(folder),
        lambda folder: convert(CHAINS["affine"], folder / "t.txt"),
    ):
        with pytest.raises(OutputError, match="a double quote in its path"):
            write(tmp_path / 'a"b')
    assert names(tmp_path) == set()


# What a killed process leaves


def test_what_a_killed_process_has_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    program = (
        "import sys, time\nfrom regnet_itk.outputs import staged_folder\n"
        f"with staged_folder({str(tmp_path)!r}) as stage:\n"
        "    (stage / 'half').write_text('x'); print(stage, flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    stage = other.stdout.readline().strip()
    (tmp_path / ".part-old").mkdir()
    write_whole(tmp_path / "file", lambda part: part.write_text("x"))
    assert os.path.exists(stage)
    assert not (tmp_path / ".part-old").exists()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert os.path.exists(stage)
    with staged_folder(tmp_path) as own:
        (own / "more").write_text("y")
    assert names(tmp_path) == {"file", "more"}


def test_held_folders_of_one_process_leave_each_other_alone(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "part-link").symlink_to(tmp_path / "target")
    with HeldFolder(tmp_path, "part-") as one, HeldFolder(tmp_path, "part-") as two:
        assert one.path.is_dir()
        assert two.path.is_dir()
    assert names(tmp_path) == {"target", "part-link"}


# Streams that are closed


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_work_goes_on_where_nobody_can_read_what_is_said(closed, images, tmp_path):
    chain = write_elastix(CHAINS["affine"], tmp_path)[-1]
    words = [sys.executable, "-m", "regnet_itk.cli.main", "transform", "-tp", chain, "-in", images / "moving.mha"]
    command = " ".join(map(str, [*words, "-out", tmp_path / "out", closed]))
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert names(tmp_path / "out") == {"result.mha", "transformix.log"}


@pytest.mark.parametrize(
    ("closed", "said"), [(">&-", "cannot write to standard output"), (">/dev/full", "No space left")]
)
def test_an_answer_that_nobody_gets_is_a_failure(closed, said, tmp_path):
    chain = write_elastix(CHAINS["affine"], tmp_path)[-1]
    command = f"{sys.executable} -m regnet_itk.cli.main info {chain} {closed}"
    ended = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_folders_made_at_the_same_time_do_not_clear_each_other_away(tmp_path):
    def make(_):
        with HeldFolder(tmp_path, ".part-") as folder:
            try:
                (folder.path / "file").write_text("kept", encoding="utf-8")
            except FileNotFoundError:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(make, range(2000)))
    assert not list(tmp_path.iterdir())
