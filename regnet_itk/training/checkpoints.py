"""Checkpoints: written whole or not at all, and refused if they do not fit."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regnet_itk.errors import ModelError
from regnet_itk.outputs import write_whole
from regnet_itk.training.config import TrainingConfig

_SHOWN = 60  # characters of a value in a message


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
    plan : str
        What is trained on what, as :func:`describe_plan` tells it; empty in files from before it was kept.
    """

    network: str
    weights: dict[str, Tensor]
    optimiser: dict[str, Any]
    random: list[list[Tensor]]
    step: int
    seconds: float
    averaged: dict[str, Tensor] = field(default_factory=dict)
    plan: str = ""

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        write_whole(path, lambda part: torch.save(asdict(self), part))

    @classmethod
    def read(cls, path: Path, network: str, plan: str = "") -> Checkpoint:
        """Read the file.

        Raises
        ------
        ModelError
            If it is damaged, or of another network or plan than these.
        """
        try:
            found = cls(**torch.load(path, weights_only=True, map_location="cpu"))
        except (RuntimeError, OSError, EOFError, TypeError, pickle.UnpicklingError):
            raise ModelError(f"checkpoint '{path}' is damaged; remove it to begin anew") from None
        if found.network != network:
            raise ModelError(
                f"checkpoint '{path}' is of the network '{found.network}', not '{network}'; train in another folder"
            )
        if plan and found.plan and _asked(plan) != _asked(found.plan):
            raise ModelError(
                f"checkpoint '{path}' is of another training ({_difference(found.plan, plan)}); train in another "
                "folder, or begin anew with `new`"
            )
        return found


def describe_plan(config: TrainingConfig) -> str:
    """Return, as text, what makes a training another one: its configuration, but for how long and what it writes."""
    values = asdict(config)
    for name in ("name", "capture_range", "sources", "test", "validate_every", "checkpoint_every"):
        del values[name]
    for phase in values["phases"]:
        del phase["steps"], phase["epochs"]
    return json.dumps(values, sort_keys=True)


def _asked(plan: str) -> Any:
    """Return what a plan asks for: a key that asks for nothing may be newer than a checkpoint."""

    def without_nothing(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_nothing(part) for key, part in value.items() if part}
        return [without_nothing(part) for part in value] if isinstance(value, list) else value

    return without_nothing(json.loads(plan))


def _difference(old: str, new: str) -> str:
    before, now = _asked(old), _asked(new)
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    values = [json.dumps(values.get(key)) for values in (before, now)]
    return f"its '{key}' was {values[0]}, now {values[1]}" if max(map(len, values)) < _SHOWN else f"'{key}' has changed"
