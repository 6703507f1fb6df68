"""The records of networks: those of the package, those of other packages, and what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regnet_itk.errors import ModelError
from regnet_itk.networks import architectures
from regnet_itk.networks.architectures import ARCHITECTURES, find_architecture, known_architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_record_fits_its_network(name: str) -> None:
    """What training is told of a network's outputs is what the network does."""
    record = find_architecture(name)
    assert record.name == name
    size = 2 * record.block_multiple
    shape = record.block_shape(size)
    network = record.make(record.voxel_size)
    pair = [torch.rand(1, 1, *shape) for _ in range(2)]
    trained = record.with_heads(network, True)
    assert trained is network or trained.network is network
    found = trained(*pair)
    outputs = [found] if isinstance(found, torch.Tensor) else found
    u, weight = record.at_outputs(torch.rand(1, 3, *shape)), record.at_outputs(torch.ones(1, 1, *shape))
    assert outputs[-1].shape == u.shape
    assert weight.shape[2:] == u.shape[2:]
    assert record.predicts_everywhere == (u.shape[2:] == pair[0].shape[2:])
    loss = record.loss(outputs, u, weight)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    exact = [torch.nn.functional.avg_pool3d(u, u.shape[-1] // o.shape[-1]) for o in outputs]
    assert float(record.loss(exact, u, weight)) < float(loss.detach())
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert bool(norms) == record.has_batch_statistics
    fewer = record.with_heads(network, False)
    assert record.auxiliary_outputs == (len(fewer.state_dict()) < len(trained.state_dict()))


def test_names_are_told_without_torch() -> None:
    code = (
        "import sys; from regnet_itk.networks.architectures import known_architectures as k; "
        "assert 'regnet' in k(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install_packages: Callable) -> None:
    """Three networks of another package: a good one, one that cannot be loaded, and something that is none."""
    (tmp_path / "their_networks.py").write_text(
        "from dataclasses import replace\n"
        "from regnet_itk.networks.regnet_records import REGNET\n"
        "THEIRS = replace(REGNET, name='theirs')\n"
        "NOTHING = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install_packages(
        architectures.ENTRY_POINTS,
        theirs="their_networks:THEIRS",
        broken="their_networks:MISSING",
        nothing="their_networks:NOTHING",
    )


def test_another_package_s_network_is_found(another_package: None) -> None:
    assert find_architecture("theirs").name == "theirs"
    assert set(known_architectures()) >= {"regnet", "theirs"}
    with pytest.raises(ModelError, match="did you mean 'theirs'"):
        find_architecture("their")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "'their_networks:MISSING' cannot be loaded: AttributeError"),
        ("nothing", "is to be the network 'nothing', and is none"),
    ],
)
def test_another_package_s_mistakes_are_told_in_one_line(another_package: None, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        find_architecture(name)
    assert "\n" not in str(caught.value)


def test_a_record_may_be_put_into_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(find_architecture("coarse_to_fine"), name="mine")
    monkeypatch.setitem(ARCHITECTURES, "mine", mine)
    assert find_architecture("mine") is mine
