"""Train networks that differ in one thing, and compare them on the same validation pairs.

``python pipelines/training_studies.py STUDY IMAGES --out DIR`` with one of these studies:

designs     RegNet, RegNet Early and RegNet 1Scale of the paper, trained alike, and the paper's Table 1 of them
curriculum  RegNet with each part of its curriculum left out
realism     the coarse-to-fine network trained on (``--from``) with each part of the realistic recipe left out
sensitivity RegNet trained on (``--from``) with deformations of other theta, and with patches of another size, and
            the error of each by the length of the displacement: the paper's future work
scenes      the first phase of the general network with each part of the random scenes left out; it takes no images,
            and the table tells the errors by contrast too

The images are those that the recipe names, or, if they are not there, the folder's own, of which every eighth judges.
``--effort 0.5`` trains with half of the recipe's steps. Every variant is judged by the validation pairs of the complete
recipe. Started again, the study continues. DIR gets a folder for each variant, the learning curves (curves.png), and
the table (table.csv).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import error_by_length
import numpy as np
import torch
from evaluate_models import test_pairs

from regnet_itk.cli.run_log import LogToScreen
from regnet_itk.cli.train import TrainingScreen
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import ParameterError, RegNetItkError, did_you_mean
from regnet_itk.metrics.measures import ErrorMoments, transform_error
from regnet_itk.networks.devices import find_precision
from regnet_itk.networks.model import find_model, load_model
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import ParameterMap
from regnet_itk.run_log import heard_by
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.training.config import (
    AppearanceRecipe,
    FieldRecipe,
    Judge,
    Phase,
    TrainingConfig,
    find_recipe,
    read_training_config,
    shipped_recipes,
)
from regnet_itk.training.log import LogRow, TrainingLog
from regnet_itk.training.loop import Trainer, TrainingOptions, find_images
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.sources import divide_images, list_images
from regnet_itk.training.validation import ValidationBlocks
from regnet_itk.transforms.chain import TransformChain

Variants = dict[str, TrainingConfig]
_PLAIN_FIELDS, _PLAIN_APPEARANCE = FieldRecipe(), AppearanceRecipe()


def designs(config: TrainingConfig) -> Variants:
    """Return one recipe with the paper's three networks."""
    networks = {"RegNet": "regnet", "RegNet Early": "regnet_early", "RegNet 1Scale": "regnet_1scale"}
    return {name: dataclasses.replace(config, network=network) for name, network in networks.items()}


def curriculum(config: TrainingConfig) -> Variants:
    """Return a curriculum for RegNet, and what is left without each of its parts.

    With the last phase only, statistics are not frozen either: they would be those of an untrained network.
    """
    last = config.phases[-1]

    def each(change: Callable[[Phase], Phase]) -> TrainingConfig:
        return dataclasses.replace(config, phases=tuple(change(phase) for phase in config.phases))

    return {
        "complete": config,
        "without texture": each(lambda p: dataclasses.replace(p, texture_share=0.0)),
        "without short waves": each(lambda p: dataclasses.replace(p, fields=last.fields)),
        "without auxiliary outputs": dataclasses.replace(config, auxiliary_outputs=False),
        "without frozen statistics": each(lambda p: dataclasses.replace(p, frozen_statistics=False)),
        "last phase only": each(lambda p: dataclasses.replace(last, steps=p.steps, frozen_statistics=False)),
    }


