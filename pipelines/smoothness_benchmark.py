"""What smoothness costs, and whether anything folds: ``python pipelines/smoothness_benchmark.py --out DIR``.

Chest phantoms whose displacement is known, every kind of pair that the package knows of (cropped, turned, of another
patient ..), and with ``--images FOLDER --names NAME ..`` CTs that are deformed by 60 mm, are registered by
`regnet_multistage` with several weights of smoothness, and with folds left as they are. Judged are the error, and
det J at every voxel by SimpleITK and in the corners of every cell between voxels. Started again, what is finished is
kept. DIR gets ``smoothness.md``, which is printed. Leave the machine alone meanwhile if you want to know the times.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from guidance_benchmark import Case, make_cases

from regnet_itk.anatomy.pair_kinds import PAIR_KINDS, change_pair, make_whole_pair
from regnet_itk.data.image import Image
from regnet_itk.errors import RegistrationError
from regnet_itk.metrics.measures import log_jacobian_sd
from regnet_itk.outputs import write_whole
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.refinement.unfolding import least_determinants
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult

WEIGHTS = (0.005, 0.02, 0.1, 0.5)
USUAL = 0.02
_KINDS_SPACING = 2.5  # mm


@dataclass(frozen=True, eq=False)
class KnownPair:
    """Two images, and how far a registration of them is off.

    Parameters
    ----------
    fixed, moving : Image
    error : callable
        Of a result, in mm, in the mean over points of the lungs.
    lungs : Image
        Of the fixed image.
    """

    fixed: Image
    moving: Image
    error: Callable[[RegistrationResult], float]
    lungs: Image


@dataclass(frozen=True)
class Measured:
    """The error in mm, the standard deviation of log det J in the lungs, and what folds.

    Parameters
    ----------
    error, log_jacobian : float
    least_at_voxels : float
        Of det J of the whole transform, by SimpleITK.
    least_in_cells : float
        The same in the corners of the cells between voxels.
    folded : float
        Share of cells with det J at or below 0.
    seconds : float
    """

    error: float
    log_jacobian: float
    least_at_voxels: float
    least_in_cells: float
    folded: float
    seconds: float


def settings() -> dict[str, ParameterMap]:
    """Return what is tried."""
    stage = read_parameter_map("regnet_multistage").with_(WriteResultImage=False)
    alone = read_parameter_map("regnet_multistage_oneshot").with_(WriteResultImage=False)
    found = {f"{weight:g}": stage.with_(RegNetInstanceSmoothness=weight) for weight in WEIGHTS}
    found[f"{USUAL:g}, folds left"] = stage.with_(RegNetUnfold=False)
    found["network alone"] = alone
    found["network alone, folds left"] = alone.with_(RegNetUnfold=False)
    return found


def make_pairs(seed: int, images: dict[str, Path]) -> Iterator[tuple[str, Callable[[], KnownPair]]]:
    """Yield the name of each pair, and what makes it."""
    for name, make in make_cases(seed, images):
        yield name, lambda make=make: _of_case(make())  # type: ignore[misc]
    for kind in PAIR_KINDS:
        yield f"kind: {kind}", partial(_of_kind, kind)


def _of_case(case: Case) -> KnownPair:
    def error(result: RegistrationResult) -> float:
        off = result.chain.map_points(case.points) - case.true_map(case.points)
        return float(np.linalg.norm(off, axis=1).mean())

    return KnownPair(case.fixed, case.moving, error, case.fixed_lungs)


def _of_kind(kind: str) -> KnownPair:
    pair = change_pair(make_whole_pair(spacing=_KINDS_SPACING), kind)
    return KnownPair(
        pair.fixed, pair.moving, lambda result: pair.landmark_error(result.chain.map_points), pair.fixed_mask
    )  # fmt: skip


def measure(pair: KnownPair, result: RegistrationResult) -> Measured:
    """Judge a registration."""
    u = result.displacement
    image = sitk.GetImageFromArray(u.vectors.astype(np.float64), isVector=True)
    image.SetSpacing(u.grid.spacing)
    image.SetDirection(u.grid.direction_matrix.ravel())
    at_voxels = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image))
    in_cells = least_determinants(u.vectors, u.grid)
    return Measured(
        pair.error(result), log_jacobian_sd(u, pair.lungs), float(at_voxels.min()), float(in_cells.min()),
        float((in_cells <= 0).mean()), result.stages[-1].seconds,
    )  # fmt: skip


def measured(make: Callable[[], KnownPair], path: Path, threads: int | None) -> dict[str, Measured]:
    """Return what is measured of each setting on a pair, nothing if `affine` refuses it; what is finished is read."""
    if path.is_file():
        return {name: Measured(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}
    pair = make()
    try:
        start = register(pair.fixed, pair.moving, "affine", threads=threads)
    except RegistrationError as error:  # the images have nothing in common
        print(f"{path.stem}: {error}", flush=True)
        return {}
    assert isinstance(start, RegistrationResult)
    found = {}
    for name, stage in settings().items():
        result = register(pair.fixed, pair.moving, stage, initial=start.chain, threads=threads)
        assert isinstance(result, RegistrationResult)
        found[name] = measure(pair, result)
        print(f"{path.stem}, {name}: {found[name]}", flush=True)
    text = json.dumps({name: asdict(values) for name, values in found.items()}, indent=1)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return found


def table(pairs: dict[str, dict[str, Measured]]) -> Iterator[str]:
    """Yield a row for each setting: errors of each pair that is no kind, the median of the kinds; what folds of all."""
    single = [name for name in pairs if not name.startswith("kind")]
    kinds = [name for name in pairs if name.startswith("kind")]
    columns = [
        *single,
        "kinds (median)",
        "log det J",
        "least det J",
        "in cells",
        "pairs that fold",
        "folded at most",
        "s",
    ]
    yield f"| smoothness | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for setting in settings():
        of = {name: found[setting] for name, found in pairs.items()}
        every = list(of.values())
        cells = [f"{of[name].error:.2f}" for name in single]
        cells.append(f"{np.median([of[name].error for name in kinds]):.2f}" if kinds else "")
        cells.append(f"{np.mean([one.log_jacobian for one in every]):.3f}")
        cells += [f"{min(one.least_at_voxels for one in every):.2f}", f"{min(one.least_in_cells for one in every):.2f}"]
        cells.append(f"{sum(one.folded > 0 for one in every)} of {len(every)}")
        cells.append(f"{max(one.folded for one in every):.2%}")
        cells.append(f"{np.mean([one.seconds for one in every]):.1f}")
        yield f"| {setting} | {' | '.join(cells)} |"


def main() -> int:
    """Make pairs, register them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=70, help="of the phantoms")
    parser.add_argument("--images", type=Path, help="folder of CTs")
    parser.add_argument("--names", nargs="*", default=[], help="of files in it, without suffixes")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    images = {name: given.images / f"{name}.nii.gz" for name in given.names} if given.images else {}
    pairs = {
        name: measured(make, given.out / f"{name.replace(': ', '-').replace(' ', '_')}.json", given.threads)
        for name, make in make_pairs(given.seed, images)
    }
    text = "\n".join(table({name: found for name, found in pairs.items() if found})) + "\n"
    write_whole(given.out / "smoothness.md", lambda part: part.write_text(text, encoding="utf-8"))
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
