"""``regnet-itk ventilation``: what it writes, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from breath_cases import FIXED, GROWTH, lungs, write_run
from command import call
from PIL import Image as Picture

from regnet_itk import Grid, Image, read_image, write_image


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ventilation")
    write_run(folder)
    return folder


@pytest.fixture
def here(material, tmp_path, monkeypatch):
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def test_maps_table_record_and_picture(here, capfd):
    assert call("ventilation", "run", "-fMask", "mask.mha", "--labels", "lobes.mha", "-out", "out") == 0
    assert "breathed in: the moving image" in capfd.readouterr().err
    written = {path.name for path in Path("out").iterdir()}
    assert written == {
        "ventilation_jacobian.mha", "ventilation_hu.mha", "density_change.mha", "ventilation.csv", "ventilation.json",
        "ventilation.png",
    }  # fmt: skip
    jacobian = read_image("out/ventilation_jacobian.mha")
    assert jacobian.grid.is_close(FIXED)
    assert np.array_equal(np.isfinite(jacobian.array), lungs().array > 0)
    np.testing.assert_allclose(np.nanmean(jacobian.array), GROWTH - 1, atol=1e-4)
    rows = list(csv.DictReader(Path("out/ventilation.csv").read_text("utf-8").splitlines()))
    assert [row["region"] for row in rows] == ["all", "4", "9"]
    for row in rows:
        assert float(row["ventilation_percent"]) == pytest.approx(100 * (GROWTH - 1), abs=0.01)
        assert float(row["hu_ventilation_median_percent"]) == pytest.approx(100 * (GROWTH - 1), abs=0.5)
    assert float(rows[0]["exhale_volume_ml"]) == pytest.approx(lungs().array.sum() * 0.0144, rel=1e-3)
    assert sum(float(row["share_of_ventilation_percent"]) for row in rows[1:]) == pytest.approx(100, abs=0.1)
    record = json.loads(Path("out/ventilation.json").read_text("utf-8"))
    assert (record["inhale"], record["smoothing_mm"]) == ("moving", 3.0)
    assert min(Picture.open("out/ventilation.png").size) > 400


def test_labels_alone_and_images_that_are_no_cts(here, capfd):
    for name in ("fixed", "moving"):
        image = read_image(f"{name}.mha")
        write_image(Image(image.array + 2000, image.grid), f"{name}.mha")
    images = ("-f", "fixed.mha", "-m", "moving.mha")
    assert call("ventilation", "run", "--labels", "lobes.mha", "-out", "out", "--inhale", "moving", *images) == 0
    shown = capfd.readouterr().err
    assert "no maps from densities" in shown and "region: all labels" in shown
    assert not Path("out/ventilation_hu.mha").exists()


def test_what_is_refused_in_one_line_and_leaves_nothing(here, capfd):
    def refused(message, *more, run="run"):
        assert call("ventilation", run, "-out", "out", *more) == 1
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0] and lines[0].startswith("regnet-itk: error: ")
        assert not Path("out").exists()

    write_image(Image(np.ones((5, 5, 5), np.uint8), Grid((5, 5, 5))), "small.mha")
    write_image(Image(np.zeros(FIXED.shape, np.uint8), FIXED), "none.mha")
    refused("has no registration.json", run=".")
    refused("no lungs are seen in the fixed image; give a mask of them with -fMask")
    refused("lies on another grid", "-fMask", "small.mha")
    refused("is empty", "-fMask", "none.mha")
    refused("the labels", "-fMask", "mask.mha", "--labels", "small.mha")
    refused("labels are empty", "-fMask", "mask.mha", "--labels", "none.mha")
    refused("does not exist", "-fMask", "mask.mha", "--labels", "missing.mha")
