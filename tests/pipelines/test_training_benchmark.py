"""pipelines/benchmark_training.py: what it counts, and that it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from training_cases import load_pipeline, write_chests

benchmark = load_pipeline("benchmark_training")


def test_displacements_are_independent_over_as_much_as_is_said() -> None:
    """The mean of a smoothed field over a length varies as the mean of so many independent values does."""
    sigma, length = 6.0, 400
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter1d(rng.normal(size=(4000, length + 80)), sigma, axis=1)[:, 40:-40]
    values = field.var() / field.mean(axis=1).var()
    assert benchmark.independent(length // 2, sigma) ** (1 / 3) == pytest.approx(values, rel=0.1)  # outputs 2 mm apart


def test_no_block_shows_less_than_one_displacement_or_more_than_its_outputs() -> None:
    assert [benchmark.independent(size, 25.0) for size in (1, 8, 16)] == [1.0, 1.0, 1.0]
    assert benchmark.independent(16, 6.0) == pytest.approx((32 / 21.27) ** 3, rel=1e-3)
    assert benchmark.independent(4, 0.1) == 64


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", ((2, 1), (1, 2)))
    arguments = [str(write_chests(tmp_path, "one.mha", "two.mha")), "--steps", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *arguments, "--device", "cpu", "--cpu-time"])
    benchmark.main()
    _, header, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({len(row) for row in (*cells, header.strip("|").split("|"))}) == 1
    assert [row[:2] for row in cells] == [["2 x 1^3", "54^3"], ["1 x 2^3", "56^3"]]
    assert cells[0][-1] == "1.00 / 1.00 / 1.00"
    for row, shown in zip(cells, ((2, 2, 2), (8, 1, 1)), strict=True):
        learn, whole = float(row[2]), float(row[3])
        assert 0 < learn < whole
        assert [float(cell) * whole for cell in row[4:7]] == pytest.approx(shown, rel=0.2)  # seconds to two digits


@pytest.mark.parametrize("wrong", [["--cpu-time"], ["--steps", "0"], ["--threads", "0"]])
def test_wrong_use(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *wrong])
    with pytest.raises(SystemExit) as caught:
        benchmark.main()
    assert caught.value.code == 2


def test_a_folder_without_images_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: there is no image in"):
        benchmark.main()
