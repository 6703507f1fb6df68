"""What guiding landmarks and labels gain, and where they harm: ``python pipelines/guidance_benchmark.py --out DIR``.

Pairs whose displacement is known everywhere: chest phantoms that breathe as usual, that breathe very deeply, in whose
fixed image a part of a lung is missing, and such that are deformed by 60 mm; with ``--images FOLDER --names NAME ..``,
CTs deformed by 60 mm. The stage `regnet_guided` registers each without guides and with them: 5, 20 and 100
landmarks with errors of their own of 0, 1 and 3 mm (root mean square of the length), or one in ten of them 20 mm off;
and the two lungs as labels. Judged are other points of the lungs. Started again, what is finished is kept. DIR gets
``landmarks.md`` and ``labels.md``, which are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from regnet_itk import Guides, RegistrationEvents, make_phantom, read_parameter_map, register
from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.results import RegistrationResult
from regnet_itk.training.paper_pairs import breathing_displacement, deform_pair

COUNTS = (5, 20, 100)
CONDITIONS = ((0.0, False), (1.0, False), (3.0, False), (1.0, True))
"""Errors of the landmarks in mm, and whether one in ten is wrong."""

WRONG = 20.0  # mm
_SPACING = (2.0, 2.0, 2.5)
_LARGE = 60.0  # mm
_DEEP = 45.0  # mm
_JUDGED = 3000
_TISSUE = 30  # HU
_MISSING = 0.6  # of the left lung, from below


@dataclass(frozen=True, eq=False)
class Case:
    """A pair whose displacement is known.

    Parameters
    ----------
    name : str
    fixed, moving : Image
    fixed_lungs, moving_lungs : Image
        1 in the lungs, which are the labels.
    true_map : callable
        Maps points (n, 3) of the fixed image to the moving one, mm, LPS.
    points : ndarray, shape (n, 3)
        In the lungs of the fixed image, in random order; the last `_JUDGED` judge.
    """

    name: str
    fixed: Image
    moving: Image
    fixed_lungs: Image
    moving_lungs: Image
    true_map: Callable[[FloatArray], FloatArray]
    points: FloatArray


def phantom_case(name: str, seed: int, amplitude: float | None = None, *, missing: str = "") -> Case:
    """Return a phantom that breathes; a part of its left lung may be full of fluid in the fixed image.

    That part, if it is `missing`, is outlined as "lung" all the same, or it is "left out".
    """
    made = make_phantom(seed, spacing=_SPACING, amplitude=amplitude)
    points = _lung_points(made.fixed_mask)
    case = Case(name, made.fixed, made.moving, made.fixed_mask, made.moving_mask, made.motion.map_points, points)
    return _with_fluid(case, outlined=missing == "lung") if missing else case


def deformed_case(name: str, image: Image, amplitude: float = _LARGE) -> Case:
    """Return a CT of the chest with itself, deformed by breathing-like motion."""
    lungs, rng = lung_mask(image), np.random.default_rng(5)
    u = breathing_displacement(image.grid, lungs, -amplitude, rng)
    made = deform_pair(image, u, 5.0, rng, -1000.0)
    mask = lungs.resampled(image.grid, u.to_sitk_transform(), order=0)
    fixed, moving = (Image(np.rint(i.array).astype(np.int16), i.grid) for i in (made.fixed, made.moving))
    masks = (Image((m.array > 0).astype(np.uint8), m.grid) for m in (mask, lungs))
    return Case(name, fixed, moving, *masks, u.map_points, _lung_points(mask))


def _lung_points(mask: Image, count: int = _JUDGED + max(COUNTS)) -> FloatArray:
    rng = np.random.default_rng(1)
    voxels = np.argwhere(mask.array > 0)[:, ::-1]
    chosen = voxels[rng.permutation(len(voxels))[:count]]
    return mask.grid.index_to_point(chosen + rng.uniform(-0.5, 0.5, chosen.shape))


def _with_fluid(case: Case, outlined: bool) -> Case:
    """Fill the lower part of the left lung of the fixed image; its points stay where the anatomy has them."""
    places, lung = case.fixed.grid.points(), case.fixed_lungs.array > 0
    left = places[..., 0] > 0
    lower = places[..., 2] < np.quantile(places[lung & left][:, 2], _MISSING)
    filled = ndimage.binary_dilation(lung, iterations=2) & (case.fixed.array < _TISSUE) & left & lower
    fixed = Image(np.where(filled, _TISSUE, case.fixed.array).astype(np.int16), case.fixed.grid)
    seen = Image((lung & ~filled).astype(np.uint8), case.fixed.grid)
    return replace(case, fixed=fixed, fixed_lungs=case.fixed_lungs if outlined else seen)


def make_cases(seed: int, images: dict[str, Path]) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield the name of each case, and what makes it."""
    yield "usual breath", lambda: phantom_case("usual breath", seed)
    yield "missing structure", lambda: phantom_case("missing structure", seed + 1, missing="lung")
    yield "45 mm", lambda: phantom_case("45 mm", seed + 2, _DEEP)
    yield "60 mm", lambda: deformed_case("60 mm", make_phantom(seed + 3, spacing=_SPACING).moving)
    for name, path in images.items():
        yield f"CT {name}, 60 mm", lambda name=name, path=path: deformed_case(f"CT {name}, 60 mm", _cubic(path))  # type: ignore[misc]


