"""Random displacement fields on a block, in Torch: waves, breathing, a small affine map, sliding at the chest wall.

Coordinates are mm along the axes of the block, components x, y, z, relative to its centre.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regnet_itk.networks.separable import along_axes
from regnet_itk.training.config import FieldRecipe
from regnet_itk.training.filters import gaussian, smooth
from regnet_itk.training.random_numbers import Random

_WALL = 8.0
"""mm. The direction of the chest wall is taken from a lung mask smoothed so far."""


class FieldMaker:
    """Draw displacement fields on a block.

    Parameters
    ----------
    shape : tuple of int
        Voxels z, y, x of the block.
    voxel_size : float
        mm.
    random : Random
    """

    def __init__(self, shape: tuple[int, int, int], voxel_size: float, random: Random) -> None:
        self.shape, self.voxel_size, self.random = shape, voxel_size, random
        axes = [(torch.arange(n, device=random.device) - (n - 1) / 2) * voxel_size for n in shape]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        self.positions = torch.stack([x, y, z])[None]

    def field(self, recipe: FieldRecipe, body_axis: Tensor) -> Tensor:
        """Draw a field.

        Parameters
        ----------
        recipe : FieldRecipe
        body_axis : Tensor, shape (3,)
            The direction of the body's axis along the block's axes x, y, z.

        Returns
        -------
        Tensor, shape (1, 3, z, y, x)
            u in mm.
        """
        random = self.random
        u = torch.zeros_like(self.positions)
        for _ in range(1 + random.integer(recipe.terms)):
            sigma = random.log_uniform(recipe.sigma)
            u = u + self.wave(sigma, min(random.uniform(recipe.theta), recipe.strain * sigma))
        if random.happens(recipe.breathing_share):
            u = u + self._breathing(random.uniform((0.0, recipe.breathing)), body_axis)
        if recipe.translation or recipe.linear:
            linear = (random.uniform_small(3, 3) * recipe.linear).to(u.device)
            shift = (random.uniform_small(3) * recipe.translation).to(u.device)
            u = u + torch.einsum("ij,bjzyx->bizyx", linear, self.positions) + shift.view(1, 3, 1, 1, 1)
        if random.happens(recipe.small_share):
            u = u * random.log_uniform((recipe.smallest, 1.0))
        if random.happens(recipe.even_share):
            u = u + self._to_even_length(u, recipe.even)
        return u

    def _to_even_length(self, u: Tensor, longest: float) -> Tensor:
        """Return the shift after which the centre's displacement has any direction and a length up to `longest`."""
        direction = self.random.normal_small(3)
        wanted = direction / direction.norm() * self.random.uniform((0.0, longest))
        z, y, x = (n // 2 for n in self.shape)
        return wanted.to(u.device).view(1, 3, 1, 1, 1) - u[:, :, z, y, x].view(1, 3, 1, 1, 1)

    def noise(self, channels: int, sigma: float) -> Tensor:
        """Draw smooth noise (1, channels, z, y, x): random coefficients of Gaussians of `sigma` mm, sigma / 2 apart.

        The Gaussians reach past the block's border, where nothing is mirrored or repeated.
        """
        step = sigma / 2
        kernels = []
        for n in self.shape:
            count = math.ceil(n * self.voxel_size / step) + 12
            nodes = (torch.arange(count, device=self.random.device) - (count - 1) / 2) * step
            voxels = (torch.arange(n, device=self.random.device) - (n - 1) / 2) * self.voxel_size
            kernels.append(gaussian((voxels[:, None] - nodes) / sigma))
        return along_axes(self.random.normal(1, channels, *(k.shape[1] for k in kernels)), kernels)

    def wave(self, sigma: float, theta: float) -> Tensor:
        """Draw a smooth field whose largest component is `theta` mm."""
        field = self.noise(3, sigma)
        return field * (theta / field.abs().max().clamp(min=1e-6))

    def _breathing(self, amplitude: float, axis: Tensor) -> Tensor:
        """Motion along the body's axis that grows from one side to the other, uneven across the section."""
        random = self.random
        axis = axis.to(random.device)
        along = torch.einsum("i,bizyx->bzyx", axis, self.positions)[:, None]
        middle, width = random.uniform((-60.0, 60.0)), random.uniform((25.0, 60.0))
        profile = torch.sigmoid((along - middle) * (random.sign() / width))
        uneven = self.noise(1, 50.0)
        uneven = 1.0 + 0.5 * uneven / uneven.abs().max()
        return random.sign() * amplitude / 1.2 * profile * uneven * axis.view(1, 3, 1, 1, 1)


def slide_lungs(u: Tensor, lungs: Tensor, loss: float, voxel_size: float) -> Tensor:
    """Let the lungs slide along the chest wall: outside of them, a part of the motion along the wall is lost.

    What is normal to the wall stays, so that neither a gap opens nor tissue overlaps.

    Parameters
    ----------
    u : Tensor, shape (1, 3, z, y, x)
        Displacement in mm, the lungs' own.
    lungs : Tensor, shape (1, 1, z, y, x)
        1 where x + u(x) lies in the lungs.
    loss : float
        The part of the tangential motion that is lost outside, from 0 to 1.
    voxel_size : float
        mm.
    """
    wall = smooth(lungs, (_WALL / voxel_size,) * 3)
    normal = torch.cat([torch.gradient(wall, spacing=voxel_size, dim=dim)[0] for dim in (4, 3, 2)], dim=1)
    normal = normal / (normal.square().sum(dim=1, keepdim=True).sqrt() + 1e-3)
    along_normal = (u * normal).sum(dim=1, keepdim=True) * normal
    return torch.where(lungs > 0.5, u, u - loss * (u - along_normal))
