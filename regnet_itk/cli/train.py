"""``regnet-itk train``: train a network on a folder of images."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.run_log import LogToScreen, tell
from regnet_itk.run_log import heard_by
from regnet_itk.training.events import TrainingEvents

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from regnet_itk.training.events import TrainingStep

_SECONDS_BETWEEN_LINES = 60.0


@click.command("train", cls=StrictCommand, context_settings=options.HELP)
@click.argument("images", metavar="[FOLDER]", type=Path, required=False)
@click.option("-out", "out", required=True, metavar="DIR", type=Path, help="Checkpoints, log and model go here.")
@click.option(
    "-c", "config", metavar="FILE|NAME",
    help="Configuration (.toml), or the name of a recipe that comes with the package. Default: regnet_multistage, or "
    "regnet_general_images with --from a general model.",
)  # fmt: skip
@click.option("--validation", multiple=True, metavar="NAME", help="Image to judge by, without suffix; repeat for more.")
@click.option(
    "--masks", type=Path, metavar="FOLDER",
    help="A mask of the same name for each image: where training looks. "
    "Without them the region is found, as the recipe says.",
)  # fmt: skip
@click.option(
    "--label-weight", "label_weights", type=(int, float), multiple=True, metavar="LABEL WEIGHT",
    help="How much an error at the voxels of this label of the masks counts; others count 1. Repeat for more.",
)  # fmt: skip
@click.option("--from", "start_from", metavar="MODEL", help="Begin with the weights of a model: its name or file.")
@click.option("--new", is_flag=True, help="Begin anew even if DIR has a checkpoint; otherwise training continues.")
@click.option("--cache", type=Path, metavar="DIR", help="Where prepared images are kept; DIR/cache by default.")
@options.threads
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--seed", type=click.IntRange(min=0), help="In place of the configuration's.")
def command(images: Path | None, out: Path, start_from: str | None, new: bool, **given: Any) -> None:
    """Train a network on the 3D images in FOLDER, and on nothing else: the deformations are made.

    A recipe for random scenes alone (regnet_general) makes the images as well, and takes no FOLDER.

    Run the same command again to continue after an interruption. Several processes or GPUs:
    torchrun --nproc-per-node N -m regnet_itk.cli.main train FOLDER -out DIR ...
    """
    import dataclasses

    import torch

    from regnet_itk.networks.model import find_model
    from regnet_itk.outputs import check_writable
    from regnet_itk.training.config import find_recipe
    from regnet_itk.training.loop import Trainer, TrainingOptions
    from regnet_itk.training.sources import divide_images

    check_writable(out)
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    start = find_model(start_from) if start_from else None
    recipe = find_recipe(given["config"] or _usual_recipe(start))
    if given["seed"] is not None:
        recipe = dataclasses.replace(recipe, seed=given["seed"])
    if given["label_weights"]:
        recipe = dataclasses.replace(recipe, label_weights=given["label_weights"])
    if images is not None:
        recipe = divide_images(recipe, images, given["validation"])
    with TrainingScreen() as screen, heard_by(LogToScreen(screen)):
        chosen = TrainingOptions(
            given["device"],
            cache=given["cache"],
            masks=given["masks"],
            start_from=start,
            events=screen,
        )
        on = f"{len(recipe.train)} image(s), judged by {', '.join(recipe.validation)}" if images else "random scenes"
        screen.say(f"training on {on}")
        trainer = Trainer(recipe, images, out, chosen)
        if not new and trainer.continues:
            screen.say(f"continuing from the checkpoint in {out}")
        path = trainer.run(resume=not new)
        screen.say(f"the model is {path}; how it went: {out / 'log.png'}")


def _usual_recipe(start: Path | None) -> str:
    """Return the name of the recipe for models like the one that training begins with."""
    from regnet_itk.networks.model import read_model_header

    if start is not None and read_model_header(start)[0].architecture == "general":
        return "regnet_general_images"
    return "regnet_multistage"


class TrainingScreen(TrainingEvents):
    """A bar on a terminal, lines elsewhere; used as a context."""

    def __init__(self) -> None:
        self._bar: Bars | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingScreen:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bars

            self._bar = Bars(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            tell(line)

    def warn(self, line: str) -> None:
        """Print a warning above the bar."""
        self.say(line)

    def step_done(self, now: TrainingStep) -> None:
        """Show how far the training is."""
        validation = "" if now.validation is None else f", validation {now.validation:.2f} mm"
        text = (
            f"loss {now.loss:.3f}{validation}, {now.blocks_per_second:.2f} blocks/s, {_duration(now.seconds_left)} left"
        )
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task("", total=now.steps, text="")
            self._bar.update(self._bar.tasks[0].id, completed=now.step, text=text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"step {now.step} of {now.steps}: {text}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
