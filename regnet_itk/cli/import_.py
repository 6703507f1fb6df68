"""``regnet-itk import``: public data sets as images, landmarks and a list of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand
from regnet_itk.cli.run_log import tell

if TYPE_CHECKING:
    from regnet_itk.comparison.dirlab import Phase, Slices


@click.command("import", cls=StrictCommand, context_settings=options.HELP)
@click.argument("kind", type=click.Choice(["dirlab"]))
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER..", type=Path)
@options.out_folder
@click.option(
    "--fixed", type=click.Choice(["inhale", "exhale"]), default="inhale", show_default=True,
    help="Which phase is the fixed image.",
)  # fmt: skip
@click.option(
    "--slices", type=click.Choice(["auto", "feet-first", "head-first"]), default="auto", show_default=True,
    help="Which way the slices of the files go; auto sees it from the landmarks: breathing out moves them to the head.",
)  # fmt: skip
@click.option("--offset", type=int, default=1024, show_default=True, help="What the values are above Hounsfield units.")
@click.option("--lung-masks", is_flag=True, help="Find the lungs, and write their masks.")
def command(
    *, kind: str, folders: tuple[Path, ...], out: Path, fixed: Phase, slices: Slices, offset: int, lung_masks: bool
) -> None:
    """Turn DIR-Lab's 4DCT and COPDgene cases into images and landmarks, and list them for `compare`.

    FOLDER is a case as it was unpacked (Case1Pack, copd1 ..), or a folder of several. Writes DIR/PAIRS.csv, and for
    each case DIR/NAME/inhale.mha, exhale.mha (Hounsfield units), inhale_points.txt and exhale_points.txt (mm, LPS).
    """
    from regnet_itk.comparison.dirlab import PAIRS_FILE, add_pairs, find_cases, import_case
    from regnet_itk.outputs import check_writable

    check_writable(out)
    for case in find_cases(folders):
        pair = import_case(case, out, fixed=fixed, slices=slices, offset=offset, lung_masks=lung_masks)
        add_pairs([pair], out / PAIRS_FILE)
        tell(f"{case.name}: written to {out / case.name}")
    tell(f"listed in {out / PAIRS_FILE}")
