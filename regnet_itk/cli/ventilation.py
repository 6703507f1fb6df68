"""``regnet-itk ventilation``: how lungs expand and how their density changes, from a finished registration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.screen import Screen
from regnet_itk.run_log import RunLog, heard_by

if TYPE_CHECKING:
    from regnet_itk.data.image import Image
    from regnet_itk.report.finished_run import FinishedRun
    from regnet_itk.ventilation.maps import VentilationMaps


@click.command("ventilation", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="RUN", type=Path)
@options.out_folder
@click.option("-fMask", "fixed_mask", metavar="IMAGE", help="The lungs in the fixed image.  [default: the run's mask]")
@click.option(
    "--labels", metavar="IMAGE", help="Lobes, or other labels of the fixed image: a row of the table for each."
)
@click.option(
    "--inhale", type=click.Choice(["fixed", "moving"]),
    help="The image breathed in.  [default: that with the larger lungs]",
)  # fmt: skip
@click.option(
    "--smooth", "smoothing", type=click.FloatRange(min=0), metavar="MM",
    help="Standard deviation of the Gaussian by which densities are smoothed; 0 for none, 30 at most.  [default: 3]",
)  # fmt: skip
@click.option("-f", "fixed", metavar="IMAGE", help="Fixed image, if it is no longer where it was.")
@click.option("-m", "moving", metavar="IMAGE", help="Moving image, if it is no longer where it was.")
@options.threads
@options.loglevel
def command(
    *,
    folder: Path,
    out: Path,
    fixed_mask: str | None,
    labels: str | None,
    inhale: str | None,
    smoothing: float | None,
    fixed: str | None,
    moving: str | None,
    threads: int | None,
    loglevel: str,
) -> None:
    """Map how the lungs are ventilated between two images, breathed in and out, and how their density changes.

    RUN is the output folder of regnet-itk run for both images. Writes to DIR ventilation_jacobian.mha, and of CTs
    ventilation_hu.mha and density_change.mha, on the fixed image's voxels; ventilation.csv, a row for all and for each
    label; ventilation.json, and ventilation.png to look at.
    """
    from regnet_itk.cli.options import bound_threads
    from regnet_itk.data.image_files import read_image
    from regnet_itk.outputs import check_writable
    from regnet_itk.report.finished_run import check_finished, read_finished_run
    from regnet_itk.ventilation.maps import SMOOTHING, find_ventilation
    from regnet_itk.ventilation.outputs import VENTILATION_FILES, write_ventilation
    from regnet_itk.ventilation.regions import tabulate_regions

    check_finished(folder)
    VENTILATION_FILES.check(out, [fixed_mask, labels, fixed, moving])
    check_writable(out)
    bound_threads(threads)
    log = RunLog(Screen(loglevel))
    with heard_by(log):
        run = read_finished_run(folder, fixed=fixed, moving=moving, fixed_mask=fixed_mask)
        of_labels = None if labels is None else read_image(labels, "labels")
        region, what = _region(run, of_labels)
        maps = find_ventilation(
            run.pair.fixed, run.pair.moving, run.pair.methods[-1].chain, region,
            inhale=inhale, smoothing=SMOOTHING if smoothing is None else smoothing,
        )  # fmt: skip
        rows = tabulate_regions(maps, region, of_labels)
        warnings = [*run.verdict_warnings(), *_warnings(maps)]
        for warning in warnings:
            log.warn(warning)
        told = {"run": str(folder), "region": what} | ({} if labels is None else {"labels": labels})
        told |= {f"{role} image": str(run.files[role]) for role in ("fixed", "moving")}
        write_ventilation(maps, rows, out, run.pair.fixed, told=told, warnings=warnings)
        log.say(f"region: {what}; breathed in: the {maps.inhale} image")
        for row in rows:
            log.say(row.describe())
        log.say(f"written to {out} in {log.seconds():.1f} s")


def _region(run: FinishedRun, labels: Image | None) -> tuple[Image, str]:
    """Return where is measured, and what it is: the mask, else the labels, else the lungs of a chest CT."""
    from regnet_itk.anatomy.lungs import lung_mask, shows_lungs
    from regnet_itk.data.image import Image, check_mask
    from regnet_itk.errors import ImageError

    if run.pair.fixed_mask is not None:
        return run.pair.fixed_mask, f"the mask '{run.files['fixed_mask']}'"
    if labels is not None:
        check_mask(labels, run.pair.fixed, "fixed")
        return Image(labels.array != 0, labels.grid), "all labels"
    lacking = "no lungs are seen in the fixed image; give a mask of them with `fixed_mask`"
    if not shows_lungs(run.pair.fixed):
        raise ImageError(lacking)
    try:
        return lung_mask(run.pair.fixed), "the lungs that were found in the fixed image"
    except ImageError:
        raise ImageError(lacking) from None


def _warnings(maps: VentilationMaps) -> list[str]:
    warnings = []
    if maps.densities is None:
        warnings.append("the images are no CTs in Hounsfield units: there are no maps from densities")
    if maps.beyond > 0.001:
        warnings.append(f"{maps.beyond:.1%} of the region lies beyond the moving image, and is left out")
    if maps.folded:
        warnings.append(f"the transform folds at {maps.folded:.2%} of the region, which is left out")
    return warnings
