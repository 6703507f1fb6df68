"""Training on images that are no chest CT: another unit, no lungs, masks from a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.networks.model import load_model
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.training import loop, phase_blocks
from regnet_itk.training.blocks import BlockMaker
from regnet_itk.training.config import (
    AppearanceRecipe,
    FieldRecipe,
    Judge,
    PairRecipe,
    Phase,
    TrainingConfig,
    read_training_config,
)
from regnet_itk.training.log import TrainingLog
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Preparation, Source, load_source

GRID = Grid((30, 28, 26), (3.0, 3.0, 3.0))
MR = World("MR", "per mille", (0.0, 1000.0), 0.0, "all", "all", percentiles=(1.0, 99.0))


def magnetic(gain: float = 1.0) -> Image:
    """Texture without any negative value, and nothing that looks like a lung."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=GRID.shape), 1.5)
    return Image((gain * (500 + 150 * texture / texture.std())).clip(0).astype(np.float32), GRID)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("_VALIDATION_BLOCKS", "_CALIBRATION_STEPS", "_QUICK_CALIBRATION_STEPS"):
        monkeypatch.setattr(loop, name, 1)
    monkeypatch.setattr(phase_blocks, "_TEXTURE_SIZE", 32)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
    (tmp_path / "images").mkdir()
    write_image(magnetic(), tmp_path / "images" / "one.mha")
    write_image(magnetic(7.0), tmp_path / "images" / "two.nii.gz")
    return tmp_path / "images"


def recipe(world: World | None = MR, **changes: Any) -> TrainingConfig:
    values = {"texture_share": 0.5, "fields": FieldRecipe(sigma=(8.0, 12.0), theta=(2.0, 3.0))} | changes
    phase = Phase(steps=1, block_size=24, **values)
    return TrainingConfig("coarse_to_fine", ("one",), ("two",), world=world, phases=(phase,))


def trained(config: TrainingConfig, images: Path, folder: Path, **options: Any) -> Path:
    return loop.Trainer(config, images, folder, loop.TrainingOptions("cpu", **options)).run()


def test_images_without_lungs_are_trained_on(images: Path, tmp_path: Path) -> None:
    description = load_model(trained(recipe(), images, tmp_path / "run")).description
    assert description.world == MR
    assert description.accuracy["validation"]["inside the image"]["all"]["mean_displacement_mm"] > 0
    with pytest.raises(ImageError, match=r"one.mha': no lung was found|one.mha': no body"):
        trained(recipe(None), images, tmp_path / "chest")


def test_a_gain_of_the_scanner_changes_no_block(images: Path, tmp_path: Path) -> None:
    sources = [load_source(images / name, Preparation(MR), tmp_path / "cache") for name in ("one.mha", "two.nii.gz")]
    first, second = (
        BlockMaker([source], (16, 16, 16), 3.0, Random(1), MR).make(FieldRecipe(), AppearanceRecipe())
        for source in sources
    )
    torch.testing.assert_close(first.fixed, second.fixed, atol=2.0, rtol=0)
    assert float(first.fixed.std()) > 50


def test_beyond_the_image_lies_the_background() -> None:
    world = dataclasses.replace(MR, background=-300.0)
    everywhere = Image(np.ones(GRID.shape, dtype=np.uint8), GRID)
    source = Source.from_image(world.standardise(magnetic()), everywhere, Preparation(world))
    quiet = AppearanceRecipe(noise=(0.0, 0.0))
    block = BlockMaker([source], (64, 64, 64), 3.0, Random(1), world).make(FieldRecipe(theta=(0.0, 0.0)), quiet)
    corner = block.moving[0, 0, :2, :2, :2]
    torch.testing.assert_close(corner, torch.full_like(corner, -300.0))
    assert float(block.moving.max()) > 500


