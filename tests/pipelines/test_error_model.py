"""The pipelines of the error model: samples are true, and what is learnt from them is calibrated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from training_cases import load_pipeline

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.training.config import find_recipe
from regnet_itk.training.prepared import Prepared
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.itk_files import chain_from_sitk
from regnet_itk.trust.clues import NAMES
from regnet_itk.trust.error_model import ErrorNetwork, load_error_model

error_samples = load_pipeline("error_samples")
train_error_model = load_pipeline("train_error_model")


@pytest.fixture(scope="module")
def scene_pair() -> error_samples.KnownPair:
    recipe = find_recipe("regnet_general")
    prepared = Prepared([], [], CHEST_CT, recipe.phases[-1].scenes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(error_samples, "_BLOCK", (48, 48, 48))
        return next(error_samples.block_pairs(prepared, recipe, "scenes", range(3, 4)))


def test_errors_of_samples_are_those_of_simpleitk(scene_pair: error_samples.KnownPair) -> None:
    rng = np.random.default_rng(0)
    for tried in error_samples.made_errors(scene_pair, rng, 4):
        chain = tried.chain
        found = error_samples.sample(scene_pair, tried, np.random.default_rng(1), points=40)
        clues = error_samples.find_clues(scene_pair.fixed, scene_pair.moving, chain, scene_pair.region)
        there = np.argwhere(clues.known)
        chosen = there[np.random.default_rng(1).choice(len(there), len(found.errors), replace=False)]
        points = [tuple(clues.grid.index_to_point(index[::-1].astype(float))) for index in chosen]
        truth, transform = scene_pair.truth.to_sitk_transform(), chain.to_sitk(scene_pair.fixed.grid)
        wanted = [
            np.linalg.norm(np.subtract(transform.TransformPoint(p), truth.TransformPoint(p))) / clues.voxel_size
            for p in points
        ]
        np.testing.assert_allclose(found.errors, wanted, atol=2e-3, err_msg=tried.name)
        assert np.isnan(found.residuals).all()  # there is no way back


def test_errors_grow_with_their_factor(scene_pair: error_samples.KnownPair) -> None:
    off = np.zeros((*scene_pair.fixed.grid.shape, 3), np.float32)
    off[..., 0] = 2.0
    wrong = error_samples.field_chain(DisplacementField(scene_pair.truth.vectors + off, scene_pair.fixed.grid))
    means = {}
    for tried in error_samples.with_scaled_errors(scene_pair, iter([error_samples.Tried("found", wrong)])):
        samples = error_samples.sample(scene_pair, tried, np.random.default_rng(0), points=200)
        means[tried.name] = float(np.median(samples.errors)) * samples.voxel_size
    assert means["found"] == pytest.approx(2.0, abs=0.01)
    assert means["found x 0.5"] == pytest.approx(1.0, abs=0.15)
    assert means["found x 2"] == pytest.approx(4.0, abs=0.15)


def test_the_way_back_tells_how_far_off_it_ends(scene_pair: error_samples.KnownPair) -> None:
    there = sitk.AffineTransform([1.1, 0.1, 0.0, -0.05, 0.9, 0.0, 0.0, 0.05, 1.0], (3.0, -4.0, 5.0))
    off = sitk.CompositeTransform([sitk.TranslationTransform(3, (1.0, 2.0, -2.0)), there.GetInverse()])
    tried = error_samples.Tried("both", chain_from_sitk(there), chain_from_sitk(off))
    found = error_samples.sample(scene_pair, tried, np.random.default_rng(0), points=50)
    np.testing.assert_allclose(found.residuals * found.voxel_size, 3.0, atol=1e-4)


def made_samples(folder: Path, pairs: int, seed: int) -> None:
    """Clues of which one tells the size of the error, whose spread is known."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(pairs):
        values = rng.normal(size=(800, len(NAMES))).astype(np.float32)
        size = np.exp(values[:, 0])
        errors = (size * rng.gamma(2.0, 0.5, 800)).astype(np.float32)
        np.savez_compressed(
            folder / f"p{number}.npz", names=np.repeat(["found", "waves-1"], 400), values=values, errors=errors,
            columns=np.array(NAMES), voxel_sizes=np.full(800, 2.0, np.float32), kind="made",
            residuals=np.full(800, np.nan, np.float32), patient=f"patient {number // 2}",
        )  # fmt: skip


