"""Measure models on synthetic pairs of held-out images, through the RegNet stage.

``python pipelines/evaluate_models.py MODEL [MODEL ..] --images FOLDER --names NAME [NAME ..]`` makes, of each image,
the three deformations of the paper (theta 8 mm) and breathing-like motion to 20 mm, and prints the mean error inside
the lungs before and after. MODEL is a shipped model's name or a file. With ``--recipe NAME|FILE`` the models
are measured as well on blocks of these images that the recipe's last phase, or what it judges by, makes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import ParameterError, RegNetItkError
from regnet_itk.metrics.measures import displacement_error
from regnet_itk.networks.devices import find_device, find_precision
from regnet_itk.networks.model import find_model, load_model, save_model
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.training.config import Judge, TrainingConfig, find_recipe
from regnet_itk.training.paper_pairs import (
    FREQUENCIES,
    SyntheticPair,
    breathing_displacement,
    deform_pair,
    draw_displacement,
)
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.sources import Preparation, find_images, load_source
from regnet_itk.training.validation import Validation, ValidationBlocks
from regnet_itk.transforms.chain import TransformChain

BREATHING = (-20.0, 20.0)
BLOCK_OUTPUTS, BLOCK_VOXELS = 24, 96
"""Edges of the blocks that ``--recipe`` measures on: 100 voxels of 1 mm, and 96 voxels of 2 mm."""


def fields(image: Image, lungs: Image, seed: int) -> dict[str, DisplacementField]:
    """Return the test deformations of an image, by name."""
    rng = np.random.default_rng(seed)
    found = {name: draw_displacement(image.grid, f, rng) for name, f in FREQUENCIES.items()}
    for amplitude in BREATHING:
        found[f"breathing {amplitude:+.0f}"] = breathing_displacement(image.grid, lungs, amplitude, rng)
    return found


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    breathing = [row for row in rows if "breathing" in row["field"]]
    return {"theta 8 mm": [row for row in rows if row not in breathing], "breathing to 20 mm": breathing, "all": rows}


def test_pairs(image: Image, seed: int) -> Iterator[SyntheticPair]:
    """Yield the pairs of an image with the true displacement at every voxel, and the lungs as the fixed mask."""
    lungs = lung_mask(image)
    for kind, u in fields(image, lungs, seed).items():
        pair = deform_pair(image, u, 5.0, np.random.default_rng(seed))
        mask = lungs.resampled(image.grid, u.to_sitk_transform(), order=0)
        truth = DisplacementField(u.at(image.grid.points()).astype(np.float32), image.grid)
        yield dataclasses.replace(pair, displacement=truth, name=kind, fixed_mask=mask)


def measure(image: Image, models: list[str], seed: int, iterations: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the mean error inside the lungs of every model, for each test deformation of an image.

    `iterations` is the number of steps of instance optimisation after the network.
    """
    for pair in test_pairs(image, seed):
        mask = pair.fixed_mask
        assert mask is not None
        before = np.linalg.norm(pair.displacement.vectors[mask.array > 0], axis=1).mean()
        row = {"field": pair.name, "before": float(before)}
        for model in models:
            values = {
                "Registration": "RegNetRegistration",
                "RegNetModel": model,
                "RegNetInstanceIterations": str(iterations),
                "WriteResultImage": "false",
            }
            stage = RegNetStage(ParameterMap({key: (value,) for key, value in values.items()}))
            found = stage.run(ImagePair(pair.fixed, pair.moving, mask), TransformChain(), RunOptions())
            error = displacement_error(found.chain.displacement_on(image.grid), pair.displacement, mask)
            row[model] = error.mean
            row[f"{model} x, y, z"] = [round(e, 3) for e in error.mean_absolute]
        yield row


def per_axis(part: list[dict[str, Any]], model: str) -> list[float]:
    """Return the mean absolute error along x, y and z of a model over some of the rows, mm."""
    return [round(float(mean), 3) for mean in np.mean([row[f"{model} x, y, z"] for row in part], axis=0)]


