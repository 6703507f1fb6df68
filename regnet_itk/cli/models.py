"""``regnet-itk models``: the models that ship, and what one was made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from regnet_itk.cli import options
from regnet_itk.cli.main import StrictCommand

if TYPE_CHECKING:
    from regnet_itk.networks.model import ModelDescription

ERROR_MODEL = "error_model"
"""The name of the model that tells how far a result may be off."""

_WIDTH = 110
_JUDGED = ("group", "points", "mean", "predicted", "coverage", "rank", "area")
_COLUMNS = ("name", "network", "voxels", "capture range", "region", "size", "validation", "test")


@click.command("models", cls=StrictCommand, context_settings=options.HELP)
@click.argument("model", metavar="[NAME_OR_PATH]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything that the models say of themselves as JSON.")
@click.option("--seal", is_flag=True, help="Add the hash of its description to a model of version 0.1 that you trust.")
def command(model: str | None, as_json: bool, seal: bool) -> None:
    """List the models that ship, or explain one: what it was trained on and how, and how accurate it is.

    The errors are mean distances from the true displacement, inside the lungs, on images that were not trained on; of
    regnet_general on random scenes. error_model, which tells how far a result may be off, has a card as well.

    Descriptions are checked against their hash. Weights are not read; a registration checks them.
    """
    from regnet_itk.networks.model import find_model, read_model_header, seal_model, shipped_models

    if model == ERROR_MODEL:
        if seal:
            raise click.UsageError(f"{ERROR_MODEL} needs no --seal", click.get_current_context())
        click.echo("\n".join(_error_card(as_json)))
        return
    if seal:
        if model is None:
            raise click.UsageError("--seal needs the model", click.get_current_context())
        seal_model(find_model(model))
    paths = [find_model(model)] if model is not None else list(shipped_models().values())
    read = [(path, *read_model_header(path)) for path in paths]
    if as_json:
        found = [_facts(*entry) for entry in read]
        click.echo(json.dumps(found if model is None else found[0], indent=2, ensure_ascii=False))
    elif model is None:
        click.echo("\n".join(_table(read)))
    else:
        click.echo("\n".join(_card(*read[0])))


def _error_card(as_json: bool) -> list[str]:
    """Return what the model of errors was made of, and what was measured of it."""
    from regnet_itk.trust.error_map import MODEL_FILE
    from regnet_itk.trust.error_model import COVERAGE, load_error_model

    card = load_error_model().card
    if as_json:
        return [json.dumps(asdict(card), indent=2, ensure_ascii=False)]
    groups = card.accuracy.get("judged", [])
    return [
        f"{ERROR_MODEL}: {_size(MODEL_FILE)}, {MODEL_FILE}",
        "  tells of any transform the expected error at each place, and the radius within which the truth lies in "
        f"{COVERAGE:.0%} of the cases",
        "",
        "learnt from",
        *_lines(dict(card.training)),
        "",
        "calibrated by pairs that the networks had not seen",
        *_lines(dict(card.calibration) | {"factor": card.factor}),
        "",
        f"judged by {card.accuracy.get('pairs', 'no')} other pairs (mm; rank: correlation with the true error; area: "
        "under the curve for 3 mm off)",
        *_aligned([_JUDGED, *([_judged_cell(row.get(name)) for name in _JUDGED] for row in groups)]),
    ]  # fmt: skip


def _judged_cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _facts(path: Path, description: ModelDescription, digest: str) -> dict[str, Any]:
    return {**description.to_dict(), "sha256": digest, "file": str(path), "bytes": path.stat().st_size}


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.0f} kB"


def _table(read: list[tuple[Path, ModelDescription, str]]) -> list[str]:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for path, description, _ in read:
        errors = (_overall(description.accuracy.get(group)) for group in ("validation", "test"))
        rows.append((
            path.stem, description.architecture, f"{description.voxel_size:g} mm", f"{description.capture_range:g} mm",
            description.world.region, _size(path), *errors,
        ))  # fmt: skip
    return [
        *_aligned(rows),
        "",
        "validation, test: mean error inside the lungs (regnet_general: everywhere in random scenes); before it, what "
        "it is without registration",
    ]


def _overall(measured: Any) -> str:
    """Return "before -> after mm" of a group's images, or a dash if it was not measured."""
    try:
        found = next(part for name, part in measured.items() if name.startswith("inside the "))["all"]
        return f"{found['mean_displacement_mm']:.2f} -> {found['mean_error_mm']:.2f} mm"
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        return "-"


def _card(path: Path, description: ModelDescription, digest: str) -> list[str]:
    world = description.world
    low, high = world.intensity_range
    training = dict(description.training)
    recipe = training.pop("recipe", {})
    recipe = dict(recipe) if isinstance(recipe, dict) else {"recipe": recipe}
    seconds = training.pop("seconds", None)
    if isinstance(seconds, int | float):
        training["time"] = f"{seconds / 3600:.1f} hours"
    lines = [
        f"{description.name}: {_size(path)}, {path}",
        f"  network: {description.architecture}, on voxels of {description.voxel_size:g} mm",
        f"  sees: {low:g} to {high:g} {world.unit}; displacements up to {description.capture_range:g} mm; "
        f"predicts in the {world.region} if no mask is given",
        f"  SHA-256 of its weights: {digest}",
        "",
        "images",
        *_lines({key: recipe.pop(key) for key in ("train", "validation", "test", "sources") if key in recipe}),
        "",
        "training",
        *_lines(training),
        *_lines(recipe),
        "",
        "accuracy",
        *_lines(description.accuracy),
    ]
    return lines


def _lines(values: dict[str, Any], depth: int = 1) -> list[str]:
    """Return an indented line for each value, wrapped, and those of a table below its name."""
    import textwrap

    indent, found = "  " * depth, []
    for key, value in values.items():
        name = str(key).replace("_", " ")
        parts = list(enumerate(value, start=1)) if isinstance(value, list) else []
        if isinstance(value, dict) and not all(map(_is_short, value.values())):
            found += [f"{indent}{name}", *_lines(value, depth + 1)]
        elif parts and all(isinstance(part, dict) for _, part in parts):
            for number, part in parts:
                found += [f"{indent}{name.removesuffix('s')} {number} of {len(parts)}", *_lines(part, depth + 1)]
        elif key == "sources" and parts:
            found += [f"{indent}{name}", *(f"{indent}  {part}" for _, part in parts)]
        else:
            text = f"{indent}{name}: {_text(value)}"
            further = indent + "  "
            found += textwrap.wrap(text, _WIDTH, subsequent_indent=further, break_on_hyphens=False)
    return found


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict) and (not isinstance(value, list) or _is_range(value))


def _is_range(value: list[Any]) -> bool:
    return len(value) == 2 and all(isinstance(number, int | float) for number in value)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"{value[0]:g} to {value[1]:g}" if _is_range(value) else ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
