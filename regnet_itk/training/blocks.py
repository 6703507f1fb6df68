"""Blocks of synthetic pairs, made on the fly and on the training device.

Coordinates here are mm along the axes of a block, components x, y, z, relative to the block's centre. The moving
image is M(y) = S(G(y + w(y))) with the source image S, a random affine map G (flips, rotation, scale) and a mild
deformation w of its own, and the fixed one F(x) = M(x + u(x)); each is sampled once from the source, so neither is
sharper than the other. u is the label at the fixed voxel x (Sect. 2.2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from regnet_itk.networks.architectures import Shape
from regnet_itk.networks.layers import warp
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.training.appearance import (
    add_scanner_effects,
    remap_brightness,
    scale_lung_density,
)
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe
from regnet_itk.training.disease import SOFT_TISSUE
from regnet_itk.training.fields import FieldMaker, for_each, slide_lungs
from regnet_itk.training.filters import jacobian_determinant
from regnet_itk.training.random_numbers import Random, put_on
from regnet_itk.training.sources import Places, Source, sample_sources


@dataclass(frozen=True)
class Block:
    """Synthetic pairs, n of one shape.

    Parameters
    ----------
    fixed, moving : Tensor, shape (n, 1, z, y, x)
        In the unit of the world that they show.
    displacement : Tensor, shape (n, 3, z, y, x)
        u in mm along the block's axes.
    weight : Tensor, shape (n, 1, z, y, x)
        1, or the label's weight, inside the fixed image's region (of a chest CT: the lungs), 0 outside, linear between.
    """

    fixed: Tensor
    moving: Tensor
    displacement: Tensor
    weight: Tensor


def join_blocks(blocks: list[Block]) -> Block:
    """Return the pairs of several blocks in one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(*(torch.cat([getattr(b, f.name) for b in blocks]) for f in fields(Block)))


class BlockMaker:
    """Cut blocks from sources and deform them.

    All pairs of a block are made at once: a graphics card makes dozens in the time of one. It also keeps the sources,
    if they fit into a part of its memory.

    Parameters
    ----------
    sources : list of Source
    shape : tuple of int
        Voxels z, y, x of a block.
    voxel_size : float
        mm.
    random : Random
        All randomness comes from it, and it says on which device the blocks are made.
    world : World
        That the sources show.
    """

    def __init__(
        self, sources: list[Source], shape: Shape, voxel_size: float, random: Random, world: World = CHEST_CT
    ) -> None:
        self.voxel_size, self.random, self.world = voxel_size, random, world
        self._sources, self._fields = sources, FieldMaker(shape, voxel_size, random)

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe, count: int = 1) -> Block:
        """Return `count` synthetic pairs in one block."""
        random = self.random
        places = self._places(count)
        body_axes = torch.linalg.inv(places.matrices)[:, :, self.world.long_axis]
        body_axes = body_axes / body_axes.norm(dim=1, keepdim=True)
        u = self._fields.field(fields, body_axes)
        w = self._fields.wave(random.log_numbers(count, (25.0, 40.0)), random.numbers(count, (0.0, 6.0)))
        breathed = u  # the volume changes with the lungs' motion, not with what slides past them
        fixed, lungs = self._sampled(places, w, u)
        slides = random.chances(count, fields.sliding_share).nonzero()[:, 0]
        if len(slides):
            these = put_on(u.device, slides)
            losses = for_each(random.numbers(len(slides), (0.0, fields.sliding)), u.device)
            inside = lungs[these] > 0.5
            slid = slide_lungs(u[these], inside.float(), losses, self.voxel_size)
            outer, outer_lungs = self._sampled(places.of(slides), w[these], slid)
            # what would be lung a second time is filled: the wall has moved over it
            outer = torch.where(outer_lungs > 0.5, outer.clamp(min=SOFT_TISSUE), outer)
            fixed[these] = torch.where(inside, fixed[these], outer)
            lungs[these] = torch.where(inside, lungs[these], 0.0)
            u = u.index_copy(0, these, slid)
        moving, _ = sample_sources(places, self._fields.positions + w)
        if appearance.mass_conservation:
            growth = for_each(random.numbers(count, (0.0, appearance.mass_conservation)), u.device)
            volume = jacobian_determinant(breathed, self.voxel_size).clamp(0.3, 3.0)
            fixed = scale_lung_density(fixed, volume**growth)
        for k in random.chances(count, appearance.remap).nonzero()[:, 0].tolist():
            low, high = self.world.intensity_range
            moving[k] = remap_brightness(moving[k], high - low, random)
        slice_axes = 2 - body_axes.abs().argmax(dim=1)
        fixed, moving = (
            add_scanner_effects(image, appearance, self._fields, slice_axes) + self.world.background
            for image in (fixed, moving)
        )
        return Block(fixed, moving, u, lungs)

    def _sampled(self, places: Places, w: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the moving image and its region show at x + displacement."""
        there = self._fields.positions + displacement + warp(w, displacement / self.voxel_size)
        return sample_sources(places, there)

    def _places(self, count: int) -> Places:
        """Draw sources, and the affine maps G from block to source: x -> centre + matrix x, with flips and scale."""
        random = self.random
        sources = [self._sources[random.integer(len(self._sources))] for _ in range(count)]
        centres = [source.centres[random.integer(len(source.centres))] for source in sources]
        flips = [torch.diag(random.signs(3))[random.permutation(3)] for _ in range(count)]
        spin = random.normal_small(count, 3, 3) * 0.1
        rotation = torch.linalg.matrix_exp(spin - spin.mT)
        scales = random.log_numbers(count, (0.85, 1.2))[:, None, None]
        return Places(sources, scales * rotation @ torch.stack(flips), torch.stack(centres))
