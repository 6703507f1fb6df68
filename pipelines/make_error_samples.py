"""Make the samples that the error of registrations is learnt from, calibrated by and judged by.

``python pipelines/make_error_samples.py IMAGES --out SAMPLES``: chest CTs of the folder IMAGES, those that the recipe
of regnet_multistage trains on, validates by and tests by; random scenes; and phantoms. SAMPLES gets a file a pair in
the folders ``train``, ``val`` and ``test``; started again, what is there is kept. ``train_error_model.py`` goes on from
there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from error_samples import (
    KnownPair,
    Tried,
    block_pairs,
    found_chains,
    keep_samples,
    made_errors,
    phantom_pairs,
    with_scaled_errors,
)

from regnet_itk.errors import RegNetItkError
from regnet_itk.training.config import TrainingConfig, read_training_config
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.sources import Preparation, find_images, load_source
from regnet_itk.transforms.chain import TransformChain

SETS = {"train": 0, "val": 5000, "test": 6000}
"""The seed of the first pair of each set."""

_RECIPES = Path(__file__).parent / "recipes"
_GENERAL = {
    "oneshot": ["regnet_general_oneshot"],
    "general": ["regnet_general"],
    "rigid": ["rigid"],
    "affine_general": ["affine_mi", "regnet_general"],
    "mi": ["bspline_mi"],
}
_CHEST = {
    "ms": ["regnet_multistage"],
    "ms_fast": ["regnet_multistage_fast"],
    "general": ["regnet_general"],
    "rigid": ["rigid"],
    "affine": ["affine"],
    "aff_ms": ["affine", "regnet_multistage"],
    "affine_general": ["affine_mi", "regnet_general"],
    "mi": ["bspline_mi"],
    "b1": ["affine", "bspline_1r"],
    "regnet": ["affine", "regnet"],
}
_QUICK = {"ct": ("ms", "ms_fast", "general"), "phantom": ("ms", "ms_fast", "general"), "scenes": ("oneshot", "general")}
_MADE = 3  # errors a pair
_SCENES = 4  # for each pair of another kind: no two look alike, and what fine texture does is seen in few


def chains_of(pair: KnownPair, number: int, use: str) -> Iterator[Tried]:
    """Yield transforms of a pair: some chains' and made errors, to learn from; else what half of all find, in turn.

    Those that judge have the way back too.
    """
    known = _GENERAL if pair.kind == "scenes" else _CHEST
    yield Tried("identity", TransformChain())
    if use != "train":
        half = {name: stages for k, (name, stages) in enumerate(known.items()) if (number + k) % 2 == 0}
        yield from found_chains(pair, half, both_ways=use == "test")
        return
    yield from made_errors(pair, np.random.default_rng(number + 1_000_000), _MADE)
    quick = _QUICK[pair.kind]
    chosen = {name: known[name] for name in quick if name == quick[number % len(quick)]}
    if number % 3 == 1:
        chosen |= {name: stages for k, (name, stages) in enumerate(known.items()) if (number // 3 + k) % 3 == 0}
    yield from with_scaled_errors(pair, found_chains(pair, chosen))


def pairs_of(name: str, count: int, images: Path, cache: Path) -> Iterator[KnownPair]:
    """Make the pairs of a set, of all kinds in turn: `count` of each, and more scenes, which cost least."""
    chest, general = (
        read_training_config(_RECIPES / f"{name}.toml") for name in ("regnet_multistage", "regnet_general")
    )
    seeds = range(SETS[name], SETS[name] + count)
    yield from block_pairs(chest_blocks(chest, name, images, cache), chest, "ct", seeds)
    scenes = Prepared([], [], general.shown, general.phases[-1].scenes)
    yield from block_pairs(scenes, general, "scenes", range(SETS[name], SETS[name] + _SCENES * count))
    yield from phantom_pairs(seeds)


def chest_blocks(config: TrainingConfig, name: str, images: Path, cache: Path) -> Prepared:
    """Prepare the images of a set."""
    names = {"train": config.train, "val": config.validation, "test": config.test}[name]
    how = Preparation(config.shown, config.source_smoothing)
    return Prepared([load_source(path, how, cache) for path in find_images(images, names).values()], [], config.shown)


def make_samples(images: Path, out: Path, pairs: int, cache: Path | None = None) -> None:
    """Make what is missing.

    Parameters
    ----------
    images : Path
        Folder of chest CTs.
    out : Path
        SAMPLES.
    pairs : int
        Of each kind to learn from, and four times as many random scenes; a third of them to calibrate and to judge by.
    cache : Path, optional
        For prepared images; SAMPLES/cache by default.
    """
    for name in SETS:
        count = pairs if name == "train" else max(2, pairs // 3)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for pair in pairs_of(name, count, images, cache or out / "cache"):
            number = int(pair.name.rpartition("-")[2])
            path = folder / f"{pair.name}.npz"
            if not path.exists():
                keep_samples(path, pair, chains_of(pair, number, name), number)
                print(f"{name}: {pair.name}", flush=True)


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=36, help="of each kind to learn from; a third of them to judge by")
    parser.add_argument("--cache", type=Path, help="prepared images; SAMPLES/cache by default")
    given = parser.parse_args()
    try:
        make_samples(given.images, given.out, given.pairs, given.cache)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
