"""``regnet-itk example``: a digital chest phantom, registered."""

from __future__ import annotations

from pathlib import Path

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.run_log import tell


@click.command("example", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="DIR", type=Path)
@click.option("--device", default="auto", show_default=True, help="Of the network: auto, cpu, cuda, cuda:N or mps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which digital patient.")
def command(folder: Path, device: str, seed: int) -> None:
    """Write two breathing states of a digital chest phantom to DIR, register them, and print the landmark errors.

    Needs no download. DIR holds the images, masks, landmarks and the true displacement field; DIR/registration holds
    what a registration writes.
    """
    from regnet_itk.anatomy.phantom import make_phantom, write_phantom
    from regnet_itk.cli.run import run
    from regnet_itk.outputs import check_writable
    from regnet_itk.results import RegistrationResult

    check_writable(folder)
    tell("making the phantom ..")
    write_phantom(make_phantom(seed=seed), folder)
    out = folder / "registration"
    result = run(
        str(folder / "fixed.mha"),
        str(folder / "moving.mha"),
        out,
        fixed_mask=str(folder / "fixed_mask.mha"),
        fixed_landmarks=str(folder / "fixed_points.txt"),
        moving_landmarks=str(folder / "moving_points.txt"),
        device=device,
        loglevel="warning",
    )
    assert isinstance(result, RegistrationResult)  # the phantom is 3D
    assert result.initial_tre is not None
    rows = [("before", result.initial_tre, 0.0)]
    rows += [(f"after {s.name}", s.tre, s.seconds) for s in result.stages if s.tre is not None]
    click.echo(f"{'':32} TRE, mm (mean +- sd)   seconds")
    for name, tre, seconds in rows:
        click.echo(f"{name:32} {tre.mean:8.2f} +- {tre.sd:5.2f}   {seconds:10.1f}")
    click.echo(f"pictures and transforms: {out}, look at {out / 'registration.png'}")