def test_masks_from_a_folder_say_where_training_looks(images: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    inside = np.zeros(GRID.shape, dtype=np.uint8)
    inside[10:16, 8:20, 10:20] = 5
    write_image(Image(inside, GRID), masks / "one.mha")
    how = Preparation(MR, masks=masks)
    source = load_source(images / "one.mha", how, tmp_path / "cache")
    assert int(source.region.sum()) == int((inside > 0).sum())
    inside[12:, :, :] = 0  # another mask: prepared anew
    write_image(Image(inside, GRID), masks / "one.mha")
    assert int(load_source(images / "one.mha", how, tmp_path / "cache").region.sum()) == int((inside > 0).sum())
    with pytest.raises(ImageError, match="there is no mask 'two' of the training image in"):
        trained(recipe(), images, tmp_path / "run", masks=masks)
    write_image(Image(np.zeros(GRID.shape, dtype=np.uint8), GRID), masks / "two.mha")
    with pytest.raises(ImageError, match=r"two.nii.gz': the mask .* is empty"):
        trained(recipe(), images, tmp_path / "run", masks=masks)


def test_labels_count_as_much_as_their_weights(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[8:18, 6:22, 6:15], labels[8:18, 6:22, 15:20], labels[8:18, 6:22, 20:24] = 1, 2, 3
    for name in ("one", "two"):
        write_image(Image(labels, GRID), masks / f"{name}.mha")
    how = Preparation(MR, masks=masks, label_weights=((2, 2.5), (3, 0.0), (9, 1.0)))
    source = load_source(images / "one.mha", how, tmp_path / "cache")
    plain = load_source(images / "one.mha", Preparation(MR, masks=masks), tmp_path / "cache")
    assert f"{masks / 'one.mha'}' has no label 9" in caplog.text
    assert sorted(np.unique(source.region).tolist()) == [0.0, 1.0, 2.5]
    assert plain.region.numpy().dtype == np.uint8
    assert int((source.region == 2.5).sum()) == int((labels == 2).sum())
    assert int((plain.region > 0).sum() - (source.region > 0).sum()) == int((labels == 3).sum())

    still, quiet = FieldRecipe(theta=(0.0, 0.0)), AppearanceRecipe(noise=(0.0, 0.0))
    weighed, unweighed = (
        BlockMaker([each], (24, 24, 24), 3.0, Random(3), MR).make(still, quiet).weight for each in (source, plain)
    )
    assert float(weighed.max()) == pytest.approx(2.5)
    assert float(unweighed.max()) == pytest.approx(1.0)
    whole = dataclasses.replace(recipe(pairs=PairRecipe(positions=20), texture_share=0.0), label_weights=((2, 2.5),))
    for number, config in enumerate((dataclasses.replace(recipe(), label_weights=((2, 2.5),)), whole)):
        trained(config, images, tmp_path / f"run{number}", masks=masks)
    with pytest.raises(ParameterError, match="give a folder of `masks`"):
        trained(config, images, tmp_path / "run3")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((0, 1.0),), "labels are whole numbers of 1 or more, not 0"),
        (((2, 1.0), (2, 3.0)), "label 2 has more than one weight"),
        (((2, -1.0),), "weight of label 2 must be 0, or a number from 0.001"),
        (((2, 1e-9),), "weight of label 2 must be 0, or a number from 0.001"),
        (((2, float("nan")),), "weight of label 2 must be 0, or a number from 0.001"),
    ],
)
def test_label_weights_that_mean_nothing_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        dataclasses.replace(recipe(), label_weights=weights)


def test_whole_pairs_of_another_world(images: Path, tmp_path: Path) -> None:
    config = recipe(pairs=PairRecipe(positions=20), texture_share=0.0)
    assert load_model(trained(config, images, tmp_path / "run")).description.capture_range == 8.0


def test_an_image_that_is_too_small_for_its_world(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="90 x 84 x 78 mm; it must measure at least 200 mm"):
        trained(recipe(dataclasses.replace(MR, smallest=200.0)), images, tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"appearance": AppearanceRecipe(density=0.1)}, "density"),
        ({"appearance": AppearanceRecipe(contrast_agent=50.0)}, "contrast_agent"),
        ({"appearance": AppearanceRecipe(nodules_share=0.5)}, "nodules_share"),
    ],
)
def test_what_knows_a_ct_s_tissues_is_refused_elsewhere(part: dict[str, Any], key: str) -> None:
    recipe(CHEST_CT, **part)
    with pytest.raises(ParameterError, match=f"'{key}' knows the tissues of a CT .* for MR in per mille above 0"):
        recipe(**part)
    with pytest.raises(ParameterError, match=f"'{key}' knows the tissues"):
        dataclasses.replace(recipe(), judged_by=Judge(**part))


def test_only_lungs_slide() -> None:
    fields = FieldRecipe(sliding=0.5, sliding_share=0.5)
    recipe(CHEST_CT, fields=fields)
    body = dataclasses.replace(CHEST_CT, trained_in="body")
    with pytest.raises(ParameterError, match=r"'sliding_share' lets the lungs slide .* training looks at the body"):
        recipe(body, fields=fields)
    with pytest.raises(ParameterError, match=r"'sliding_share' lets the lungs slide .* training looks at the image"):
        dataclasses.replace(recipe(), judged_by=Judge(fields))


def test_a_range_too_narrow_for_whole_numbers_is_refused() -> None:
    with pytest.raises(ParameterError, match="0 to 1 has too few"):
        recipe(dataclasses.replace(MR, intensity_range=(0.0, 1.0)))


TABLE = """
network = "coarse_to_fine"
[world]
images = "MR"
unit = "per mille"
intensity_range = [0.0, 1000.0]
background = 0.0
region = "all"
trained_in = "all"
percentiles = [1, 99]
[[phases]]
steps = 1
"""


def test_the_table_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mr.toml"
    path.write_text(TABLE)
    assert read_training_config(path).world == MR
    for old, new, words in (
        ('unit = "per mille"\n', "", "world: key 'unit' is missing"),
        ("background", "back_ground", "world: unknown key 'back_ground'; did you mean 'background'"),
        ('region = "all"', 'region = "lung"', "world: 'lung' is no region .* did you mean 'lungs'"),
        ("[1, 99]", "[1]", r"world: percentiles = \[1\] is not of the kind"),
    ):
        path.write_text(TABLE.replace(old, new, 1))
        with pytest.raises(ParameterError, match=words):
            read_training_config(path)
