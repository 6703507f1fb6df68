"""``regnet-itk convert``: transforms from one kind of file into another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand

if TYPE_CHECKING:
    from regnet_itk.transforms.conversion import Conversion
    from regnet_itk.transforms.reading import Vectors


@click.command("convert", cls=StrictCommand, context_settings=options.HELP)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--like", metavar="IMAGE", help="The fixed image: its grid is used for fields and elastix files.")
@click.option("--spacing", metavar="MM", help="Voxels of a field in mm: 2 or 1,1,2.5. Default: those of the grid.")
@click.option(
    "--bspline-spacing", type=click.FloatRange(min=0, min_open=True), metavar="MM",
    help="Fit a cubic B-spline with control points at this distance, and write that; its error is measured.",
)  # fmt: skip
@click.option(
    "--nifti-vectors", "vectors", type=click.Choice(["lps", "ras"]),
    help="How the vectors of a NIfTI field are stored. Read: as the header says; written: lps, as ITK does.",
)  # fmt: skip
@click.option(
    "--max-error", type=click.FloatRange(min=0), metavar="MM", help="Write nothing if the result is further off."
)
@options.fixed_series
@options.moving_series
def command(
    *,
    source: str,
    target: str,
    like: str | None,
    spacing: str | None,
    bspline_spacing: float | None,
    vectors: Vectors | None,
    max_error: float | None,
    fixed_series: str | None,
    moving_series: str | None,
) -> None:
    """Convert the transform IN to OUT; the suffixes say the kinds.

    elastix transform files (.txt), ITK transforms (.h5, .tfm), displacement fields (.mha, .mhd, .nrrd, .nii.gz), DICOM
    registrations (.dcm, which need both series). It is said whether the result is exact; if not, its error is measured
    and said.
    """
    from regnet_itk.data.image_files import read_grid
    from regnet_itk.transforms.conversion import convert, converted_files, parse_spacing

    converted_files(Path(target)).check(Path(target).parent, [like])
    done = convert(
        source,
        target,
        like=read_grid(like) if like else None,
        spacing=parse_spacing(spacing) if spacing else None,
        bspline_spacing=bspline_spacing,
        vectors=vectors,
        max_error=max_error,
        fixed_series=fixed_series,
        moving_series=moving_series,
    )
    print(describe_conversion(done))


def describe_conversion(done: Conversion) -> str:
    """Return the lines that say what a conversion wrote."""
    off = done.deviation
    lines = [f"{done.files[0]}: {done.kind}"]
    if len(done.files) > 1:
        lines.append(f"with {', '.join(file.name for file in done.files[1:])}")
    if done.exact:
        lines.append(f"exact (largest difference {off.max:.1g} mm at {off.count} random points)")
    else:
        lines.append(
            f"approximation: off by {off.mean:.3g} mm on average, 95 % below {off.p95:.3g}, largest {off.max:.3g} mm "
            f"at {off.count} random points"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])
