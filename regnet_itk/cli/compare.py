"""``regnet-itk compare``: several methods on a set of pairs, with the paper's table and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import FAILED, StrictCommand

if TYPE_CHECKING:
    from regnet_itk.comparison.methods import Method
    from regnet_itk.comparison.step import StepSettings
    from regnet_itk.engines.base import Engine
    from regnet_itk.pairs import Pair

_DEFAULT_METHODS = "affine,bspline_1r,bspline_3r,regnet,regnet_multistage_oneshot,regnet_multistage"


@click.command("compare", cls=StrictCommand, context_settings=options.HELP)
@click.argument("pairs", metavar="PAIRS.csv", type=Path)
@options.out_folder
@click.option(
    "--methods", metavar="NAME,..", default=None,
    help="Shipped parameter files, each after the affine stage; joined by + for chains "
    f"(regnet_multistage+bspline_refine). Default: {_DEFAULT_METHODS}.",
)  # fmt: skip
@click.option(
    "--method", "chains", multiple=True, metavar="NAME=FILE,..",
    help="A chain of your own, such as mine=affine,./my.txt,bspline_refine; repeat for more.",
)  # fmt: skip
@click.option(
    "--capture-range", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True, metavar="MM",
    help="TRE' is of the landmarks that are nearer than this after the first stage of the first method.",
)  # fmt: skip
@click.option(
    "--masks-only-measure", is_flag=True, help="Measure inside the masks, but do not give them to the methods."
)
@options.jobs
@click.option(
    "--part", metavar="K/N",
    help="Do part K of N of the pairs, and write no tables; started again without, the comparison is written from what "
    "is finished. Default: what the variables of a job array say (SLURM, Grid Engine, LSF); none: all.",
)  # fmt: skip
@options.scheduler
@options.scheduler_settings
@click.option("--title", default="Comparison", show_default=True, help="Heading of the report.")
@options.threads
@options.loglevel
@options.device
@options.elastix_seed
def command(
    *,
    pairs: Path,
    out: Path,
    methods: str | None,
    chains: tuple[str, ...],
    capture_range: float,
    masks_only_measure: bool,
    title: str,
    jobs: int,
    part: str | None,
    scheduler: str | None,
    scheduler_settings: Path | None,
    threads: int | None,
    loglevel: str,
    device: str,
    seed: int | None,
) -> int:
    """Register the pairs that PAIRS.csv names by several methods, and measure all of them alike.

    The file has a row a pair, with the columns fixed and moving, and any of name, group, fixed_mask, moving_mask,
    fixed_landmarks, moving_landmarks, displacement (the true one), fixed_labels, moving_labels, and the masks
    fixed_ignore, moving_ignore, fixed_rigid, fixed_volume, fixed_sliding; its paths are relative to it. Landmarks and
    labels measure, and guide nothing, unless there are fixed_judge_landmarks, moving_judge_landmarks (or
    fixed_judge_labels, moving_judge_labels): then those measure, and these guide.

    With several --jobs, or on a --scheduler, several pairs are done at a time, and the seconds are those of a machine
    that does all of that.

    Writes to DIR: table.csv .md .tex, quality.csv, differences.csv, measures.csv (each pair), the figures as .png and
    .svg, report.html, and in DIR/pairs the transforms. Started again, it keeps what is finished.
    """
    from regnet_itk.comparison.methods import read_methods
    from regnet_itk.comparison.outputs import COMPARISON_FILES
    from regnet_itk.comparison.step import StepSettings
    from regnet_itk.outputs import check_writable
    from regnet_itk.pairs import check_pairs, read_pairs

    COMPARISON_FILES.check(out, [pairs])
    check_writable(out)
    read = read_pairs(pairs)
    COMPARISON_FILES.check(out, [file for pair in read for file in pair.files().values()])
    names = [name.strip() for name in (_DEFAULT_METHODS if methods is None else methods).split(",") if name.strip()]
    planned = read_methods(names, chains)
    check_pairs(read)
    chosen = options.find_part(part)
    alone = jobs == 1 and scheduler is None
    return run_comparison(
        read if chosen is None else chosen.of(read),
        planned,
        out,
        StepSettings(options.threads_of_each(threads, scheduler, jobs), seed, device, not masks_only_measure),
        capture_range=capture_range,
        engine=None if alone else options.make_engine(scheduler, scheduler_settings, jobs),
        title=title if chosen is None else None,
        loglevel=loglevel,
    )


def run_comparison(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    out: Path,
    settings: StepSettings,
    *,
    capture_range: float = 8.0,
    engine: Engine | None = None,
    title: str | None = "Comparison",
    loglevel: str = "info",
) -> int:
    """Compare, write, and show how far it is.

    Parameters
    ----------
    pairs, methods, out, settings, capture_range, engine : see :func:`regnet_itk.comparison.run.compare`
    title : str, optional
        Of the report; None to write neither that nor tables.
    loglevel : str
        "info", "warning", "error" or "off".

    Returns
    -------
    int
        The exit status: not 0 if something failed.
    """
    from regnet_itk.cli.run_log import LogToScreen
    from regnet_itk.cli.screen import Screen
    from regnet_itk.comparison.outputs import write_comparison
    from regnet_itk.comparison.run import compare
    from regnet_itk.comparison.tables import tabulate_errors, tabulate_quality
    from regnet_itk.report.table_text import format_markdown
    from regnet_itk.run_log import heard_by

    shown = Screen(loglevel, whole=True)
    with shown, heard_by(LogToScreen(shown)):
        comparison = compare(pairs, methods, out, settings, capture_range=capture_range, engine=engine, events=shown)
        if title is not None:
            shown.say("writing tables, figures and the report ..")
            write_comparison(comparison, out, title)
    for table in (tabulate_errors(comparison), tabulate_quality(comparison)):
        if table.rows and not shown.quiet:
            click.echo(format_markdown(table))
    for pair, method, reason in comparison.failures:
        click.echo(f"regnet-itk: error: {pair.name}, {method.name}: {name_flags(reason)}", err=True)
    shown.say(f"written to {out}; see {out / 'report.html'}" if title is not None else f"this part is in {out}")
    return FAILED if comparison.failures else 0
