"""A network while it learns: its optimiser, the average of its weights, its statistics, one step after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regnet_itk.errors import ModelError
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.layers import warp
from regnet_itk.networks.model import Model, load_model
from regnet_itk.networks.precision import choose_precision
from regnet_itk.training.batch_statistics import find_norms, gather_statistics
from regnet_itk.training.blocks import Block
from regnet_itk.training.checkpoints import Checkpoint, describe_plan
from regnet_itk.training.config import Phase, TrainingConfig
from regnet_itk.training.description import bare_description, describe_effort
from regnet_itk.training.processes import Processes
from regnet_itk.training.validation import at_full_size, predict_blocks, sample_truth


class Learner:
    """Learns from blocks.

    Parameters
    ----------
    config : TrainingConfig
        Its network and what concerns the weights; a new network depends on torch's global seed.
    device : torch.device
    processes : Processes
        Over which gradients are averaged.
    start_from : Path, optional
        A model whose weights learning begins with.

    Raises
    ------
    ModelError
        If the model to start from is of another network.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device, processes: Processes, start_from: Path | None = None
    ) -> None:
        self.config, self.device, self.processes = config, device, processes
        self.architecture = find_architecture(config.network)
        self.start: dict[str, Any] = {}
        """What is known of the model that learning began with."""
        self.network = self._first_network(start_from)
        self.precision = choose_precision("auto", self.network.to(device), device)
        self.module = self.architecture.with_heads(self.network, config.auxiliary_outputs)
        self.module.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._parallel = processes.wrap(self.module)
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=1e-5)
        self._averaged: AveragedModel | None = None
        if config.averaging:
            self._averaged = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))

    def _first_network(self, start_from: Path | None) -> nn.Module:
        made = self.architecture.make(self.config.working_voxel_size)
        if start_from is None:
            return made
        model = load_model(start_from)
        network: nn.Module | None = model.network
        if model.description.architecture != self.config.network:
            begin_with = self.architecture.begin_with
            network = begin_with(model.network) if begin_with else None
        if network is None:
            raise ModelError(
                f"model '{start_from}' is of the network '{model.description.architecture}', but the configuration "
                f"trains '{self.config.network}'"
            )
        self.start = {"model": model.description.name, "sha256": model.digest, **describe_effort(model.description)}
        made.load_state_dict(network.state_dict())  # the model's own network may work on other voxels
        return made

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and saved: with averaged weights, if the configuration asks for them."""
        if self._averaged is None:
            return self.network
        module = self._averaged.module
        return module if self.module is self.network else module.get_submodule("network")

    def as_model(self, network: nn.Module) -> Model:
        """Return a network with the description that its use needs."""
        return Model(network, bare_description(self.config), "")

    def learn(self, blocks: list[Block], rate: float, phase: Phase, recurrent: bool = False) -> tuple[float, float]:
        """Do one step of the optimiser.

        Parameters
        ----------
        blocks : list of Block
            On the learner's device.
        rate : float
            Learning rate.
        phase : Phase
            Says whether the statistics of batch normalisation are kept.
        recurrent : bool
            Learn from what the network's own result leaves of the blocks.

        Returns
        -------
        tuple of float
            The loss, and the mean error against the mean displacement.
        """
        if recurrent:
            blocks = [self._register_once(block, phase.left_out) for block in blocks]
        self._parallel.train()
        if phase.frozen_statistics:
            for norm in find_norms(self.network):
                norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        predicted = predict_blocks(self.as_model(self._parallel), blocks, self.precision, phase.left_out)
        u, weight = sample_truth(self.architecture, blocks)
        loss = self.architecture.loss(predicted, u, weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        if self._averaged is not None:
            self._averaged.update_parameters(self.module)
        last = at_full_size(predicted[-1].detach().float(), u)
        error, magnitude = (v.norm(dim=1).mean() for v in (last - u, u))
        return float(loss.detach()), float(error / magnitude.clamp(min=1e-3))

    def _register_once(self, block: Block, left_out: int) -> Block:
        """Return the pair that the network's own result leaves: the moving image warped by it, and what is left.

        With T(x) = x + u(x) the truth and P(x) = x + p(x) predicted, v is wanted with P(x + v(x)) = T(x).
        """
        size = self.config.working_voxel_size
        with torch.no_grad():
            self.network.eval()
            p = predict_blocks(self.as_model(self.network), [block], self.precision, left_out)[-1].float()
            p = at_full_size(p, block.displacement)
            v = block.displacement - p
            for _ in range(4):  # p changes by far less than 1 mm a mm: this converges
                v = block.displacement - warp(p, v / size)
            return Block(block.fixed, warp(block.moving, p / size), v, block.weight)

    def gather_statistics(self, network: nn.Module, batches: Iterator[list[Block]]) -> None:
        """Give `network` or `judged` the average statistics of batches: the running ones lag behind."""
        gather_statistics(self.as_model(network), batches, self.precision)

    def checkpoint(self, random: list[list[torch.Tensor]], step: int, seconds: float) -> Checkpoint:
        """Return all that learning needs to go on, with the run's own state."""
        averaged = {} if self._averaged is None else self._averaged.state_dict()
        weights, optimiser = self.module.state_dict(), self.optimiser.state_dict()
        plan = describe_plan(self.config)
        return Checkpoint(self.config.network, weights, optimiser, random, step, seconds, averaged, plan)

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; one from before the averages begins them anew."""
        self.module.load_state_dict(found.weights)
        self.optimiser.load_state_dict(found.optimiser)
        if self._averaged is not None and found.averaged:
            self._averaged.load_state_dict(found.averaged)
