"""Methods on images of any anatomy and contrast.

``python pipelines/benchmark_anatomies.py --out DIR --images FILE ..``: each image is deformed by smooth waves, for each
of ``--amplitudes``, and the moving image is shown in each of ``--contrasts``: as it is; inverted; or through a curve
that rises and falls, as if by another modality. The displacement is known at every voxel of the foreground. ``--pairs
CSV`` adds real pairs, as for `regnet-itk compare`: with labels they are judged by the mean Dice, with landmarks by
their error. All methods start from the same affine_mi, each stage in a process of its own, and none sees a mask. Leave
the machine alone meanwhile; started again, what is finished is kept. DIR gets the report and the tables of `regnet-itk
compare`, and ``anatomies.md``, which is printed. ``--record MODEL`` writes what was measured of a model into its
file: `regnet-itk models MODEL` tells it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from benchmark import cell, seconds_after_affine, without_warped_images
from known_pairs import deformed_image_pair, is_made, make_deformed
from peers import PEERS

from regnet_itk.anatomy.regions import Scan
from regnet_itk.cli.run_log import LogToScreen
from regnet_itk.cli.screen import Screen
from regnet_itk.comparison.methods import Method, plan_method, read_methods
from regnet_itk.comparison.outcomes import Comparison
from regnet_itk.comparison.outputs import write_comparison
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.step import StepSettings
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import ParameterError, RegNetItkError
from regnet_itk.networks.model import find_model, load_model, save_model
from regnet_itk.outputs import write_whole
from regnet_itk.pairs import Pair, check_pairs, read_pairs
from regnet_itk.run_log import heard_by
from regnet_itk.training.fields import FieldMaker
from regnet_itk.training.random_numbers import Random

START = "affine_mi"
METHODS = ("bspline_mi", "bspline_3r", "regnet_multistage", "regnet_general_oneshot", "regnet_general")
CONTRASTS = {
    "same": None,
    "inverted": (0.0, 1.0, 0.8, 0.6, 0.4, 0.2),
    "other": (0.0, 0.9, 0.3, 0.7, 0.1, 0.8),
}
"""What becomes of brightness from the darkest to the brightest value of the foreground, evenly spaced."""

_RECORDED_AS = "by_anatomy_and_contrast"  # of a model's accuracy
_STRAIN = 0.3  # largest displacement over the width of the waves: small ones are narrow
_NARROWEST = 12.0  # mm
_NOISE = 0.01  # of the foreground's range, in both images


def deformed_pairs(folder: Path, paths: list[Path], amplitudes: list[float], contrasts: list[str]) -> Iterator[Pair]:
    """Deform each image by waves to each amplitude, and show the moving image in each contrast."""
    for number, path in enumerate(paths):
        image = read_image(path)
        name = path.name.split(".")[0]
        for amplitude in amplitudes:
            u = waves(image.grid, amplitude, seed=1000 * number + round(amplitude))
            for contrast in contrasts:
                here = folder / f"{name}-{amplitude:g}-{contrast}"
                if not is_made(here):
                    _make(here, image, u, contrast)
                pair = deformed_image_pair(here, here.name)
                yield dataclasses.replace(pair, group=f"{name}, {amplitude:g} mm, {contrast}")


def waves(grid: Grid, amplitude: float, seed: int) -> DisplacementField:
    """Draw smooth waves over an image, whose largest component is `amplitude` mm."""
    coarse = grid.isotropic(4.0)
    sigma = max(_NARROWEST, amplitude / _STRAIN)
    along = FieldMaker(coarse.shape, coarse.spacing[0], Random(seed)).wave(sigma, amplitude)[0].numpy()
    vectors = np.moveaxis(along, 0, -1) @ coarse.direction_matrix.T
    return DisplacementField(vectors.astype(np.float32), coarse)


def _make(folder: Path, image: Image, u: DisplacementField, contrast: str) -> None:
    foreground = Scan(image).find("foreground")
    low, high = np.percentile(image.array[foreground.array], (1.0, 99.0))
    rng = np.random.default_rng(0)
    inside = Image(foreground.array.astype(np.uint8), image.grid)
    shown = show_in(image, CONTRASTS[contrast], (float(low), float(high)))
    darkest = float(image.array.min())
    noise = _NOISE * float(high - low)
    make_deformed(folder, image, inside, u, rng, moving=shown, noise=noise, background=darkest)


def show_in(image: Image, curve: tuple[float, ...] | None, span: tuple[float, float]) -> Image:
    """Return an image whose brightness within a span of values is changed by a curve; the surround stays dark."""
    if curve is None:
        return image
    low, high = span
    knots = np.linspace(low, high, len(curve))
    return Image(np.interp(image.array, knots, low + np.array(curve) * (high - low)).astype(np.float32), image.grid)


def planned_methods(names: list[str], peers: list[str]) -> list[Method]:
    """Return all methods after the common start."""
    found = [plan_method(START, [START])]
    for method in read_methods(names):
        found.append(plan_method(method.name, [START, *method.stages[1:]]))
    found += [plan_method(name, [START, PEERS[name].usual()]) for name in peers]
    return [without_warped_images(method) for method in found]


def table(comparison: Comparison) -> str:
    """Return a table in Markdown: errors inside the foreground, landmarks, Dice, folding, time and memory."""
    first = comparison.methods[2].name if len(comparison.methods) > 2 else START
    lines = [
        f"{comparison.settings.threads} threads, no masks. Errors are means over the foreground; times are those after",
        f"{START}, ratios to {first}.",
        "",
        "| pairs | method | error, mm | TRE, mm | Dice | det J <= 0 | seconds | ratio | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group, pairs in _groups(comparison).items():
        rows = {method.name: _row(comparison, method, pairs) for method in comparison.methods}
        base = rows[first]["seconds"]
        for name, row in rows.items():
            took = bool(row["seconds"])
            cells = (
                cell(row["error"], ".2f"),
                cell(row["tre"], ".2f"),
                cell(row["dice"], ".3f"),
                cell(row["folding"], ".3%"),
                cell(row["seconds"], ".1f") if took else "",
                cell(row["seconds"] / base, ".2f") if took and base else "",
                cell(row["gb"], ".2f") if took else "",
            )
            lines.append(f"| {group} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _groups(comparison: Comparison) -> dict[str, list[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in comparison.pairs:
        groups.setdefault(pair.group or pair.name, []).append(pair)
    return groups


def record(comparison: Comparison, model: str) -> None:
    """Write what was measured of the method named like a model into the model's file, beside what is there."""
    path = find_model(model)
    methods = {method.name: method for method in comparison.methods}
    if path.stem not in methods:
        raise ParameterError(f"no method '{path.stem}' was run: {', '.join(methods)}")
    loaded = load_model(path)
    accuracy = dict(loaded.description.accuracy)
    measured = dict(accuracy.get(_RECORDED_AS, {}))
    for group, pairs in _groups(comparison).items():
        before, after = (_row(comparison, methods[name], pairs) for name in (START, path.stem))
        measured[group] = {
            f"{name}_{when}": round(row[name], 3)
            for name in ("error", "tre", "dice")
            for when, row in ((f"after_{START}", before), ("in_the_end", after))
            if math.isfinite(row[name])
        }
    description = dataclasses.replace(loaded.description, accuracy={**accuracy, _RECORDED_AS: measured})
    save_model(loaded.network, description, path)