def record(model: str, label: str, names: list[str], groups: dict[str, Any]) -> None:
    """Write the measured errors into the description of a model file."""
    path = find_model(model)
    loaded = load_model(path)
    measured = {
        group: {
            "mean_displacement_mm": round(float(np.mean([row["before"] for row in part])), 3),
            "mean_error_mm": round(float(np.mean([row[model] for row in part])), 3),
            "mean_absolute_mm": per_axis(part, model),
        }
        for group, part in groups.items()
    }
    accuracy = {**loaded.description.accuracy, label: {"images": names, "inside the lungs": measured}}
    save_model(loaded.network, dataclasses.replace(loaded.description, accuracy=accuracy), path)


def judge_of(recipe: str) -> tuple[TrainingConfig, Judge]:
    """Return a recipe, and what makes its blocks in the end.

    Raises
    ------
    ParameterError
        If there is no such recipe, or it ends with whole pairs made beforehand.
    """
    config = find_recipe(recipe)
    last = config.phases[-1]
    if config.judged_by is None and last.pairs is not None:
        raise ParameterError(f"the recipe '{recipe}' cuts blocks from whole pairs: it does not say how to make blocks")
    return config, config.judged_by or Judge(last.fields, last.appearance)


def measure_blocks(
    models: list[str], images: list[Path], recipe: str, count: int, seed: int
) -> Iterator[tuple[str, Validation]]:
    """Yield the error of every model on `count` blocks made by a recipe, the same ones for all of one network."""
    config, judge = judge_of(recipe)
    device = find_device("auto")
    precision = find_precision("auto", device)
    with tempfile.TemporaryDirectory() as cache:
        how = Preparation(config.shown, config.source_smoothing)
        sources = [load_source(path, how, Path(cache)) for path in images]
        for name in models:
            model = load_model(find_model(name))
            size = BLOCK_VOXELS if model.architecture.predicts_everywhere else BLOCK_OUTPUTS
            shape = model.architecture.block_shape(size)
            model.network.to(device)
            blocks = ValidationBlocks(Prepared(sources, [], config.shown), judge, shape, count, seed, device)
            yield name, blocks.measure(model, precision)


def in_words(error: float, axes: tuple[float, ...] | list[float], before: float) -> str:
    """Return an error in words."""
    x, y, z = axes
    return f"mean error {error:.2f} mm = {error / before:.1%}, along x {x:.2f}, y {y:.2f}, z {z:.2f} mm"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--names", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--instance", type=int, default=0, metavar="N", help="steps of instance optimisation; 0 by default"
    )
    parser.add_argument("--record", metavar="LABEL", help="write the whole images' errors into the models' files")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="measure on blocks made by this recipe as well")
    parser.add_argument("--blocks", type=int, default=24, metavar="N", help="how many such blocks; 24 by default")
    given = parser.parse_args()
    if given.blocks < 1:
        parser.error("--blocks is at least 1")
    try:
        run(given)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


def run(given: argparse.Namespace) -> None:
    """Measure on whole images, and on blocks if a recipe is given."""
    images = find_images(given.images, tuple(given.names))
    if given.recipe:
        judge_of(given.recipe)  # a mistake is told before the long work
    rows = []
    for number, (name, path) in enumerate(images.items()):
        for row in measure(read_image(path), given.models, given.seed + number, given.instance):
            rows.append({"image": name, **row})
            print(rows[-1], flush=True)
    groups = _groups(rows)
    for group, part in groups.items():
        before = float(np.mean([row["before"] for row in part]))
        print(f"{group}: mean displacement inside the lungs {before:.2f} mm")
        for model in given.models:
            error = float(np.mean([row[model] for row in part]))
            print(f"    {model}: {in_words(error, per_axis(part, model), before)}")
    for model in given.models if given.record else []:
        record(model, given.record, given.names, groups)
    if given.recipe:
        print(f"{given.blocks} blocks made by '{given.recipe}', inside the lungs", flush=True)
        for name, found in measure_blocks(given.models, list(images.values()), given.recipe, given.blocks, given.seed):
            words = in_words(found.error, found.per_axis, found.displacement)
            print(f"    {name}: mean displacement {found.displacement:.2f} mm, {words}", flush=True)


if __name__ == "__main__":
    main()
