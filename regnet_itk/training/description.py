"""What a trained model says of itself."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import torch

from regnet_itk.networks.model import ModelDescription
from regnet_itk.training.config import TrainingConfig
from regnet_itk.training.paper_pairs import FREQUENCIES


def bare_description(config: TrainingConfig) -> ModelDescription:
    """Return what is known before training."""
    return ModelDescription(model_name(config), config.network, config.working_voxel_size, config.shown, 0.0)


def model_name(config: TrainingConfig) -> str:
    """Return the name of the model that a configuration makes."""
    return config.name or config.network


def describe_model(config: TrainingConfig, training: dict[str, Any], accuracy: dict[str, Any]) -> ModelDescription:
    """Return the description of a trained model.

    Parameters
    ----------
    config : TrainingConfig
    training : dict
        What is known of the run besides its recipe.
    accuracy : dict
    """
    training = {"recipe": dataclasses.asdict(config), **training}
    return dataclasses.replace(
        bare_description(config), capture_range=_capture_range(config), training=training, accuracy=accuracy
    )


def describe_machine(device: torch.device, processes: int, precision: torch.dtype) -> str:
    """Return in words what a model was trained on."""
    threads = f"{processes} process(es), {torch.get_num_threads()} thread(s)"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{platform.machine()}, {threads}, {name}, {str(precision).removeprefix('torch.')}"


def describe_effort(description: ModelDescription) -> dict[str, Any]:
    """Return what the training of a model took."""
    return {key: description.training.get(key) for key in ("steps", "seconds", "machine", "started_from")}


def _capture_range(config: TrainingConfig) -> float:
    """Return the largest displacement in mm that the model follows: that of the last phase, if nothing else is said."""
    if config.capture_range:
        return config.capture_range
    last = config.phases[-1]
    if last.pairs:
        return max(frequency.theta for frequency in FREQUENCIES.values())
    return max(last.fields.theta[1], last.fields.breathing, last.fields.even if last.fields.even_share else 0.0)
