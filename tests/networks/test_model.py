"""Model files: what is written is read again, and every kind of damage is told in one line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import call
from safetensors import safe_open
from safetensors.torch import save_file

from regnet_itk.errors import ModelError, OutputError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import (
    ModelDescription,
    find_model,
    load_model,
    read_model_header,
    save_model,
    shipped_models,
)
from regnet_itk.networks.regnet import RegNet
from regnet_itk.networks.world import CHEST_CT

DESCRIPTION = ModelDescription(
    "mine",
    "coarse_to_fine",
    2.0,
    CHEST_CT,
    25.0,
    {"seed": 1, "images": ["a", "b"]},
    {"validation": {"mm": 1.5}},
)


@pytest.fixture(scope="module")
def network() -> CoarseToFineRegNet:
    torch.manual_seed(3)
    return CoarseToFineRegNet().eval()


@pytest.fixture
def file(network: CoarseToFineRegNet, tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    save_model(network, DESCRIPTION, path)
    return path


def parts_of(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name).clone() for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def test_a_model_survives_its_file(network: CoarseToFineRegNet, file: Path) -> None:
    model = load_model(file)
    assert model.description == DESCRIPTION
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2)]
    for mine, read in zip(network(*pair), model.network(*pair), strict=True):
        torch.testing.assert_close(mine, read, atol=1e-5, rtol=1e-5)
    assert not model.network.training
    assert not any(p.requires_grad for p in model.network.parameters())
    assert len(model.digest) == 64


def test_regnet_survives_its_file_with_its_statistics(tmp_path: Path) -> None:
    network = RegNet().train()
    with torch.no_grad():
        network(torch.rand(1, 1, 56, 56, 56), torch.rand(1, 1, 56, 56, 56))
    description = ModelDescription("r", "regnet", 1.0, CHEST_CT, 8.0)
    save_model(network, description, tmp_path / "r.safetensors")
    again = load_model(tmp_path / "r.safetensors").network
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_same_weights_have_the_same_digest(network: CoarseToFineRegNet, file: Path, tmp_path: Path) -> None:
    save_model(
        network,
        ModelDescription("other", "coarse_to_fine", 2.0, replace(CHEST_CT, intensity_range=(0.0, 1.0)), 1.0),
        tmp_path / "o.safetensors",
    )
    assert load_model(file).digest == load_model(tmp_path / "o.safetensors").digest
    assert load_model(file).digest != load_model(find_model("regnet_multistage")).digest


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_file_has_the_permissions_of_any_other(network: CoarseToFineRegNet, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_model(network, DESCRIPTION, tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o666 & ~umask
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_model_that_cannot_be_written(network: CoarseToFineRegNet, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        save_model(network, DESCRIPTION, tmp_path / "missing" / "m.safetensors")


def rewritten(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None],
) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        tensors, metadata = parts_of(file)
        change(tensors, metadata)
        metadata.pop("description_sha256", None)  # as files of version 0.1
        save_file(tensors, file, metadata=metadata)

    return damage


def described(**changes: object) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        values = json.loads(metadata["description"]) | changes
        metadata["description"] = json.dumps({k: v for k, v in values.items() if v is not ...})

    return rewritten(change)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-1000]), "damaged"),
    "cut in its header": (lambda f: f.write_bytes(f.read_bytes()[:100]), "damaged"),
    "empty": (lambda f: f.write_bytes(b""), "damaged"),
    "text": (lambda f: f.write_text("(Transform)\n" * 100), "not a safetensors file"),
    "missing": (lambda f: f.unlink(), "does not exist"),
    "a folder": (lambda f: (f.unlink(), f.mkdir()), "is a folder"),
    "the type altered": (lambda f: f.write_bytes(f.read_bytes().replace(b'"F32"', b'"I32"', 1)), "is of the type"),
    "one weight altered": (rewritten(lambda t, m: t["decoder.0.head.bias"].add_(1e-3)), "altered"),
    "one bit altered": (lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])), "altered"),
    "no hash": (rewritten(lambda t, m: m.pop("sha256")), "altered"),
    "another program's": (rewritten(lambda t, m: m.clear()), "not written by regnet-itk"),
    "unknown architecture": (described(architecture="regnett"), "'regnett'; did you mean 'regnet'"),
    "weights of the other network": (described(architecture="regnet"), "does not fit the network 'regnet'"),
    "no JSON": (rewritten(lambda t, m: m.update(description="{'name': ")), "cannot read"),
    "JSON, but no object": (rewritten(lambda t, m: m.update(description="[1, 2]")), "cannot read"),
    "JSON, but a number": (rewritten(lambda t, m: m.update(description="7")), "cannot read"),
    "no description": (rewritten(lambda t, m: m.pop("description")), "cannot read"),
    "no voxel size": (described(voxel_size=...), "'voxel_size' is missing"),
    "no intensity range": (described(intensity_range=...), "'intensity_range' is missing"),
    "no name": (described(name=...), "name"),
    "a key too many": (described(colour="red"), "colour"),
    "voxels without a size": (described(voxel_size=0), "voxels without a size"),
    "an empty intensity range": (described(intensity_range=[5, 5]), "empty intensity range"),
    "an unknown region": (described(region="heart"), "'heart' is no region"),
    "a word for a number": (described(capture_range="far"), "far"),
    "a number for a word": (described(name=3), "name = 3 is not of the kind str"),
    "a number for a region": (described(trained_in=3), "trained_in = 3 is not of the kind str"),
    "a list for a table": (described(training=[]), "training = .* is not of the kind dict"),
    "voxels of no number": (described(voxel_size=float("nan")), "voxel_size is no number"),
    "a reach without end": (described(capture_range=float("inf")), "capture_range is no number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(file: Path, damage: str) -> None:
    spoil, words = DAMAGES[damage]
    spoil(file)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert len(message) < len(str(file)) + 350


def test_regnet_weights_do_not_fit_the_other_network(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_model(RegNet(), DESCRIPTION, path)
    with pytest.raises(ModelError, match="does not fit the network 'coarse_to_fine'"):
        load_model(path)


def test_half_precision_weights_have_a_digest(tmp_path: Path) -> None:
    half = CoarseToFineRegNet().to(torch.bfloat16)
    save_model(half, DESCRIPTION, tmp_path / "h.safetensors")
    assert load_model(tmp_path / "h.safetensors").network.encoder[0][0][0].weight.dtype == torch.float32


def test_shipped_models_load() -> None:
    assert set(shipped_models()) >= {"regnet", "regnet_multistage"}
    for name, architecture, voxel_size in (("regnet", RegNet, 1.5), ("regnet_multistage", CoarseToFineRegNet, 2.0)):
        model = load_model(find_model(name))
        assert isinstance(model.network, architecture)
        assert model.description.voxel_size == voxel_size
        assert model.description.world.intensity_range == (-1000.0, 200.0)


def test_models_are_found_by_name_by_path_and_beside_a_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_model("regnet") == shipped_models()["regnet"]
    assert find_model(str(file)) == file
    assert find_model("mine.safetensors", beside=tmp_path) == file
    with pytest.raises(ModelError, match=r"no model 'mine\.safetensors'"):
        find_model("mine.safetensors")
    with pytest.raises(ModelError, match=r"'regnet_multistage'\]; did you mean 'regnet_multistage'\?"):
        find_model("regnet_multistag")


def test_unknown_architectures() -> None:
    with pytest.raises(ModelError, match="did you mean 'coarse_to_fine'"):
        find_architecture("coarse_to_fin").make(2.0)


def test_intensities_are_clipped_and_mapped(file: Path) -> None:
    given = torch.tensor([-3000.0, -1000.0, -400.0, 200.0, 3000.0])
    assert load_model(file).normalise(given).tolist() == pytest.approx([-1, -1, 0, 1, 1])


def test_an_altered_description_is_noticed(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = file.read_bytes()
    for read in (load_model, read_model_header):
        altered = whole.replace(b'\\"capture_range\\": ', b'\\"capture_range\\": 9', 1)
        length = int.from_bytes(whole[:8], "little") + len(altered) - len(whole)
        file.write_bytes(length.to_bytes(8, "little") + altered[8:])
        with pytest.raises(ModelError, match="was altered: its description does not match its hash"):
            read(file)
    file.write_bytes(whole)
    load_model(file)
    assert not caplog.records


def test_a_model_of_version_0_1_is_loaded_with_a_warning_until_it_is_sealed(
    file: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = parts_of(file)[0]
    rewritten(lambda tensors, metadata: None)(file)
    before = load_model(file)
    assert "of version 0.1" in caplog.text
    caplog.clear()
    assert call("models", file, "--seal") == 0
    assert "voxels of 2 mm" in capsys.readouterr().out
    after = load_model(file)
    assert not caplog.records
    assert (after.digest, after.description) == (before.digest, before.description)
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts_of(file)[0].items())


def test_the_shipped_models_are_sealed(caplog: pytest.LogCaptureFixture) -> None:
    for path in shipped_models().values():
        load_model(path)
    assert not caplog.records


def test_a_header_that_is_nested_too_deeply(file: Path) -> None:
    nested = b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    file.write_bytes(len(nested).to_bytes(8, "little") + nested)
    with pytest.raises(ModelError, match="nested too deeply"):
        read_model_header(file)
    with pytest.raises(ModelError, match="damaged"):
        load_model(file)
