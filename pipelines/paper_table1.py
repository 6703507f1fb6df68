"""The paper's Table 1 and Figures 2 to 5, without a download: ``python pipelines/paper_table1.py --out DIR``.

Makes pairs of the digital chest phantom, several patients by seed: follow-up visits, and breathing in and out. Their
landmarks and true displacements give TRE, TRE', MAE and time. With ``--images FOLDER --names NAME ..`` synthetic pairs
are added, as in the paper: each image, which no model may have been trained on, deformed by a random field of low,
medium and high frequency (8 mm), with noise of 5 HU. Started again, what is finished is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from regnet_itk.cli.compare import run_comparison
from regnet_itk.displacement import DisplacementField
from regnet_itk.errors import RegNetItkError
from regnet_itk.evaluation.comparison import DEFAULT_METHODS, read_methods
from regnet_itk.evaluation.comparison_step import StepSettings
from regnet_itk.evaluation.pairs import Pair, check_pairs, read_pairs, write_pairs
from regnet_itk.geometry import Triple
from regnet_itk.images import Image, read_image, write_image
from regnet_itk.lungs import lung_mask
from regnet_itk.outputs import staged_folder
from regnet_itk.phantom import make_phantom, write_phantom
from regnet_itk.training.loop import find_images
from regnet_itk.training.synthesis import FREQUENCIES, deformed_pair, random_displacement

NOISE = 5.0
"""HU, as in the paper."""

KINDS = ("followup", "breathing")


def phantom_pairs(folder: Path, seeds: range, spacing: Triple, extent: Triple) -> Iterator[Pair]:
    """Make the phantom pairs that are not there yet; their settings are part of their names."""
    size = "x".join(f"{s:g}" for s in (*spacing, *extent))
    for kind in KINDS:
        for seed in seeds:
            name = f"{kind}-{seed}"
            here = folder / f"{name}-{size}"
            if not (here / "true_displacement.mha").is_file():
                write_phantom(make_phantom(seed, kind, spacing=spacing, extent=extent), here)
            yield Pair(
                name,
                here / "fixed.mha",
                here / "moving.mha",
                here / "fixed_mask.mha",
                here / "moving_mask.mha",
                here / "fixed_points.txt",
                here / "moving_points.txt",
                here / "true_displacement.mha",
                group=kind,
            )


def synthetic_pairs(folder: Path, images: Path, names: list[str]) -> Iterator[Pair]:
    """Deform each image by a field of each frequency; without landmarks, since every voxel's displacement is known."""
    for number, (name, path) in enumerate(find_images(images, tuple(names)).items()):
        image = read_image(path)
        lungs: Image | None = None
        for step, (frequency, setting) in enumerate(FREQUENCIES.items()):
            here = folder / f"{name}-{frequency}"
            if not (here / "true_displacement.mha").is_file():
                lungs = lungs or lung_mask(image)
                rng = np.random.default_rng([number, step])
                u = random_displacement(image.grid, setting, rng)
                pair = deformed_pair(image, u, NOISE, rng)
                mask = lungs.resampled(image.grid, u.to_sitk_transform(), order=0)
                with staged_folder(here) as stage:
                    write_image(pair.fixed, stage / "fixed.mha")
                    write_image(pair.moving, stage / "moving.mha")
                    write_image(Image(mask.array.astype(np.uint8), mask.grid), stage / "fixed_mask.mha")
                    truth = u.at(image.grid.points()).astype(np.float32)
                    DisplacementField(truth, image.grid).write(stage / "true_displacement.mha")
            yield Pair(
                here.name,
                here / "fixed.mha",
                here / "moving.mha",
                here / "fixed_mask.mha",
                displacement=here / "true_displacement.mha",
                group="synthetic",
            )


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
    parser.add_argument("--masks-guide", action="store_true", help="give the lung masks to the methods too")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if (given.images is None) != (not given.names):
        parser.error("--images and --names belong together")
    try:
        methods = read_methods(given.methods.split(","))
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
