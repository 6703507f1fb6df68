"""A model's world: what it says of values, what travels in a model's file, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from regnet_itk.anatomy.regions import REGION_FINDERS
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ModelError, ParameterError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.model import ModelDescription, load_model, read_model_header, save_model, shipped_models
from regnet_itk.networks.world import CHEST_CT, World

MR = World("MR of knees", "per mille", (0.0, 1000.0), 0.0, "all", "all", percentiles=(1.0, 99.0))


def scan(gain: float, offset: float = 0.0) -> Image:
    values = np.random.default_rng(0).uniform(0.0, 1.0, (10, 11, 12))
    return Image((gain * values + offset).astype(np.float32), Grid((12, 11, 10), (1.0, 2.0, 3.0)))


def test_percentiles_take_the_scanner_s_gain_away() -> None:
    first, second = MR.standardise(scan(3.0)), MR.standardise(scan(500.0, offset=70.0))
    np.testing.assert_allclose(first.array, second.array, atol=0.05)
    assert np.percentile(first.array, [1, 99]) == pytest.approx([0.0, 1000.0], abs=0.01)
    assert first.grid == scan(3.0).grid


def test_the_background_in_the_image_s_own_values_becomes_the_background() -> None:
    image = scan(500.0, offset=70.0)
    at = MR.background_of(image)
    darker = Image(np.append(image.array.ravel(), at).astype(np.float32).reshape(1, 1, -1), Grid((1321, 1, 1)))
    factor = 1000.0 / np.subtract(*np.percentile(image.array, [99, 1]))
    assert (darker.array.ravel()[-1] - np.percentile(image.array, 1)) * factor == pytest.approx(MR.background, abs=0.01)
    assert CHEST_CT.background_of(image) == -1000.0


def test_values_with_a_unit_stay_as_they_are() -> None:
    image = scan(1.0)
    assert CHEST_CT.standardise(image) is image


def test_an_image_of_one_value_cannot_be_scaled() -> None:
    with pytest.raises(ParameterError, match=r"values are alike .* cannot be scaled to per mille"):
        MR.standardise(scan(0.0, 5.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"intensity_range": (5.0, 5.0)}, "an empty intensity range: 5 to 5"),
        ({"percentiles": (90.0, 10.0)}, "two rising numbers from 0 to 100, not 90 to 10"),
        ({"long_axis": 3}, "0, 1 or 2 for x, y or z, not 3"),
        ({"region": "lung"}, "'lung' is no region that can be found in an image; did you mean 'lungs'"),
        ({"trained_in": "heart"}, "known are lungs, body, foreground, all"),
        ({"improved_in": "heart"}, "'heart' is no region"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        replace(CHEST_CT, **change)
    assert "\n" not in str(caught.value)


def test_the_world_travels_in_the_model_s_file(tmp_path: Path) -> None:
    path = tmp_path / "knees.safetensors"
    description = ModelDescription("knees", "coarse_to_fine", 4.0, MR, 8.0, {"seed": 1}, {"validation": {"mm": 1.5}})
    save_model(find_architecture("coarse_to_fine").make(4.0), description, path)
    assert load_model(path).description == read_model_header(path)[0] == description


@pytest.mark.parametrize("name", [name for name in shipped_models() if name != "regnet_general"])
def test_models_from_before_the_worlds_are_of_chest_ct(name: str) -> None:
    description, _ = read_model_header(shipped_models()[name])
    region = "body" if name == "regnet_multistage" else "lungs"
    assert description.world == replace(CHEST_CT, region=region)


def test_an_old_description_is_read_and_a_new_one_is_flat() -> None:
    old = {
        "name": "old", "architecture": "regnet", "voxel_size": 1, "intensity_range": [-900, 300], "capture_range": 8,
        "training": {}, "accuracy": {},
    }  # fmt: skip
    read = ModelDescription.from_dict(old)
    assert read.world == replace(CHEST_CT, intensity_range=(-900.0, 300.0))
    flat = read.to_dict()
    assert list(flat)[:8] == [*old, "region"]
    assert set(flat) == {*old, *asdict(CHEST_CT)}
    assert ModelDescription.from_dict(json.loads(json.dumps(flat))) == read


def test_a_region_that_nobody_can_find_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "knees.safetensors"
    with monkeypatch.context() as patched:
        patched.setitem(REGION_FINDERS, "knee", print)
        world = replace(MR, region="knee")
        description = ModelDescription("knees", "coarse_to_fine", 4.0, world, 8.0)
        save_model(find_architecture("coarse_to_fine").make(4.0), description, path)
    with pytest.raises(ModelError, match=r"knees.safetensors' has a description .*'knee' is no region"):
        read_model_header(path)
