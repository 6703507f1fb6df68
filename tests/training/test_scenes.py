"""Random scenes: the displacement is the truth, judged by SimpleITK; contrasts, views and scenes as the recipe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command import call

from regnet_itk.errors import ParameterError
from regnet_itk.networks.model import load_model
from regnet_itk.networks.world import World
from regnet_itk.training import loop
from regnet_itk.training.blocks import Block
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe, Phase, SceneRecipe, TrainingConfig
from regnet_itk.training.log import TrainingLog
from regnet_itk.training.loop import Trainer, TrainingOptions
from regnet_itk.training.phase_blocks import PhaseBlocks
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.scenes import SceneBlocks, make_scene

ANY = World("images of any kind", "per mille", (0.0, 1000.0), 0.0, "all", "all", percentiles=(1.0, 99.0))
PLAIN = SceneRecipe(size=56, noise=0.0, bias=0.0, lesions_share=0.0, cut_share=0.0, same=1.0, monotone=0.0, partly=0.0)
FIELDS = FieldRecipe(sigma=(12.0, 20.0), theta=(3.0, 5.0))
SHAPE = (32, 30, 28)


def blocks(recipe: SceneRecipe, count: int = 1, seed: int = 1) -> list[Block]:
    maker = SceneBlocks(recipe, SHAPE, 2.0, Random(seed), world=ANY, seed=seed)
    return [maker.make(FIELDS, AppearanceRecipe()) for _ in range(count)]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_moving_image_under_the_truth_is_the_fixed_image(seed: int) -> None:
    (block,) = blocks(PLAIN, seed=seed)
    moving = sitk.GetImageFromArray(block.moving[0, 0].numpy())
    moving.SetSpacing((2.0, 2.0, 2.0))
    field = sitk.GetImageFromArray(block.displacement[0].movedim(0, -1).double().numpy(), isVector=True)
    field.SetSpacing((2.0, 2.0, 2.0))
    warped = sitk.Resample(moving, moving, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, float("nan"))
    found = torch.from_numpy(sitk.GetArrayFromImage(warped))
    there = torch.isfinite(found)
    assert there.float().mean() > 0.6
    fixed, unregistered = block.fixed[0, 0][there], block.moving[0, 0][there]
    assert correlation(found[there], fixed) > 0.93
    assert 1 - correlation(found[there], fixed) < 0.35 * (1 - correlation(unregistered, fixed))


def test_contrasts_are_related_as_the_recipe_says() -> None:
    """With the truth undone, brightness agrees, or says nothing of the other image's."""

    def related(recipe: SceneRecipe) -> list[float]:
        still = replace(FIELDS, theta=(0.0, 0.0))
        maker = SceneBlocks(recipe, SHAPE, 2.0, Random(5), world=ANY, seed=5)
        made = [maker.make(still, AppearanceRecipe()) for _ in range(6)]
        return [correlation(block.fixed, block.moving) for block in made]

    assert min(related(PLAIN)) > 0.98
    independent = related(replace(PLAIN, same=0.0, air_share=0.0))
    assert max(independent) < 0.9
    assert min(independent) < 0.2
    monotone = related(replace(PLAIN, same=0.0, monotone=1.0))
    assert 0.5 < min(monotone) < 0.98


def test_values_fill_the_world_s_range_and_air_has_no_weight() -> None:
    for block in blocks(replace(PLAIN, air_share=1.0, body_radius=(20.0, 28.0)), count=3):
        inside = block.weight > 0.5
        assert 0 < inside.float().mean() < 1
        low, high = torch.quantile(block.fixed[inside], torch.tensor([0.01, 0.99])).tolist()
        assert (low, high) == pytest.approx((ANY.intensity_range), abs=40)
        assert block.fixed.isfinite().all()
        assert block.moving.isfinite().all()


def test_a_cut_view_ends_in_background() -> None:
    cut = [b.fixed for b in blocks(replace(PLAIN, cut_share=1.0, air_share=0.0), count=3)]
    for image in cut:
        planes = [image[0, 0].movedim(axis, 0)[end] for axis in range(3) for end in (0, -1)]
        assert sum(bool((plane == ANY.background).all()) for plane in planes) == 1


def test_every_structure_can_be_had() -> None:
    """Each kind of structure adds labels, and a scene without any has its tissues only."""
    none = replace(PLAIN, organs_share=0, walls_share=0, tubes_share=0, trees_share=0, air_share=0, tissues=(5, 5))
    plain = make_scene(none, 2.0, Random(3))
    assert plain.labels.unique().tolist() == [1, 2, 3, 4, 5]
    for name in ("organs_share", "walls_share", "tubes_share", "trees_share"):
        more = make_scene(replace(none, **{name: 1.0}), 2.0, Random(3))
        assert more.count > plain.count
        assert (more.labels >= plain.count).any()
    with_air = make_scene(replace(none, air_share=1.0), 2.0, Random(3))
    assert with_air.has_air
    assert (with_air.labels == 0).any()


def test_an_interrupted_run_goes_on_with_the_same_scenes() -> None:
    phase = Phase(steps=20, block_size=32, scenes=replace(PLAIN, size=40), fields=FIELDS)

    def of_steps(steps: range) -> list[torch.Tensor]:
        made = PhaseBlocks(phase, Prepared([], [], ANY), SHAPE, 2.0, random=Random(9), seed=4)
        found = []
        for step in steps:
            made.random.restore(Random(100 + step).state())  # as a checkpoint of that step has them
            found.append(made.of_step(step)[0].fixed)
        return found

    torch.testing.assert_close(of_steps(range(4, 8)), of_steps(range(8))[4:])


def test_a_network_is_trained_on_scenes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_VALIDATION_BLOCKS", 1)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
    (tmp_path / "scenes.toml").write_text(
        """
        network = "general"
        [world]
        images = "images of any kind"
        unit = "per mille"
        intensity_range = [0, 1000]
        background = 0
        region = "foreground"
        trained_in = "all"
        percentiles = [1, 99]
        voxel_sizes = [1, 4]
        [[phases]]
        steps = 1
        block_size = 24
        left_out = 1
        scenes = { size = 32 }
        [[phases]]
        steps = 1
        block_size = 24
        recurrence = 1.0
        scenes = { size = 32 }
        """
    )
    run = tmp_path / "run"
    assert call("train", "-c", tmp_path / "scenes.toml", "-out", run) == 0
    model = load_model(run / "general.safetensors")
    assert model.description.accuracy["validation"]["images"] == "random scenes"
    assert model.description.world.voxel_sizes == (1.0, 4.0)


def test_other_trainings_need_images(tmp_path: Path) -> None:
    config = TrainingConfig("coarse_to_fine", phases=(Phase(steps=1, block_size=24),))
    with pytest.raises(ParameterError, match="needs images"):
        Trainer(config, None, tmp_path / "run", TrainingOptions("cpu"))
    mixed = TrainingConfig("coarse_to_fine", phases=(Phase(steps=1, block_size=24, scenes=SceneRecipe(share=0.5)),))
    with pytest.raises(ParameterError, match="needs images"):
        Trainer(mixed, None, tmp_path / "run", TrainingOptions("cpu"))


@pytest.mark.parametrize("changes", [{"same": 0.8, "monotone": 0.3}, {"share": 0.0}, {"share": 1.5}])
def test_shares_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match="share"):
        SceneRecipe(**changes)