def left_out_case(seed: int) -> tuple[str, Callable[[], Case]]:
    """Return a case whose labels do not show the same structure."""
    name = "missing structure, left out of its label"
    return name, lambda: phantom_case(name, seed + 1, missing="left out")


def _cubic(path: Path) -> Image:
    image = read_image(path)
    return image.resampled(image.grid.isotropic(2.0), default=-1000.0)


@dataclass(frozen=True)
class Judged:
    """How far the judging points are off, in mm, and which guiding ones were left out."""

    mean: float
    p95: float
    dice: float = float("nan")
    left_out: int = 0
    wrong_left_out: int = 0


def draw_landmarks(case: Case, count: int, error: float, wrong: int = 0) -> tuple[FloatArray, FloatArray]:
    """Return `count` points of the fixed image and their partners, (n, 3), the first `wrong` of which are far off."""
    rng = np.random.default_rng([count, 7])
    points = case.points[:-_JUDGED][rng.permutation(len(case.points) - _JUDGED)[:count]]
    there = case.true_map(points) + rng.normal(size=points.shape) * error / np.sqrt(3)
    away = rng.normal(size=(wrong, 3))
    there[:wrong] += WRONG * away / np.linalg.norm(away, axis=1, keepdims=True)
    return points, there


def registered(
    case: Case,
    points: FloatArray | None = None,
    there: FloatArray | None = None,
    *,
    labels: bool = False,
    threads: int | None = None,
) -> RegistrationResult:
    """Register a pair with landmarks, with the lungs as labels, or without both."""
    stage = read_parameter_map("regnet_guided").with_(WriteResultImage=False)
    sides = [_sides(lungs) if labels else None for lungs in (case.fixed_lungs, case.moving_lungs)]
    result = register(
        case.fixed, case.moving, [stage], fixed_landmarks=points, moving_landmarks=there,
        fixed_guides=Guides(label=sides[0]), moving_guides=Guides(label=sides[1]), threads=threads,
        events=RegistrationEvents(),
    )  # fmt: skip
    assert isinstance(result, RegistrationResult)
    return result


