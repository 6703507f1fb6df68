"""``regnet-itk follow-up``: what it writes, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from command import call
from dicom_cases import write_series
from lesion_cases import RUN_GRID, SHIFT, ball, write_run

from regnet_itk import Image, Landmarks, read_image, write_image, write_landmarks
from regnet_itk.result_files import RUN_FILES

DATES = ("--fixed-date", "2026-01-01", "--moving-date", "2026-04-11")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("follow-up")
    write_run(folder)
    return folder


@pytest.fixture
def here(material, tmp_path, monkeypatch):
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def follow(*more, fixed="fixed_lesions.mha", moving="moving_lesions.mha", run="run", out="out"):
    return call("follow-up", run, "-fl", fixed, "-ml", moving, "-out", out, *more)


def table():
    return list(csv.DictReader(Path("out/follow_up.csv").read_text("utf-8").splitlines()))


def test_the_table_and_the_record(here, capfd):
    assert follow(*DATES) == 0
    shown = capfd.readouterr().err
    assert "baseline: the fixed image of 2026-01-01; follow-up: the moving image of 2026-04-11, 100 days later" in shown
    assert "1 > 2: grown" in shown and "2 >: gone" in shown and "> 1: new" in shown
    rows = table()
    assert [row["status"] for row in rows] == ["grown", "gone", "new"]
    grown = rows[0]
    true = (7.5 / 6.0) ** 3
    assert float(grown["volume_change_percent"]) == pytest.approx(100 * (true - 1), abs=5)
    assert float(grown["volume_doubling_time_days"]) == pytest.approx(100 * np.log(2) / np.log(true), rel=0.05)
    np.testing.assert_allclose([float(grown[f"baseline_{a}_mm"]) for a in "xyz"], RUN_GRID.centre(), atol=0.1)
    np.testing.assert_allclose([float(grown[f"follow_up_{a}_mm"]) for a in "xyz"], RUN_GRID.centre() + SHIFT, atol=0.1)
    assert float(grown["radius_90_mm"]) == pytest.approx(2.5, abs=0.01)
    record = json.loads(Path("out/follow_up.json").read_text("utf-8"))
    assert record["days"] == 100 and record["baseline"] == "fixed"
    np.testing.assert_allclose(
        record["findings"][1]["place_in_the_other_image_mm"], RUN_GRID.centre() + SHIFT + [14, 8, 0], atol=0.2
    )


def test_the_other_order_of_dates(here):
    assert follow("--fixed-date", "2026-04-11", "--moving-date", "2026-01-01") == 0
    rows = table()
    assert {row["status"] for row in rows} == {"shrunk", "gone", "new"}
    (shrunk,) = (row for row in rows if row["status"] == "shrunk")
    np.testing.assert_allclose([float(shrunk[f"baseline_{a}_mm"]) for a in "xyz"], RUN_GRID.centre() + SHIFT, atol=0.1)


def test_dates_are_those_of_the_series(here, capfd):
    for role, date in (("fixed", {"StudyDate": "20250301"}), ("moving", {"AcquisitionDate": "20250101"})):
        image = read_image(f"{role}.mha")
        write_series(Image(np.rint(image.array).astype(np.int16), image.grid), Path(f"{role}_series"), role, **date)
    series = ("--fixed-series", "fixed_series", "--moving-series", "moving_series")
    assert follow(*series) == 0
    assert "baseline: the moving image of 2025-01-01; follow-up: the fixed image of 2025-03-01, 59 days later" in (
        capfd.readouterr().err
    )
    assert follow(*series, "--baseline", "fixed") == 1
    assert "its date is the later one" in capfd.readouterr().err


def test_points_and_masks(here):
    centre = RUN_GRID.centre()
    write_landmarks(Landmarks(np.array([centre])), "points.txt")
    write_image(ball(read_image("moving.mha").grid, (centre + SHIFT, 6.0)), "mask.mha")
    assert follow("--baseline", "fixed", fixed="points.txt", moving="mask.mha") == 0
    (row,) = table()
    assert (row["status"], row["baseline_volume_mm3"], row["volume_change_percent"]) == ("found again", "", "")
    assert follow("--baseline", "moving", "--connected", "--error", 3) == 0
    assert follow("--baseline", "moving", moving="moving_lesions.mha", out="out") == 0  # over the earlier one


def test_the_page_opens_and_shows_a_picture_of_each(here, tmp_path):
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is missing")
    assert follow(*DATES) == 0
    browser = Browser(program)
    try:
        browser.open(tmp_path / "here" / "out" / "follow_up.html")
        assert browser.value("document.querySelectorAll('tbody tr').length") == 3
        assert browser.value("[...document.images].filter(image => image.naturalWidth > 500).length") == 3
        assert browser.complaints() == []
    finally:
        browser.close()


def test_a_doubtful_registration_is_told(tmp_path, monkeypatch, capfd):
    write_run(tmp_path, verdict="failed")
    monkeypatch.chdir(tmp_path)
    assert follow(*DATES) == 0
    assert "warning: the registration's verdict is 'failed'" in capfd.readouterr().err
    assert "Warning: the registration" in (tmp_path / "out" / "follow_up.html").read_text(encoding="utf-8")


def test_what_is_refused_in_one_line_and_leaves_nothing(here, tmp_path, capfd):
    def refused(message, *more, **files):
        assert follow(*more, **files) == 1
        lines = capfd.readouterr().err.splitlines()
        assert message in lines[-1] and lines[-1].startswith("regnet-itk: error: ")
        assert all(line.startswith("warning: ") for line in lines[:-1])
        assert not (tmp_path / "here" / "out").exists()

    write_image(ball(RUN_GRID), "none.mha")
    write_image(ball(read_image("moving.mha").grid), "none_either.mha")
    write_landmarks(Landmarks(np.array([RUN_GRID.centre() + 900])), "far.txt")
    (tmp_path / "here" / "empty.txt").write_text("point\n0\n")
    refused("has no registration.json", *DATES, run=".")
    refused("is no folder", *DATES, run="fixed.mha")
    refused("lie on another grid than the fixed image", *DATES, fixed="moving_lesions.mha")
    refused("lie outside the fixed image", *DATES, fixed="far.txt")
    refused("holds no points", *DATES, fixed="empty.txt")
    refused("does not exist", *DATES, fixed="missing.mha")
    refused("give --fixed-date and --moving-date, or --baseline")
    refused("date of the moving image is not known", *DATES[:2])
    refused("its date is the later one", "--baseline", "moving", *DATES)
    refused("is no date", "--fixed-date", "yesterday", *DATES[2:])
    refused("neither the fixed nor the moving image has a lesion", *DATES, fixed="none.mha", moving="none_either.mha")
    refused("are labels, which have no names to choose by", *DATES, "--structures", "GTV")
    (tmp_path / "here" / "run" / "errorMap.0.mha").unlink()
    refused("give the radius in mm within which 90 % of the points lie with --error", *DATES)


def test_inputs_are_never_overwritten(here, capfd):
    shutil.copy("fixed_lesions.mha", "run/follow_up.csv")
    assert follow(*DATES, out="run") == 1
    assert "holds 'follow_up.csv'" in capfd.readouterr().err


def test_it_goes_with_the_run_that_it_is_of(here):
    assert follow(*DATES, out="run") == 0
    assert Path("run/follow_up.html").is_file()
    RUN_FILES.clear(Path("run"))
    assert not list(Path("run").glob("follow_up*"))
