"""Error, time and memory of all methods at displacements of several sizes: ``python pipelines/benchmark.py --out DIR``.

Pairs whose displacement is known at every voxel: chest phantoms that breathe, and, with ``--images FOLDER --names NAME
..``, CTs deformed by breathing-like motion, for each of ``--amplitudes``. All methods start from the same affine
result, each stage in a process of its own, and none makes a warped image; the time is that of the stages after it.
greedy and convexAdam take part where they are installed. Leave the machine alone meanwhile. Started again, what is
finished is kept. DIR gets the report and the tables of `regnet-itk compare`, and ``benchmark.md``, which is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from known_pairs import deformed_image_pair, is_made, make_deformed, phantom_pair
from peers import PEERS, peer_methods

from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.cli.run_log import LogToScreen
from regnet_itk.cli.screen import Screen
from regnet_itk.comparison.methods import Method, read_methods
from regnet_itk.comparison.outcomes import Comparison, Outcome
from regnet_itk.comparison.outputs import write_comparison
from regnet_itk.comparison.run import compare
from regnet_itk.comparison.step import StepSettings
from regnet_itk.comparison.tables import divide_pairs
from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Triple
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import RegNetItkError
from regnet_itk.metrics.measures import ErrorMoments
from regnet_itk.outputs import write_whole
from regnet_itk.pairs import Pair, check_pairs
from regnet_itk.run_log import heard_by
from regnet_itk.stages.base import Stage
from regnet_itk.training.paper_pairs import breathing_displacement
from regnet_itk.training.sources import find_images

METHODS = (
    "bspline_3r", "bspline_1r", "regnet", "regnet_multistage_fast", "regnet_multistage_oneshot", "regnet_multistage",
    "regnet_multistage_oneshot+bspline_refine",
)  # fmt: skip
"""The first one is what the others are held against."""

AMPLITUDES = (8.0, 15.0, 25.0, 40.0)
_JUDGED = 3  # phantoms: the error is taken at every third voxel along each axis


def phantom_pairs(folder: Path, amplitudes: list[float], spacing: float, extent: Triple) -> Iterator[Pair]:
    """Make a phantom for each amplitude of the diaphragm's motion, in mm."""
    for amplitude in amplitudes:
        name = f"phantom-{amplitude:g}"
        size = "x".join(f"{s:g}" for s in (spacing, *extent))
        here = folder / f"{name}-{size}"
        pair = phantom_pair(
            here, name, seed=0, kind="breathing", spacing=(spacing,) * 3, extent=extent, amplitude=amplitude
        )
        thinned = here / "judged_displacement.mha"
        if not thinned.is_file():
            truth = read_displacement_field(here / "true_displacement.mha")
            every = DisplacementField(truth.vectors[::_JUDGED, ::_JUDGED, ::_JUDGED], truth.grid.every(_JUDGED))
            write_whole(thinned, every.write)
        yield dataclasses.replace(pair, displacement=thinned, group=f"phantom {amplitude:g} mm")


def image_pairs(folder: Path, images: dict[str, Path], amplitudes: list[float], spacing: float) -> Iterator[Pair]:
    """Deform each CT, on cubic voxels, by breathing-like motion to each amplitude, in and out by turns."""
    for number, (name, path) in enumerate(images.items()):
        for step, amplitude in enumerate(amplitudes):
            here = folder / f"{name}-{amplitude:g}-{spacing:g}"
            if not is_made(here):
                given = read_image(path)
                image = given.resampled(given.grid.isotropic(spacing), default=-1000.0)
                lungs = lung_mask(image)
                rng = np.random.default_rng([number, step])
                signed = amplitude if (number + step) % 2 else -amplitude
                make_deformed(here, image, lungs, breathing_displacement(image.grid, lungs, signed, rng), rng)
            pair = deformed_image_pair(here, f"{name}-{amplitude:g}")
            yield dataclasses.replace(pair, group=f"CT {amplitude:g} mm")


def without_warped_images(method: Method) -> Method:
    """Return a method none of whose stages makes a warped image: the peers make none either."""

    def bare(stage: Stage) -> Stage:
        values = {**stage.parameters.values, "WriteResultImage": ("false",)}
        parameters = dataclasses.replace(stage.parameters, values=values)
        return dataclasses.replace(stage, parameters=parameters)  # type: ignore[type-var]

    return dataclasses.replace(method, stages=tuple(bare(stage) for stage in method.stages))


def seconds_after_affine(outcome: Outcome) -> float:
    """Return the time of all stages but the first."""
    return sum(record.seconds for record in outcome.records[1:])


