"""What a network predicts on blocks, and its error on blocks of given images that are the same ones every time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.networks.architectures import Architecture, Shape
from regnet_itk.networks.model import Model
from regnet_itk.training.blocks import Block
from regnet_itk.training.config import Judge, PairRecipe
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.random_numbers import Random


@dataclass(frozen=True)
class Validation:
    """Means inside the region that training looks at, mm."""

    error: float
    per_axis: tuple[float, float, float]
    """Of the error's absolute components x, y, z."""
    displacement: float


@dataclass(frozen=True)
class ValidationBlocks:
    """Synthetic pairs that are the same ones every time.

    Parameters
    ----------
    images : Prepared
    judge : Judge
        What blocks made on the fly are made with.
    shape : tuple of int
        Voxels z, y, x of a block.
    count : int
        How many blocks.
    seed : int
    device : torch.device
        Where the blocks are made; random numbers differ from one kind of device to another.
    pairs : PairRecipe, optional
        Cut the blocks from whole pairs; `judge` then says nothing.
    """

    images: Prepared
    judge: Judge
    shape: Shape
    count: int
    seed: int
    device: torch.device
    pairs: PairRecipe | None = None

    def measure(self, model: Model, precision: torch.dtype) -> Validation:
        """Measure a model, on whose device the blocks must be; its network is left in the mode of use."""
        random = Random(self.seed, self.device)
        maker = self.images.maker(self.shape, model.description.voxel_size, random, self.pairs)
        sums = torch.zeros(5, dtype=torch.float64)
        total = 0.0
        model.network.eval()
        for _ in range(self.count):
            block = [maker.make(self.judge.fields, self.judge.appearance)]
            with torch.no_grad():
                predicted = predict_blocks(model, block, precision)
            u, weight = sample_truth(model.architecture, block)
            left = predicted[-1].float() - u
            each = torch.cat([left.norm(dim=1, keepdim=True), left.abs(), u.norm(dim=1, keepdim=True)], dim=1)
            sums += (each * weight).sum(dim=(0, 2, 3, 4)).double().cpu()
            total += float(weight.sum())
        error, x, y, z, displacement = (sums / max(total, 1e-6)).tolist()
        return Validation(error, (x, y, z), displacement)


def predict_blocks(model: Model, blocks: list[Block], precision: torch.dtype, left_out: int = 0) -> list[Tensor]:
    """Return what the network says of blocks, all at once: all its outputs, the result last.

    Parameters
    ----------
    model : Model
    blocks : list of Block
        Of one shape, on the network's device.
    precision : torch.dtype
        Of the convolutions.
    left_out : int
        How many of the network's stages are not run, beginning with the finest.
    """
    fixed, moving = (torch.cat([getattr(b, name) for b in blocks]) for name in ("fixed", "moving"))
    with torch.autocast(fixed.device.type, precision, enabled=precision != torch.float32):
        found = model.network(model.normalise(fixed), model.normalise(moving), *([left_out] if left_out else []))
    return [found] if isinstance(found, Tensor) else list(found)


def at_full_size(displacement: Tensor, like: Tensor) -> Tensor:
    """Return displacements of a coarser stage on the voxels of `like`, both (batch, 3, z, y, x)."""
    size = like.shape[2:]
    return (
        displacement if displacement.shape[2:] == size else functional.interpolate(displacement, size, mode="trilinear")
    )


def sample_truth(architecture: Architecture, blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """Return u (batch, 3, z, y, x) in mm and the weight (batch, 1, z, y, x) at a network's finest outputs."""
    u, weight = (torch.cat([getattr(b, name) for b in blocks]) for name in ("displacement", "weight"))
    return architecture.at_outputs(u), architecture.at_outputs(weight)
