"""The blocks of a phase: from images, from texture, from random scenes, in the shares that the phase says."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

import torch

from regnet_itk.networks.architectures import Shape
from regnet_itk.training.blocks import Block, BlockMaker
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe, Phase
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.scenes import SceneBlocks
from regnet_itk.training.sources import Source

_TEXTURE_SIZE = 160
_VOXELS_TOGETHER = 16_000_000
_TEXTURE_STEPS = 50  # after so many steps comes another texture


class Blocks(Protocol):
    """What makes blocks."""

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe, count: int = 1) -> Block:
        """Return `count` pairs in one block."""


class PhaseBlocks:
    """Draws the blocks of every step of a phase; the same ones in a run that was interrupted.

    Parameters
    ----------
    phase : Phase
    images : Prepared
    shape : tuple of int
        Voxels z, y, x of a block.
    voxel_size : float
        mm.
    random : Random
        Of what is drawn in each step.
    seed : int
        Of textures and scenes, which several steps share.
    """

    def __init__(
        self, phase: Phase, images: Prepared, shape: Shape, voxel_size: float, *, random: Random, seed: int
    ) -> None:
        self.phase, self.random, self._seed, self._world = phase, random, seed, images.world
        self._textures: list[Source] = []
        self._of_textures = BlockMaker(self._textures, shape, voxel_size, random, images.world)
        self._of_scenes: SceneBlocks | None = None
        if phase.scenes:
            self._of_scenes = SceneBlocks(phase.scenes, shape, voxel_size, random, world=images.world, seed=seed)
        self._of_images = images.maker(shape, voxel_size, random, phase.pairs)
        # a processor's cache holds one pair, a graphics card makes many in the time of one
        self._together = 1 if random.device.type == "cpu" else max(1, _VOXELS_TOGETHER // math.prod(shape))

    @torch.no_grad()
    def of_step(self, step: int) -> list[Block]:
        """Return the blocks of a step, counted from the beginning of the run: pairs that are made at once in one."""
        if self.phase.texture_share and (not self._textures or step % _TEXTURE_STEPS == 0):
            own = Random(self._seed + step // _TEXTURE_STEPS, self.random.device)
            self._textures[:] = [Source.texture(_TEXTURE_SIZE, own, self._world)]
        if self._of_scenes:
            self._of_scenes.go_on_from(step * self.phase.blocks)
        drawn = [self._draw() for _ in range(self.phase.blocks)]
        recipes = self.phase.fields, self.phase.appearance
        return [
            maker.make(*recipes, min(self._together, count - made))
            for maker, count in Counter(drawn).items()
            for made in range(0, count, self._together)
        ]

    def _draw(self) -> Blocks:
        if self.random.happens(self.phase.texture_share):
            return self._of_textures
        if self._of_scenes and self.phase.scenes and self.random.happens(self.phase.scenes.share):
            return self._of_scenes
        return self._of_images