def realism(config: TrainingConfig) -> Variants:
    """Return the last phase of a realistic recipe, and what is left without each of its parts."""
    last = config.phases[-1]

    def without(*names: str) -> TrainingConfig:
        def plain(recipe: FieldRecipe | AppearanceRecipe, bare: FieldRecipe | AppearanceRecipe) -> object:
            there = {f.name for f in dataclasses.fields(recipe)} & set(names)
            return dataclasses.replace(recipe, **{name: getattr(bare, name) for name in there})

        phase = dataclasses.replace(
            last,
            fields=plain(last.fields, _PLAIN_FIELDS),
            appearance=plain(last.appearance, _PLAIN_APPEARANCE),
            recurrence=0.0 if "recurrence" in names else last.recurrence,
        )
        return dataclasses.replace(config, phases=(phase,))

    variants = {
        "complete": without(),
        "complete, other random numbers": dataclasses.replace(without(), seed=config.seed + 1),
        "without breathing": without("breathing", "breathing_share"),
        "without sliding": without("sliding", "sliding_share"),
        "without density": without("density", "mass_conservation"),
        "without noise and kernel": without("noise", "noise_correlation", "blur", "sharpening"),
        "without slices": without("slice_thickness"),
        "without contrast agent": without("contrast", "contrast_agent"),
        "without nodules and consolidation": without("nodules_share", "consolidation_share"),
        "without motion": without("motion", "motion_share"),
        "without affine rest": without("translation", "linear"),
        "without small fields": without("small_share", "smallest"),
        "without recurrence": without("recurrence"),
    }
    absent = [name for name, variant in variants.items() if name != "complete" and variant == variants["complete"]]
    return {name: variant for name, variant in variants.items() if name not in absent}


def scenes(config: TrainingConfig) -> Variants:
    """Return the first phase of a recipe for random scenes, and what is left without each of their parts."""
    first = config.phases[0]
    recipe = first.scenes
    if recipe is None:
        raise ParameterError(f"the study 'scenes' needs a recipe with scenes, not that of '{config.name}'")

    def but(**changed: Any) -> TrainingConfig:
        phase = dataclasses.replace(first, scenes=dataclasses.replace(recipe, **changed))
        return dataclasses.replace(config, phases=(phase,))

    same, monotone, partly = recipe.same, recipe.monotone, recipe.partly
    whole = same + monotone + partly
    return {
        "complete": but(),
        "complete, other random numbers": dataclasses.replace(but(), seed=config.seed + 1),
        "without the same contrast": but(same=0.0),
        "without related contrasts": but(monotone=0.0, partly=0.0),
        "without independent contrasts": but(same=same / whole, monotone=monotone / whole, partly=partly / whole),
        "without tubes and trees": but(tubes_share=0.0, trees_share=0.0),
        "without walls": but(walls_share=0.0),
        "without organs": but(organs_share=0.0),
        "without textures": but(texture=0.0),
    }


_THETAS = (4.0, 8.0, 16.0)  # mm
_VOXELS = {22: 0.75, 44: 1.5}
"""mm: the edge of a patch of 29 voxels, and that of a voxel; the paper's are 29 and 1."""

_BY_LENGTH = "regnet_long"  # the recipe of the pairs: all lengths to 10 mm alike
_BLOCKS_BY_LENGTH = 60


def sensitivity(config: TrainingConfig) -> Variants:
    """Return the last phase of a recipe for RegNet with thetas and sizes of patches that differ, and no breathing."""
    last = config.phases[-1]

    def of_theta(theta: float) -> TrainingConfig:
        fields = dataclasses.replace(last.fields, theta=(1.0, theta), breathing=0.0, breathing_share=0.0)
        return dataclasses.replace(config, phases=(dataclasses.replace(last, fields=fields),))

    thetas = {f"theta {theta:g} mm": of_theta(theta) for theta in _THETAS}
    patches = {
        f"patch {edge} mm": dataclasses.replace(of_theta(8.0), voxel_size=voxel) for edge, voxel in _VOXELS.items()
    }
    return thetas | patches


def by_length(models: dict[str, Path], images: list[Path], seed: int, picture: Path) -> Iterator[str]:
    """Measure models on blocks with displacements of all lengths, draw the errors, and yield the lines of the table."""
    found = {}
    for name, path in models.items():
        parts = [part for _, part in error_by_length.on_blocks(str(path), images, _BY_LENGTH, _BLOCKS_BY_LENGTH, seed)]
        found[name, f"blocks of {_BY_LENGTH}"] = error_by_length.join(parts)
    error_by_length.draw(found, picture)
    yield from error_by_length.table(found)


_BLOCKS_BY_CONTRAST = 30

