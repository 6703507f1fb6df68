"""The general network: it counts in voxels, it begins with what the chest's has learnt, it sees self-similarity."""

from __future__ import annotations

import pytest
import torch
from network_cases import noise, random_regnet, randomised

from regnet_itk.errors import ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.general import GeneralRegNet, general_from
from regnet_itk.networks.model import Model, ModelDescription
from regnet_itk.networks.self_similarity import mind_features
from regnet_itk.networks.world import CHEST_CT, World

ANY = World(
    "images of any kind", "per mille", (0.0, 1000.0), 0.0, "foreground", "all",
    percentiles=(1.0, 99.0), percentiles_in="foreground", voxel_sizes=(1.0, 4.0),
)  # fmt: skip


def test_displacements_grow_with_the_voxels() -> None:
    network = randomised(GeneralRegNet())
    model = Model(network, ModelDescription("any", "general", 2.0, ANY, 30.0), "")
    fixed, moving = noise(1, 1, 16, 24, 16, seed=1), noise(1, 1, 16, 24, 16, seed=2)
    finer = model.at_voxel_size(1.25)
    assert finer.description.capture_range == pytest.approx(30.0 * 1.25 / 2.0)
    assert finer.stages_left_out((10.0, 5.0)) == 2
    for of_two, of_less in zip(network(fixed, moving), finer.network(fixed, moving), strict=True):
        assert of_two.abs().max() > 0.1
        torch.testing.assert_close(of_less, of_two * (1.25 / 2.0), atol=1e-4, rtol=1e-3)
    assert model.at_voxel_size(2.0) is model
    with pytest.raises(ParameterError, match=r"1 to 4 mm, not of 0.5 mm"):
        model.at_voxel_size(0.5)


def test_other_models_know_one_size_of_voxels() -> None:
    model = Model(
        randomised(CoarseToFineRegNet()), ModelDescription("chest", "coarse_to_fine", 2.0, CHEST_CT, 30.0), ""
    )
    with pytest.raises(ParameterError, match=r"voxels of 2 mm, not of 1 mm"):
        model.at_voxel_size(1.0)


def test_it_begins_with_what_the_coarse_to_fine_network_has_learnt() -> None:
    learnt = randomised(CoarseToFineRegNet())
    network = general_from(learnt)
    assert network is not None
    for name, weights in learnt.state_dict().items():
        mine = network.state_dict()[name]
        if name == "encoder.0.0.0.weight":
            torch.testing.assert_close(mine[:, :1], weights)
        elif not name.startswith("decoder.0.body.0."):
            torch.testing.assert_close(mine, weights)
    assert general_from(network) is network
    assert general_from(random_regnet()) is None


def test_the_encoder_sees_the_self_similarity_context() -> None:
    image = noise(2, 1, 8, 9, 10)
    seen = GeneralRegNet().see(image)
    assert seen.shape == (2, 13, 8, 9, 10)
    torch.testing.assert_close(seen[:, :1], image)
    context = mind_features(image[1, 0] * 0.5 + 0.5)
    torch.testing.assert_close(seen[1, 1:].movedim(0, -1), context - 0.5)


def test_slabs_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    network = randomised(GeneralRegNet())
    fixed, moving = noise(1, 1, 32, 16, 16, seed=1), noise(1, 1, 32, 16, 16, seed=2)
    whole = network(fixed, moving)[-1]
    monkeypatch.setattr("regnet_itk.networks.coarse_to_fine.SLAB_VOXELS", 16 * 16 * 6)
    torch.testing.assert_close(network(fixed, moving)[-1], whole, atol=1e-4, rtol=1e-4)
