"""Add greedy and convexAdam to a comparison: ``python pipelines/peers.py PAIRS.csv --out DIR``.

Needs ``pip install 'regnet-itk[peers]'``. Both start from the shared affine stage, see no masks, and run on the CPU:
the moving image is resampled through the affine transform onto the fixed side, and the field u that they find there
lies innermost, T(x) = A(x + u(x)), as RegNet's does. With the DIR of a `regnet-itk compare`, what is finished is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.cli.compare import run_comparison
from regnet_itk.comparison.pairs import check_pairs, read_pairs
from regnet_itk.comparison.run import DEFAULT_METHODS, Method, read_methods
from regnet_itk.comparison.step import StepSettings
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError, RegNetItkError
from regnet_itk.parameters import ParameterMap, as_values
from regnet_itk.stages.base import ImagePair, RunOptions, StageResult
from regnet_itk.transforms.chain import TransformChain, field_link
from regnet_itk.transforms.resampling_keys import resampling_parameters

MODULES = {"greedy": "picsl_greedy", "convexadam": "convexAdam"}
"""What is imported for a peer."""

WINDOW = (-1000.0, 500.0)
"""HU outside it are clipped: metal and the table tell nothing."""


@dataclass(frozen=True)
class GreedyStage:
    """greedy (P. Yushkevich): compositive updates with local normalised correlation.

    The smoothing is in mm, so that it does not depend on the voxels. It was the best of six settings on one phantom of
    each kind (seed 3, 2 x 2.4 x 3 mm), greedy's own default among them.
    """

    parameters: ParameterMap = field(
        default_factory=lambda: _settings(
            "greedy", "picsl-greedy", Metric="NCC 2x2x2", Iterations="100x100x50", Smoothing="6mm 2mm"
        )
    )
    name: str = "greedy"

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Find u on the fixed image's grid."""
        from picsl_greedy import Greedy3D

        began = time.perf_counter()
        fixed, moving = _prepared(pair, initial, pair.fixed.grid)
        metric, iterations, smoothing = (self.parameters.get_str(k) for k in ("Metric", "Iterations", "Smoothing"))
        threads = f" -threads {options.threads}" if options.threads else ""
        options.progress(0.1, "greedy")
        greedy = Greedy3D()
        greedy.execute(
            f"-i fixed moving -m {metric} -n {iterations} -s {smoothing} -o warp -V 0{threads}",
            fixed=fixed.to_sitk(), moving=moving.to_sitk(), warp=None,
        )  # fmt: skip
        return _result(DisplacementField.from_sitk(greedy["warp"]), pair, initial, began)


@dataclass(frozen=True)
class ConvexAdamStage:
    """convexAdam (H. Siebert and others): MIND features, coupled convex optimisation, then Adam; its own defaults.

    It works on cubic voxels of 1.5 mm, or of the fixed image's finest spacing if that is larger.
    """

    parameters: ParameterMap = field(
        default_factory=lambda: _settings(
            "convexadam",
            "convexadam",
            Spacing=1.5,
            mind_r=1,
            mind_d=2,
            lambda_weight=1.25,
            grid_sp=6,
            disp_hw=4,
            selected_niter=80,
            selected_smooth=0,
            grid_sp_adam=2,
        )
    )
    name: str = "convexadam"

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Find u on cubic voxels along the fixed image's axes."""
        import torch
        from convexAdam.convex_adam_MIND import convex_adam_pt

        began = time.perf_counter()
        if options.threads:
            torch.set_num_threads(options.threads)
        values = self.parameters
        grid = pair.fixed.grid.isotropic(max(values.get_float("Spacing"), min(pair.fixed.grid.spacing)))
        fixed, moving = _prepared(pair, initial, grid)
        whole = {key: values.get_int(key) for key in values if key in _WHOLE}
        options.progress(0.1, "convexAdam")
        steps = convex_adam_pt(
            fixed.array, moving.array, lambda_weight=values.get_float("lambda_weight"), ic=True, dtype=torch.float32,
            device=torch.device("cpu"), **whole,
        )  # fmt: skip
        return _result(field_of_voxel_steps(steps, grid), pair, initial, began)


_WHOLE = ("mind_r", "mind_d", "grid_sp", "disp_hw", "selected_niter", "selected_smooth", "grid_sp_adam")


def field_of_voxel_steps(steps: Any, grid: Grid) -> DisplacementField:
    """Return the field in mm, LPS, of displacements (z, y, x, 3) in voxels along the axes (z, y, x) of a grid."""
    return DisplacementField((steps[..., ::-1] @ grid.index_to_point_matrix.T).astype(np.float32), grid)


def _settings(name: str, package: str, **values: Any) -> ParameterMap:
    """Return the settings, with the version of the package, so that another one is not taken for the same."""
    found = version(package) if importlib.util.find_spec(MODULES[name]) else "not installed"
    named = {"Transform": package, "Version": found, **values}
    return ParameterMap({key: as_values(value) for key, value in named.items()}, package)


def _prepared(pair: ImagePair, initial: TransformChain, grid: Grid) -> tuple[Image, Image]:
    """Return the fixed image, and the moving one through the transform so far, both on `grid` and clipped."""
    fixed = pair.fixed if grid is pair.fixed.grid else pair.fixed.resampled(grid, default=WINDOW[0])
    moving = pair.moving.resampled(grid, initial.to_sitk(pair.fixed.grid), default=WINDOW[0])
    return Image(_clipped(fixed), grid), Image(_clipped(moving), grid)


def _clipped(image: Image) -> Any:
    return np.clip(image.array.astype(np.float32), *WINDOW)


def _result(u: DisplacementField, pair: ImagePair, initial: TransformChain, began: float) -> StageResult:
    chain = initial.then(field_link(u, resampling_parameters(pair.fixed.grid)))
    return StageResult(chain, time.perf_counter() - began, None)


PEERS: dict[str, type[GreedyStage | ConvexAdamStage]] = {"greedy": GreedyStage, "convexadam": ConvexAdamStage}
"""The stages of the peers, by name."""


def peer_methods(names: list[str]) -> list[Method]:
    """Return the peers as methods, each after the affine stage.

    Raises
    ------
    ParameterError
        If one is not known or not installed.
    """
    (affine,) = read_methods(["affine"])
    found = []
    for name in names:
        if name not in PEERS:
            raise ParameterError(f"there is no peer '{name}'; known are {', '.join(PEERS)}")
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ParameterError(f"{name} is not installed; run: pip install 'regnet-itk[peers]'")
        stage = PEERS[name]
        found.append(Method(name, (*affine.stages, stage()), (*affine.labels, name)))
    return found


def main() -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, help="the list of pairs, as for regnet-itk compare")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="as for regnet-itk compare")
    parser.add_argument("--peers", default="greedy,convexadam")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--masks-only-measure", action="store_true", help="do not give the masks to the other methods")
    given = parser.parse_args()
    try:
        methods = [*read_methods(given.methods.split(",")), *peer_methods(given.peers.split(","))]
        pairs = read_pairs(given.pairs)
        check_pairs(pairs)
        settings = StepSettings(threads=given.threads, masks_guide=not given.masks_only_measure)
        return run_comparison(pairs, methods, given.out, settings, title="Comparison with peers")
    except RegNetItkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
