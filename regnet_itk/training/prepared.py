"""Images made ready to train or to judge by, once and for all processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from regnet_itk.events import LOGGER, Log
from regnet_itk.networks.architectures import Shape
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.training.blocks import BlockMaker
from regnet_itk.training.config import PairRecipe, SceneRecipe, TrainingConfig
from regnet_itk.training.pairs import PairBlocks, WholePair, load_pairs
from regnet_itk.training.processes import Processes
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.scenes import SceneBlocks
from regnet_itk.training.sources import Preparation, Source, load_source

_SCENES_TO_JUDGE_BY = 1_000_000_000
"""A seed far from those of the scenes that training sees."""

_SHARE_OF_MEMORY = 0.25


@dataclass(frozen=True)
class Prepared:
    """Images to cut blocks from.

    Parameters
    ----------
    sources : list of Source
        For blocks that are made on the fly.
    pairs : list of WholePair
        For blocks of pairs that were made beforehand.
    world : World
        That they show.
    scenes : SceneRecipe, optional
        In place of images: what random scenes are drawn by.
    """

    sources: list[Source]
    pairs: list[WholePair]
    world: World = CHEST_CT
    scenes: SceneRecipe | None = None

    def on(self, device: torch.device) -> Prepared:
        """Return the images with their sources in a graphics card's memory, if they take little of what is free."""
        if device.type != "cuda":
            return self
        size = sum(s.values.nbytes + s.region.nbytes for s in self.sources)
        if size > _SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, sources=[source.to(device) for source in self.sources])

    def maker(
        self, shape: Shape, voxel_size: float, random: Random, recipe: PairRecipe | None = None
    ) -> BlockMaker | PairBlocks | SceneBlocks:
        """Return what makes blocks of `shape` (voxels z, y, x; mm): on the fly, or by the recipe of whole pairs."""
        if self.scenes:
            return SceneBlocks(self.scenes, shape, voxel_size, random, world=self.world, seed=_SCENES_TO_JUDGE_BY)
        if recipe:
            return PairBlocks(self.pairs, shape, random, recipe, self.world.background)
        return BlockMaker(self.sources, shape, voxel_size, random, self.world)


def prepare(
    paths: list[Path],
    config: TrainingConfig,
    how: Preparation,
    cache: Path,
    *,
    processes: Processes,
    log: Log = LOGGER,
) -> Prepared:
    """Prepare images as the phases of a configuration need them: to cut blocks from, or as whole pairs, or both.

    Parameters
    ----------
    paths : list of Path
    config : TrainingConfig
    how : Preparation
    cache : Path
        Folder; what lies there is not made anew.
    processes : Processes
        The first one prepares, the others read.
    log : Logger
        Is given a line for each image.

    Raises
    ------
    ImageError
        If an image cannot be used, or does not have the region that training looks at.
    OutputError
        If the cache cannot be written.
    """
    voxel_size = config.working_voxel_size
    recipe = next((phase.pairs for phase in config.phases if phase.pairs), None)
    found = Prepared([], [], how.world)
    for number, path in enumerate(paths, start=1):
        if not processes.first:
            processes.wait()
        else:
            log.info(f"preparing image {number} of {len(paths)}: {path.name}")
        if config.judged_by or any(phase.pairs is None for phase in config.phases):
            found.sources.append(load_source(path, how, cache))
        if recipe:
            found.pairs.extend(load_pairs(path, recipe, how, cache, voxel_size=voxel_size, seed=config.seed))
        if processes.first:
            processes.wait()
    return found
