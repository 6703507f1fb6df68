"""The command `models`: what ships, what one was made of, quickly, and errors of one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command import call

from regnet_itk.errors import ModelError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.model import (
    ModelDescription,
    load_model,
    read_model_header,
    save_model,
    shipped_models,
)
from regnet_itk.networks.world import CHEST_CT


def test_the_header_says_what_the_whole_model_says() -> None:
    for path in shipped_models().values():
        model = load_model(path)
        assert read_model_header(path) == (model.description, model.digest)


def test_the_list_has_every_model_that_ships(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("models") == 0
    header, *rows = capfd.readouterr().out.split("\n\n")[0].splitlines()
    assert header.split()[:3] == ["name", "network", "voxels"]
    assert [row.split()[0] for row in rows] == list(shipped_models())
    for row, path in zip(rows, shipped_models().values(), strict=True):
        description, _ = read_model_header(path)
        assert f"{description.capture_range:g} mm" in row
        assert "validation" in description.accuracy
        for group in {"validation", "test"} & set(description.accuracy):
            measured = description.accuracy[group].items()
            inside = next(found for where, found in measured if where.startswith("inside the "))
            assert f"-> {inside['all']['mean_error_mm']:.2f} mm" in row
        assert row.endswith(" -") == ("test" not in description.accuracy)


def test_a_card_names_images_sources_recipe_and_accuracy(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("models", "regnet") == 0
    text = capfd.readouterr().out
    description, digest = read_model_header(shipped_models()["regnet"])
    recipe = description.training["recipe"]
    for wanted in (
        digest, *recipe["train"], *recipe["test"], *recipe["sources"], "steps: 3568", "hours", "torch: ",
        "machine: ", "started from: model regnet", "phase 1 of 1", "mean error mm", "-1000 to 200 HU", "up to 8 mm",
    ):  # fmt: skip
        assert wanted in text
    assert "{" not in text
    assert max(map(len, text.splitlines()[1:])) <= 120
    assert call("models", "regnet_general") == 0
    assert "phase 2 of 2" in capfd.readouterr().out


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--json") == 0
    listed = json.loads(capfd.readouterr().out)
    assert [model["name"] for model in listed] == list(shipped_models())
    assert call("models", "regnet", "--json") == 0
    assert json.loads(capfd.readouterr().out) == listed[0]
    assert listed[0]["bytes"] == Path(listed[0]["file"]).stat().st_size


def test_a_model_of_ones_own_that_says_little(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.safetensors"
    world = replace(CHEST_CT, intensity_range=(-1000.0, 400.0))
    description = ModelDescription("mine", "regnet", 1.5, world, 9.0, {"images": ["a", "b"]})
    save_model(find_architecture("regnet").make(1.5), description, path)
    assert call("models", path) == 0
    text = capfd.readouterr().out
    assert "voxels of 1.5 mm" in text
    assert "images: a, b" in text


def test_errors_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = shipped_models()["regnet"].read_bytes()
    files = {
        "cut": whole[:1000], "empty": b"", "text": b"hello, this is text",
        "no_dictionary": b"\2" + bytes(7) + b"[]" + whole,
        "other": b"\2" + bytes(7) + b"{}" + whole,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            read_model_header(tmp_path / name)
        assert call("models", tmp_path / name) == 1
        assert capfd.readouterr().err.count("\n") == 1
    assert call("models", "regnt") == 1
    assert "did you mean 'regnet'" in capfd.readouterr().err
    assert call("models", "--jsn") == 2
    assert "--json" in capfd.readouterr().err


def test_torch_is_not_loaded() -> None:
    code = (
        "import sys; from regnet_itk.cli.main import _run; _run(['models', 'regnet']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_model_of_errors_has_a_card(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("models", "error_model", "--json") == 0
    card = json.loads(capfd.readouterr().out)
    assert call("models", "error_model") == 0
    text = capfd.readouterr().out
    assert f"pairs: {card['training']['pairs']}" in text and f"factor: {card['factor']:g}" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    for judged in card["accuracy"]["judged"]:
        assert f"{judged['coverage']:.2f}" in rows[judged["group"]]
    assert call("models", "error_model", "--seal") == 2