def table(comparison: Comparison, voxels: str) -> str:
    """Return the benchmark's table in Markdown."""
    masks = "with the fixed lung mask" if comparison.settings.masks_guide else "without masks"
    lines = [
        f"{comparison.settings.threads} threads, {masks}, {voxels}.",
        f"Errors are means over the voxels of the lungs; times are without the affine stage, ratios to {METHODS[0]}.",
        "",
        "| pairs | method | error, mm | of before | TRE, mm | seconds | ratio | peak GB | correlation | det J <= 0 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group, pairs in divide_pairs(comparison).items():
        if group == "all":
            continue
        rows = {method.name: _row(comparison, method, pairs) for method in comparison.methods}
        before, first = rows["before"]["error"], rows.get(METHODS[0], {}).get("seconds", math.nan)
        for name, row in rows.items():
            costs = bool(row["seconds"])
            cells = (
                cell(row["error"], ".2f"),
                cell(row["error"] / before, ".1%"),
                cell(row["tre"], ".2f"),
                cell(row["seconds"], ".1f") if costs else "",
                cell(row["seconds"] / first, ".3f") if costs else "",
                cell(row["gb"], ".2f") if costs else "",
                cell(row["correlation"], ".3f"),
                cell(row["folding"], ".4%"),
            )
            lines.append(f"| {group} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(number: float, form: str) -> str:
    """Return a number as a cell of a table, empty if it was not measured."""
    return format(number, form) if math.isfinite(number) else ""


def _row(comparison: Comparison, method: Method, pairs: list[Pair]) -> dict[str, float]:
    """Return the means over pairs, the errors weighted by the voxels; NaN where a method failed."""
    outcomes = [o for pair in pairs if (o := comparison.outcome(pair, method)) is not None]
    if not outcomes:
        return dict.fromkeys(("error", "tre", "seconds", "gb", "correlation", "folding"), math.nan)
    fields = [o.last.measures.field or ErrorMoments.of(np.zeros((0, 3))) for o in outcomes]
    landmarks = [vectors for pair in pairs if len(vectors := comparison.differences(pair, method))]
    tre = float(np.linalg.norm(np.concatenate(landmarks), axis=1).mean()) if landmarks else math.nan
    return {
        "error": sum(fields[1:], start=fields[0]).means[0],
        "tre": tre,
        "seconds": float(np.mean([seconds_after_affine(o) for o in outcomes])),
        "gb": max(record.peak_mb for o in outcomes for record in o.records) / 1024,
        "correlation": float(np.mean([o.last.measures.metrics["correlation"] for o in outcomes])),
        "folding": float(np.mean([o.last.measures.metrics["folding"] for o in outcomes])),
    }


def main() -> int:
    """Make the pairs, run all methods, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--amplitudes", type=float, nargs="+", default=AMPLITUDES, metavar="MM")
    parser.add_argument("--spacing", type=float, default=1.0, metavar="MM", help="voxels of the phantoms")
    parser.add_argument("--extent", type=float, nargs=3, default=(300.0, 300.0, 300.0), metavar="MM")
    parser.add_argument("--images", type=Path, help="folder of CTs; none that a model was trained on")
    parser.add_argument("--names", nargs="+", default=[], help="which of them")
    parser.add_argument("--image-spacing", type=float, default=1.5, metavar="MM", help="voxels of the deformed CTs")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="parameter files, joined by + for chains")
    parser.add_argument("--peers", nargs="*", default=[n for n, peer in PEERS.items() if peer.is_installed()])
    parser.add_argument("--masks-guide", action="store_true", help="give the lung masks to all methods but the peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if (given.images is None) != (not given.names):
        parser.error("--images and --names belong together")
    try:
        return run(given)
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


def run(given: argparse.Namespace) -> int:
    """Run the benchmark."""
    peers = peer_methods(given.peers)
    methods = [without_warped_images(method) for method in (*read_methods(["affine", *given.methods]), *peers)]
    pairs = list(phantom_pairs(given.out / "images", given.amplitudes, given.spacing, tuple(given.extent)))
    voxels = f"phantoms of {' x '.join(f'{e:g}' for e in given.extent)} mm on voxels of {given.spacing:g} mm"
    if given.images is not None:
        found = find_images(given.images, tuple(given.names))
        pairs += image_pairs(given.out / "images", found, given.amplitudes, given.image_spacing)
        voxels += f", CTs on voxels of {given.image_spacing:g} mm"
    check_pairs(pairs)
    settings = StepSettings(threads=given.threads, masks_guide=given.masks_guide)
    shown = Screen("info")
    with shown, heard_by(LogToScreen(shown)):
        comparison = compare(pairs, methods, given.out, settings, events=shown)
        write_comparison(comparison, given.out, "Benchmark")
    text = table(comparison, voxels)
    write_whole(given.out / "benchmark.md", lambda part: part.write_text(text, encoding="utf-8"))
    print(text)
    for pair, method, reason in comparison.failures:
        print(f"error: {pair.name}, {method.name}: {reason}", file=sys.stderr)
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
