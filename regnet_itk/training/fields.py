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
from regnet_itk.training.random_numbers import Random, put_on

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
        axes = [_centred(n, random.device) * voxel_size for n in shape]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        self.positions = torch.stack([x, y, z])[None]

    def field(self, recipe: FieldRecipe, body_axes: Tensor) -> Tensor:
        """Draw n fields, each by numbers of its own.

        Parameters
        ----------
        recipe : FieldRecipe
        body_axes : Tensor, shape (n, 3)
            The directions of the bodies' axes along the block's axes x, y, z.

        Returns
        -------
        Tensor, shape (n, 3, z, y, x)
            u in mm.
        """
        random, count = self.random, len(body_axes)
        u = self._waves(recipe, count)
        breathes = random.chances(count, recipe.breathing_share)
        if breathes.any():
            u = u + self._breathing(random.numbers(count, (0.0, recipe.breathing)) * breathes, body_axes)
        if recipe.translation or recipe.linear:
            linear = put_on(u.device, random.uniform_small(count, 3, 3) * recipe.linear)
            shift = put_on(u.device, random.uniform_small(count, 3, 1, 1, 1) * recipe.translation)
            u = u + torch.einsum("bij,jzyx->bizyx", linear, self.positions[0]) + shift
        small = random.chances(count, recipe.small_share)
        if small.any():
            factors = torch.where(small, random.log_numbers(count, (recipe.smallest, 1.0)), 1.0)
            u = u * for_each(factors, u.device)
        even = random.chances(count, recipe.even_share)
        if even.any():
            u = u + self._to_even_length(u, recipe.even) * for_each(even, u.device)
        return u

    def _waves(self, recipe: FieldRecipe, count: int) -> Tensor:
        """Draw sums of one wave to as many as the recipe has terms."""
        random = self.random
        terms = 1 + (random.numbers(count) * recipe.terms).long()
        u = torch.zeros(count, 3, *self.shape, device=random.device)
        for term in range(int(terms.max())):
            sigma = random.log_numbers(count, recipe.sigma)
            theta = torch.minimum(random.numbers(count, recipe.theta), recipe.strain * sigma)
            u += self.wave(sigma, theta * (term < terms))
        return u

    def _to_even_length(self, u: Tensor, longest: float) -> Tensor:
        """Return the shifts after which the centre's displacement has any direction and a length up to `longest`."""
        random, count = self.random, len(u)
        direction = random.normal_small(count, 3)
        length = random.numbers(count, (0.0, longest))
        wanted = direction / direction.norm(dim=1, keepdim=True) * length[:, None]
        z, y, x = (n // 2 for n in self.shape)
        return (put_on(u.device, wanted) - u[:, :, z, y, x])[..., None, None, None]

    def noise(self, channels: int, sigma: float | Tensor, count: int = 1) -> Tensor:
        """Draw smooth noise (n, channels, z, y, x): random coefficients of Gaussians of `sigma` mm, sigma / 2 apart.

        The Gaussians reach past the block's border, where nothing is mirrored or repeated.

        Parameters
        ----------
        channels : int
        sigma : float or Tensor, shape (n,)
        count : int
            n, if all have one sigma.
        """
        sigmas = torch.as_tensor(sigma, dtype=torch.float32)
        finest, sigmas = float(sigmas.min()) / 2, put_on(self.random.device, sigmas)[..., None, None]
        kernels = []
        for n in self.shape:
            nodes = _centred(math.ceil(n * self.voxel_size / finest) + 12, self.random.device) * (sigmas / 2)
            voxels = _centred(n, self.random.device)[:, None] * self.voxel_size
            kernels.append(gaussian((voxels - nodes) / sigmas))
        count = count if sigmas.ndim == 2 else len(sigmas)
        return along_axes(self.random.normal(count, channels, *(k.shape[-1] for k in kernels)), kernels)

    def uneven(self, sigma: float, count: int) -> Tensor:
        """Draw smooth noise (n, 1, z, y, x) whose largest value, or smallest, is 1 or -1."""
        noise = self.noise(1, sigma, count)
        return noise / _largest(noise)

    def wave(self, sigma: float | Tensor, theta: float | Tensor) -> Tensor:
        """Draw smooth fields (n, 3, z, y, x) whose largest component is `theta` mm: for a number one, else n."""
        field = self.noise(3, sigma)
        return field * (for_each(torch.as_tensor(theta), field.device) / _largest(field))

    def _breathing(self, amplitudes: Tensor, axes: Tensor) -> Tensor:
        """Motion along the body's axis that grows from one side to the other, uneven across the section."""
        random, count = self.random, len(amplitudes)
        axes = put_on(random.device, axes)
        along = torch.einsum("bi,izyx->bzyx", axes, self.positions[0])[:, None]
        middle, width = random.numbers(count, (-60.0, 60.0)), random.numbers(count, (25.0, 60.0))
        slope, signed = (random.signs(count) * values for values in (1 / width, amplitudes / 1.2))
        middle, slope, signed = (for_each(values, random.device) for values in (middle, slope, signed))
        uneven = 1.0 + 0.5 * self.uneven(50.0, count)
        return signed * torch.sigmoid((along - middle) * slope) * uneven * axes[..., None, None, None]


def for_each(values: Tensor, device: torch.device) -> Tensor:
    """Return one value for each block as a tensor that blocks (n, channel, z, y, x) can be multiplied by."""
    return put_on(device, values).view(-1, 1, 1, 1, 1)


def _centred(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) - (count - 1) / 2


def _largest(blocks: Tensor) -> Tensor:
    return blocks.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-6)


def slide_lungs(u: Tensor, lungs: Tensor, loss: float | Tensor, voxel_size: float) -> Tensor:
    """Let the lungs slide along the chest wall: outside of them, a part of the motion along the wall is lost.

    What is normal to the wall stays, so that neither a gap opens nor tissue overlaps.

    Parameters
    ----------
    u : Tensor, shape (n, 3, z, y, x)
        Displacement in mm, the lungs' own.
    lungs : Tensor, shape (n, 1, z, y, x)
        1 where x + u(x) lies in the lungs.
    loss : float or Tensor, shape (n, 1, 1, 1, 1)
        The part of the tangential motion that is lost outside, from 0 to 1.
    voxel_size : float
        mm.
    """
    wall = smooth(lungs, (_WALL / voxel_size,) * 3)
    normal = torch.cat([torch.gradient(wall, spacing=voxel_size, dim=dim)[0] for dim in (4, 3, 2)], dim=1)
    normal = normal / (normal.square().sum(dim=1, keepdim=True).sqrt() + 1e-3)
    along_normal = (u * normal).sum(dim=1, keepdim=True) * normal
    return torch.where(lungs > 0.5, u, u - loss * (u - along_normal))
