"""Workers that are killed at any moment: every pair is done in the end, and nothing half written is taken for done."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import SimpleITK as sitk
from batch_program import children_of, start
from shifted_pairs import make_pairs, runs

from regnet_itk.batch.records import PairRecord
from regnet_itk.pairs import write_pairs
from regnet_itk.transforms.elastix_reading import read_chain

AT_WORK, KILLS, PAIRS = 2, 20, 60


@pytest.mark.slow  # test_batch.py has the quick ones: each moment at which a file is moved, and a batch killed at work
@pytest.mark.timeout(1800)
def test_whoever_is_killed_every_pair_is_done_in_the_end(tmp_path):
    first, second = make_pairs(tmp_path / "data")
    pairs = [replace((first, second)[number % 2], name=f"p{number}") for number in range(PAIRS)]
    write_pairs(pairs, tmp_path / "data" / "pairs.csv")
    rng = random.Random(0)
    working = [start(tmp_path, 0.3) for _ in range(AT_WORK)]
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.0, 6.0))
        chosen = working.pop(rng.randrange(AT_WORK))
        child = rng.choice([None, *children_of(chosen.pid)])  # the one that leads, or one that registers
        with contextlib.suppress(ProcessLookupError):
            os.kill(child or chosen.pid, signal.SIGKILL)
        if child is None or chosen.poll() is not None:
            chosen.wait()
            chosen = start(tmp_path, 0.3)
        working.append(chosen)
        check_what_is_done(tmp_path / "out" / "pairs")
    for one in working:
        one.wait()
    assert start(tmp_path, 0.3).wait() == 0  # a pair whose process was killed counts as failed until then
    done = check_what_is_done(tmp_path / "out" / "pairs")
    assert done == {pair.name for pair in pairs}
    assert PAIRS <= runs(tmp_path / "log") <= PAIRS + 2 * KILLS
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert start(tmp_path, 0.3).wait() == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before
    assert not [file for file in before if file.name.startswith(".part-") or "claims" in file.parts]


def check_what_is_done(folder):
    """Read all files of the pairs that are said to be done, and return their names."""
    done = set()
    for pair in folder.glob("*"):
        record = PairRecord.read(pair)
        if record is None or record.status != "done":
            continue
        try:
            assert json.loads((pair / "registration.json").read_text())["stages"]
            assert len(read_chain(pair / "TransformParameters.0.txt").links) == 1
            sitk.ReadTransform(str(pair / "TransformParameters.0-Composite.h5"))
            sitk.ReadImage(str(pair / "result.0.mhd"))
            sitk.ReadImage(str(pair / "registration.png"))
        finally:
            assert PairRecord.read(pair) == record
        done.add(pair.name)
    return done
