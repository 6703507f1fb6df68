"""The error of models against the length of the true displacement, and how much of a displacement they find.

``python pipelines/error_by_length.py MODEL .. --images FOLDER --names NAME .. --out DIR``: networks alone, one look, on
pairs of images that they have not seen, deformed as in the paper; on blocks of these images that ``--recipe`` makes
(regnet_long by default: realistic, all lengths to 10 mm equally frequent); and on phantoms of 8 and 15 mm. DIR gets
``error_by_length.md``, which is printed, and ``error_by_length.png``. The slope along an axis is that of the line
through the mean which tells the predicted component from the true one: 1 finds all of it, 0 nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from evaluate_models import BLOCK_OUTPUTS, BLOCK_VOXELS, judge_of, test_pairs

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import RegNetItkError
from regnet_itk.networks.devices import find_device, find_precision
from regnet_itk.networks.model import find_model, load_model
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Preparation, find_images, load_source
from regnet_itk.training.validation import predict_blocks, sample_truth
from regnet_itk.transforms.chain import TransformChain

EDGES = (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""mm of true displacement."""

_POINTS = 20_000  # of a pair
_PHANTOMS = ((8.0, 601), (15.0, 602))  # largest displacement in mm, and seed
_LEAST = 200  # points in a bin, to be told


@dataclass(frozen=True, eq=False)
class Found:
    """Displacements at points of one kind of pair, (n, 3), mm, along the axes x, y, z of the images."""

    true: FloatArray
    predicted: FloatArray

    def errors(self) -> list[float | None]:
        """Return the mean error in each bin of the true length; None where there are few points."""
        length = np.linalg.norm(self.true, axis=1)
        off = np.linalg.norm(self.predicted - self.true, axis=1)
        chosen = [(length >= low) & (length < high) for low, high in itertools.pairwise(EDGES)]
        return [float(off[some].mean()) if some.sum() >= _LEAST else None for some in chosen]

    def slopes(self) -> list[float]:
        """Return the slope of the predicted on the true displacement along x, y and z."""
        true, predicted = self.true - self.true.mean(axis=0), self.predicted - self.predicted.mean(axis=0)
        return [float(slope) for slope in (true * predicted).sum(axis=0) / (true**2).sum(axis=0)]


def join(parts: list[Found]) -> Found:
    """Return the points of all parts."""
    return Found(np.concatenate([part.true for part in parts]), np.concatenate([part.predicted for part in parts]))


def on_pair(model: str, pair: ImagePair, truth: DisplacementField, seed: int) -> Found:
    """Register a pair by a network alone, and compare inside its fixed mask."""
    assert pair.fixed_mask is not None
    values = {"Registration": "RegNetRegistration", "RegNetModel": model, "WriteResultImage": "false"}
    stage = RegNetStage(ParameterMap({key: (value,) for key, value in values.items()}))
    chain = stage.run(pair, TransformChain(), RunOptions()).chain
    voxels = np.argwhere(pair.fixed_mask.array > 0)[:, ::-1]
    some = np.random.default_rng(seed).permutation(len(voxels))[:_POINTS]
    points = pair.fixed_mask.grid.index_to_point(voxels[some].astype(float))
    axes = pair.fixed.grid.direction_matrix
    return Found(truth.at(points) @ axes, (chain.map_points(points) - points) @ axes)


def on_images(model: str, images: list[Image], seed: int) -> Iterator[tuple[str, Found]]:
    """Yield what a model finds on images that are deformed as in the paper, and on phantoms."""
    for number, image in enumerate(images):
        for made in test_pairs(image, seed + number):
            if "breathing" not in made.name:
                pair = ImagePair(made.fixed, made.moving, made.fixed_mask)
                yield "the paper's deformations", on_pair(model, pair, made.displacement, seed)
    for amplitude, phantom_seed in _PHANTOMS:
        phantom = make_phantom(phantom_seed, amplitude=amplitude)
        pair = ImagePair(phantom.fixed, phantom.moving, phantom.fixed_mask)
        yield "phantoms", on_pair(model, pair, phantom.displacement, seed)


