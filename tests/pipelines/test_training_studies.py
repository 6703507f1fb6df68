"""pipelines/training_studies.py: variants differ in what their names say, and a study that stops goes on."""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from torch import nn
from training_cases import load_pipeline, write_chests

from regnet_itk.errors import ParameterError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.model import ModelDescription, load_model, save_model
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.training import loop
from regnet_itk.training.config import FieldRecipe, Judge, Phase, TrainingConfig, find_recipe
from regnet_itk.training.log import TrainingLog
from regnet_itk.training.loop import Trainer, TrainingOptions

load_pipeline("evaluate_models")  # which the studies import
load_pipeline("error_by_length")
training_studies = load_pipeline("training_studies")


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """Every value of a configuration, by its path."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        value = dict(enumerate(value))
    else:
        return {where: value}
    return {path: leaf for key, part in value.items() for path, leaf in flat(part, f"{where}.{key}").items()}


def differences(variant: TrainingConfig, complete: TrainingConfig) -> set[str]:
    first, second = flat(variant), flat(complete)
    assert first.keys() == second.keys()
    return {path.removeprefix(".") for path in first if first[path] != second[path]}


# Variants


def test_designs_differ_in_the_network() -> None:
    variants = training_studies.make_variants("designs", None, 1.0)
    assert [v.network for v in variants.values()] == ["regnet", "regnet_early", "regnet_1scale"]
    for variant in variants.values():
        assert differences(variant, variants["RegNet"]) <= {"network"}


def test_curricula_differ_in_the_part_that_is_left_out() -> None:
    variants = training_studies.make_variants("curriculum", None, 1.0)
    complete = variants["complete"]
    last = complete.phases[-1]
    found = {name: differences(variant, complete) for name, variant in variants.items()}
    assert found["complete"] == set()
    assert found["without texture"] == {f"phases.{n}.texture_share" for n in range(3)}
    assert found["without auxiliary outputs"] == {"auxiliary_outputs"}
    assert found["without frozen statistics"] == {"phases.2.frozen_statistics"}
    assert all(path.split(".")[:3] in (["phases", n, "fields"] for n in "01") for path in found["without short waves"])
    assert {phase.fields for phase in variants["without short waves"].phases} == {last.fields}
    assert not any(phase.texture_share for phase in variants["without texture"].phases)
    only = variants["last phase only"]
    assert [phase.steps for phase in only.phases] == [phase.steps for phase in complete.phases]
    as_the_last = dataclasses.replace(last, frozen_statistics=False)
    assert {dataclasses.replace(phase, steps=last.steps) for phase in only.phases} == {as_the_last}
    assert {path.split(".")[0] for path in found["last phase only"]} == {"phases"}


def test_realistic_recipes_differ_in_the_part_that_is_left_out() -> None:
    variants = training_studies.make_variants("realism", None, 1.0)
    complete = variants["complete"]
    (phase,) = complete.phases
    assert phase == find_recipe("regnet_multistage").phases[-1]
    parts = {
        "breathing": "fields: breathing breathing_share",
        "sliding": "fields: sliding sliding_share",
        "density": "appearance: density mass_conservation",
        "noise and kernel": "appearance: noise noise_correlation blur sharpening",
        "slices": "appearance: slice_thickness",
        "contrast agent": "appearance: contrast contrast_agent",
        "affine rest": "fields: translation linear",
        "small fields": "fields: small_share smallest",
        "recurrence": ": recurrence",
    }
    assert list(variants) == ["complete", "complete, other random numbers", *(f"without {part}" for part in parts)]
    assert differences(variants["complete, other random numbers"], complete) == {"seed"}
    plain = flat(dataclasses.replace(complete, phases=(Phase(steps=1),)))
    everything = set()
    for part, words in parts.items():
        table, names = words.split(":")
        wanted = {".".join(filter(None, ("phases.0", table, name))) for name in names.split()}
        variant = variants[f"without {part}"]
        assert differences(variant, complete) == wanted
        assert all(flat(variant)[f".{path}"] == plain[f".{path}"] for path in wanted)
        everything |= wanted
    waves = {f"phases.0.fields.{name}" for name in ("sigma", "theta", "strain", "terms")}
    setting = {"phases.0.steps", "phases.0.blocks", "phases.0.block_size", "phases.0.learning_rate"}
    assert (
        differences(complete, dataclasses.replace(complete, phases=(Phase(steps=1),))) == everything | waves | setting
    )


def test_parts_of_the_scenes_are_left_out_one_at_a_time() -> None:
    variants = training_studies.make_variants("scenes", None, 1.0)
    complete = variants["complete"]
    changed = {name: differences(variant, complete) for name, variant in variants.items() if variant is not complete}
    of_scenes = {
        "the same contrast": "same", "related contrasts": "monotone partly",
        "independent contrasts": "same monotone partly",
        "tubes and trees": "tubes_share trees_share", "walls": "walls_share", "organs": "organs_share",
        "textures": "texture",
    }  # fmt: skip
    assert changed.pop("complete, other random numbers") == {"seed"}
    assert changed == {
        f"without {part}": {f"phases.0.scenes.{name}" for name in names.split()} for part, names in of_scenes.items()
    }
    one = variants["without independent contrasts"].phases[0].scenes
    assert one.same + one.monotone + one.partly == pytest.approx(1.0)


def test_thetas_and_patches_differ_one_at_a_time() -> None:
    variants = training_studies.make_variants("sensitivity", None, 1.0)
    paper = variants["theta 8 mm"]
    assert paper.phases[0].fields.theta == (1.0, 8.0)
    assert paper.phases[0].fields.breathing_share == 0.0
    changed = {name: differences(variant, paper) for name, variant in variants.items() if variant is not paper}
    assert changed == {
        "theta 4 mm": {"phases.0.fields.theta"}, "theta 16 mm": {"phases.0.fields.theta"},
        "patch 22 mm": {"voxel_size"}, "patch 44 mm": {"voxel_size"},
    }  # fmt: skip
    sizes = {name: 29 * variant.working_voxel_size for name, variant in variants.items()}
    assert (sizes["patch 22 mm"], sizes["patch 44 mm"]) == pytest.approx((22, 44), abs=0.5)


@pytest.mark.parametrize("study", training_studies.STUDIES)
def test_all_variants_are_judged_by_the_complete_recipe_and_trained_as_long(study: str) -> None:
    whole, half = (training_studies.make_variants(study, None, effort).values() for effort in (1.0, 0.5))
    last = find_recipe(training_studies.STUDIES[study][1]).phases[-1]
    for variant, short in zip(whole, half, strict=True):
        assert variant.judged_by == Judge(last.fields, last.appearance, last.scenes)
        assert variant.train == short.train
        assert bool(variant.train) != (study == "scenes")
        assert [p.steps for p in short.phases] == [round(p.steps / 2) for p in variant.phases]


def test_a_recipe_in_epochs_is_shortened_too() -> None:
    variant = training_studies.make_variants("designs", "regnet_2017", 0.2)["RegNet Early"]
    assert (variant.phases[0].epochs, variant.phases[0].steps) == (3, 0)
    assert variant.judged_by is None  # the pairs of the validation images judge


# Without auxiliary outputs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chests(tmp_path_factory.mktemp("images"), "one.mha", "two.mha")


@pytest.fixture(autouse=True)
def quick_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_VALIDATION_BLOCKS", "_CALIBRATION_STEPS", "_QUICK_CALIBRATION_STEPS"):
        monkeypatch.setattr(loop, name, 1)


def test_regnet_can_learn_from_its_own_output_only(images: Path, tmp_path: Path) -> None:
    phase = Phase(steps=1, block_size=2, fields=FieldRecipe(theta=(2.0, 3.0)))
    heads, losses = [], []
    for auxiliary in (True, False):
        config = TrainingConfig("regnet", ("one",), ("two",), phases=(phase,), auxiliary_outputs=auxiliary)
        trainer = Trainer(config, images, tmp_path / str(auxiliary), TrainingOptions("cpu", cache=tmp_path / "cache"))
        before = {name: tensor.clone() for name, tensor in trainer.learner.network.state_dict().items()}
        model = load_model(trainer.run())
        heads.append([name for name in trainer.learner.module.state_dict() if name.startswith("heads")])
        losses.append(trainer.log.rows()[-1].loss)
        assert model.description.training["recipe"]["auxiliary_outputs"] == auxiliary
        learnt = model.network.state_dict()
        assert all(not torch.equal(before[n], learnt[n]) for n, _ in model.network.named_parameters() if "weight" in n)
    assert [len(names) for names in heads] == [4, 0]  # weight and bias of two
    assert losses[1] < losses[0]  # the same network and block: one term in place of three


def test_the_coarse_to_fine_network_has_no_auxiliary_outputs_to_leave_out() -> None:
    with pytest.raises(ParameterError, match="'auxiliary_outputs' is RegNet's"):
        TrainingConfig("coarse_to_fine", phases=(Phase(steps=1),), auxiliary_outputs=False)


# A whole study

RECIPE = """
network = "coarse_to_fine"
train = ["one"]
validation = ["two"]
validate_every = 1
[[phases]]
steps = 4
block_size = 16
recurrence = 0.5
fields = { sigma = [8.0, 12.0], theta = [2.0, 3.0], sliding = 0.5, sliding_share = 1.0 }
"""


def study(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training_studies.py", *map(str, arguments)])
    training_studies.main()


def test_a_recipe_whose_images_are_elsewhere_takes_those_of_the_folder(images: Path) -> None:
    there = {path.name.partition(".")[0] for path in images.iterdir()}
    variants = training_studies.make_variants("realism", None, 1.0)
    taken = [training_studies.with_these_images(config, images) for config in variants.values()]
    assert set(taken[0].train) | set(taken[0].validation) <= there
    assert all((t.train, t.validation) == (taken[0].train, taken[0].validation) for t in taken)
    assert [t.seed for t in taken] == [config.seed for config in variants.values()]
    own = dataclasses.replace(taken[0], train=taken[0].validation, validation=taken[0].train)
    assert training_studies.with_these_images(own, images) is own


def test_a_study_leaves_curves_and_a_table_and_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    out = tmp_path / "out"
    command = ("realism", images, "--out", out, "--recipe", tmp_path / "recipe.toml", "--effort", "0.5",
               "--threads", "1", "--device", "cpu", "--only")  # fmt: skip
    study(monkeypatch, *command, "complete")
    first = (out / "complete" / "coarse_to_fine.safetensors").stat().st_mtime_ns
    capsys.readouterr()

    trained = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: trained.append(self.folder.name) or run(self))  # type: ignore[func-returns-value]
    study(monkeypatch, *command, "complete", "without sliding")
    assert trained == ["without_sliding"]
    assert (out / "complete" / "coarse_to_fine.safetensors").stat().st_mtime_ns == first

    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["complete", "without sliding"]
    assert [row["steps"] for row in rows] == ["2", "2"]
    assert rows[0]["displacement mm"] == rows[1]["displacement mm"] > "0"  # judged by the same pairs
    for row, name in zip(rows, ("complete", "without_sliding"), strict=True):
        last = TrainingLog(out / name).rows()[-1]
        assert [float(row[key]) for key in ("error mm", "x", "y", "z")] == pytest.approx(
            [last.error_mm, last.error_x_mm, last.error_y_mm, last.error_z_mm], abs=5e-4
        )
    recipe = load_model(out / "without_sliding" / "coarse_to_fine.safetensors").description.training["recipe"]
    assert recipe["phases"][0]["fields"]["sliding_share"] == 0
    assert recipe["judged_by"]["fields"]["sliding_share"] == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed] == ["variant", "complete", "without sliding"]
    picture = imread(out / "curves.png")
    assert picture.shape[1] > picture.shape[0] > 400
    assert len({tuple(colour) for colour in picture.reshape(-1, picture.shape[2])[::7]}) > 20

    with pytest.raises(SystemExit, match="did you mean 'without sliding'"):
        study(monkeypatch, *command, "without slidng")


def test_the_sensitivity_study_tells_the_error_by_length(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a network on voxels of 1.5 mm beside one on 1 mm, which begin with the same model."""
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
    monkeypatch.setattr(training_studies, "_BLOCKS_BY_LENGTH", 4)
    text = RECIPE.replace("coarse_to_fine", "regnet").replace("recurrence = 0.5\n", "").replace("= 16", "= 4")
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    command = ("sensitivity", images, "--out", tmp_path, "--recipe", tmp_path / "recipe.toml", "--from", "regnet")
    study(monkeypatch, *command, "--effort", "0.25", "--threads", "1", "--device", "cpu",
          "--only", "theta 8 mm", "patch 44 mm")  # fmt: skip
    described = load_model(tmp_path / "patch_44_mm" / "regnet.safetensors").description
    assert described.voxel_size == 1.5
    assert described.training["started_from"]["model"] == "regnet"
    printed = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == ["theta 8 mm", "patch 44 mm"]
    assert all(any(float(cell) > 0 for cell in row[2:-1] if cell.strip()) for row in rows)
    assert imread(tmp_path / "by_length.png").shape[0] > 200


