"""``regnet-itk synthesize``: pairs with a known displacement, made of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand

if TYPE_CHECKING:
    from regnet_itk.cli.screen import Screen
    from regnet_itk.data.image import Image
    from regnet_itk.synthesis import SynthesisInput


@click.command("synthesize", cls=StrictCommand, context_settings=options.HELP)
@click.argument("images", metavar="IMAGE..", nargs=-1, required=True, type=Path)
@options.out_folder
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random.")
@click.option(
    "--fields", type=click.IntRange(1, 6), default=6, show_default=True,
    help="Pairs an image: three deform it with a low, medium and high frequency, three more a deformed version of it.",
)  # fmt: skip
@click.option(
    "--mask", "masks", multiple=True, metavar="FILE", type=Path,
    help="Mask of the lungs of an image, instead of those found in it; repeat it, in the order of the images.",
)  # fmt: skip
def command(images: tuple[Path, ...], out: Path, seed: int, fields: int, masks: tuple[Path, ...]) -> None:
    """Make synthetic pairs of CT images, with the displacement between them, as in Sect. 2.2 of the RegNet paper.

    Pairs 1 to 3 of an image have it as the moving one; the fixed one is I_M(x + u(x)), by cubic B-splines, with u of
    sigma 35, 25 and 20 mm, of 80, 100 and 100 random points, and of up to 8 mm along each axis of the image. Pairs 4
    to 6 are made alike of a new moving image: the first one under a displacement of sigma 35 mm and 100 points, with
    noise of 3 HU. Both images of every pair get noise of 5 HU of their own.

    Read from the paper: its sigma are of voxels of 1 mm, so they are mm here, whatever the voxels are. After smoothing
    so little is left of the drawn vectors that the field is scaled by one factor, so that its largest component is
    theta = 8 mm. "Noise is finally added to the images": to both of a pair.

    Writes to DIR for image NAME and K from 1: NAME_K_fixed.mha, NAME_K_moving.mha, NAME_K_displacement.mha (T(x) - x
    in mm, LPS), NAME_K_fixed_mask.mha if there are lungs, NAME_displacements.png; and pairs.csv for regnet-itk compare.
    """
    from regnet_itk.cli.screen import Screen
    from regnet_itk.outputs import check_writable, staged_folder
    from regnet_itk.pairs import Pair, write_pairs
    from regnet_itk.registration_events import StageEvents
    from regnet_itk.synthesis import PAIRS_FILE, synthetic_files, write_synthetic_pairs

    names = _names(images)
    files = synthetic_files(names, out)
    files.check(out, [*images, *masks])
    check_writable(out)
    if masks and len(masks) != len(images):
        raise click.UsageError(
            f"{len(masks)} --mask for {len(images)} images; give one for each image, in their order, or none",
            click.get_current_context(),
        )
    _check_headers(images)
    pairs: list[Pair] = []
    with Screen() as shown, staged_folder(out, files) as stage:
        for number, (path, name) in enumerate(zip(images, names, strict=True)):
            source = _read(path, name, masks[number] if masks else None, shown)
            pairs += write_synthetic_pairs(source, stage, seed, fields, StageEvents(shown, number + 1, name))
        write_pairs(pairs, stage / PAIRS_FILE)
        shown.say(f"written to {out}, pairs: {len(pairs)}; to register them: regnet-itk compare {out / PAIRS_FILE} ..")


def _names(images: tuple[Path, ...]) -> list[str]:
    """Return the names of the images' files, without folders and suffixes."""
    from regnet_itk.data.suffixes import without_suffix
    from regnet_itk.errors import ParameterError

    names: dict[str, Path] = {}
    for path in images:
        name = without_suffix(path.resolve()) or "image"
        if name in names:
            raise ParameterError(
                f"'{names[name]}' and '{path}' would both make files '{name}_1_fixed.mha'; "
                "give each image a name of its own, or each a call of its own with another -out"
            )
        names[name] = path
    return list(names)


def _check_headers(images: tuple[Path, ...]) -> None:
    """Find, before the first image is worked on, one that is missing or cannot be used."""
    from regnet_itk.data.image_files import read_grid

    for path in images:
        read_grid(path)


def _read(path: Path, name: str, mask: Path | None, shown: Screen) -> SynthesisInput:
    from regnet_itk.data.image import check_mask, check_registrable
    from regnet_itk.data.image_files import read_image
    from regnet_itk.errors import ImageError
    from regnet_itk.synthesis import SynthesisInput

    image = read_image(path)
    check_registrable(image, f"image '{path}'")
    lungs: Image | None = None
    if mask is not None:
        lungs = read_image(mask, "mask")
        try:
            check_mask(lungs, image, "given")
        except ImageError as error:
            raise ImageError(f"'{mask}': {error}") from None
        return SynthesisInput(name, image, lungs)
    try:
        from regnet_itk.anatomy.lungs import lung_mask

        lungs = lung_mask(image)
    except ImageError:
        shown.warn(f"warning: no lungs were found in '{path}': its pairs have no mask (--mask FILE gives one)")
    return SynthesisInput(name, image, lungs)
