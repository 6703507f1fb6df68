"""The verdict, its reasons in words, and where it is told."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from regnet_itk import register
from regnet_itk.cli.main import cli
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.stages.coarse_pair import Look
from regnet_itk.stages.judgement import Judgement
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.inverse import invert_points
from regnet_itk.trust import verdict as verdict_module
from regnet_itk.trust.error_map import ErrorMap, read_error_map
from regnet_itk.trust.verdict import Verdict, give_verdict

GRID = Grid((12, 10, 20), (4.0, 4.0, 4.0), (-20.0, -18.0, -38.0))
FINE = Judgement(Look(0.8, 1.0), Look(0.9, 1.0))


def error_map(expected: np.ndarray, unusual: tuple[str, ...] = ()) -> ErrorMap:
    return ErrorMap(np.stack([expected, 2 * expected], axis=-1).astype(np.float32), GRID, unusual)


def verdict(expected: np.ndarray, judgement: Judgement = FINE, folding: float = 0.0, side: float = 2.0) -> Verdict:
    return give_verdict(error_map(expected), [("a stage", judgement)], folding, side, "foreground")


def small() -> np.ndarray:
    return np.full(GRID.shape, 0.4)


def test_small_errors_are_good() -> None:
    found = verdict(small())
    assert found.word == "good"
    assert found.describe() == "verdict: good"


def test_a_part_far_off_is_named_as_the_patient_sees_it() -> None:
    expected = small()
    expected[:6, :, :3] = 8.0  # low z is the feet, low x the patient's right
    found = verdict(expected)
    assert found.word == "look"
    assert found.reasons == ("the lower right part of the foreground lies about 8 mm off (12 cm3; 8% in all)",)
    expected = small()
    expected[-6:, -3:, :] = 8.0
    assert "the upper back part" in verdict(expected).reasons[0]


def test_a_large_piece_counts_however_small_its_share() -> None:
    grid = Grid((40, 40, 40), (4.0, 4.0, 4.0))
    words = []
    for edge in (8, 10):  # 33 and 64 cm3 of 4096
        expected = np.full(grid.shape, 0.4)
        expected[:edge, :edge, :edge] = 8.0
        errors = ErrorMap(np.stack([expected, expected], axis=-1).astype(np.float32), grid)
        words.append(give_verdict(errors, [], 0.0, 2.0, "foreground").word)
    assert words == ["good", "look"]


def test_coarse_voxels_forgive_more() -> None:
    expected = small()
    expected[:6] = 4.0
    assert verdict(expected).word == "look"
    assert verdict(expected, side=5.0).word == "good"


def test_most_of_it_far_off_has_failed() -> None:
    found = verdict(np.full(GRID.shape, 12.0))
    assert found.word == "failed"
    assert "about 12 mm off in 100% of the foreground" in found.reasons[0]


def test_nothing_in_common_has_failed() -> None:
    assert verdict(np.full(GRID.shape, np.nan)).word == "failed"


@pytest.mark.parametrize(
    ("judgement", "folding", "word", "says"),
    [
        (Judgement(Look(0.9, 1.0), Look(0.7, 1.0)), 0.0, "look", "a stage made the images less alike"),
        (Judgement(Look(0.9, 1.0), Look(0.9, 1.0), kept_start=True), 0.0, "look", "its start, which was kept"),
        (Judgement(Look(0.9, 1.0), Look(0.9, 1.0), seems_turned="z"), 0.0, "failed", "turned by 180 degrees about z"),
        (Judgement(Look(0.2, 1.0), Look(0.9, 1.0), np.diag([1.0, 1.0, -1.0])), 0.0, "failed", "mirrors"),
        (Judgement(Look(0.1, 1.0), Look(0.15, 1.0)), 0.0, "failed", "little in common"),
        (FINE, 0.02, "look", "folds at 2.0% of the voxels"),
    ],
)
def test_what_the_stages_say(judgement: Judgement, folding: float, word: str, says: str) -> None:
    found = verdict(small(), judgement, folding)
    assert found.word == word
    assert says in found.describe()


def test_the_worst_reason_comes_first() -> None:
    expected = small()
    expected[:6] = 8.0
    found = verdict(expected, Judgement(Look(0.9, 1.0), Look(0.9, 1.0), np.diag([1.0, 1.0, -1.0])))
    assert found.word == "failed"
    assert "mirrors" in found.reasons[0]
    assert "8 mm off" in found.reasons[1]


def test_a_pair_unlike_all_others_is_to_be_looked_at() -> None:
    found = give_verdict(error_map(small(), ("coarsest",)), [], 0.0, 2.0, "foreground")
    assert found.word == "look"


def textured(seed: int) -> Image:
    grid = Grid((40, 38, 30), (3.0, 3.2, 4.0), (-60.0, -55.0, 20.0))
    distance = np.linalg.norm((grid.points() - grid.points().mean(axis=(0, 1, 2))) / [50.0, 52.0, 50.0], axis=-1)
    rng = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=grid.shape), 2.5)
    values = np.where(distance < 1, 600 + 150 * texture / texture.std(), 5.0) + rng.normal(size=grid.shape)
    return Image(values.astype(np.float32), grid)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, seed in (("fixed", 1), ("same", 1), ("another", 2)):
        write_image(textured(seed), folder / f"{name}.mha")
    (folder / "points.txt").write_text("point\n3\n0 0 80\n10 -5 75\n900 0 0\n")
    return folder


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    return done.exit_code, done.output


def test_run_tells_the_verdict_and_writes_the_map(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    words = ("run", "-f", files / "fixed.mha", "-out", out, "-p", "rigid", "--strict")
    status, text = run(*words, "-m", files / "same.mha")
    record = json.loads((out / "registration.json").read_text())
    assert status == 0
    assert "verdict: good" in text
    assert record["verdict"] == {"word": "good", "reasons": []}
    found = read_error_map(out / "errorMap.0.mha")
    assert record["expected_error"]["mean_mm"] == pytest.approx(float(np.nanmean(found.expected)), abs=1e-3)
    status, text = run(*words, "-m", files / "another.mha")
    assert "verdict: good" not in text
    monkeypatch.setattr(verdict_module, "give_verdict", lambda *_: Verdict("failed", ("why",)))
    status, text = run(*words, "-m", files / "same.mha")
    assert status == 4
    assert "verdict: failed (why)" in text
    assert json.loads((out / "registration.json").read_text())["verdict"] == {"word": "failed", "reasons": ["why"]}
    assert (out / "result.0.mha").exists()
    assert run(*words[:-1], "-m", files / "same.mha")[0] == 0


SHIFT = np.array([12.0, -9.0, 6.0])


@pytest.mark.parametrize("flags", [(), ("--moving-to-fixed",)])
def test_mapped_points_carry_their_expected_error(files: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """It is that of the place in the fixed image, whichever way the points go."""
    same = textured(1)
    shifted = Image(same.array, replace(same.grid, origin=tuple(np.add(same.grid.origin, SHIFT))))
    register(same, shifted, stages="rigid").write(tmp_path / "run")
    transform = tmp_path / "run" / "TransformParameters.0.txt"
    grid = read_error_map(tmp_path / "run" / "errorMap.0.mha").grid
    expected = 5.0 + 0.03 * grid.points() @ [1.0, -2.0, 0.5]
    ErrorMap(np.stack([expected, 3 * expected], axis=-1).astype(np.float32), grid).write(
        tmp_path / "run" / "errorMap.0.mha"
    )
    status, text = run("transform", "-tp", transform, "-def", files / "points.txt", "-out", tmp_path / "out", *flags)
    assert status in (0, 3), text  # a point far outside may have no inverse
    assert "expected error of the points" in text
    with (tmp_path / "out" / "expectedErrors.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = np.array([[0, 0, 80], [10, -5, 75]], dtype=float)
    in_fixed = invert_points(read_chain(transform), points, grid)[0] if flags else points
    wanted = 5.0 + 0.03 * in_fixed @ [1.0, -2.0, 0.5]
    found = np.array([[float(row["expected_error_mm"]), float(row["radius_90_mm"])] for row in rows])
    np.testing.assert_allclose(found[:2], np.stack([wanted, 3 * wanted], axis=1), atol=0.03)
    assert np.isnan(found[2]).all()
