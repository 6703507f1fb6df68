"""What it is worth to let the lungs slide: ``python pipelines/sliding_benchmark.py --out DIR``.

Lungs and belly of digital chests slide along the wall by 18 to 25 mm, or everything moves as one (a breath). Judged is
the mean error within 10 mm of the wall of what slides, inside and outside, and in the lungs. greedy and convexAdam take
part if they are installed. Prints a table in Markdown and writes it to DIR; started again,
what is finished is kept. Leave the machine alone meanwhile if you want to know the times.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from peers import PEERS

from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.data.distances import distance_to
from regnet_itk.data.image import Image
from regnet_itk.metrics.measures import folding_share
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import read_parameter_map
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.stages.guides import Guides
from regnet_itk.stages.planning import StageLike
from regnet_itk.transforms.chain import TransformChain

SPACING = (1.6, 1.6, 2.0)
NEAR = 10.0  # mm from the wall
COLUMNS = {
    "inside": "inside", "outside": "outside", "lungs": "lungs", "landmarks": "landmarks", "folding": "det J <= 0",
    "seconds": "s",
}  # fmt: skip
"""What is measured, and how the table calls it."""
LUNGS = "regnet_multistage, lungs slide"
WALL = "regnet_multistage, all within the wall slides"
"""Methods that are told what slides: the lungs as they are found, or what really slides in a phantom."""


def methods(phantom: Phantom) -> dict[str, tuple[StageLike, Guides[Image]]]:
    """Return the stages after the affine one, with what they are told of a phantom."""
    usual = read_parameter_map("regnet_multistage")
    found: dict[str, tuple[StageLike, Guides[Image]]] = {
        name: (name, Guides()) for name in ("bspline_3r", "regnet_multistage_oneshot", "regnet_multistage")
    }
    found |= {name: (stage.usual(), Guides()) for name, stage in PEERS.items() if stage.is_installed()}
    found[LUNGS] = (usual.with_(RegNetSliding="lungs"), Guides())
    if phantom.fixed_sliding is not None:
        found[WALL] = (usual, Guides(sliding=phantom.fixed_sliding))
    return found


def measure(phantom: Phantom, chain: TransformChain) -> dict[str, float]:
    """Return the mean errors in mm, and the share of voxels with det J <= 0."""
    grid, lungs = phantom.fixed.grid, phantom.fixed_mask.array > 0
    slides = lungs if phantom.fixed_sliding is None else phantom.fixed_sliding.array > 0
    found = chain.displacement_on(grid)
    error = np.linalg.norm(found.vectors - phantom.displacement.vectors, axis=-1)
    body = phantom.fixed.array > -500
    inside = slides & (distance_to(~slides, grid.spacing) < NEAR)
    outside = ~slides & body & (distance_to(slides, grid.spacing) < NEAR)
    tre = np.linalg.norm(chain.map_points(phantom.fixed_landmarks) - phantom.moving_landmarks, axis=1)
    return {
        "inside": float(error[inside].mean()), "outside": float(error[outside].mean()),
        "lungs": float(error[lungs].mean()), "landmarks": float(tre.mean()), "folding": folding_share(found),
    }  # fmt: skip


def measured(kind: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return what is measured of each method on a phantom; what is finished is read from the folder."""
    path = folder / f"{kind}-{seed}.json"
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    phantom = make_phantom(seed, kind, spacing=SPACING)
    start = register(phantom.fixed, phantom.moving, "affine")
    assert isinstance(start, RegistrationResult)
    found["affine"] = {**measure(phantom, start.chain), "seconds": 0.0}
    for name, (stage, guides) in methods(phantom).items():
        if name in found:
            continue
        began = time.perf_counter()
        result = register(phantom.fixed, phantom.moving, stage, initial=start.chain, fixed_guides=guides)
        assert isinstance(result, RegistrationResult)
        found[name] = {"seconds": time.perf_counter() - began, **measure(phantom, result.chain)}
        print(f"{kind} {seed}, {name}: " + " ".join(f"{key} {v:.3f}" for key, v in found[name].items()), flush=True)
        write_whole(path, lambda part: part.write_text(json.dumps(found, indent=1)))
    return found


def table(found: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Return the means over the phantoms of each kind in Markdown."""
    lines = [f"| kind | method | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for kind, phantoms in found.items():
        for name in phantoms[0]:
            means = {column: float(np.mean([phantom[name][column] for phantom in phantoms])) for column in COLUMNS}
            cells = [f"{value:.3%}" if column == "folding" else f"{value:.2f}" for column, value in means.items()]
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make phantoms, register them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kinds = ("sliding", "breathing")
    text = table({kind: [measured(kind, seed, given.out) for seed in given.seeds] for kind in kinds})
    write_whole(given.out / "sliding.md", lambda part: part.write_text(text))
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