_CONTRASTS: dict[str, dict[str, Any]] = {
    "same": {"same": 1.0, "monotone": 0.0, "partly": 0.0},
    "related": {"same": 0.0, "monotone": 0.6, "partly": 0.4},
    "independent": {"same": 0.0, "monotone": 0.0, "partly": 0.0},
}


def by_contrast(models: dict[str, Path], config: TrainingConfig) -> Iterator[str]:
    """Measure models on scenes of one kind of contrast after the other, and yield the lines of the table."""
    judge = config.judged_by
    if judge is None or judge.scenes is None:
        return
    yield f"{'error, mm':<30}  " + "  ".join(f"{name:>11}" for name in _CONTRASTS)
    for name, path in models.items():
        model, found = load_model(path), []
        for shares in _CONTRASTS.values():
            shown = dataclasses.replace(judge.scenes, **shares)
            shape = model.architecture.block_shape(config.phases[0].block_size)
            images = Prepared([], [], config.shown, shown)
            blocks = ValidationBlocks(images, judge, shape, _BLOCKS_BY_CONTRAST, config.seed, torch.device("cpu"))
            measured = blocks.measure(model, find_precision("auto", torch.device("cpu")))
            found.append(f"{measured.error:.2f} of {measured.displacement:.1f}")
        yield f"{name:<30}  " + "  ".join(f"{cell:>11}" for cell in found)


STUDIES = {
    "designs": (designs, "regnet"),
    "curriculum": (curriculum, "regnet"),
    "realism": (realism, "regnet_multistage"),
    "sensitivity": (sensitivity, "regnet"),
    "scenes": (scenes, "regnet_general"),
}
"""What makes the variants, and the recipe they are made of."""


def make_variants(study: str, recipe: str | None, effort: float) -> Variants:
    """Return the configurations of a study, all judged alike and with the given share of the steps."""
    make, default = STUDIES[study]
    path = shipped_recipes().get(recipe or default)
    config = read_training_config(path) if path else find_recipe(recipe or default)
    last = config.phases[-1]
    if config.judged_by is None and last.pairs is None:
        config = dataclasses.replace(config, judged_by=Judge(last.fields, last.appearance, last.scenes))

    def shortened(phase: Phase) -> Phase:
        name = "epochs" if phase.epochs else "steps"
        return dataclasses.replace(phase, **{name: max(1, round(getattr(phase, name) * effort))})

    return make(dataclasses.replace(config, phases=tuple(map(shortened, config.phases))))


def folder_name(variant: str) -> str:
    """Return the name of a variant's folder."""
    return variant.lower().replace(",", "").replace(" ", "_")


