"""Draw the picture of docs/guidance.md: ``python pipelines/draw_guidance.py --out docs``.

A phantom that breathes very deeply: the fixed image, and the error of the registration without guides, with 20
landmarks and with the two lungs as labels, on one coronal plane.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from guidance_benchmark import Case, draw_landmarks, make_cases, registered

from regnet_itk.data.grid import FloatArray
from regnet_itk.figures.canvas import new_figure
from regnet_itk.results import RegistrationResult

_COUNT = 20
_LARGEST = 20.0  # mm
_NEAR = 20.0  # mm; landmarks so near to the plane are drawn


def plane_errors(case: Case, result: RegistrationResult, row: int) -> FloatArray:
    """Return |T(x) - truth| in mm on the coronal plane `row` of the fixed image, NaN outside of the lungs."""
    points = case.fixed.grid.points()[:, row]
    flat = points.reshape(-1, 3)
    off = np.linalg.norm(result.chain.map_points(flat) - case.true_map(flat), axis=1).reshape(points.shape[:2])
    found: FloatArray = np.where(case.fixed_lungs.array[:, row] > 0, off, np.nan)
    return found


def draw(case: Case, row: int, results: dict[str, RegistrationResult], landmarks: FloatArray, path: Path) -> None:
    """Draw the fixed image, and the errors of each result."""
    grid = case.fixed.grid
    extent = (0.0, grid.size[0] * grid.spacing[0], 0.0, grid.size[2] * grid.spacing[2])
    figure = new_figure(3.0 * (1 + len(results)), 2.9)
    panels = figure.subplots(1, 1 + len(results))
    ct = case.fixed.array[:, row]
    for axes, (title, result) in zip(panels, [("fixed image", None), *results.items()], strict=True):
        axes.imshow(ct, cmap="gray", vmin=-1200, vmax=400, origin="lower", extent=extent)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
        if result is not None:
            errors = plane_errors(case, result, row)
            shown = axes.imshow(errors, cmap="inferno", vmin=0, vmax=_LARGEST, origin="lower", extent=extent)
            axes.set_title(f"{title}: {np.nanmean(errors):.1f} mm", fontsize=9)
        if "landmarks" in title:
            index = grid.point_to_index(landmarks)
            near = index[np.abs(index[:, 1] - row) * grid.spacing[1] < _NEAR]
            axes.plot((near[:, 0] + 0.5) * grid.spacing[0], (near[:, 2] + 0.5) * grid.spacing[2], "c+", markersize=6)
    figure.colorbar(shown, ax=panels, label="error, mm", fraction=0.02, pad=0.01)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Register the phantom three times, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--seed", type=int, default=71)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    case = dict(make_cases(given.seed, {}))["45 mm"]()
    points, there = draw_landmarks(case, _COUNT, 1.0)
    results = {
        "without guides": registered(case, threads=given.threads),
        f"{_COUNT} landmarks": registered(case, points, there, threads=given.threads),
        "the lungs as labels": registered(case, labels=True, threads=given.threads),
    }
    row = int(np.median(np.argwhere(case.fixed_lungs.array > 0)[:, 1]))
    draw(case, row, results, points, given.out / "guidance.png")


if __name__ == "__main__":
    main()