def on_blocks(name: str, paths: list[Path], recipe: str, count: int, seed: int) -> Iterator[tuple[str, Found]]:
    """Yield what a model finds on blocks that a recipe makes."""
    config, judge = judge_of(recipe)
    device = find_device("auto")
    precision = find_precision("auto", device)
    model = load_model(find_model(name))
    model.network.to(device).eval()
    size = BLOCK_VOXELS if model.architecture.predicts_everywhere else BLOCK_OUTPUTS
    with tempfile.TemporaryDirectory() as cache:
        how = Preparation(config.shown, config.source_smoothing)
        images = Prepared([load_source(path, how, Path(cache)) for path in paths], [], config.shown)
        maker = images.maker(model.architecture.block_shape(size), model.description.voxel_size, Random(seed, device))
        for _ in range(count):
            block = maker.make(judge.fields, judge.appearance)
            with torch.no_grad():
                predicted = predict_blocks(model, [block], precision)[-1].float()
            u, weight = sample_truth(model.architecture, [block])
            inside = weight[0, 0] > 0.5
            true, found = (t[0][:, inside].T.double().cpu().numpy() for t in (u, predicted))
            yield f"blocks of {recipe}", Found(true, found)


def table(found: dict[tuple[str, str], Found]) -> list[str]:
    """Return the lines of a table: a row for each model and kind of pair."""
    bins = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(EDGES)]
    lines = [f"| model | pairs | {' | '.join(bins)} | slopes along x, y, z |", "|---|---|" + "---|" * (len(bins) + 1)]
    for (model, kind), points in found.items():
        cells = ["" if error is None else f"{error:.2f}" for error in points.errors()]
        slopes = ", ".join(f"{slope:.2f}" for slope in points.slopes())
        lines.append(f"| `{model}` | {kind} | {' | '.join(cells)} | {slopes} |")
    return lines


def draw(found: dict[tuple[str, str], Found], path: Path) -> None:
    """Draw the mean error over the true length, a panel for each kind of pair."""
    kinds = list(dict.fromkeys(kind for _, kind in found))
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 3.8), sharey=True, squeeze=False)
    middles = np.add(EDGES[1:], EDGES[:-1]) / 2
    for panel, kind in zip(panels[0], kinds, strict=True):
        for (model, of), points in found.items():
            if of == kind:
                errors = [np.nan if error is None else error for error in points.errors()]
                panel.plot(middles, errors, "o-", label=model)
        panel.plot(EDGES, EDGES, "k:", linewidth=1)
        panel.set(title=kind, xlabel="true displacement, mm", ylim=(0, EDGES[-1]))
    panels[0, 0].set_ylabel("mean error, mm")
    panels[0, 0].legend()
    figure.tight_layout()
    write_whole(path, lambda part: figure.savefig(part, dpi=80, format="png"))


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--names", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", default="regnet_long", metavar="NAME|FILE")
    parser.add_argument("--blocks", type=int, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    try:
        paths = list(find_images(given.images, tuple(given.names)).values())
        images = [read_image(path) for path in paths]
        parts: dict[tuple[str, str], list[Found]] = {}
        for model in given.models:
            for kind, found in on_blocks(model, paths, given.recipe, given.blocks, given.seed):
                parts.setdefault((model, kind), []).append(found)
            for kind, found in on_images(model, images, given.seed):
                parts.setdefault((model, kind), []).append(found)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")
    whole = {key: join(each) for key, each in parts.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table(whole)) + "\n"
    (given.out / "error_by_length.md").write_text(text, encoding="utf-8")
    draw(whole, given.out / "error_by_length.png")
    print(text, end="")


if __name__ == "__main__":
    main()