def draw(curves: dict[str, list[LogRow]], path: Path) -> None:
    """Draw the validation errors of all variants against the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, rows) in enumerate(curves.items()):
        line = "-" if number < 6 else "--"
        axes.plot([r.step for r in rows], [r.error_mm for r in rows], line, label=name, lw=1.3)
    longest = max(curves.values(), key=len)
    axes.plot(
        [r.step for r in longest], [r.displacement_mm for r in longest], ":", c="#777777", label="nothing predicted"
    )
    axes.set(xlabel="step", ylabel="mean error, validation, mm")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    write_whole(path, lambda part: figure.savefig(part, dpi=120))


def table(curves: dict[str, list[LogRow]], path: Path) -> Iterator[str]:
    """Write the last validation of every variant, and yield the lines to print."""
    rows = [["variant", "steps", "seconds", "error mm", "x", "y", "z", "displacement mm"]]
    for name, log in curves.items():
        last = log[-1]
        numbers = (last.error_mm, last.error_x_mm, last.error_y_mm, last.error_z_mm, last.displacement_mm)
        rows.append([name, str(last.step), f"{last.seconds:.0f}", *(f"{n:.3f}" for n in numbers)])

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    write_whole(path, write)
    width = max(len(row[0]) for row in rows)
    yield from (f"{row[0]:<{width}}  " + "  ".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def table_1(models: dict[str, Path], images: list[Path], seed: int) -> Iterator[str]:
    """Measure models on the paper's deformations of whole images, and yield the lines of its Table 1."""
    found = {name: ErrorMoments.of(np.zeros((0, 3))) for name in ("nothing", *models)}
    for number, path in enumerate(images):
        for pair in test_pairs(read_image(path), seed + number):
            if pair.name.startswith("breathing"):
                continue
            found["nothing"] += transform_error(TransformChain(), pair.displacement, pair.fixed_mask)
            for name, model in models.items():
                values = {"Registration": "RegNetRegistration", "RegNetModel": str(model), "WriteResultImage": "false"}
                stage = RegNetStage(ParameterMap({key: (value,) for key, value in values.items()}))
                result = stage.run(ImagePair(pair.fixed, pair.moving, pair.fixed_mask), TransformChain(), RunOptions())
                found[name] += transform_error(result.chain, pair.displacement, pair.fixed_mask)
    yield f"{'MAE, mm':<16}  {'measure':>13}  {'x':>13}  {'y':>13}  {'z':>13}  {'vector':>13}"
    for name, moments in found.items():
        cells = [f"{mean:.2f} ± {sd:.2f}" for mean, sd in zip(moments.means, moments.sds, strict=True)]
        yield f"{name:<16}  " + "  ".join(f"{cell:>13}" for cell in (*cells[1:], cells[0]))


def main() -> None:
    """Train all variants of a study, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("images", type=Path, nargs="?", help="a folder; the study 'scenes' needs none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", help="a name or a TOML file; the study's own by default")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the recipe's steps")
    parser.add_argument("--from", dest="start_from", help="model to begin with")
    parser.add_argument("--only", nargs="+", help="train only these variants now")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.effort <= 0:
        parser.error("--effort is a positive number")
    if given.images is None and given.study != "scenes":
        parser.error(f"the study '{given.study}' needs a folder of images")
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        run(given)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


def with_these_images(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """Return the configuration with the images it names, or, if they are not there, with the folder's own."""
    if config.train and set(config.train + config.validation) <= set(list_images(folder)):
        return config
    nameless = dataclasses.replace(config, train=(), validation=(), test=(), sources=(), seed=TrainingConfig.seed)
    return dataclasses.replace(divide_images(nameless, folder), seed=config.seed)


def run(given: argparse.Namespace) -> None:
    """Train what is missing, then draw and print what there is."""
    variants = make_variants(given.study, given.recipe, given.effort)
    for name in given.only or []:
        if name not in variants:
            raise ParameterError(f"no variant '{name}' in the study '{given.study}'{did_you_mean(name, variants)}")
    if given.images is not None:
        variants = {name: with_these_images(config, given.images) for name, config in variants.items()}
    cache = given.cache or given.out / "cache"
    start = find_model(given.start_from) if given.start_from else None
    models, curves = {}, {}
    for name, config in variants.items():
        folder = given.out / folder_name(name)
        model = folder / f"{config.name or config.network}.safetensors"
        if not model.exists() and (not given.only or name in given.only):
            with TrainingScreen() as screen, heard_by(LogToScreen(screen)):
                screen.say(name)
                options = TrainingOptions(given.device, cache=cache, start_from=start, events=screen)
                Trainer(config, given.images, folder, options).run()
        if model.exists():
            models[name], curves[name] = model, TrainingLog(folder).rows()
    draw(curves, given.out / "curves.png")
    print("\n".join(table(curves, given.out / "table.csv")), flush=True)
    config = next(iter(variants.values()))
    if given.study == "scenes":
        print("\n".join(by_contrast(models, config)), flush=True)
    if given.study in ("designs", "sensitivity"):
        validation = list(find_images(given.images, config.validation).values())
    if given.study == "sensitivity":
        print("\n".join(by_length(models, validation, config.seed, given.out / "by_length.png")), flush=True)
    if given.study == "designs":
        print("\n".join(table_1(models, validation, config.seed)), flush=True)


if __name__ == "__main__":
    main()