def _row(comparison: Comparison, method: Method, pairs: list[Pair]) -> dict[str, float]:
    """Return the means over pairs; NaN for what was not measured."""
    outcomes = [o for pair in pairs if (o := comparison.outcome(pair, method)) is not None]
    names = ("error", "tre", "dice", "folding", "seconds", "gb")
    if not outcomes:
        return dict.fromkeys(names, math.nan)
    fields = [o.last.measures.field for o in outcomes if o.last.measures.field is not None]
    landmarks = [vectors for pair in pairs if len(vectors := comparison.differences(pair, method))]
    metrics = [o.last.measures.metrics for o in outcomes]
    dice = [np.mean(list(found.values())) for m in metrics if isinstance(found := m.get("dice"), Mapping) and found]
    values = (
        sum(fields[1:], start=fields[0]).means[0] if fields else math.nan,
        float(np.linalg.norm(np.concatenate(landmarks), axis=1).mean()) if landmarks else math.nan,
        float(np.mean(dice)) if dice else math.nan,
        float(np.mean([m["folding"] for m in metrics])),
        float(np.mean([seconds_after_affine(o) for o in outcomes])),
        max((record.peak_mb for o in outcomes for record in o.records), default=math.nan) / 1024,
    )
    return dict(zip(names, values, strict=True))


def main() -> int:
    """Make the pairs, run all methods, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="images to deform")
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[4.0, 8.0, 20.0], metavar="MM")
    parser.add_argument("--contrasts", nargs="+", choices=tuple(CONTRASTS), default=list(CONTRASTS))
    parser.add_argument("--pairs", type=Path, help="real pairs, as for regnet-itk compare")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--peers", nargs="*", default=[n for n, peer in PEERS.items() if peer.is_installed()])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--record", metavar="MODEL", help="write what was measured of it into the model's file")
    given = parser.parse_args()
    try:
        return run(given)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


def run(given: argparse.Namespace) -> int:
    """Run the benchmark."""
    methods = planned_methods(list(given.methods), given.peers)
    pairs = list(deformed_pairs(given.out / "images", given.images, given.amplitudes, given.contrasts))
    pairs += read_pairs(given.pairs) if given.pairs else []
    check_pairs(pairs)
    shown = Screen("info")
    with shown, heard_by(LogToScreen(shown)):
        settings = StepSettings(threads=given.threads, masks_guide=False)
        comparison = compare(pairs, methods, given.out, settings, events=shown)
        write_comparison(comparison, given.out, "Anatomies and contrasts")
    text = table(comparison)
    write_whole(given.out / "anatomies.md", lambda part: part.write_text(text, encoding="utf-8"))
    print(text)
    if given.record:
        record(comparison, given.record)
    for pair, method, reason in comparison.failures:
        print(f"error: {pair.name}, {method.name}: {reason}", file=sys.stderr)
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
