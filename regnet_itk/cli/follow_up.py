"""``regnet-itk follow-up``: the lesions of two dates, matched through a finished registration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.screen import Screen
from regnet_itk.dicom.files import DICOM_SUFFIX
from regnet_itk.run_log import RunLog, heard_by

if TYPE_CHECKING:
    from regnet_itk.dicom.series import Series
    from regnet_itk.report.finished_run import FinishedRun


@click.command("follow-up", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="RUN", type=Path)
@click.option(
    "-fl", "fixed_lesions", required=True, metavar="FILE",
    help="Lesions of the fixed image: labels (each value one lesion), points, or a DICOM structure set.",
)  # fmt: skip
@click.option("-ml", "moving_lesions", required=True, metavar="FILE", help="Lesions of the moving image.")
@options.out_folder
@click.option("--fixed-date", metavar="DATE", help="Of the fixed image, as 2026-01-31; DICOM series say it themselves.")
@click.option("--moving-date", metavar="DATE", help="Of the moving image.")
@click.option("--baseline", type=click.Choice(["fixed", "moving"]), help="The earlier image, if no dates are known.")
@click.option("--connected", is_flag=True, help="Each connected piece of the labels is a lesion: for binary masks.")
@click.option(
    "--structures", multiple=True, metavar="PATTERN", help="Of structure sets, the regions of such names: 'GTV*'."
)
@click.option(
    "--error", type=click.FloatRange(min=0, min_open=True), metavar="MM",
    help="How far the transform may be off: 90 % of the points lie within; in place of the run's error map.",
)  # fmt: skip
@options.fixed_series
@options.moving_series
@click.option("-f", "fixed", metavar="IMAGE", help="Fixed image, if it is no longer where it was.")
@click.option("-m", "moving", metavar="IMAGE", help="Moving image, if it is no longer where it was.")
@options.loglevel
def command(
    *,
    folder: Path,
    fixed_lesions: str,
    moving_lesions: str,
    out: Path,
    fixed_date: str | None,
    moving_date: str | None,
    baseline: str | None,
    connected: bool,
    structures: tuple[str, ...],
    error: float | None,
    fixed_series: str | None,
    moving_series: str | None,
    fixed: str | None,
    moving: str | None,
    loglevel: str,
) -> None:
    """Find the lesions of one date again at the other, and tell how they grew.

    RUN is the output folder of regnet-itk run for both images. Lesions are matched one to one where its transform takes
    them, within how far it may be off there; the others are new, gone, split, merged or out of view. Volumes and
    diameters are those in each image itself.

    Writes to DIR follow_up.csv, follow_up.json and follow_up.html, a page with a picture of each.
    """
    from regnet_itk.followup.outputs import FOLLOW_UP_FILES, write_follow_up
    from regnet_itk.followup.pictures import Scans
    from regnet_itk.followup.reading import read_lesions
    from regnet_itk.followup.study import follow_up
    from regnet_itk.followup.visits import order_visits
    from regnet_itk.outputs import check_writable
    from regnet_itk.report.finished_run import check_finished, read_finished_run

    check_finished(folder)
    FOLLOW_UP_FILES.check(out, [fixed_lesions, moving_lesions, fixed, moving])
    check_writable(out)
    log = RunLog(Screen(loglevel))
    with heard_by(log):
        run = read_finished_run(folder, fixed=fixed, moving=moving)
        series = (
            _series(run, "fixed", fixed_series, fixed_date is None or _is_dicom(fixed_lesions)),
            _series(run, "moving", moving_series, moving_date is None or _is_dicom(moving_lesions)),
        )
        visits = order_visits(fixed_date or _date_of(series[0]), moving_date or _date_of(series[1]), baseline)
        how: dict[str, Any] = {"connected": connected, "structures": structures}
        pair, last = run.pair, run.pair.methods[-1]
        found = follow_up(
            read_lesions(fixed_lesions, pair.fixed.grid, "fixed", series=series[0], **how),
            read_lesions(moving_lesions, pair.moving.grid, "moving", series=series[1], **how),
            last.chain, fixed_grid=pair.fixed.grid, moving_grid=pair.moving.grid,
            expected_error=last.expected_error if error is None else error,
            fixed_date=visits.fixed_date, moving_date=visits.moving_date, baseline=visits.baseline,
        )  # fmt: skip
        warnings = run.verdict_warnings()
        for warning in warnings:
            log.warn(warning)
        told = {"run": str(folder), "fixed lesions": fixed_lesions, "moving lesions": moving_lesions}
        told |= {f"{role} image": str(run.files[role]) for role in ("fixed", "moving")}
        scans = Scans(pair.fixed, pair.moving, last.chain)
        write_follow_up(found, out, scans, f"Follow-up: {run.pair.name}", told=told, warnings=warnings)
        log.say(visits.describe())
        for finding in found.findings:
            log.say(finding.describe())
        log.say(f"{found.describe()}; written to {out} in {log.seconds():.1f} s")


def _series(run: FinishedRun, role: str, given: str | None, needed: bool) -> Series | None:
    """Return the headers of an image's series: given, or its own if they are needed."""
    from regnet_itk.dicom.series import read_series

    own = str(run.files[role]) if needed and os.path.isdir(run.files[role]) else None
    path = given or own
    return None if path is None else read_series(path, f"{role} series")


def _is_dicom(path: str) -> bool:
    return Path(path).suffix.lower() == DICOM_SUFFIX


def _date_of(series: Series | None) -> str | None:
    return None if series is None else series.date
