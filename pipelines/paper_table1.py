"""The paper's Table 1 and Figures 2 to 5, without a download: ``python pipelines/paper_table1.py --out DIR``.

Makes pairs of the digital chest phantom, several patients by seed: follow-up visits, and breathing in and out. Their
landmarks and true displacements give TRE, TRE', MAE and time. With ``--images FOLDER --names NAME ..`` synthetic pairs
are added, as in the paper: each image, which no model may have been trained on, deformed by a random field of low,
medium and high frequency (8 mm), with noise of 5 HU. ``--designs`` adds the two designs that the paper compares RegNet
with. Started again, what is finished is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from known_pairs import deformed_image_pair, is_made, make_deformed, phantom_pair

from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.cli.compare import run_comparison
from regnet_itk.comparison.methods import DEFAULT_METHODS, Method, plan_method, read_methods
from regnet_itk.comparison.step import StepSettings
from regnet_itk.data.grid import Triple
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import RegNetItkError
from regnet_itk.pairs import Pair, check_pairs, read_pairs, write_pairs
from regnet_itk.parameters import read_parameter_map
from regnet_itk.training.paper_pairs import FREQUENCIES, draw_displacement
from regnet_itk.training.sources import find_images

KINDS = ("followup", "breathing")
DESIGNS = ("regnet_early", "regnet_1scale")


def phantom_pairs(folder: Path, seeds: range, spacing: Triple, extent: Triple) -> Iterator[Pair]:
    """Make the phantom pairs that are not there yet; their settings are part of their folders' names."""
    size = "x".join(f"{s:g}" for s in (*spacing, *extent))
    for kind in KINDS:
        for seed in seeds:
            name = f"{kind}-{seed}"
            pair = phantom_pair(folder / f"{name}-{size}", name, seed=seed, kind=kind, spacing=spacing, extent=extent)
            yield replace(pair, group=kind)


def synthetic_pairs(folder: Path, images: Path, names: list[str]) -> Iterator[Pair]:
    """Deform each image by a field of each frequency."""
    for number, (name, path) in enumerate(find_images(images, tuple(names)).items()):
        image = read_image(path)
        lungs: Image | None = None
        for step, (frequency, setting) in enumerate(FREQUENCIES.items()):
            here = folder / f"{name}-{frequency}"
            if not is_made(here):
                lungs = lungs or lung_mask(image)
                rng = np.random.default_rng([number, step])
                make_deformed(here, image, lungs, draw_displacement(image.grid, setting, rng), rng)
            yield replace(deformed_image_pair(here, here.name), group="synthetic")


def design_methods() -> list[Method]:
    """Return the paper's other designs, as stages that differ from that of `regnet` in the model alone."""
    regnet = read_parameter_map("regnet")
    return [plan_method(design, ["affine", regnet.with_(RegNetModel=design)]) for design in DESIGNS]


def main() -> int:
    """Make the pairs, compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=3, help="phantom patients of each kind")
    parser.add_argument("--first-seed", type=int, default=100, help="of the first patient")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 2.0), metavar="MM")
    parser.add_argument("--extent", type=float, nargs=3, default=(324.0, 252.0, 280.0), metavar="MM")
    parser.add_argument("--images", type=Path, help="folder of CTs for the synthetic pairs")
    parser.add_argument("--names", nargs="+", default=[], help="which of them; none that a model was trained on")
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="as for regnet-itk compare")
    parser.add_argument("--designs", action="store_true", help="add RegNet Early and RegNet 1Scale")
    parser.add_argument("--masks-guide", action="store_true", help="give the lung masks to the methods too")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if (given.images is None) != (not given.names):
        parser.error("--images and --names belong together")
    try:
        methods = [*read_methods(given.methods.split(",")), *(design_methods() if given.designs else [])]
        seeds = range(given.first_seed, given.first_seed + given.patients)
        pairs = list(phantom_pairs(given.out / "images", seeds, tuple(given.spacing), tuple(given.extent)))
        if given.images is not None:
            pairs += synthetic_pairs(given.out / "images", given.images, given.names)
        write_pairs(pairs, given.out / "PAIRS.csv")
        pairs = read_pairs(given.out / "PAIRS.csv")
        check_pairs(pairs)
        settings = StepSettings(threads=given.threads, device=given.device, masks_guide=given.masks_guide)
        return run_comparison(pairs, methods, given.out, settings, title="Table 1, on phantoms and synthetic pairs")
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
