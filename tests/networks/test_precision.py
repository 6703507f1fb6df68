"""The number type of the networks: bfloat16 only where its convolutions are right."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from regnet_itk.networks.devices import find_precision
from regnet_itk.networks.model import load_model, shipped_models
from regnet_itk.networks.precision import choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def bfloat16_at_hand(monkeypatch):
    monkeypatch.setattr(
        "regnet_itk.networks.precision.find_precision",
        lambda name, device: torch.bfloat16 if name == "auto" else find_precision(name, device),
    )


def wrong(monkeypatch, spoil):
    right = nn.functional.conv3d
    monkeypatch.setattr(
        nn.functional,
        "conv3d",
        lambda image, *more: spoil(right(image, *more)) if image.dtype == torch.bfloat16 else right(image, *more),
    )


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_the_models_convolutions_are_right_here(name, bfloat16_at_hand, caplog):
    assert choose_precision("auto", load_model(shipped_models()[name]).network, CPU) == torch.bfloat16
    assert not caplog.records


@pytest.mark.parametrize(
    ("channels", "spoil"), [(5, lambda found: found * 1.2), (6, lambda found: found * float("nan")), (7, torch.roll)]
)
def test_wrong_convolutions_are_not_used_and_told(channels, spoil, bfloat16_at_hand, monkeypatch, caplog):
    wrong(monkeypatch, (lambda found: torch.roll(found, 1, 2)) if spoil is torch.roll else spoil)
    network = nn.Sequential(nn.Conv3d(1, channels, 3), nn.LeakyReLU(), nn.Conv3d(channels, 3, 2, stride=2, padding=1))
    with caplog.at_level(logging.WARNING):
        assert choose_precision("auto", network, CPU) == torch.float32
    (record,) = caplog.records
    assert f"bfloat16 are wrong on this machine (1 to {channels} channels" in record.getMessage()
    assert choose_precision("bfloat16", network, CPU) == torch.bfloat16  # who asks for it gets it
