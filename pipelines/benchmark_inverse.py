"""Inversion and Jacobian of a displacement field, beside SimpleITK's: ``python pipelines/benchmark_inverse.py``.

Makes a smooth field of SIZE voxels of 0.7 x 0.7 x 1 mm on oblique axes with a peak of about 20 mm, inverts it and
computes its Jacobian determinant by each method in a process of its own, and prints time, peak memory and accuracy.
The field is a sum of sines, so its derivative is known exactly. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.transforms.inverse import invert_field

SPACING = (0.7, 0.7, 1.0)
AMPLITUDE = 15.3  # mm, of each component; the longest vector then has 20 mm
WAVES = np.array([[1.0, 0.4, 0.3], [0.3, 1.0, -0.5], [-0.4, 0.5, 1.0]])  # across the field, one row a component
SAMPLES = 500_000


def grid_of_size(size: list[int]) -> Grid:
    """Return an oblique grid; small ones cover the same space with larger voxels, so that the field stays the same."""
    nx, ny, nz = size
    sx, sy, sz = (s * full / n for s, full, n in zip(SPACING, (512, 512, 400), size, strict=True))
    direction = Rotation.from_euler("xyz", [20, -10, 30], degrees=True).as_matrix()
    return Grid((nx, ny, nz), (sx, sy, sz), (-150.0, 80.0, 40.0), tuple(map(tuple, direction)))  # type: ignore[arg-type]


def smooth_field(grid: Grid) -> DisplacementField:
    """Return a field of waves that is zero at the border of the grid; its longest vector has 20 mm."""
    vectors = np.empty((*grid.shape, 3), dtype=np.float32)
    x, y, z = (np.linspace(0, 1, n) for n in grid.size)
    window = np.sin(np.pi * x) * np.sin(np.pi * y)[:, None]
    for k in range(len(z)):
        fade = window * np.sin(np.pi * z[k])
        for c, (wx, wy, wz) in enumerate(WAVES):
            phase = np.pi * (wx * x + wy * y[:, None] + wz * z[k]) + c
            vectors[k, ..., c] = AMPLITUDE * fade * np.cos(2 * phase)
    return DisplacementField(vectors, grid)


def exact_determinant(field: DisplacementField, voxels: np.ndarray) -> np.ndarray:
    """Return the determinant of the field's formula at voxels (n, 3), x first."""
    last = np.asarray(field.grid.size) - 1.0
    p = voxels / last
    sines, cosines = np.sin(np.pi * p), np.cos(np.pi * p)
    fade = sines.prod(axis=1)
    by_index = np.empty((len(p), 3, 3))
    for c, waves in enumerate(WAVES):
        phase = 2 * (np.pi * (p @ waves) + c)
        for a in range(3):
            others = np.delete(sines, a, axis=1).prod(axis=1)
            slope = np.pi * cosines[:, a] * others * np.cos(phase) - fade * 2 * np.pi * waves[a] * np.sin(phase)
            by_index[:, c, a] = AMPLITUDE * slope / last[a]
    return np.asarray(np.linalg.det(np.eye(3) + by_index @ np.linalg.inv(field.grid.index_to_point_matrix)))


