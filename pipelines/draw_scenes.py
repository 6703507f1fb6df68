"""Draw what a network of scenes learns from: ``python pipelines/draw_scenes.py --out scenes.png``.

A contact sheet of random pairs of the recipe `regnet_general`: the middle section of the fixed and of the moving image,
and the length of the displacement between them. ``--contrast`` draws pairs of one kind only: same, monotone, partly or
independent.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from matplotlib import pyplot

from regnet_itk.networks.architectures import find_architecture
from regnet_itk.training.blocks import Block
from regnet_itk.training.config import SceneRecipe, find_recipe
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.scenes import SceneBlocks

KINDS = ("same", "monotone", "partly", "independent")
COLUMNS = 4
_NEXT_SCENE = 5  # blocks that are passed over, so that every pair shows another scene


def of_one_kind(recipe: SceneRecipe, kind: str) -> SceneRecipe:
    """Return the recipe with contrasts of one kind only."""
    shares = {name: float(name == kind) for name in KINDS if name != "independent"}
    return dataclasses.replace(recipe, **shares)


def make_blocks(count: int, seed: int, kind: str | None) -> list[Block]:
    """Return pairs of the general network's recipe, each of another scene."""
    config = find_recipe("regnet_general")
    phase, architecture = config.phases[0], find_architecture(config.network)
    assert phase.scenes is not None
    recipe = of_one_kind(phase.scenes, kind) if kind else phase.scenes
    shape = architecture.block_shape(phase.block_size)
    maker = SceneBlocks(recipe, shape, architecture.voxel_size, Random(seed), world=config.shown, seed=seed)
    found = []
    for number in range(count):
        maker.go_on_from(number * _NEXT_SCENE)
        found.append(maker.make(phase.fields, phase.appearance))
    return found


def draw(blocks: list[Block], path: Path, window: tuple[float, float]) -> None:
    """Draw the pairs beside each other."""
    rows = -(-len(blocks) // COLUMNS)
    figure, axes = pyplot.subplots(rows, 3 * COLUMNS, figsize=(3.9 * COLUMNS, 1.42 * rows + 0.3), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, block in enumerate(blocks):
        row, column = divmod(number, COLUMNS)
        middle = block.fixed.shape[2] // 2
        length = block.displacement[0, :, middle].norm(dim=0)
        shown = (block.fixed[0, 0, middle], block.moving[0, 0, middle])
        for place, picture in enumerate(shown):
            axes[row, 3 * column + place].imshow(np.asarray(picture), cmap="gray", vmin=window[0], vmax=window[1])
        axes[row, 3 * column + 2].imshow(np.asarray(length), cmap="viridis", vmin=0, vmax=25)
    for column in range(COLUMNS):
        for place, title in enumerate(("fixed", "moving", "|u|, 0 to 25 mm")):
            axes[0, 3 * column + place].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main() -> None:
    """Draw the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--contrast", choices=KINDS)
    given = parser.parse_args()
    blocks = make_blocks(given.pairs, given.seed, given.contrast)
    draw(blocks, given.out, find_recipe("regnet_general").shown.intensity_range)


if __name__ == "__main__":
    main()
