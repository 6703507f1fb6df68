"""Lists of pairs name what is ignored, rigid, or keeps its volume; what is finished is kept until they change."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from command import call
from quick_stages import AFFINE
from shifted_pairs import GRID, TRUE, make_pairs, runs, shift

from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.run import compare
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import ParameterError
from regnet_itk.pairs import read_pairs, write_pairs

MOVING_GRID = replace(GRID, origin=tuple(np.array(GRID.origin) + TRUE))
COLUMNS = {"fixed_ignore": GRID, "moving_ignore": MOVING_GRID, "fixed_rigid": GRID, "fixed_volume": GRID}


def mark_corner(path, grid, corner):
    """Write a mask of one corner, changed at another time."""
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[tuple(slice(0, 3) if low else slice(-3, None) for low in corner)] = 1
    write_image(Image(mask, grid), path)
    os.utime(path, (1e9 + sum(corner), 1e9 + sum(corner)))


@pytest.fixture
def listed(tmp_path):
    """A list of one pair with masks."""
    pair, _ = make_pairs(tmp_path / "data")
    for column, grid in COLUMNS.items():
        mark_corner(tmp_path / f"{column}.mha", grid, (1, 1, 1))
    pair = replace(pair, **{column: tmp_path / f"{column}.mha" for column in COLUMNS})
    write_pairs([pair], tmp_path / "pairs.csv")
    return tmp_path / "pairs.csv"


def test_columns_are_read_as_they_were_written(listed):
    (pair,) = read_pairs(listed)
    assert [getattr(pair, column).name for column in COLUMNS] == [f"{column}.mha" for column in COLUMNS]
    pair.fixed_ignore.unlink()
    with pytest.raises(ParameterError, match="fixed ignore"):
        read_pairs(listed)


def test_a_batch_registers_with_them_and_again_when_they_change(listed, tmp_path, monkeypatch):
    monkeypatch.setattr("regnet_itk.figures.overview.draw_registration", lambda *given, **_: given[4].touch())
    (pair,) = read_pairs(listed)
    write_pairs([replace(pair, fixed_rigid=None, fixed_volume=None)], listed)  # which no stage of this chain follows
    quick = AFFINE.with_(MaximumNumberOfIterations=2, NumberOfResolutions=1, ImagePyramidSchedule=[1, 1, 1])
    (tmp_path / "quick.txt").write_text(quick.to_text())
    arguments = ("batch", listed, "-out", tmp_path / "out", "-p", tmp_path / "quick.txt", "-threads", 1)
    record = tmp_path / "out" / "pairs" / pair.file_name / "registration.json"
    written = []
    for changed in (False, False, True):
        if changed:
            mark_corner(pair.moving_ignore, MOVING_GRID, (0, 1, 1))
        assert call(*arguments) == 0
        assert {"fixed_ignore", "moving_ignore"} <= json.loads(record.read_text())["inputs"].keys()
        written.append(record.stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]


@pytest.mark.parametrize("column", ["moving_ignore", "fixed_rigid"])
def test_a_comparison_computes_again_when_they_change(listed, tmp_path, column):
    log = tmp_path / "log.txt"
    for changed, count in ((False, 1), (False, 1), (True, 2)):
        if changed:
            mark_corner(tmp_path / f"{column}.mha", COLUMNS[column], (0, 0, 1))
        compare(read_pairs(listed), [Method("shift", (shift(log, 1, 2, 3),), ("shift",))], tmp_path / "result")
        assert runs(log) == count


def test_a_comparison_refuses_masks_that_do_not_fit(listed, tmp_path):
    mark_corner(tmp_path / "fixed_rigid.mha", MOVING_GRID, (1, 1, 1))
    outcomes = compare(
        read_pairs(listed), [Method("shift", (shift(tmp_path / "log.txt"),), ("shift",))], tmp_path / "result"
    )
    assert "the fixed rigid mask lies on another grid" in str(next(iter(outcomes.outcomes.values())))
