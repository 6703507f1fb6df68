"""Blocks of synthetic pairs, made on the fly and on the training device.

Coordinates here are mm along the axes of a block, components x, y, z, relative to the block's centre. The moving
image is M(y) = S(G(y + w(y))) with the source image S, a random affine map G (flips, rotation, scale) and a mild
deformation w of its own, and the fixed one F(x) = M(x + u(x)); each is sampled once from the source, so neither is
sharper than the other. u is the label at the fixed voxel x (Sect. 2.2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regnet_itk.networks.architectures import Shape
from regnet_itk.networks.layers import warp
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.training.appearance import (
    SOFT_TISSUE,
    add_scanner_effects,
    remap_brightness,
    scale_lung_density,
)
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe
from regnet_itk.training.fields import FieldMaker, slide_lungs
from regnet_itk.training.filters import jacobian_determinant
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Source


@dataclass(frozen=True)
class Block:
    """A synthetic pair.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, 1, z, y, x)
        In the unit of the world that they show.
    displacement : Tensor, shape (1, 3, z, y, x)
        u in mm along the block's axes.
    weight : Tensor, shape (1, 1, z, y, x)
        1 inside the fixed image's region (of a chest CT: the lungs), 0 outside, linear between.
    """

    fixed: Tensor
    moving: Tensor
    displacement: Tensor
    weight: Tensor


class BlockMaker:
    """Cut blocks from sources and deform them.

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
        self.sources, self.voxel_size, self.random, self.world = sources, voxel_size, random, world
        self._fields = FieldMaker(shape, voxel_size, random)

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe) -> Block:
        """Return one synthetic pair."""
        random, positions = self.random, self._fields.positions
        source = self.sources[random.integer(len(self.sources))]
        matrix, centre = self._pose(source)
        body_axis = torch.linalg.inv(matrix)[:, self.world.long_axis]
        body_axis = body_axis / body_axis.norm()
        u = self._fields.field(fields, body_axis)
        w = self._fields.wave(random.log_uniform((25.0, 40.0)), random.uniform((0.0, 6.0)))
        breathed = u  # the volume changes with the lungs' motion, not with what slides past them

        def sampled(displacement: Tensor) -> tuple[Tensor, Tensor]:
            there = positions + displacement + warp(w, displacement / self.voxel_size)
            return source.sampled(matrix, centre, there)

        fixed, lungs = sampled(u)
        if random.happens(fields.sliding_share):
            inside = lungs > 0.5
            u = slide_lungs(u, inside.float(), random.uniform((0.0, fields.sliding)), self.voxel_size)
            outer, outer_lungs = sampled(u)
            # what would be lung a second time is filled: the wall has moved over it
            outer = torch.where(outer_lungs > 0.5, outer.clamp(min=SOFT_TISSUE), outer)
            fixed, lungs = torch.where(inside, fixed, outer), torch.where(inside, lungs, 0.0)
        moving, _ = source.sampled(matrix, centre, positions + w)
        growth = random.uniform((0.0, appearance.mass_conservation))
        if growth > 0:
            volume = jacobian_determinant(breathed, self.voxel_size).clamp(0.3, 3.0)
            fixed = scale_lung_density(fixed, volume**growth)
        if random.happens(appearance.remap):
            low, high = self.world.intensity_range
            moving = remap_brightness(moving, high - low, random)
        slice_axis = 2 - int(body_axis.abs().argmax())
        fixed, moving = (
            add_scanner_effects(image, appearance, self._fields, slice_axis) + self.world.background
            for image in (fixed, moving)
        )
        return Block(fixed, moving, u, lungs)

    def _pose(self, source: Source) -> tuple[Tensor, Tensor]:
        """Draw the affine map G from block to source: x -> centre + matrix x, with flips, rotation and scale."""
        random = self.random
        axes = random.permutation(3)
        signs = torch.tensor([random.sign() for _ in range(3)])
        spin = random.normal_small(3, 3) * 0.1
        rotation = torch.linalg.matrix_exp(spin - spin.T)
        matrix = random.log_uniform((0.85, 1.2)) * rotation @ torch.diag(signs)[axes]
        return matrix, source.centres[random.integer(len(source.centres))]
