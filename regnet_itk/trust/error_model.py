"""The small network that tells the error of a registration from its clues, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regnet_itk.errors import ModelError
from regnet_itk.outputs import write_whole
from regnet_itk.trust.clues import NAMES, Clues
from regnet_itk.trust.error_map import MODEL_FILE

COVERAGE = 0.9
"""Share of the cases in which the error is to lie within the radius."""

_FORMAT = "regnet-itk error model"
_WIDTH = 64
_LEFT_OUT = 0.1  # share of the hidden values, in training
_LOG_LIMITS = (-5.0, 6.0)  # of errors in working voxels
_CHUNK = 100_000


class ErrorNetwork(nn.Module):
    """Two numbers from the clues of a point: logarithms of its expected error and of the radius, in working voxels.

    Parameters
    ----------
    clues : int
        How many there are.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, clues: int = len(NAMES)) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(clues))
        self.register_buffer("scale", torch.ones(clues))
        self.layers = nn.Sequential(
            nn.Linear(clues, _WIDTH), nn.SiLU(), nn.Dropout(_LEFT_OUT),
            nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Dropout(_LEFT_OUT),
            nn.Linear(_WIDTH, 2),
        )  # fmt: skip

    def forward(self, values: Tensor) -> Tensor:
        """Return (n, 2) from clues (n, clues)."""
        found: Tensor = self.layers(torch.asinh((values - self.centre) / self.scale))
        return found.clamp(*_LOG_LIMITS)


@dataclass(frozen=True)
class ErrorModelCard:
    """What an error model was made of, and what was measured of it.

    Parameters
    ----------
    factor : float
        By which the radius was widened so that it holds on the calibration pairs.
    means : tuple of (float, float)
        What the network tells, rising, and the mean of the errors there on the calibration pairs, in working voxels.
    usual : mapping of str to (float, float)
        Of the clues that are the same everywhere in a pair, the span in which nearly all of what it learnt from lies.
    training, calibration, accuracy : mapping
        For people.
    """

    factor: float = 1.0
    means: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    usual: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)

    def calibrate(self, told: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the expected error and the radius (n, 2) from those that the network tells."""
        below, means = np.log(np.array(self.means, dtype=np.float32)).T
        found = np.empty_like(told)
        found[:, 0] = told[:, 0] * np.exp(np.interp(np.log(told[:, 0]), below, means - below))
        found[:, 1] = np.maximum(told[:, 1] * self.factor, found[:, 0])
        return found


@dataclass(frozen=True)
class ErrorModel:
    """A network with its card."""

    network: ErrorNetwork
    card: ErrorModelCard

    def predict(self, clues: Clues) -> npt.NDArray[np.float32]:
        """Return the expected error and the radius (z, y, x, 2) in mm; NaN where nothing is known."""
        found = np.full((*clues.known.shape, 2), np.nan, dtype=np.float32)
        found[clues.known] = self.predict_points(clues.values[clues.known]) * clues.voxel_size
        return found

    def predict_points(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the expected error and the radius (n, 2) in working voxels, from clues (n, clues)."""
        self.network.eval()
        with torch.no_grad():
            parts = [self.network(part).exp() for part in torch.from_numpy(values).split(_CHUNK)]
        return self.card.calibrate((torch.cat(parts) if parts else torch.zeros(0, 2)).numpy())

    def unusual(self, clues: Clues) -> tuple[str, ...]:
        """Return the names of those clues to the whole pair that are unlike all that the model learnt from."""
        of_pair = dict(zip(NAMES, clues.values[clues.known][0], strict=True)) if clues.known.any() else {}
        return tuple(
            name
            for name, (low, high) in self.card.usual.items()
            if name in of_pair and not low <= of_pair[name] <= high
        )


def save_error_model(model: ErrorModel, path: str | Path) -> None:
    """Write an error model as one safetensors file, whole or not at all."""
    from safetensors.torch import save

    card = json.dumps(asdict(model.card), ensure_ascii=False)
    metadata = {"format": _FORMAT, "clues": json.dumps(NAMES), "card": card}
    data = save({name: t.contiguous() for name, t in model.network.state_dict().items()}, metadata=metadata)
    write_whole(Path(path), lambda part: part.write_bytes(data))


@lru_cache(maxsize=2)
def load_error_model(path: Path = MODEL_FILE) -> ErrorModel:
    """Read an error model.

    Raises
    ------
    ModelError
        If it is not there, damaged, or made for other clues.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"error model '{path}' cannot be read: {error}") from None
    if metadata.get("format") != _FORMAT or tuple(json.loads(metadata.get("clues", "[]"))) != NAMES:
        raise ModelError(f"'{path}' is no error model of this version; make one with pipelines/train_error_model.py")
    network = ErrorNetwork()
    network.load_state_dict(weights)
    card = json.loads(metadata["card"])
    card["means"] = tuple((told, mean) for told, mean in card["means"])
    card["usual"] = {name: (low, high) for name, (low, high) in card["usual"].items()}
    return ErrorModel(network, ErrorModelCard(**card))
