"""Several training processes, started by ``torchrun``, each with its own blocks and all with the same weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from regnet_itk.errors import ParameterError

_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Processes:
    """One process among all.

    Parameters
    ----------
    rank, count : int
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join the group that ``torchrun`` tells of in the environment; alone if there is none."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_available():
            raise ParameterError("this PyTorch was built without torch.distributed; start one process only")
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that validates and writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network such that its gradients are averaged over all processes."""
        return network if self.count == 1 else nn.parallel.DistributedDataParallel(network)

    def gather(self, thing: _Any) -> list[_Any]:
        """Return what every process gives, in the order of their ranks."""
        if self.count == 1:
            return [thing]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, thing)
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def same_weights(self, network: nn.Module) -> None:
        """Give the first process's weights and statistics to all."""
        if self.count > 1:
            for tensor in network.state_dict().values():
                distributed.broadcast(tensor, 0)

    def leave(self) -> None:
        """Leave the group."""
        if self.count > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def choose_own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process if ``torchrun`` started several on this machine."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