def run_case(
    case: Case, *, count: int = 0, error: float = 0.0, wrong: bool = False, labels: bool = False, threads: int | None
) -> Judged:
    """Register a pair with `count` landmarks, or with labels, and judge it by other points."""
    bad = max(1, count // 10) if wrong else 0
    points, there = draw_landmarks(case, count, error, bad) if count else (None, None)
    result = registered(case, points, there, labels=labels, threads=threads)
    judges = case.points[-_JUDGED:]
    off = np.linalg.norm(result.chain.map_points(judges) - case.true_map(judges), axis=1)
    out = [int(name) for name in str(result.stages[0].details.get("landmarks_left_out", "")).split(", ") if name]
    found = len(out), sum(number < bad for number in out)
    return Judged(float(off.mean()), float(np.quantile(off, 0.95)), _dice(case, result), *found)


def _sides(lungs: Image) -> Image:
    """Return the right lung as 1, and the left one as 2."""
    left = lungs.grid.points()[..., 0] > 0
    return Image(((lungs.array > 0) * np.where(left, 2, 1)).astype(np.uint8), lungs.grid)


def _dice(case: Case, result: RegistrationResult) -> float:
    """Return the Dice coefficient of the lungs, the mean of both sides."""
    grid = case.fixed.grid
    fixed = _sides(case.fixed_lungs).array
    warped = _sides(case.moving_lungs).resampled(grid, result.chain.to_sitk(grid), order=0).array
    found = [2 * ((fixed == n) & (warped == n)).sum() / ((fixed == n).sum() + (warped == n).sum()) for n in (1, 2)]
    return float(np.mean(found))


class _Kept:
    """Judgements that are finished, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def get(self, key: str, judge: Callable[[], Judged]) -> Judged:
        if key not in self._found:
            self._found[key] = asdict(judge())
            self._path.write_text(json.dumps(self._found, indent=1), encoding="utf-8")
        return Judged(**self._found[key])


def landmark_table(
    cases: Sequence[tuple[str, Callable[[], Case]]], kept: _Kept, counts: Sequence[int], threads: int | None
) -> Iterator[str]:
    """Yield the lines of the table of landmarks."""
    columns = [f"{error:g} mm" + ", one in ten wrong" * wrong for error, wrong in CONDITIONS]
    yield "| pair | landmarks | without | " + " | ".join(columns) + " | wrong ones named |"
    yield "|---|---|---|" + "---|" * (len(columns) + 1)
    for name, make in cases:
        case = _Lazily(make)
        without = kept.get(name, lambda case=case: run_case(case(), threads=threads))  # type: ignore[misc]
        for count in counts:
            found = [
                kept.get(
                    f"{name}, {count}, {error:g}, {wrong}",
                    lambda case=case, count=count, error=error, wrong=wrong: run_case(  # type: ignore[misc]
                        case(), count=count, error=error, wrong=wrong, threads=threads
                    ),
                )
                for error, wrong in CONDITIONS
            ]
            cells = [f"{one.mean:.2f} ({one.p95:.1f})" for one in (without, *found)]
            named = f"{found[-1].wrong_left_out} of {max(1, count // 10)}"
            yield f"| {name} | {count} | " + " | ".join(cells) + f" | {named} |"


def label_table(
    cases: Sequence[tuple[str, Callable[[], Case]]], kept: _Kept, counts: Sequence[int], threads: int | None
) -> Iterator[str]:
    """Yield the lines of the table of labels; `counts` are of landmarks alone."""
    yield "| pair | error without, mm | with the lungs as labels | Dice of the lungs without | with |"
    yield "|---|---|---|---|---|"
    for name, make in cases:
        case = _Lazily(make)
        without = kept.get(name, lambda case=case: run_case(case(), threads=threads))  # type: ignore[misc]
        found = kept.get(f"{name}, labels", lambda case=case: run_case(case(), labels=True, threads=threads))  # type: ignore[misc]
        yield (
            f"| {name} | {without.mean:.2f} ({without.p95:.1f}) | {found.mean:.2f} ({found.p95:.1f}) | "
            f"{without.dice:.3f} | {found.dice:.3f} |"
        )


class _Lazily:
    """A case that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Case]) -> None:
        self._make, self._case = make, None

    def __call__(self) -> Case:
        if self._case is None:
            self._case = self._make()
        return self._case


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=71, help="of the phantoms")
    parser.add_argument("--images", type=Path, help="folder of CTs")
    parser.add_argument("--names", nargs="*", default=[], help="of files in it, without suffixes")
    parser.add_argument("--cases", nargs="*", help="only these")
    parser.add_argument("--what", nargs="*", default=["landmarks", "labels"], choices=["landmarks", "labels"])
    parser.add_argument("--counts", nargs="*", type=int, default=list(COUNTS), help="of landmarks")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    images = {name: given.images / f"{name}.nii.gz" for name in given.names} if given.images else {}
    cases = [case for case in make_cases(given.seed, images) if not given.cases or case[0] in given.cases]
    kept = _Kept(given.out / "judged.json")
    for what, table in (("landmarks", landmark_table), ("labels", label_table)):
        if what not in given.what:
            continue
        more = [left_out_case(given.seed)] if what == "labels" and not given.cases else []
        lines = []
        for line in table([*cases, *more], kept, given.counts, given.threads):
            print(line, flush=True)
            lines.append(line)
        (given.out / f"{what}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
