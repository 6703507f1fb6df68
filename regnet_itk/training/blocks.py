"""Blocks of synthetic pairs, made on the fly and on the training device.

Coordinates here are mm along the axes of a block, components x, y, z, relative to the block's centre. The moving
image is M(y) = S(G(y + w(y))) with the source image S, a random affine map G (flips, rotation, scale) and a mild
deformation w of its own, and the fixed one F(x) = M(x + u(x)); each is sampled once from the source, so neither is
sharper than the other. u is the label at the fixed voxel x (Sect. 2.2 of the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.images import Image
from regnet_itk.network import warp
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe

AIR = -1000.0


@dataclass(frozen=True)
class Source:
    """An image to cut blocks from.

    Parameters
    ----------
    values, lungs : Tensor, shape (z, y, x)
        Intensities above air (HU + 1000, float32), and the mask that blocks are drawn from and weighted by.
    spacing : Tensor, shape (3,)
        x, y, z in mm.
    centres : Tensor, shape (n, 3)
        Positions inside the mask, mm from voxel 0 along the image's axes.
    """

    values: Tensor
    lungs: Tensor
    spacing: Tensor
    centres: Tensor

    @classmethod
    def from_image(cls, image: Image, lungs: Image) -> Source:
        """Take a CT and its lung mask."""
        values = torch.from_numpy(image.array.astype("float32")) - AIR
        mask = torch.from_numpy(lungs.array.astype("float32"))
        spacing = torch.tensor(image.grid.spacing)
        centres = torch.nonzero(mask[::2, ::2, ::2]).flip(1) * (2 * spacing)
        return cls(values.clamp_(min=0.0), mask, spacing, centres)

    @classmethod
    def texture(cls, size: int, generator: torch.Generator) -> Source:
        """Make band-limited random texture on voxels of 1 mm, everywhere inside the mask.

        Every voxel of it says where it is, which makes a network find out quickly how to match.
        """
        values = torch.zeros(size, size, size)
        for sigma in (0.8, 1.4, 2.5):
            term = _smoothed(torch.randn(1, 1, size, size, size, generator=generator), (sigma,) * 3)[0, 0]
            values += term / term.std()
        values = (400.0 + 150.0 * values).clamp_(0.0, 1400.0)
        margin = size // 4
        centres = torch.rand(256, 3, generator=generator) * (size - 2 * margin) + margin
        return cls(values, torch.ones_like(values), torch.ones(3), centres)


@dataclass(frozen=True)
class Block:
    """A synthetic pair.

    Parameters
    ----------
    fixed, moving : Tensor, shape (1, 1, z, y, x)
        HU.
    displacement : Tensor, shape (1, 3, z, y, x)
        u in mm along the block's axes.
    weight : Tensor, shape (1, 1, z, y, x)
        1 inside the fixed image's lungs, 0 outside, linear between.
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
    generator : torch.Generator
        All randomness comes from it.
    """

    def __init__(
        self, sources: list[Source], shape: tuple[int, int, int], voxel_size: float, generator: torch.Generator
    ) -> None:
        self.sources, self.shape, self.voxel_size, self.generator = sources, shape, voxel_size, generator
        axes = [(torch.arange(n) - (n - 1) / 2) * voxel_size for n in shape]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        self._positions = torch.stack([x, y, z])[None]

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe) -> Block:
        """Return one synthetic pair."""
        source = self.sources[self._integer(len(self.sources))]
        matrix, centre = self._pose(source)
        u = self._field(fields, matrix)
        w = self._noise_field(self._log_uniform((25.0, 40.0)), self._uniform((0.0, 6.0)))
        moving_positions = self._positions + w
        fixed_positions = self._positions + u + warp(w, u / self.voxel_size)
        moving, _ = _sampled(source, matrix, centre, moving_positions)
        fixed, weight = _sampled(source, matrix, centre, fixed_positions, with_mask=True)
        assert weight is not None
        growth = self._uniform((0.0, appearance.mass_conservation))
        if growth > 0:
            volume = jacobian_determinant(u, self.voxel_size).clamp(0.3, 3.0) ** growth
            fixed = _with_lung_density(fixed, volume)
        return Block(self._dressed(fixed, appearance), self._dressed(moving, appearance), u, weight)

    def _uniform(self, limits: tuple[float, float]) -> float:
        low, high = limits
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _log_uniform(self, limits: tuple[float, float]) -> float:
        return math.exp(self._uniform((math.log(limits[0]), math.log(limits[1]))))

    def _integer(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))

    def _pose(self, source: Source) -> tuple[Tensor, Tensor]:
        """Draw the affine map G from block to source: x -> centre + matrix x, with flips, rotation and scale."""
        axes = torch.randperm(3, generator=self.generator)
        signs = torch.randint(0, 2, (3,), generator=self.generator) * 2.0 - 1.0
        spin = torch.randn(3, 3, generator=self.generator) * 0.1
        rotation = torch.linalg.matrix_exp(spin - spin.T)
        scale = self._log_uniform((0.85, 1.2))
        matrix = scale * rotation @ torch.diag(signs)[axes]
        return matrix, source.centres[self._integer(len(source.centres))]

    def _field(self, recipe: FieldRecipe, matrix: Tensor) -> Tensor:
        u = torch.zeros_like(self._positions)
        for _ in range(1 + self._integer(recipe.terms)):
            sigma = self._log_uniform(recipe.sigma)
            u = u + self._noise_field(sigma, min(self._uniform(recipe.theta), recipe.strain * sigma))
        if self._uniform((0.0, 1.0)) < recipe.breathing_share:
            u = u + self._breathing(self._uniform((0.0, recipe.breathing)), matrix)
        if recipe.translation or recipe.linear:
            linear = (torch.rand(3, 3, generator=self.generator) * 2 - 1) * recipe.linear
            shift = (torch.rand(3, generator=self.generator) * 2 - 1) * recipe.translation
            u = u + torch.einsum("ij,bjzyx->bizyx", linear, self._positions) + shift.view(1, 3, 1, 1, 1)
        if self._uniform((0.0, 1.0)) < recipe.small_share:
            u = u * self._log_uniform((0.05, 1.0))
        return u

    def _noise(self, channels: int, sigma: float) -> Tensor:
        """Draw smooth noise (1, channels, z, y, x): random coefficients of Gaussians of `sigma` mm, sigma / 2 apart.

        The Gaussians reach past the block's border, where nothing is mirrored or repeated.
        """
        step = sigma / 2
        kernels = []
        for n in self.shape:
            length = n * self.voxel_size
            count = math.ceil(length / step) + 12
            nodes = (torch.arange(count) - (count - 1) / 2) * step
            voxels = (torch.arange(n) - (n - 1) / 2) * self.voxel_size
            kernels.append(torch.exp(-0.5 * ((voxels[:, None] - nodes) / sigma) ** 2))
        noise = torch.randn(1, channels, *(k.shape[1] for k in kernels), generator=self.generator)
        return _along_axes(noise, kernels)

    def _noise_field(self, sigma: float, theta: float) -> Tensor:
        field = self._noise(3, sigma)
        return field * (theta / field.abs().max().clamp(min=1e-6))

    def _breathing(self, amplitude: float, matrix: Tensor) -> Tensor:
        """Motion along the body's axis that grows from one side to the other, uneven across the section."""
        axis = torch.linalg.inv(matrix)[:, 2]
        axis = axis / axis.norm()
        along = torch.einsum("i,bizyx->bzyx", axis, self._positions)[:, None]
        middle, width = self._uniform((-60.0, 60.0)), self._uniform((25.0, 60.0))
        side = 1.0 if self._integer(2) else -1.0
        profile = torch.sigmoid((along - middle) * (side / width))
        uneven = self._noise(1, 50.0)
        uneven = 1.0 + 0.5 * uneven / uneven.abs().max()
        sign = 1.0 if self._integer(2) else -1.0
        return sign * amplitude / 1.2 * profile * uneven * axis.view(1, 3, 1, 1, 1)

    def _dressed(self, image: Tensor, recipe: AppearanceRecipe) -> Tensor:
        """Give an image (above air) a density, a contrast, a blur and noise of its own; returns HU."""
        if recipe.density:
            change = self._noise(1, 40.0)
            change = 1.0 + self._uniform((0.0, recipe.density)) * change / change.abs().max()
            image = _with_lung_density(image, change * (1.0 + self._uniform((-recipe.density, recipe.density))))
        if recipe.contrast:
            soft = (image - 950.0).clamp(min=0.0)
            image = image + soft * self._uniform((-recipe.contrast, recipe.contrast))
        if recipe.blur:
            limits = (0.0, recipe.blur)
            image = _smoothed(image, (self._uniform(limits), self._uniform(limits), self._uniform(limits)))
        noise = torch.randn(image.shape, generator=self.generator) * self._uniform(recipe.noise)
        return image + noise + AIR


