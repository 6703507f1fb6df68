"""``regnet-itk info``: what a file is."""

from __future__ import annotations

import json

import click

from regnet_itk.cli import options
from regnet_itk.cli.flags import name_flags
from regnet_itk.cli.main import StrictCommand


@click.command("info", cls=StrictCommand, context_settings=options.HELP)
@click.argument("file", metavar="FILE")
@click.option(
    "--like", metavar="IMAGE", help="The image that landmarks or a transform belong to, if FILE does not say."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found out as JSON.")
def command(file: str, like: str | None, as_json: bool) -> None:
    """Say what FILE is: an image, displacement field, transform, landmarks, parameters, model, dose or structures.

    For transforms: unit, frame, direction, grid, how far points move, folding, every part with how it is combined, and
    files that are missing.
    """
    from regnet_itk.data.image_files import read_grid
    from regnet_itk.inspection import describe_inspection, inspect_file

    found = inspect_file(file, read_grid(like) if like else None)
    if as_json:
        print(name_flags(json.dumps(found.to_dict(), indent=2)))
    else:
        print(name_flags("\n".join(describe_inspection(found))))
