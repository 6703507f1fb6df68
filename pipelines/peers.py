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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.cli.compare import run_comparison
from regnet_itk.comparison.methods import DEFAULT_METHODS, Method, plan_method, read_methods
from regnet_itk.comparison.step import StepSettings
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.digests import digest_text
from regnet_itk.errors import ParameterError, RegNetItkError
from regnet_itk.pairs import check_pairs, read_pairs
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
from regnet_itk.stages.found_field import apply_found_field
from regnet_itk.stages.keys import key, number, read_settings, text, whole_number
from regnet_itk.transforms.chain import TransformChain

WINDOW = (-1000.0, 500.0)
"""HU outside it are clipped in a CT: metal and the table tell nothing."""


@dataclass(frozen=True)
class PeerStage(Stage):
    """A stage that another program computes.

    What it finds depends on that program's version, so that a result of another one is not taken for the same.
    """

    adds_field: ClassVar[bool] = True
    package: ClassVar[str]
    """What is installed."""
    module: ClassVar[str]
    """What is imported."""

    @property
    def name(self) -> str:
        """The program's name."""
        return self.parameters.registration.removesuffix("Registration").lower()

    @classmethod
    def usual(cls) -> Self:
        """Return the stage with its usual settings."""
        return cls(ParameterMap({"Registration": (REGISTRATIONS[cls],), "WriteResultImage": ("false",)}, cls.package))

    @classmethod
    def is_installed(cls) -> bool:
        """Say whether the program is there."""
        return importlib.util.find_spec(cls.module) is not None

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:
        """Refuse to start without the other program.

        Raises
        ------
        ParameterError
            If it is not installed.
        """
        if not self.is_installed():
            raise ParameterError(f"{self.name} is not installed; run: pip install 'regnet-itk[peers]'")

    def fingerprint(self) -> str:
        """Return a digest of the parameters and of the program's version."""
        return digest_text([super().fingerprint(), version(self.package)])

    def _result(self, u: DisplacementField, pair: ImagePair, initial: TransformChain, began: float) -> StageResult:
        chain, warped = apply_found_field(u, pair, initial, self.parameters)
        return StageResult(chain, time.perf_counter() - began, warped)


@dataclass(frozen=True)
class GreedySettings:
    """What can be said to greedy, in its own words.

    The smoothing is in mm, so that it does not depend on the voxels. It was the best of six settings on one phantom of
    each kind (seed 3, 2 x 2.4 x 3 mm), greedy's own default among them.
    """

    metric: str = key("GreedyMetric", "NCC 2x2x2", text("a metric"), "greedy's `-m`")
    iterations: str = key("GreedyIterations", "100x100x50", text("numbers joined by x"), "greedy's `-n`")
    smoothing: str = key("GreedySmoothing", "6mm 2mm", text("two widths"), "greedy's `-s`")


@dataclass(frozen=True)
class GreedyStage(PeerStage):
    """greedy (P. Yushkevich): compositive updates with local normalised correlation."""

    settings_type: ClassVar[type] = GreedySettings
    package: ClassVar[str] = "picsl-greedy"
    module: ClassVar[str] = "picsl_greedy"

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Find u on the fixed image's grid."""
        from picsl_greedy import Greedy3D

        began = time.perf_counter()
        fixed, moving = _prepared(pair, initial, pair.fixed.grid)
        asked = read_settings(GreedySettings, self.parameters)
        threads = f" -threads {options.threads}" if options.threads else ""
        options.progress(0.1, "greedy")
        greedy = Greedy3D()
        greedy.execute(
            f"-i fixed moving -m {asked.metric} -n {asked.iterations} -s {asked.smoothing} -o warp -V 0{threads}",
            fixed=fixed.to_sitk(), moving=moving.to_sitk(), warp=None,
        )  # fmt: skip
        return self._result(DisplacementField.from_sitk(greedy["warp"]), pair, initial, began)


_WHOLE = whole_number("a whole number, 0 or more")


