"""Images made ready to train or to judge by, once and for all processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regnet_itk.networks.architectures import Shape, find_architecture
from regnet_itk.training.blocks import BlockMaker
from regnet_itk.training.config import PairRecipe, TrainingConfig
from regnet_itk.training.pairs import PairBlocks, WholePair, load_pairs
from regnet_itk.training.processes import Processes
from regnet_itk.training.random import Random
from regnet_itk.training.sources import Source, load_source


@dataclass(frozen=True)
class Prepared:
    """Images to cut blocks from.

    Parameters
    ----------
    sources : list of Source
        For blocks that are made on the fly.
    pairs : list of WholePair
        For blocks of pairs that were made beforehand.
    """

    sources: list[Source]
    pairs: list[WholePair]

    def maker(
        self, shape: Shape, voxel_size: float, random: Random, recipe: PairRecipe | None = None
    ) -> BlockMaker | PairBlocks:
        """Return what makes blocks of `shape` (voxels z, y, x; mm): on the fly, or by the recipe of whole pairs."""
        if recipe:
            return PairBlocks(self.pairs, shape, random, recipe)
        return BlockMaker(self.sources, shape, voxel_size, random)


def prepare(
    paths: list[Path],
    config: TrainingConfig,
    cache: Path,
    processes: Processes,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare images as the phases of a configuration need them: to cut blocks from, or as whole pairs, or both.

    Parameters
    ----------
    paths : list of Path
    config : TrainingConfig
    cache : Path
        Folder; what lies there is not made anew.
    processes : Processes
        The first one prepares, the others read.
    say : callable
        Takes a line for each image.

    Raises
    ------
    ImageError
        If an image cannot be used, or has no lungs.
    OutputError
        If the cache cannot be written.
    """
    voxel_size = find_architecture(config.network).voxel_size
    recipe = next((phase.pairs for phase in config.phases if phase.pairs), None)
    found = Prepared([], [])
    for number, path in enumerate(paths, start=1):
        if not processes.first:
            processes.wait()
        else:
            say(f"preparing image {number} of {len(paths)}: {path.name}")
        if config.judged_by or any(phase.pairs is None for phase in config.phases):
            found.sources.append(load_source(path, config.source_smoothing, cache))
        if recipe:
            found.pairs.extend(load_pairs(path, recipe, voxel_size, config.seed, cache))
        if processes.first:
            processes.wait()
    return found
