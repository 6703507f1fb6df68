"""pipelines/verdict_battery.py: what it tells of a verdict, and which verdicts it calls mistaken."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from training_cases import load_pipeline

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.image import Image

load_pipeline("known_pairs")  # which the battery imports
verdict_battery = load_pipeline("verdict_battery")


def test_the_battery_marks_what_the_verdict_mistook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chest = make_phantom(3, spacing=(4.0, 4.0, 4.0), extent=(320.0, 250.0, 260.0), amplitude=10.0)
    fixed, grid = chest.fixed, chest.fixed.grid
    noise = Image(np.random.default_rng(0).normal(-500.0, 300.0, grid.shape).astype(np.float32), grid)
    case = verdict_battery.Case
    itself = {"fixed": fixed, "moving": fixed, "stages": ("rigid",)}
    monkeypatch.setattr(
        verdict_battery, "wrong_cases",
        lambda seed: [case("noise", True, fixed, noise, ("rigid",)), case("taken for wrong", True, **itself)],
    )  # fmt: skip
    breath = case("a breath that is left", True, fixed, chest.moving, ("rigid",), truth=chest.displacement)
    monkeypatch.setattr(
        verdict_battery, "good_cases", lambda seed, images, folder: [case("itself", False, **itself), breath]
    )
    monkeypatch.setattr(sys, "argv", ["verdict_battery.py", "--out", str(tmp_path / "battery.csv")])
    assert verdict_battery.main() == 0

    with (tmp_path / "battery.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert {name: row["mistaken"] for name, row in rows.items() if name != breath.name} == {
        "noise": "False", "taken for wrong": "True", "itself": "False",
    }  # fmt: skip
    assert rows["itself"]["verdict"] == "good" != rows["noise"]["verdict"]
    assert rows["itself"]["true_mm"] == ""
    left = np.linalg.norm(chest.displacement.vectors[chest.fixed_mask.array > 0], axis=-1).mean()
    assert float(rows[breath.name]["true_mm"]) == pytest.approx(left, rel=0.6)
    assert float(rows[breath.name]["far_off_cm3"]) > 0 == float(rows["itself"]["far_off_cm3"])
    assert float(rows[breath.name]["true_mm_there"]) > float(rows[breath.name]["true_mm"])
    assert rows["itself"]["true_mm_there"] == ""
    told = capsys.readouterr().out
    assert "wrong pairs: " in told
    assert "good pairs: 1 of 1 judged rightly" in told
