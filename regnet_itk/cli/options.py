"""What several commands share: options of the same name and meaning, and what they do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.threads import bound_resampling

if TYPE_CHECKING:
    from regnet_itk.engines.base import Engine
    from regnet_itk.engines.parts import Part

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


jobs: Option = click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Processes on this machine, each of which does one pair at a time with its share of the CPU threads.",
)  # fmt: skip
scheduler: Option = click.option(
    "--scheduler", metavar="WHERE",
    help="Register on Dask's workers: local, slurm, pbs, sge, kubernetes (--jobs says how many), or the address of a "
    "running scheduler.",
)  # fmt: skip
scheduler_settings: Option = click.option(
    "--scheduler-settings", metavar="FILE.toml", type=Path,
    help="What slurm, pbs, sge or kubernetes need: the arguments of the class in dask-jobqueue or dask-kubernetes.",
)  # fmt: skip


def make_engine(scheduler: str | None, settings_file: Path | None, jobs: int) -> Engine:
    """Return what does the tasks: processes of this machine, unless a scheduler is named.

    Raises
    ------
    ParameterError
        If there is no such scheduler, or it cannot be used.
    """
    if scheduler is None and settings_file is not None:
        raise click.UsageError("--scheduler-settings needs --scheduler", click.get_current_context())
    if scheduler is None:
        from regnet_itk.engines.local_engine import LocalEngine

        return LocalEngine(jobs)
    from regnet_itk.engines.dask_engine import DaskEngine

    return DaskEngine(scheduler, jobs, settings_file)


NO_PART = "none"


def find_part(given: str | None) -> Part | None:
    """Return the part that is asked for, or else the one that a job array's task is to do; None for `NO_PART`.

    Raises
    ------
    ParameterError
        If there is no such part.
    """
    from regnet_itk.engines import parts

    return parts.find_part(os.environ) if given is None else None if given == NO_PART else parts.Part.parse(given)


def threads_of_each(threads: int | None, scheduler: str | None, jobs: int) -> int | None:
    """Return the CPU threads of each of some jobs: as many as asked for, or else its share of this machine's."""
    from regnet_itk.threads import share_of_threads

    return threads or (share_of_threads(jobs) if scheduler in (None, "local") else None)


_GUIDES = {
    "label": "Segmentation of structures that both images show, by the same numbers; needs the other image's too.",
    "ignore": "Where the {} image has nothing to compare: tumour, resection, implant, artefact.",
    "rigid": "What moves rigidly: one motion for each number of this mask on the {} image.",
    "volume": "What keeps its volume, each number of this mask on the {} image by itself.",
    "sliding": "What slides along its surroundings, such as the lungs, on the {} image.",
}


def guides(command: Any) -> Any:
    """Add the options of what is known of each image: -fLabel -mLabel -fIgnore .."""
    for name, text in reversed(_GUIDES.items()):
        for role in ("moving", "fixed"):
            back = " For the way back." if role == "moving" and name in ("rigid", "volume", "sliding") else ""
            flag = f"-{role[0]}{name.capitalize()}"
            command = click.option(flag, f"{role}_{name}", metavar="IMAGE", help=text.format(role) + back)(command)
    return command


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
