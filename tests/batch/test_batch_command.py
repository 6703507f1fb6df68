"""The command regnet-itk batch: its parts, its exit status, and its end by Ctrl-C."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_program import children_of
from command import call
from shifted_pairs import make_pairs

from regnet_itk.pairs import write_pairs
from regnet_itk.parameters import read_parameter_map


@pytest.fixture
def broken(tmp_path):
    """A list of four pairs whose images are not there, so that each is done in no time."""
    lines = [f"p{number},fixed.mha,moving{number}.mha" for number in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["name,fixed,moving", *lines]) + "\n")
    return tmp_path / "pairs.csv"


def statuses(out):
    with (out / "batch.csv").open(encoding="utf-8") as file:
        return {row["name"]: row["status"] for row in csv.DictReader(file)}


def recorded(out):
    return sorted(file.parent.name for file in (out / "pairs").glob("*/batch.json"))


def test_parts_and_the_last_call(broken, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    assert call("batch", broken, "-out", out, "-p", "rigid", "--part", "2/2") == 1
    assert recorded(out) == ["p1", "p3"]
    assert not (out / "batch.csv").exists()
    assert "2 pairs, 0 of them done, 2 failed" in capfd.readouterr().err
    assert call("batch", broken, "-out", out, "-p", "rigid", "--part", "none") == 1
    assert statuses(out) == {"p0": "missing", "p1": "failed", "p2": "missing", "p3": "failed"}
    assert "4 pairs, 0 of them done, 2 failed, 2 not registered yet" in capfd.readouterr().err
    for name, value in {"ID": 4, "MIN": 0, "MAX": 12, "STEP": 4, "COUNT": 4}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert call("batch", broken, "-out", tmp_path / "array", "-p", "rigid") == 1
    assert recorded(tmp_path / "array") == ["p1"]
    assert call("batch", broken, "-out", tmp_path / "array", "-p", "rigid", "--part", "none") == 1
    assert statuses(tmp_path / "array") == {"p0": "missing", "p1": "failed", "p2": "missing", "p3": "missing"}


def test_a_part_without_pairs_is_done(broken, tmp_path):
    assert call("batch", broken, "-out", tmp_path / "out", "--part", "9/9") == 0
    assert not (tmp_path / "out" / "pairs").exists()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--part", "3"], 1, "'3' is no part of the pairs; give --part as K/N"),
        (["-p", "rigidd"], 1, "rigidd"),
        (["--scheduler-settings", "a.toml"], 2, "--scheduler-settings needs --scheduler"),
        (["--jobs", "0"], 2, "--jobs"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(broken, tmp_path, capfd, words, status, told):
    assert call("batch", broken, "-out", tmp_path / "out", *words) == status
    assert told in (error := capfd.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_task_of_an_array_that_does_not_know_its_size(broken, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PBS_ARRAY_INDEX", "3")
    assert call("batch", broken, "-out", tmp_path / "out") == 1
    assert "give --part as $PBS_ARRAY_INDEX/N" in capfd.readouterr().err


def test_errors_of_many_pairs_are_not_all_listed(tmp_path, capfd):
    lines = [f"fixed.mha,moving{number}.mha" for number in range(23)]
    (tmp_path / "pairs.csv").write_text("\n".join(["fixed,moving", *lines]) + "\n")
    assert call("batch", tmp_path / "pairs.csv", "-out", tmp_path / "out", "-p", "rigid", "-loglevel", "off") == 1
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("regnet-itk: ")]
    assert len(told) == 21
    assert told[-1] == "regnet-itk: error: 3 more pairs failed"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_with_all_its_processes(tmp_path, number, status):
    write_pairs(make_pairs(tmp_path / "data"), tmp_path / "data" / "pairs.csv")
    endless = read_parameter_map("rigid").with_(NumberOfResolutions=1, MaximumNumberOfIterations=10_000_000)
    (tmp_path / "endless.txt").write_text(endless.without("ImagePyramidSchedule").to_text())
    words = ["batch", tmp_path / "data" / "pairs.csv", "-out", tmp_path / "out", "-p", tmp_path / "endless.txt"]
    command = [sys.executable, "-m", "regnet_itk.cli.main", *map(str, words), "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        children = _wait_for(lambda: _working(program.pid))
        program.send_signal(number)
        told = program.communicate(timeout=60)[1]
    assert program.returncode == status
    if number == signal.SIGINT:
        assert told.endswith("interrupted; finished pairs are kept, and the same command goes on\n")
    _wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children) or None)
    assert not list((tmp_path / "out").glob("claims/*"))
    assert not list((tmp_path / "out").rglob("registration.json"))


def _working(pid):
    """Return the processes below a process, once two of them are elastix's."""
    below = children_of(pid)
    last = [grandchild for child in below for grandchild in children_of(child)]
    return [*below, *last] if len(last) >= 2 else None


def _wait_for(what, seconds=60):
    ends = time.monotonic() + seconds
    while (found := what()) is None:
        assert time.monotonic() < ends
        time.sleep(0.05)
    return found
