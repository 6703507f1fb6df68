"""``regnet-itk repair``: mend the paths in elastix transform files after a folder was moved."""

from __future__ import annotations

from pathlib import Path

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand


@click.command("repair", cls=StrictCommand, context_settings=options.HELP)
@click.argument("folder", metavar="DIR", type=Path)
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
def command(folder: Path, dry_run: bool) -> None:
    """Mend the paths in the elastix transform files of DIR and the folders in it, after they were moved or received.

    elastix files name each other, and their displacement fields, by absolute paths. Paths that are right stay as they
    are; all files are changed, or none.
    """
    from regnet_itk.transforms.repair import repair_folder

    repairs = repair_folder(folder, dry_run)
    root = folder.resolve()
    for repair in repairs:
        print(f"{repair.file.relative_to(root)}: {repair.key}\n  {repair.old}\n  -> {repair.new}")
    files = len({repair.file for repair in repairs})
    if not repairs:
        print("all paths are right; nothing was changed")
    elif dry_run:
        print(f"{len(repairs)} paths in {files} files would be changed; nothing was written")
    else:
        print(f"{len(repairs)} paths in {files} files changed")
