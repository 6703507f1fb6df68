"""The statistics of batch normalisation: the running ones lag behind the weights while a network learns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from regnet_itk.networks.model import Model
from regnet_itk.training.blocks import Block
from regnet_itk.training.validation import predict_blocks

_MOMENTUM = 0.1  # PyTorch's


def find_norms(network: nn.Module) -> list[nn.BatchNorm3d]:
    """Return the layers of batch normalisation; the coarse-to-fine network has none."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]


def gather_statistics(model: Model, batches: Iterator[list[Block]], precision: torch.dtype) -> None:
    """Give a network the average statistics of batches of blocks; it is left in the mode of use."""
    norms = find_norms(model.network)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.network.train()
    for blocks in batches:
        with torch.no_grad():
            predict_blocks(model, blocks, precision)
    for norm in norms:
        norm.momentum = _MOMENTUM
    model.network.eval()


@contextmanager
def own_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Put the statistics that a network has now back at the end."""
    own = [copy.deepcopy(norm.state_dict()) for norm in find_norms(network)]
    yield
    for norm, state in zip(find_norms(network), own, strict=True):
        norm.load_state_dict(state)