@dataclass(frozen=True)
class ConvexAdamSettings:
    """What can be said to convexAdam; its own defaults, and the voxels that it works on."""

    spacing: float = key("ConvexAdamSpacing", 1.5, number("mm above 0", above=0.0), "side of the voxels, mm")
    mind_r: int = key("ConvexAdamMindRadius", 1, _WHOLE, "radius of a patch")
    mind_d: int = key("ConvexAdamMindDilation", 2, _WHOLE, "distance of the patches")
    lambda_weight: float = key("ConvexAdamLambda", 1.25, number("a number, 0 or more"), "weight of smoothness")
    grid_sp: int = key("ConvexAdamGridSpacing", 6, _WHOLE, "voxels between nodes, coupled convex step")
    disp_hw: int = key("ConvexAdamHalfWidth", 4, _WHOLE, "steps to either side that are tried")
    selected_niter: int = key("ConvexAdamIterations", 80, _WHOLE, "iterations of Adam")
    selected_smooth: int = key("ConvexAdamSmoothing", 0, _WHOLE, "kernel of the last smoothing")
    grid_sp_adam: int = key("ConvexAdamAdamSpacing", 2, _WHOLE, "voxels between nodes, Adam")


@dataclass(frozen=True)
class ConvexAdamStage(PeerStage):
    """convexAdam (H. Siebert and others): MIND features, coupled convex optimisation, then Adam; its own defaults.

    It works on cubic voxels of 1.5 mm, or of the fixed image's finest spacing if that is larger.
    """

    settings_type: ClassVar[type] = ConvexAdamSettings
    package: ClassVar[str] = "convexadam"
    module: ClassVar[str] = "convexAdam"

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Find u on cubic voxels along the fixed image's axes."""
        import torch
        from convexAdam.convex_adam_MIND import convex_adam_pt

        began = time.perf_counter()
        if options.threads:
            torch.set_num_threads(options.threads)
        asked = asdict(read_settings(ConvexAdamSettings, self.parameters))
        grid = pair.fixed.grid.isotropic(max(asked.pop("spacing"), min(pair.fixed.grid.spacing)))
        fixed, moving = _prepared(pair, initial, grid)
        options.progress(0.1, "convexAdam")
        steps = convex_adam_pt(
            fixed.array, moving.array, ic=True, dtype=torch.float32, device=torch.device("cpu"), **asked
        )  # fmt: skip
        return self._result(field_of_voxel_steps(steps, grid), pair, initial, began)


def field_of_voxel_steps(steps: Any, grid: Grid) -> DisplacementField:
    """Return the field in mm, LPS, of displacements (z, y, x, 3) in voxels along the axes (z, y, x) of a grid."""
    return DisplacementField((steps[..., ::-1] @ grid.index_to_point_matrix.T).astype(np.float32), grid)


def _prepared(pair: ImagePair, initial: TransformChain, grid: Grid) -> tuple[Image, Image]:
    """Return the fixed image, and the moving one through the transform so far, both on `grid` and clipped."""
    of_fixed, of_moving = _window(pair.fixed), _window(pair.moving)
    fixed = pair.fixed if grid is pair.fixed.grid else pair.fixed.resampled(grid, default=of_fixed[0])
    moving = pair.moving.resampled(grid, initial.to_sitk(pair.fixed.grid), default=of_moving[0])
    return _clipped(fixed, of_fixed), _clipped(moving, of_moving)


def _window(image: Image) -> tuple[float, float]:
    """Return the values that are told apart: those of a CT, or nearly all of any other image."""
    if is_hounsfield(image):
        return WINDOW
    low, high = np.percentile(image.array, (0.5, 99.5))
    return float(low), float(high)


def _clipped(image: Image, window: tuple[float, float]) -> Image:
    return Image(np.clip(image.array.astype(np.float32), *window), image.grid)


REGISTRATIONS: dict[type[PeerStage], str] = {
    GreedyStage: "GreedyRegistration",
    ConvexAdamStage: "ConvexAdamRegistration",
}
"""What ``Registration`` says in the parameter map of each peer."""

PEERS: dict[str, type[PeerStage]] = {"greedy": GreedyStage, "convexadam": ConvexAdamStage}
"""The stages of the peers, by name."""


def peer_methods(names: list[str]) -> list[Method]:
    """Return the peers as methods, each after the affine stage.

    Raises
    ------
    ParameterError
        If one is not known or not installed.
    """
    unknown = next((name for name in names if name not in PEERS), None)
    if unknown is not None:
        raise ParameterError(f"there is no peer '{unknown}'; known are {', '.join(PEERS)}")
    return [plan_method(name, ["affine", PEERS[name].usual()]) for name in names]


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
