"""pipelines/evaluate_models.py, error_by_length.py: models measured on images and blocks, against sums in numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_cases import load_pipeline, write_chests

from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.model import ModelDescription, load_model, save_model
from regnet_itk.networks.regnet import RegNet
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.training.blocks import BlockMaker
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Preparation, load_source

evaluate_models = load_pipeline("evaluate_models")
error_by_length = load_pipeline("error_by_length")
VOXEL = 6.0
RECIPE = """
network = "regnet"
judged_by = { fields = { sigma = [15.0, 20.0], theta = [3.0, 5.0] }, appearance = { noise = [0.0, 0.0] } }
[[phases]]
steps = 1
"""
JUDGE = FieldRecipe(sigma=(15.0, 20.0), theta=(3.0, 5.0)), AppearanceRecipe(noise=(0.0, 0.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe, and models that say the same everywhere: how wrong they are is known."""
    folder = write_chests(tmp_path_factory.mktemp("evaluation"), "one.mha")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    for name, architecture in (("regnet", "regnet"), ("again", "regnet"), ("coarse", "coarse_to_fine")):
        network = find_architecture(architecture).make(VOXEL)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
        if isinstance(network, RegNet) and name == "regnet":
            network.displacement.bias.data[:] = torch.tensor([1.0, 2.0, 3.0])
        save_model(network, ModelDescription(name, architecture, VOXEL, CHEST_CT, 8.0), folder / f"{name}.model")
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_models, "BLOCK_OUTPUTS", 2)
    monkeypatch.setattr(evaluate_models, "BLOCK_VOXELS", 16)


def expected(folder: Path, cache: Path, edge: int, at: slice, said: tuple[float, float, float]) -> list[float]:
    """The means over the same blocks: |error|, |x|, |y|, |z|, |u|."""
    maker = BlockMaker([load_source(folder / "one.mha", Preparation(), cache)], (edge,) * 3, VOXEL, Random(7))
    rows, weights = [], []
    for _ in range(3):
        block = maker.make(*JUDGE)
        u = np.moveaxis(block.displacement[0].numpy()[:, at, at, at].astype(float), 0, -1).reshape(-1, 3)
        error = said - u
        length = np.linalg.norm(error, axis=1), np.linalg.norm(u, axis=1)
        rows.append(np.column_stack([length[0], np.abs(error), length[1]]))
        weights.append(block.weight[0, 0, at, at, at].numpy().ravel())
    found: list[float] = np.average(np.concatenate(rows), axis=0, weights=np.concatenate(weights)).tolist()
    return found


def test_errors_on_blocks_are_the_means_in_the_lungs(folder: Path, tmp_path: Path) -> None:
    models = [str(folder / f"{name}.model") for name in ("regnet", "again", "coarse")]
    images, recipe = [folder / "one.mha"], str(folder / "recipe.toml")
    found = dict(evaluate_models.measure_blocks(models, images, recipe, 3, 7))
    outputs = slice(27, 31, 2)
    for model, edge, at, said in zip(
        models, (56, 56, 16), (outputs, outputs, slice(None)), ((1.0, 2.0, 3.0), (0.0,) * 3, (0.0,) * 3), strict=True
    ):
        measured = [found[model].error, *found[model].per_axis, found[model].displacement]
        assert measured == pytest.approx(expected(folder, tmp_path, edge, at, said), rel=1e-4, abs=0.02)  # bfloat16
    assert found[models[0]].displacement == found[models[1]].displacement > 0.5  # the same blocks for both
    (_, other), *_ = evaluate_models.measure_blocks(models[:1], images, recipe, 3, 8)
    assert other.displacement != found[models[0]].displacement


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate_models.py", *map(str, arguments), "--images", str(folder)])
    evaluate_models.main()


def test_whole_images_are_told_and_recorded_along_each_axis(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = evaluate_models.fields
    monkeypatch.setattr(
        evaluate_models, "fields", lambda *a: {n: u for n, u in every(*a).items() if n in ("low", "breathing +20")}
    )
    model = folder / "coarse.model"
    call(monkeypatch, folder, model, "--names", "one", "--record", "test", "--recipe", folder / "recipe.toml",
         "--blocks", "1")  # fmt: skip
    printed = capsys.readouterr().out
    group = load_model(model).description.accuracy["test"]
    assert group["images"] == ["one"]
    assert list(group["inside the lungs"]) == ["theta 8 mm", "breathing to 20 mm", "all"]
    for name, found in group["inside the lungs"].items():
        axes = found["mean_absolute_mm"]
        assert found["mean_error_mm"] == pytest.approx(found["mean_displacement_mm"], abs=0.01)  # it says nothing
        assert np.linalg.norm(axes) <= found["mean_error_mm"] + 0.01 <= sum(axes) + 0.02
        words = f"mean error {found['mean_error_mm']:.2f} mm = 100.0%, along x {axes[0]:.2f}, y {axes[1]:.2f}"
        assert words in printed.partition(f"\n{name}: ")[2].splitlines()[1]
    breathing = group["inside the lungs"]["breathing to 20 mm"]["mean_absolute_mm"]
    assert breathing[2] > 2 * max(breathing[:2])
    assert "1 blocks made by" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "regnet_2017"), "cuts blocks from whole pairs"),
        (("--recipe", "regnet_multi"), "did you mean 'regnet_multistage'"),
        (("--names", "two"), "'two' is not in"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    arguments: tuple[str, ...], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_models, "measure", None)
    with pytest.raises(SystemExit, match=words):
        call(monkeypatch, folder, "regnet", "--names", "one", *arguments)


def test_errors_by_length_and_slopes_are_those_of_a_known_prediction() -> None:
    true = np.random.default_rng(0).uniform(-4, 4, (4000, 3))
    found = error_by_length.Found(true, true * [0.5, 1.0, 0.0] + [0.0, 0.0, 1.0])
    np.testing.assert_allclose(found.slopes(), [0.5, 1.0, 0.0], atol=1e-9)
    length = np.linalg.norm(true, axis=1)
    off = np.hypot(0.5 * true[:, 0], 1.0 - true[:, 2])
    errors = found.errors()
    assert errors[1] == pytest.approx(off[(length >= 2) & (length < 4)].mean())
    assert errors[4] is None
    assert "| `m` | kind |" in error_by_length.table({("m", "kind"): found})[2]


def test_a_model_that_finds_nothing_is_off_by_all_of_the_displacement(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_by_length, "BLOCK_OUTPUTS", 2)
    paths = [folder / "one.mha"]
    parts = error_by_length.on_blocks(str(folder / "again.model"), paths, str(folder / "recipe.toml"), 3, 7)
    found = error_by_length.join([part for _, part in parts])
    assert (found.predicted == 0).all()
    assert 0.5 < np.linalg.norm(found.true, axis=1).mean() < 8.0
    assert found.slopes() == [0.0, 0.0, 0.0]
