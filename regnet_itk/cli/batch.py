"""``regnet-itk batch``: many pairs, registered by as many workers as there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import FAILED, StrictCommand
from regnet_itk.cli.screen import Screen
from regnet_itk.errors import InterruptedRunError

if TYPE_CHECKING:
    from regnet_itk.batch.run import Batch
    from regnet_itk.stages.base import Stage

_ERRORS_SHOWN = 20


@click.command("batch", cls=StrictCommand, context_settings=options.HELP)
@click.argument("pairs", metavar="PAIRS", type=Path)
@options.out_folder
@options.stages
@options.both_ways
@options.jobs
@click.option(
    "--part", metavar="K/N",
    help="Do part K of N, without table and page; none: write only these, of what is there. Default: what the "
    "variables of a job array say (SLURM, Grid Engine, LSF), else all.",
)  # fmt: skip
@click.option("--images", metavar="PATTERN", help="Of a BIDS folder: which files of a session. Default: anat/*.nii*.")
@click.option(
    "--fixed-session", metavar="LABEL", help="Of a BIDS folder: the session to register to. Default: a subject's first."
)
@click.option(
    "--fixed-frame",
    type=click.IntRange(min=0),
    metavar="N",
    help="Of a 4D image: the frame to register to. Default: 0.",
)
@options.scheduler
@options.scheduler_settings
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
    jobs: int,
    part: str | None,
    scheduler: str | None,
    scheduler_settings: Path | None,
    title: str,
    threads: int | None,
    loglevel: str,
    images: str | None,
    fixed_session: str | None,
    fixed_frame: int | None,
    **how: Any,
) -> int:
    """Register many pairs, each as `regnet-itk run` does.

    PAIRS is a CSV file with a row a pair, and the columns fixed and moving, and any of name, group, fixed_mask,
    moving_mask, fixed_landmarks, moving_landmarks, fixed_labels, moving_labels, fixed_judge_landmarks,
    moving_judge_landmarks, and the masks fixed_ignore, moving_ignore, fixed_rigid, fixed_volume, fixed_sliding; its
    paths are relative to it. Or it is a BIDS folder, of whose subjects all sessions are registered to the first; or a
    4D image, of which all frames are registered to one.

    Writes to DIR/pairs/NAME what run writes, and to DIR batch.csv (all pairs) and batch.html (the worst first). Started
    again, it keeps what is finished. Several may work on the same DIR at a time, on several machines too.
    """
    from regnet_itk.batch.outputs import BATCH_FILES, write_batch
    from regnet_itk.batch.run import collect_batch, plan_batch, run_batch
    from regnet_itk.batch.settings import BatchSettings
    from regnet_itk.batch.sources import SourceOptions, read_source
    from regnet_itk.cli.run_log import LogToScreen
    from regnet_itk.outputs import check_writable
    from regnet_itk.run_log import heard_by
    from regnet_itk.transforms.elastix_keys import check_nameable

    chosen = options.find_part(part)
    check_nameable(out)
    BATCH_FILES.check(out, [pairs])
    check_writable(out)
    engine = options.make_engine(scheduler, scheduler_settings, jobs)
    settings = BatchSettings(_stages(stages), options.threads_of_each(threads, scheduler, jobs), **how)
    source = read_source(pairs, out, SourceOptions(images, fixed_session, fixed_frame))
    plan = plan_batch(source.pairs if chosen is None else chosen.of(source.pairs), out, settings, source.export)
    shown = Screen(loglevel, whole=True)
    with shown, heard_by(LogToScreen(shown)):
        try:
            batch = collect_batch(plan) if part == options.NO_PART else run_batch(plan, engine, shown)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted; finished pairs are kept, and the same command goes on") from None
        if chosen is None:
            write_batch(batch, out, title)
            shown.say(f"written to {out}; see {out / 'batch.html'}")
            if source.finish is not None and not batch.failed and not batch.missing:
                shown.say(f"written: {source.finish()}")
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
