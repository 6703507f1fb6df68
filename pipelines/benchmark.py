"""Time, memory and accuracy of nonrigid stages on one phantom, in one run: ``python pipelines/benchmark.py``.

Makes a chest phantom of SIZE^3 voxels of 1 mm, runs the affine stage once, then each method from its result in a
process of its own, and prints the table with the ratios to the first method. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from regnet_itk.displacement import read_displacement_field
from regnet_itk.evaluation.metrics import displacement_error, normalised_correlation
from regnet_itk.images import read_image
from regnet_itk.phantom import make_phantom, write_phantom
from regnet_itk.registration import register
from regnet_itk.transforms import TransformChain

METHODS = ("bspline_3r", "bspline_1r", "regnet", "regnet_multistage_oneshot", "regnet_multistage")


def measure(folder: Path, stages: list[str], use_mask: bool, threads: int) -> dict[str, Any]:
    """Register from the affine result, and return seconds, memory and accuracy."""
    initial = folder / "affine" / "TransformParameters.0.txt"
    mask = folder / "fixed_mask.mha"
    result = register(
        folder / "fixed.mha",
        folder / "moving.mha",
        stages,
        fixed_mask=mask if use_mask else None,
        initial=initial if initial.exists() else None,
        fixed_landmarks=folder / "fixed_points.txt",
        moving_landmarks=folder / "moving_points.txt",
        threads=threads,
    )
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    if not initial.exists():
        result.write(folder / "affine")
    tre = result.stages[-1].tre
    assert tre is not None
    return {
        "seconds": sum(stage.seconds for stage in result.stages),
        "peak_gb": max(usage) / 2**20,
        "tre": tre.mean,
        "error": _lung_error(folder, result.chain),
        "correlation": normalised_correlation(result.pair.fixed, result.warped, read_image(mask)),
        "folding": result.folding,
    }


def _lung_error(folder: Path, chain: TransformChain) -> float:
    """Return the mean error in mm of the transform inside the lungs, on every third voxel."""
    truth = read_displacement_field(folder / "true_displacement.mha")
    grid = truth.grid.every(3)
    mask = read_image(folder / "fixed_mask.mha").resampled(grid, order=0)
    thinned = type(truth)(truth.vectors[::3, ::3, ::3], grid)
    return displacement_error(chain.displacement_on(grid), thinned, mask).mean


def run_apart(arguments: list[str]) -> dict[str, Any]:
    """Measure in a fresh process, so that memory and state are its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run all methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="keep the phantom here; a temporary folder by default")
    parser.add_argument("--size", type=int, default=300, help="voxels of 1 mm along each axis")
    parser.add_argument("--amplitude", type=float, help="largest displacement in mm; the phantom's default otherwise")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="chains of parameter files, joined by commas")
    parser.add_argument("--mask", action="store_true", help="give the fixed lung mask to all methods")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.out, given.measure.split(","), given.mask, given.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.out or Path(temporary)
        extent = (float(given.size),) * 3
        write_phantom(make_phantom(seed=0, spacing=(1.0, 1.0, 1.0), extent=extent, amplitude=given.amplitude), folder)
        common = ["--out", str(folder), "--threads", str(given.threads)]
        affine = run_apart([*common, "--measure", "affine"])
        common += ["--mask"] if given.mask else []
        rows = {method: run_apart([*common, "--measure", method]) for method in given.methods}
    print(f"fixed image {given.size}^3 voxels of 1 mm, {given.threads} threads, mask: {'yes' if given.mask else 'no'}")
    print("| method | seconds | ratio | peak GB | error in the lungs, mm | TRE, mm | correlation | det J <= 0 |")
    print("|---|---|---|---|---|---|---|---|")
    first = rows[given.methods[0]]["seconds"]
    for name, row in {"affine": affine, **rows}.items():
        ratio = "" if name == "affine" else f"{row['seconds'] / first:.3f}"
        print(
            f"| {name} | {row['seconds']:.1f} | {ratio} | {row['peak_gb']:.2f} | {row['error']:.2f} | {row['tre']:.2f} "
            f"| {row['correlation']:.3f} | {row['folding']:.4%} |"
        )


if __name__ == "__main__":
    main()
