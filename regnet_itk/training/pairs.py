"""The paper's training pairs (Sect. 2.2): whole images deformed beforehand, and blocks cut from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.image import Image, bounding_box
from regnet_itk.errors import ImageError
from regnet_itk.networks.architectures import Shape
from regnet_itk.networks.world import World
from regnet_itk.outputs import staged_folder
from regnet_itk.training.blocks import Block, join_blocks
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe, PairRecipe
from regnet_itk.training.paper_pairs import SyntheticPair, paper_pairs
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sampling import draw_balanced_positions
from regnet_itk.training.sources import Preparation, as_weights, cache_name, read_with_region

_VERSION = 2
_MARGIN = 45.0
"""mm kept around the region: half a block of ordinary size, and a displacement."""


@dataclass(frozen=True)
class WholePair:
    """A synthetic pair on voxels of the network's size, on the image's own axes.

    Parameters
    ----------
    fixed, moving : Tensor, shape (z, y, x), int16
        Intensities above the background (of a CT: HU + 1000); read from disk where they are needed.
    region : Tensor, shape (z, y, x), uint8 or float16
        What each voxel of the fixed image counts; training looks where it is above 0.
    displacement : Tensor, shape (3, z, y, x), float16
        u in mm along the image's axes x, y, z.
    positions : int array, shape (n, 3)
        Voxels (z, y, x) to train at.
    """

    fixed: Tensor
    moving: Tensor
    region: Tensor
    displacement: Tensor
    positions: npt.NDArray[np.int_]


class PairBlocks:
    """Cut blocks from whole pairs, at their positions in random order, flipped and noisy.

    Parameters
    ----------
    pairs : list of WholePair
    shape : tuple of int
        Voxels z, y, x of a block.
    random : Random
    recipe : PairRecipe
    background : float
        What the pairs' intensities count from.
    """

    def __init__(
        self, pairs: list[WholePair], shape: Shape, random: Random, recipe: PairRecipe, background: float
    ) -> None:
        self.pairs, self.shape, self.random, self.recipe, self.background = pairs, shape, random, recipe, background

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe, count: int = 1) -> Block:
        """Return `count` pairs in one block; the recipes of blocks made on the fly say nothing about these."""
        return join_blocks([self._pair() for _ in range(count)])

    def _pair(self) -> Block:
        random = self.random
        pair = self.pairs[random.integer(len(self.pairs))]
        centre = pair.positions[random.integer(len(pair.positions))]
        first = [int(c) - n // 2 for c, n in zip(centre, self.shape, strict=True)]
        fixed, moving, weight, u = (
            _cut(part, first, self.shape, random.device)
            for part in (pair.fixed[None], pair.moving[None], pair.region[None], pair.displacement)
        )
        flipped = [axis for axis in range(3) if self.recipe.flips and random.integer(2)]  # z, y, x
        if flipped:
            dims = [axis + 2 for axis in flipped]
            fixed, moving, weight, u = (torch.flip(t, dims) for t in (fixed, moving, weight, u))
            sign = torch.ones(3, device=u.device)
            sign[[2 - axis for axis in flipped]] = -1.0
            u = u * sign.view(1, 3, 1, 1, 1)
        fixed, moving = (i + self.background + self.recipe.noise * random.normal(*i.shape) for i in (fixed, moving))
        return Block(fixed, moving, u, weight)


def _cut(part: Tensor, first: list[int], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return a box (1, channel, *shape) of an array (channel, z, y, x); 0 outside of it."""
    spans = [(max(f, 0), min(f + n, size)) for f, n, size in zip(first, shape, part.shape[1:], strict=True)]
    inner = part[(slice(None), *(slice(*span) for span in spans))].to(device, torch.float32)
    padding = [
        amount
        for f, n, (low, high) in reversed(list(zip(first, shape, spans, strict=True)))
        for amount in (low - f, f + n - high)
    ]
    return functional.pad(inner, padding)[None]


def load_pairs(
    path: Path, recipe: PairRecipe, how: Preparation, cache: Path, *, voxel_size: float, seed: int
) -> list[WholePair]:
    """Return the six pairs of an image: from the cache, or made and put there.

    Raises
    ------
    ImageError
        If the image cannot be read, is not 3D, or does not have the region that training looks at.
    OutputError
        If the cache cannot be written.
    """
    folder = cache / f"pairs-{cache_name(path, _VERSION, *how.settings(path), voxel_size, seed, recipe.positions)}"
    if not (folder / "done").exists():
        with staged_folder(folder) as stage:
            for number, arrays in enumerate(_made(path, recipe, how, voxel_size, seed)):
                for name, array in arrays.items():
                    np.save(stage / f"{number}-{name}.npy", array)
            (stage / "done").write_text(path.name, encoding="utf-8")
    found = []
    for number in range(len(list(folder.glob("*-fixed.npy")))):
        try:
            fixed, moving, region, displacement, positions = (
                np.load(folder / f"{number}-{name}.npy", mmap_mode="c")
                for name in ("fixed", "moving", "region", "displacement", "positions")
            )
        except (OSError, ValueError, EOFError):
            (folder / "done").unlink()
            raise ImageError(f"the prepared pairs in '{folder}' are damaged; start again to make them anew") from None
        fixed, moving, region, displacement = map(torch.from_numpy, (fixed, moving, region, displacement))
        found.append(WholePair(fixed, moving, region, displacement, positions))
    return found


def _made(
    path: Path, recipe: PairRecipe, how: Preparation, voxel_size: float, seed: int
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the arrays of one pair after the other."""
    image, region = read_with_region(path, how, voxel_size)
    image, region = _around(region, image, region)
    # the same pairs whatever other images there are
    rng = np.random.default_rng([seed, int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)])
    for pair in paper_pairs(image, rng, region, how.world.background):
        yield _arrays(pair, recipe, how.world, rng)


def _around(region: Image, *images: Image) -> tuple[Image, ...]:
    box = bounding_box(region.array > 0, int(np.ceil(_MARGIN / region.grid.spacing[0])))
    grid = region.grid.part(box)
    return tuple(Image(np.ascontiguousarray(image.array[box]), grid) for image in images)


def _arrays(
    pair: SyntheticPair, recipe: PairRecipe, world: World, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    assert pair.fixed_mask is not None
    grid, region = pair.fixed.grid, as_weights(pair.fixed_mask.array)
    u = pair.displacement.at(grid.points())
    along = np.moveaxis(u @ grid.direction_matrix, -1, 0)
    above = (i.array - world.background for i in (pair.fixed, pair.moving))
    fixed, moving = (np.clip(values, 0, world.top - world.background).astype(np.int16) for values in above)
    return {
        "region": region,
        "displacement": along.astype(np.float16),
        "positions": draw_balanced_positions(np.linalg.norm(u, axis=-1), region > 0, recipe.positions, rng),
        "fixed": fixed,
        "moving": moving,
    }
