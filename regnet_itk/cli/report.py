"""``regnet-itk report``: a finished registration as one page to look at."""

from __future__ import annotations

from pathlib import Path

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.run_log import tell


@click.command("report", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="DIR", type=Path)
@click.option("-out", "out", metavar="FILE", type=Path, help="The page to write.  [default: DIR/report.html]")
@click.option("-f", "fixed", metavar="IMAGE", help="Fixed image, if it is no longer where it was.")
@click.option("-m", "moving", metavar="IMAGE", help="Moving image, if it is no longer where it was.")
@click.option("-fMask", "fixed_mask", metavar="IMAGE", help="Fixed mask: what is shown and measured.")
@click.option("-fp", "fixed_landmarks", metavar="FILE", help="Landmarks of the fixed image, with -mp.")
@click.option("-mp", "moving_landmarks", metavar="FILE", help="Landmarks of the moving image.")
def command(
    *,
    folder: Path,
    out: Path | None,
    fixed: str | None,
    moving: str | None,
    fixed_mask: str | None,
    fixed_landmarks: str | None,
    moving_landmarks: str | None,
) -> None:
    """Make one HTML page of the registration that regnet-itk run wrote to DIR.

    The page holds everything, and needs neither network nor server: the stages with their errors, a viewer of slices
    in three planes, parameters and versions. Images, mask and landmarks are those of the run, unless they are given.
    """
    from regnet_itk.report.finished_run import check_finished, read_finished_run, write_run_report
    from regnet_itk.report.page import check_report_path

    check_finished(folder)
    path = folder / "report.html" if out is None else out
    check_report_path(path)
    run = read_finished_run(
        folder,
        fixed=fixed,
        moving=moving,
        fixed_mask=fixed_mask,
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
    )
    for warning in run.warnings:
        tell(f"warning: {name_flags(warning)}")
    write_run_report(run, path)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