def test_what_is_learnt_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, pairs, seed in (("train", 12, 0), ("val", 4, 1), ("test", 6, 2)):
        made_samples(tmp_path / "samples" / name, pairs, seed)
    out = tmp_path / "model.safetensors"
    words = ["train_error_model", tmp_path / "samples", "--out", out, "--epochs", "60"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    train_error_model.main()
    printed = capsys.readouterr().out
    assert "coverage" in printed
    model = load_error_model(out)
    table = train_error_model.read_samples(tmp_path / "samples" / "test")
    found = model.predict_points(table.values)
    assert np.corrcoef(np.log(found[:, 0]), table.values[:, 0])[0, 1] > 0.95
    assert float((table.errors <= found[:, 1]).mean()) == pytest.approx(0.9, abs=0.03)
    assert found[:, 0].mean() == pytest.approx(table.errors.mean(), rel=0.15)
    small = table.values[:, 0] < -0.5  # the radius holds where errors are small, and where they are large
    for part in (small, ~small):
        assert float((table.errors <= found[:, 1])[part].mean()) == pytest.approx(0.9, abs=0.05)
    assert model.card.accuracy["judged"][0]["group"] == "all"


def test_the_expected_error_is_the_mean_of_what_chains_left(tmp_path: Path) -> None:
    made_samples(tmp_path / "train", 8, 0)
    table = train_error_model.read_samples(tmp_path / "train")
    found = table.names == "found"
    table.errors[~found] *= 0.01
    size = np.exp(table.values[:, 0])
    told = np.stack([size**1.5 / 3, 0.1 * size], axis=1)  # wrong in another way wherever errors are of another size
    expected, radius = train_error_model.calibrate(table, told).calibrate(told)[found].T
    errors, size = table.errors[found], size[found]
    for low, high in ((0.0, 0.4), (0.4, 0.8), (0.8, 1.2), (1.2, 2.5), (2.5, 99.0)):
        part = (size >= low) & (size < high)
        assert expected[part].mean() == pytest.approx(errors[part].mean(), rel=0.1)
    assert (radius >= expected).all()
    order = np.argsort(told[found, 0])
    assert (np.diff(expected[order]) >= 0).all()


def test_a_patient_is_told_of_by_networks_that_did_not_see_him(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_samples(tmp_path / "train", 12, 0)
    table = train_error_model.read_samples(tmp_path / "train")
    seen = []

    def fit(part: train_error_model.Table, **_: int) -> ErrorNetwork:
        seen.append(set(part.patients))
        return ErrorNetwork()

    monkeypatch.setattr(train_error_model, "fit", fit)
    told = train_error_model.tell_unseen(table, 1)
    assert np.isfinite(told).all()
    everybody = set(table.patients)
    assert len(everybody) == 6
    left_out = [everybody - of_fold for of_fold in seen]
    assert all(left_out)
    assert set.union(*left_out) == everybody
    assert sum(map(len, left_out)) == len(everybody)


def test_a_rigid_error_is_as_large_as_asked() -> None:
    points = Grid((20, 20, 20), (5.0, 5.0, 5.0)).points()
    lengths = [
        np.linalg.norm(error_samples._rigid(points, 6.0, np.random.default_rng(k)), axis=-1).mean() for k in range(30)
    ]
    assert 2.0 < np.median(lengths) < 10.0
    assert TransformChain().map_points(points[0, 0]).shape == (20, 3)


def test_kinds_of_pairs_count_alike_however_many_there_are() -> None:
    kinds = np.array(["ct"] * 40 + ["scenes"] * 400)
    names = np.array((["general"] * 3 + ["waves-1"]) * 110)  # a chain's result three times, a made error once
    rows = np.zeros(len(kinds))
    table = train_error_model.Table(rows, rows, rows, rows, kinds, names, rows, rows)
    learnt, found = train_error_model.weigh(table), train_error_model.weigh_found(table)
    made = names == "waves-1"
    for kind in ("ct", "scenes"):
        of = kinds == kind
        assert learnt[of & made].sum() == pytest.approx(learnt.sum() / 4)
        assert learnt[of & ~made].sum() == pytest.approx(learnt.sum() / 4)
        assert found[of].sum() == pytest.approx(found.sum() / 2)
    assert not found[made].any()
