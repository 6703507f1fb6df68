"""What several commands share: options of the same name and meaning, and what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from regnet_itk.threads import bound_resampling

LOG_LEVELS = ("info", "warning", "error", "off")
PRIORITIES = ("high", "abovenormal", "normal", "belownormal", "idle")
HELP = {"help_option_names": ["-h", "--help"]}
"""The context settings of every command."""

Option = Callable[[Any], Any]

out_folder: Option = click.option(
    "-out", "out", required=True, metavar="DIR", type=Path, help="Output folder; created if needed."
)
stages: Option = click.option(
    "-p", "stages", multiple=True, metavar="FILE|NAME",
    help="Parameter file of a stage (.txt or .toml), or the name of a shipped one; repeat for more stages. "
    "Default: affine, then regnet_multistage for CTs of the chest; affine_mi, then regnet_general for all else.",
)  # fmt: skip
both_ways: Option = click.option(
    "--both-ways", "both_ways", is_flag=True,
    help="Register the fixed to the moving image as well, into DIR/backward, and say how well both ways agree.",
)  # fmt: skip
threads: Option = click.option("-threads", "threads", type=click.IntRange(min=1), help="CPU threads; all by default.")
priority: Option = click.option(
    "-priority", "priority", type=click.Choice(PRIORITIES), help="Priority of elastix's process."
)
loglevel: Option = click.option(
    "-loglevel", "loglevel", type=click.Choice(LOG_LEVELS), default="info", help="What is shown on the screen."
)
device: Option = click.option(
    "--device", default="auto", show_default=True, help="Of the networks: auto, cpu, cuda, cuda:N or mps."
)
fixed_series: Option = click.option(
    "--fixed-series", metavar="DIR", help="DICOM series of the fixed image; DICOM files that are written refer to it."
)
moving_series: Option = click.option(
    "--moving-series", metavar="DIR", help="DICOM series of the moving image; DICOM files are checked against it."
)
elastix_seed: Option = click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of elastix's samplers, in place of RandomSeed."
)


def bound_threads(count: int | None, *, torch_too: bool = True) -> None:
    """Bound the threads of SimpleITK, and of torch; None leaves all.

    Parameters
    ----------
    count : int, optional
    torch_too : bool
        Whether torch is used at all: it takes seconds to load.
    """
    bound_resampling(count)
    if count and torch_too:
        import torch

        torch.set_num_threads(count)
