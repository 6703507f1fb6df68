"""Measure models on synthetic pairs of held-out images, through the RegNet stage.

``python pipelines/evaluate_models.py MODEL [MODEL ..] --images FOLDER --names NAME [NAME ..]`` makes, of each image,
the three deformations of the paper (theta 8 mm) and breathing-like motion to 20 mm, and prints the mean error inside
the lungs before and after. MODEL is a shipped model's name or a file.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.displacement import DisplacementField
from regnet_itk.evaluation.metrics import displacement_error
from regnet_itk.images import Image, read_image
from regnet_itk.lungs import lung_mask
from regnet_itk.model import find_model, load_model, save_model
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.training.loop import find_images
from regnet_itk.training.synthesis import (
    FREQUENCIES,
    SyntheticPair,
    breathing_displacement,
    deformed_pair,
    random_displacement,
)
from regnet_itk.transforms import TransformChain

BREATHING = (-20.0, 20.0)


def fields(image: Image, lungs: Image, seed: int) -> dict[str, DisplacementField]:
    """Return the test deformations of an image, by name."""
    rng = np.random.default_rng(seed)
    found = {name: random_displacement(image.grid, f, rng) for name, f in FREQUENCIES.items()}
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
        pair = deformed_pair(image, u, 5.0, np.random.default_rng(seed))
        mask = lungs.resampled(image.grid, u.to_sitk_transform(), order=0)
        truth = DisplacementField(u.at(image.grid.points()).astype(np.float32), image.grid)
        yield dataclasses.replace(pair, displacement=truth, name=kind, fixed_mask=mask)


def measure(image: Image, models: list[str], seed: int) -> Iterator[dict[str, Any]]:
    """Yield the mean error inside the lungs of every model, for each test deformation of an image."""
    for pair in test_pairs(image, seed):
        mask = pair.fixed_mask
        assert mask is not None
        before = np.linalg.norm(pair.displacement.vectors[mask.array > 0], axis=1).mean()
        row = {"field": pair.name, "before": float(before)}
        for model in models:
            values = {"Registration": "RegNetRegistration", "RegNetModel": model, "WriteResultImage": "false"}
            stage = RegNetStage(ParameterMap({key: (value,) for key, value in values.items()}))
            found = stage.run(ImagePair(pair.fixed, pair.moving, mask), TransformChain(), RunOptions())
            error = displacement_error(found.chain.displacement_on(image.grid), pair.displacement, mask)
            row[model] = error.mean
            row[f"{model} x, y, z"] = [round(e, 3) for e in error.mean_absolute]
        yield row


def record(model: str, label: str, names: list[str], groups: dict[str, Any]) -> None:
    """Write the measured errors into the description of a model file."""
    path = find_model(model)
    loaded = load_model(path)
    measured = {
        group: {
            "mean_displacement_mm": round(float(np.mean([row["before"] for row in part])), 3),
            "mean_error_mm": round(float(np.mean([row[model] for row in part])), 3),
        }
        for group, part in groups.items()
    }
    accuracy = {**loaded.description.accuracy, label: {"images": names, "inside the lungs": measured}}
    save_model(loaded.network, dataclasses.replace(loaded.description, accuracy=accuracy), path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", metavar="LABEL", help="write the errors into the models' descriptions")
    arguments = parser.parse_args()
    rows = []
    for number, (name, path) in enumerate(find_images(arguments.images, tuple(arguments.names)).items()):
        for row in measure(read_image(path), arguments.models, arguments.seed + number):
            rows.append({"image": name, **row})
            print(rows[-1], flush=True)
    groups = _groups(rows)
    for group, part in groups.items():
        before = float(np.mean([row["before"] for row in part]))
        print(f"{group}: mean displacement inside the lungs {before:.2f} mm")
        for model in arguments.models:
            after = float(np.mean([row[model] for row in part]))
            print(f"    {model}: mean error {after:.2f} mm = {after / before:.1%}")
    for model in arguments.models if arguments.record else []:
        record(model, arguments.record, arguments.names, groups)


if __name__ == "__main__":
    main()
