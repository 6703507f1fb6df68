"""RegNet a few slices at a time: the same displacements as in one piece, however the block is cut."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from network_cases import noise, random_regnet, randomised

from regnet_itk.networks import streaming
from regnet_itk.networks.regnet import RegNet
from regnet_itk.networks.streaming import StreamedConvolution, StreamedRegNet

BLOCK = (52 + 10, 52 + 2, 52 + 6)  # five slices of outputs


def block(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(1, 1, *BLOCK, seed=seed), noise(1, 1, *BLOCK, seed=seed + 1)


def voxels(slices_of_outputs: int) -> float:
    return (52 + 2 * slices_of_outputs) * math.prod(BLOCK[1:])


def streamed(network: RegNet, slices_of_outputs: int = 2, precision: torch.dtype = torch.float32) -> StreamedRegNet:
    return StreamedRegNet(network, precision, voxels(slices_of_outputs)).requires_grad_(False)


@pytest.mark.parametrize("design", [{}, {"early_fusion": True}, {"scales": 1}])
@pytest.mark.parametrize(("at_once", "portions"), [(1, 5), (2, 3), (4, 2), (5, 1), (50, 1)])
def test_a_block_in_portions_is_the_block(design: dict[str, Any], at_once: int, portions: int) -> None:
    network = RegNet(**design)
    randomised(network)
    network.displacement.weight *= 0.001
    made_ready = streamed(network, at_once)
    given: list[int] = []
    made_ready.network.fine_merged.register_forward_hook(lambda module, inputs, _: given.append(inputs[0].shape[2]))
    found, expected = made_ready(*block(1)), network(*block(1))
    assert found.shape == (1, 3, 5, 1, 3)
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(given) == portions
    assert sum(given) == BLOCK[0] - 26 - 6  # no slice is computed twice


def test_a_block_knows_nothing_of_the_block_before() -> None:
    network = random_regnet()
    made_ready = streamed(network)
    made_ready(*block(1))
    assert torch.equal(made_ready(*block(7)), streamed(network)(*block(7)))


def test_the_network_that_it_is_made_of_stays_as_it_is() -> None:
    network = random_regnet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    streamed(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(isinstance(module, StreamedConvolution) for module in network.modules())


def test_one_operation_computes_what_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_regnet()
    made_ready = streamed(network, precision=torch.bfloat16)
    as_it_is = made_ready(*block(1))
    monkeypatch.setattr(streaming, "_one_operation_exists", lambda: False)
    two = made_ready(*block(1))
    exact = network(*block(1))
    assert as_it_is.dtype == torch.float32
    rounding = (two - exact).abs().mean()
    assert 0 < rounding < 0.05 * exact.std()
    assert (as_it_is - exact).abs().mean() < 1.5 * rounding


def test_a_large_block_is_cut_without_being_told() -> None:
    network = random_regnet()
    made_ready = StreamedRegNet(network, torch.float32).requires_grad_(False)
    given: list[int] = []
    made_ready.network.fine_merged.register_forward_hook(lambda module, inputs, _: given.append(inputs[0].numel()))
    images = [noise(1, 1, 52 + 52, 90, 90, seed=seed) for seed in (1, 2)]
    made_ready(*images)
    assert len(given) > 1
    assert max(given[1:]) * 4 < 25e6 * 1.5
