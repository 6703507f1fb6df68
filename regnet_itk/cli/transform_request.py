"""What a call of ``regnet-itk transform`` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Request:
    """What the command line asks for; the fields are its options."""

    transform: str
    out: Path
    images: tuple[str, ...] = ()
    points: str | None = None
    determinant: str | None = None
    matrices: str | None = None
    label: str | None = None
    fixed_series: str | None = None
    moving_series: str | None = None
    dose: str = "value"
    like: str | None = None
    back: bool = False
    mask: str | None = None
    order: int | None = None
    default: float | None = None
    threads: int | None = None
    loglevel: str = "info"

    def __post_init__(self) -> None:
        if not (self.images or self.points or self.determinant or self.matrices):
            raise click.UsageError("give at least one of -in, -def, -jac and -jacmat")
        if (self.fixed_series or self.moving_series) and not (self.fixed_series and self.images):
            raise click.UsageError(
                "--fixed-series, and --moving-series with it, are for DICOM images, doses and structures; give these "
                "with -in"
            )
        if self.dose == "energy" and not self.fixed_series:
            raise click.UsageError("--dose energy is for DICOM doses; give the series with --fixed-series")
        if self.back and self.points in (None, "all"):
            raise click.UsageError(
                "--moving-to-fixed needs -def with a file of points; for a whole inverse use regnet-itk invert"
            )
        if self.mask and not self.determinant:
            raise click.UsageError("--mask is for the summary of the Jacobian; add -jac all")
        if self.label and not self.images:
            raise click.UsageError("--label is for segmentations; give them with -in")
        if self.label and (self.order is not None or self.default is not None):
            raise click.UsageError("--label knows its interpolation; leave --order and --default away")
