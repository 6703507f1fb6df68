"""Checkpoints: written whole or not at all, and refused if they do not fit."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regnet_itk.errors import ModelError
from regnet_itk.outputs import write_whole


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had never been interrupted.

    Parameters
    ----------
    network : str
        The architecture.
    weights, optimiser : dict
        States of the trained modules and of the optimiser.
    random : list of list of Tensor
        States of the random numbers of every process.
    step : int
    seconds : float
    averaged : dict
        State of the averaged weights; empty if none are kept.
    """

    network: str
    weights: dict[str, Tensor]
    optimiser: dict[str, Any]
    random: list[list[Tensor]]
    step: int
    seconds: float
    averaged: dict[str, Tensor] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        write_whole(path, lambda part: torch.save(asdict(self), part))

    @classmethod
    def read(cls, path: Path, network: str) -> Checkpoint:
        """Read the file.

        Raises
        ------
        ModelError
            If it is damaged or of another network than `network`.
        """
        try:
            found = cls(**torch.load(path, weights_only=True, map_location="cpu"))
        except (RuntimeError, OSError, EOFError, TypeError, pickle.UnpicklingError):
            raise ModelError(f"checkpoint '{path}' is damaged; remove it to begin anew") from None
        if found.network != network:
            raise ModelError(
                f"checkpoint '{path}' is of the network '{found.network}', not '{network}'; train in another folder"
            )
        return found