def jacobian_determinant(displacement: Tensor, voxel_size: float) -> Tensor:
    """Return det(I + du/dx), shape (batch, 1, z, y, x), of displacements in mm (batch, 3, z, y, x)."""
    rows = [torch.gradient(displacement, spacing=voxel_size, dim=dim)[0] for dim in (4, 3, 2)]
    j = torch.stack(rows, dim=2)  # (batch, component, axis, z, y, x)
    a, b, c = (j[:, i] for i in range(3))
    a, b, c = (row + unit.view(1, 3, 1, 1, 1) for row, unit in zip((a, b, c), torch.eye(3), strict=True))
    return (a * torch.linalg.cross(b, c, dim=1)).sum(dim=1, keepdim=True)


def _sampled(
    source: Source, matrix: Tensor, centre: Tensor, positions: Tensor, with_mask: bool = False
) -> tuple[Tensor, Tensor | None]:
    where = torch.einsum("ij,bjzyx->bzyxi", matrix, positions) + centre
    last = torch.tensor(source.values.shape).flip(0) - 1
    where = where / (source.spacing * last) * 2 - 1
    arguments = {"padding_mode": "zeros", "align_corners": True}
    values = functional.grid_sample(source.values[None, None], where, **arguments)  # type: ignore[arg-type]
    if not with_mask:
        return values, None
    return values, functional.grid_sample(source.lungs[None, None], where, **arguments)  # type: ignore[arg-type]


def _with_lung_density(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply what is as light as lung tissue (HU + 1000) by `factor`, fading out towards soft tissue."""
    light = torch.sigmoid((450.0 - image) / 60.0)
    return image * (1.0 + (factor - 1.0) * light)


def _along_axes(image: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply each of the axes z, y, x by a matrix (after, before); far quicker than convolving one channel."""
    z, y, x = matrices
    image = image @ x.T
    image = (image.transpose(-1, -2) @ y.T).transpose(-1, -2)
    return torch.einsum("az,bczyx->bcayx", z, image)


def _smoothing_matrix(size: int, sigma: float) -> Tensor:
    """Return the (size, size) matrix of a Gaussian with `sigma` voxels, whose rows sum to 1 up to the border."""
    x = torch.arange(size, dtype=torch.float32)
    matrix = torch.exp(-0.5 * ((x[:, None] - x) / max(sigma, 1e-2)) ** 2)
    return matrix / matrix.sum(dim=1, keepdim=True)


def _smoothed(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    return _along_axes(image, [_smoothing_matrix(n, s) for n, s in zip(image.shape[2:], sigma, strict=True)])