def random_voxels(grid: Grid) -> np.ndarray:
    """Return voxels (n, 3), x first, a twentieth of the size away from the border."""
    size = np.asarray(grid.size)
    return np.random.default_rng(0).integers(size // 20 + 1, size - size // 20 - 1, (SAMPLES, 3))


def our_inverse(field: DisplacementField) -> Any:
    """Invert with this package; the result lies on a grid that is larger by what the field reaches."""
    return invert_field(field)


def sitk_inverse(filter_: Any) -> Callable[[DisplacementField], Any]:
    """Return a function that inverts with one of SimpleITK's filters."""
    return lambda field: filter_.Execute(field.to_sitk())


def turned(field: DisplacementField) -> DisplacementField:
    """Return the field with its vectors along the axes of its grid, which SimpleITK's Jacobian takes for granted."""
    return DisplacementField(field.vectors @ field.grid.direction_matrix.astype(np.float32), field.grid)


def _invert_displacement_field(iterations: int) -> Any:
    filter_ = sitk.InvertDisplacementFieldImageFilter()
    filter_.SetMaximumNumberOfIterations(iterations)
    filter_.SetMaxErrorToleranceThreshold(0.01)
    filter_.SetMeanErrorToleranceThreshold(0.0001)
    return filter_


INVERSES: dict[str, Callable[[DisplacementField], Any]] = {
    "regnet-itk": our_inverse,
    "SimpleITK InvertDisplacementField, 20 iterations": sitk_inverse(_invert_displacement_field(20)),
    "SimpleITK IterativeInverseDisplacementField": sitk_inverse(sitk.IterativeInverseDisplacementFieldImageFilter()),
}
DETERMINANTS: dict[str, Callable[[DisplacementField], Any]] = {
    "regnet-itk": lambda field: field.jacobian_determinant(),
    "SimpleITK DisplacementFieldJacobianDeterminant": lambda field: sitk.DisplacementFieldJacobianDeterminant(
        field.to_sitk()
    ),
    "the same, vectors turned into the grid's frame before": lambda field: sitk.DisplacementFieldJacobianDeterminant(
        turned(field).to_sitk()
    ),
}


def measure(task: str, name: str, size: list[int], threads: int) -> dict[str, float]:
    """Run one method, and return its seconds, peak memory (the field included), and errors."""
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    field = smooth_field(grid_of_size(size))
    method = (INVERSES if task == "inverse" else DETERMINANTS)[name]
    started = time.perf_counter()
    found = method(field)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors = _inverse_errors(field, found) if task == "inverse" else _determinant_errors(field, found)
    return {"seconds": seconds, "peak_gb": peak / 2**20, **errors}


def _inverse_errors(field: DisplacementField, found: Any) -> dict[str, float]:
    """Return |u(y + v(y)) + v(y)| in mm at random voxels and at random points between them."""
    inverse = found if isinstance(found, DisplacementField) else DisplacementField.from_sitk(found)
    errors = {}
    voxels = random_voxels(field.grid)
    shifts = np.random.default_rng(1).uniform(-0.5, 0.5, voxels.shape)
    for place, index in (("at voxels", voxels), ("between", voxels + shifts)):
        y = field.grid.index_to_point(index)
        v = inverse.at(y)
        length = np.linalg.norm(field.at(y + v) + v, axis=1)
        errors |= {f"mean {place}": float(length.mean()), f"max {place}": float(length.max())}
    return errors


def _determinant_errors(field: DisplacementField, found: Any) -> dict[str, float]:
    array = found if isinstance(found, np.ndarray) else sitk.GetArrayViewFromImage(found)
    voxels = random_voxels(field.grid)
    error = np.abs(array[voxels[:, 2], voxels[:, 1], voxels[:, 0]] - exact_determinant(field, voxels))
    return {"mean": float(error.mean()), "max": float(error.max())}


def main() -> None:
    """Run all methods and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 400], metavar=("X", "Y", "Z"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure, given.size, given.threads)))
        return
    peak = np.linalg.norm(smooth_field(grid_of_size([64, 64, 50])).vectors, axis=-1).max()
    voxels = " x ".join(map(str, given.size))
    print(f"{voxels} voxels (x, y, z), peak {peak:.1f} mm, {given.threads} threads; errors at {SAMPLES} places")
    for task, methods in (("inverse", INVERSES), ("determinant", DETERMINANTS)):
        first = 0.0
        for name in methods:
            size = [str(n) for n in given.size]
            command = [sys.executable, __file__, "--size", *size, "--threads", str(given.threads)]
            done = subprocess.run([*command, "--measure", task, name], check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            seconds, memory = row.pop("seconds"), row.pop("peak_gb")
            if not first:
                first = seconds
                print(f"\n| {task} | seconds | ratio | peak GB | {' | '.join(f'error, {key}' for key in row)} |")
                print("|---" * (4 + len(row)) + "|")
            errors = " | ".join(f"{value:.6f}" for value in row.values())
            print(f"| {name} | {seconds:.1f} | {seconds / first:.2f} | {memory:.2f} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
