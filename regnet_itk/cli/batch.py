"""``regnet-itk batch``: many pairs, registered by as many workers as there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import FAILED, StrictCommand
from regnet_itk.cli.screen import Screen

if TYPE_CHECKING:
    from regnet_itk.batch.run import Batch
    from regnet_itk.stages.base import Stage

_ERRORS_SHOWN = 20
_NO_PART = "none"


@click.command("batch", cls=StrictCommand, context_settings=options.HELP)
@click.argument("pairs", metavar="PAIRS.csv", type=Path)
@options.out_folder
@options.stages
@options.both_ways
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Processes on this machine, each of which does one pair at a time with its share of the CPU threads.",
)  # fmt: skip
@click.option(
    "--part", metavar="K/N",
    help="Do part K of N, without table and page; none: write only these, of what is there. Default: what the "
    "variables of a job array say (SLURM, Grid Engine, LSF), else all.",
)  # fmt: skip
@click.option("--title", default="Batch", show_default=True, help="Heading of the page.")
@options.threads
@options.priority
@options.loglevel
@options.device
@options.elastix_seed
def command(
    *,
    pairs: Path,
    out: Path,
    stages: tuple[str, ...],
    both_ways: bool,
    jobs: int,
    part: str | None,
    title: str,
    threads: int | None,
    priority: str | None,
    loglevel: str,
    device: str,
    seed: int | None,
) -> int:
    """Register the pairs that PAIRS.csv names, each as `regnet-itk run` does.

    The file has a row a pair, with the columns fixed and moving, and any of name, group, fixed_mask, moving_mask,
    fixed_landmarks, moving_landmarks; its paths are relative to it.

    Writes to DIR/pairs/NAME what run writes, and to DIR batch.csv (all pairs) and batch.html (the worst first). Started
    again, it keeps what is finished. Several may work on the same DIR at a time, on several machines too.
    """
    from regnet_itk.batch.engines import LocalEngine
    from regnet_itk.batch.outputs import BATCH_FILES, write_batch
    from regnet_itk.batch.parts import Part, find_part
    from regnet_itk.batch.run import collect_batch, plan_batch, run_batch
    from regnet_itk.batch.settings import BatchSettings
    from regnet_itk.cli.run_log import LogToScreen
    from regnet_itk.outputs import check_writable
    from regnet_itk.pairs import read_pairs
    from regnet_itk.run_log import heard_by
    from regnet_itk.threads import share_of_threads

    chosen = find_part(os.environ) if part is None else None if part == _NO_PART else Part.parse(part)
    BATCH_FILES.check(out, [pairs])
    check_writable(out)
    read = read_pairs(pairs, check_files=False)
    planned = _stages(stages)
    settings = BatchSettings(planned, threads or share_of_threads(jobs), seed, device, priority, both_ways)
    plan = plan_batch(read if chosen is None else chosen.of(read), out, settings)
    shown = Screen(loglevel, whole=True)
    with shown, heard_by(LogToScreen(shown)):
        batch = collect_batch(plan) if part == _NO_PART else run_batch(plan, LocalEngine(jobs), shown)
        if chosen is None:
            write_batch(batch, out, title)
            shown.say(f"written to {out}; see {out / 'batch.html'}")
    return _tell_end(batch, shown)


def _stages(names: tuple[str, ...]) -> tuple[Stage, ...] | None:
    """Return the stages that are named, checked once and not for each pair; None if they are to be chosen.

    Files are named by their whole paths, as workers may stand in other folders.
    """
    from regnet_itk.events import LOGGER
    from regnet_itk.stages.planning import check_stages, read_stages
    from regnet_itk.transforms.chain import TransformChain

    if not names:
        return None
    stages = read_stages([Path(name).resolve() if Path(name).is_file() else name for name in names], LOGGER)
    check_stages(stages, TransformChain())
    return tuple(stages)


def _tell_end(batch: Batch, shown: Screen) -> int:
    """Say how it ended, and return the exit status."""
    from regnet_itk.batch.outputs import describe_batch

    failed = batch.failed
    for pair, reason in failed[:_ERRORS_SHOWN]:
        click.echo(f"regnet-itk: error: {pair.name}: {name_flags(reason)}", err=True)
    if len(failed) > _ERRORS_SHOWN:
        click.echo(f"regnet-itk: error: {len(failed) - _ERRORS_SHOWN} more pairs failed", err=True)
    shown.say(describe_batch(batch))
    return FAILED if failed or batch.missing else 0