def test_table_1_is_that_of_the_paper(images: Path, tmp_path: Path) -> None:
    """A network that says nothing is as good as no registration; the vector is longer than its components."""
    network = find_architecture("coarse_to_fine").make(6.0)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    model = tmp_path / "nothing.safetensors"
    save_model(network, ModelDescription("m", "coarse_to_fine", 6.0, CHEST_CT, 8.0), model)
    header, *rows = training_studies.table_1({"a model": model}, [images / "one.mha"], 1)
    assert header.split() == ["MAE,", "mm", "measure", "x", "y", "z", "vector"]
    cells = [row[16:].split() for row in rows]
    assert [row[:16].strip() for row in rows] == ["nothing", "a model"]
    assert cells[0] == cells[1]
    measure, x, y, z, vector = (float(cell) for cell in cells[0][::3])
    assert measure == pytest.approx(x + y + z, abs=0.02)
    assert max(x, y, z) < vector < x + y + z


def test_the_study_of_scenes_tells_the_errors_by_contrast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = find_recipe("regnet_general")
    first = dataclasses.replace(
        recipe.phases[0], steps=1, block_size=32, scenes=dataclasses.replace(recipe.phases[0].scenes, size=40)
    )
    small = dataclasses.replace(recipe, phases=(first, first))
    monkeypatch.setattr(training_studies, "read_training_config", lambda _: small)
    monkeypatch.setattr(training_studies, "_BLOCKS_BY_CONTRAST", 2)
    monkeypatch.setattr(sys, "argv", ["studies", "scenes", "--out", str(tmp_path), "--only", "complete"])
    training_studies.main()
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("error, mm"))
    assert lines[at].split()[2:] == ["same", "related", "independent"]
    found = [float(number) for number in re.findall(r"[0-9.]+", lines[at + 1])]
    assert len(found) == 6  # an error and a displacement each
    assert all(0 < number < 40 for number in found)
