"""The paper's own recipe: six pairs an image, positions balanced over the displacement, blocks cut from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from training_cases import write_chests

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.networks.architectures import ARCHITECTURES, find_architecture
from regnet_itk.networks.model import load_model
from regnet_itk.training import loop
from regnet_itk.training.config import (
    AppearanceRecipe,
    FieldRecipe,
    PairRecipe,
    Phase,
    TrainingConfig,
    find_recipe,
)
from regnet_itk.training.log import TrainingLog
from regnet_itk.training.loop import Trainer, TrainingOptions
from regnet_itk.training.pairs import PairBlocks, WholePair, load_pairs
from regnet_itk.training.paper_pairs import paper_pairs
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sampling import draw_balanced_positions
from regnet_itk.training.sources import Preparation

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (10, -15, 20), degrees=True).as_matrix()))


# Positions


def test_every_range_of_displacements_gives_equally_many_positions() -> None:
    rng = np.random.default_rng(0)
    magnitude = np.abs(rng.normal(0, 3, (40, 40, 40)))
    mask = rng.random((40, 40, 40)) < 0.7
    found = draw_balanced_positions(magnitude, mask, 400, rng)
    assert found.shape == (400, 3)
    assert len(np.unique(found, axis=0)) == 400
    z, y, x = found.T
    assert mask[z, y, x].all()
    assert np.bincount(np.digitize(magnitude[z, y, x], (1.5, 4.0, 8.0)), minlength=4).tolist() == [100] * 4


def test_a_rare_range_gives_all_it_has_and_the_others_make_up() -> None:
    magnitude = np.ones((20, 20, 20))
    magnitude[0, 0, :7] = 9.0
    magnitude[:, 10:] = 3.0
    mask = np.ones(magnitude.shape, dtype=bool)
    z, y, x = draw_balanced_positions(magnitude, mask, 1001, np.random.default_rng(0)).T
    counts = np.bincount(np.digitize(magnitude[z, y, x], (1.5, 4.0, 8.0)), minlength=4)
    assert counts.tolist() == [497, 497, 0, 7]
    everything = draw_balanced_positions(magnitude, mask, 10**6, np.random.default_rng(0))
    assert len(everything) == mask.sum()
    with pytest.raises(ImageError, match="the mask is empty"):
        draw_balanced_positions(magnitude, np.zeros_like(mask), 10, np.random.default_rng(0))


# The six pairs


def oblique_image() -> Image:
    grid = Grid((44, 40, 36), (3.0, 3.2, 3.5), (-20.0, 10.0, 30.0), TURNED)
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2.0)
    return Image((values / values.std() * 200).astype(np.float32), grid)


def test_an_image_gives_three_pairs_of_itself_and_three_of_a_deformed_version() -> None:
    image = oblique_image()
    mask = Image((image.array > 0).astype(np.uint8), image.grid)
    pairs = list(paper_pairs(image, np.random.default_rng(1), mask))
    assert [p.name for p in pairs] == ["low", "medium", "high", "deformed-low", "deformed-medium", "deformed-high"]
    for number, pair in enumerate(pairs):
        moved = np.abs(pair.moving.array - image.array).mean()
        assert moved < 8 if number < 3 else moved > 30  # HU: noise, or another image
        assert np.abs(pair.displacement.vectors @ np.array(TURNED)).max() == pytest.approx(8.0, rel=1e-4)
        where = pair.moving.grid.point_to_index(pair.fixed.grid.points() + pair.displacement.at(image.grid.points()))
        where = np.moveaxis(where[..., ::-1], -1, 0)
        inner = np.all([(w > 3) & (w < n - 4) for w, n in zip(where, image.grid.shape, strict=True)], axis=0)
        expected = ndimage.map_coordinates(pair.moving.array, where, order=1)
        assert np.abs(pair.fixed.array - expected)[inner].mean() < 0.2 * np.abs(expected)[inner].mean()
        assert pair.fixed_mask is not None
        agreement = (pair.fixed_mask.array > 0) == (pair.fixed.array > 0)
        assert agreement[inner].mean() > 0.9  # but for noise
    again = list(paper_pairs(image, np.random.default_rng(1), mask))
    assert all(np.array_equal(a.fixed.array, b.fixed.array) for a, b in zip(pairs, again, strict=True))


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chests(tmp_path_factory.mktemp("images"), "one.mha", "two.mha")


RECIPE = PairRecipe(positions=50, noise=0.0)


@pytest.fixture(scope="module")
def pairs(chest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[WholePair]:
    """The six pairs of one chest, on voxels of 4 mm."""
    return load_pairs(
        chest / "one.mha", RECIPE, Preparation(), tmp_path_factory.mktemp("pairs"), voxel_size=4.0, seed=5
    )


def test_a_block_is_a_piece_of_its_pair_with_the_displacement_at_the_fixed_voxel(pairs: list[WholePair]) -> None:
    assert len(pairs) == 6
    for pair in pairs:
        assert len(pair.positions) == 50
        z, y, x = pair.positions.T
        assert (pair.region.numpy()[z, y, x] > 0).all()
    maker = PairBlocks(pairs, (26, 26, 26), Random(0), RECIPE, -1000.0)
    better = 0
    for _ in range(12):
        block = maker.make(FieldRecipe(), AppearanceRecipe())
        u = block.displacement[0].numpy() / 4.0
        where = np.indices((26, 26, 26)) + u[::-1]
        inside = np.all([(w >= 1) & (w <= 24) for w in where], axis=0)
        fixed, moving = block.fixed[0, 0].numpy(), block.moving[0, 0].numpy()
        warped = ndimage.map_coordinates(moving, where, order=1)
        better += np.abs(warped - fixed)[inside].mean() < 0.7 * np.abs(moving - fixed)[inside].mean()
        assert float(block.weight[0, 0, 13, 13, 13]) == 1 or float(block.weight.mean()) > 0
    assert better >= 10  # flips and all


def test_noise_is_added_every_time_and_flips_can_be_left_out(pairs: list[WholePair]) -> None:
    pairs = [dataclasses.replace(pairs[0], positions=pairs[0].positions[:1])]
    plain = PairRecipe(positions=50, noise=0.0, flips=False)
    still, noisy, flipped = (
        [
            PairBlocks(pairs, (20, 20, 20), Random(seed), recipe, -1000.0).make(FieldRecipe(), AppearanceRecipe())
            for seed in (1, 2)
        ]
        for recipe in (plain, dataclasses.replace(plain, noise=20.0), dataclasses.replace(plain, flips=True))
    )
    assert torch.equal(still[0].fixed, still[1].fixed)
    for a, b in zip(still, noisy, strict=True):
        assert float((b.fixed - a.fixed).std()) == pytest.approx(20.0, rel=0.05)
    assert not torch.equal(flipped[0].fixed, flipped[1].fixed)
    assert torch.equal(flipped[0].fixed.ravel().sort().values, still[0].fixed.ravel().sort().values)


def test_pairs_are_made_once(chest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_pairs(chest / "one.mha", RECIPE, Preparation(), tmp_path, voxel_size=8.0, seed=5)
    with monkeypatch.context() as nothing_is_made:
        nothing_is_made.setattr("regnet_itk.training.pairs.paper_pairs", None)
        again = load_pairs(chest / "one.mha", RECIPE, Preparation(), tmp_path, voxel_size=8.0, seed=5)
    assert all(torch.equal(a.fixed, b.fixed) for a, b in zip(first, again, strict=True))
    for file in tmp_path.rglob("0-region.npy"):
        file.unlink()
    with pytest.raises(ImageError, match="are damaged; start again"):
        load_pairs(chest / "one.mha", RECIPE, Preparation(), tmp_path, voxel_size=8.0, seed=5)
    assert torch.equal(
        load_pairs(chest / "one.mha", RECIPE, Preparation(), tmp_path, voxel_size=8.0, seed=5)[0].region,
        first[0].region,
    )


# Training with them


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    (phase,) = find_recipe("regnet_2017").phases
    assert (phase.epochs, phase.decay, phase.learning_rate) == (15, 1.25, (1e-3, 1e-3))
    assert phase.pairs == PairRecipe(positions=2100, noise=5.0, flips=True)


def test_epochs_are_counted_in_positions_and_the_rate_falls_after_each(
    chest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_to_prepare = dataclasses.replace(find_architecture("regnet"), voxel_size=8.0)
    monkeypatch.setitem(ARCHITECTURES, "regnet", quick_to_prepare)
    for name in ("_VALIDATION_BLOCKS", "_CALIBRATION_STEPS", "_QUICK_CALIBRATION_STEPS"):
        monkeypatch.setattr(loop, name, 1)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
    phase = Phase(epochs=2, decay=1.25, blocks=2, block_size=2, pairs=PairRecipe(positions=5))
    config = TrainingConfig("regnet", ("one",), ("two",), phases=(phase,), validate_every=1, checkpoint_every=10)
    trainer = Trainer(config, chest, tmp_path, TrainingOptions("cpu"))
    model = load_model(trainer.run())
    assert model.description.training["steps"] == 4  # 6 pairs x 5 positions in 2 blocks of 8 outputs: 2 an epoch
    assert model.description.capture_range == 8.0
    rates = [row.learning_rate for row in trainer.log.rows()]
    assert rates == pytest.approx([1e-3, 1e-3, 8e-4, 8e-4], rel=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "either 'steps' or 'epochs'"),
        ({"steps": 5, "epochs": 2, "pairs": PairRecipe()}, "either 'steps' or 'epochs'"),
        ({"epochs": 2}, "needs a table 'pairs'"),
        ({"steps": 5, "decay": 1.25}, "the phase has no 'epochs'"),
        ({"steps": 5, "pairs": PairRecipe(), "texture_share": 0.5}, "not both"),
    ],
)
def test_contradictions_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        Phase(**values)
