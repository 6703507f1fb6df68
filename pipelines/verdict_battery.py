"""Pairs that went wrong in many ways, and as many good ones: what the verdict says of them.

``python pipelines/verdict_battery.py --out battery.csv [--images FILE ..]``: phantoms, and images of any kind that are
deformed if some are given. A wrong pair that is called good, and a good one that is not, are marked. Where the truth is
known, the table has the true error of what is expected to be far off: whether a doubt is right.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from known_pairs import make_deformed
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.outputs import write_whole
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.trust.verdict import FAR_OFF

CHEST = ("affine", "regnet_multistage")
ANY = ("affine_mi", "regnet_general")


@dataclass(frozen=True, eq=False)
class Case:
    """A pair, how it is registered, and whether that can go well."""

    name: str
    wrong: bool
    fixed: Image
    moving: Image
    stages: tuple[str, ...] = CHEST
    mask: Image | None = None
    initial: TransformChain | None = None
    truth: DisplacementField | None = None

    def run(self) -> RegistrationResult:
        """Register it."""
        result = register(self.fixed, self.moving, stages=self.stages, fixed_mask=self.mask, initial=self.initial)
        assert isinstance(result, RegistrationResult)
        return result


def phantom(seed: int, kind: str = "breathing", amplitude: float | None = None) -> Phantom:
    """Return a phantom on coarse voxels, so that the battery is quick."""
    return make_phantom(seed, kind, spacing=(2.0, 2.0, 2.5), extent=(320.0, 250.0, 260.0), amplitude=amplitude)


def as_given(p: Phantom, name: str, wrong: bool = False, **changed: object) -> Case:
    """Return a phantom as a case, with what is changed."""
    return replace(Case(name, wrong, p.fixed, p.moving, truth=p.displacement), **changed)  # type: ignore[arg-type]


def flipped(image: Image, *axes: int) -> Image:
    """Return an image whose voxels run the other way along some axes of its array; its header does not tell."""
    return Image(np.ascontiguousarray(np.flip(image.array, axes)), image.grid)


def moved(grid: Grid, degrees: float, shift: tuple[float, float, float]) -> TransformChain:
    """Return a rotation about z around the middle of a grid, and a shift in mm."""
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return TransformChain((Link(MatrixTransform(turn, grid.centre(), list(shift))),))


def wrong_cases(seed: int) -> Iterator[Case]:
    """Yield one of each kind of what goes wrong."""
    p, other = phantom(seed, amplitude=15.0), phantom(seed + 1, amplitude=15.0)
    grid, array = p.moving.grid, p.moving.array
    rng = np.random.default_rng(seed)

    def case(name: str, **changed: object) -> Case:
        return as_given(p, name, True, **({"truth": None} | changed))

    yield case("another patient", moving=other.moving)
    yield case("another patient, affine alone", moving=other.moving, stages=("affine",))
    yield case("mirrored left to right", moving=flipped(p.moving, 2))
    yield case("turned by 180 degrees", moving=flipped(p.moving, 1, 2))
    yield case("upside down", moving=flipped(p.moving, 0))
    far = replace(grid, origin=tuple(np.add(grid.origin, (0.0, 60.0, 0.0))))
    yield case("shifted by 60 mm, no affine", moving=Image(array, far), stages=("regnet_multistage",))
    upper = Grid((grid.size[0], grid.size[1], grid.size[2] // 3), grid.spacing, grid.origin, grid.direction)
    yield case("a third in view", moving=Image(array[: grid.size[2] // 3], upper))
    noise = rng.normal(-500.0, 300.0, array.shape).astype(np.float32)
    yield case("noise", moving=Image(noise, grid))
    deep = phantom(seed, amplitude=30.0)
    yield replace(as_given(deep, "affine alone on a deep breath", True), stages=("affine",))
    yield replace(as_given(deep, "no registration but a rigid one", True), stages=("rigid",))
    yield replace(as_given(phantom(seed, amplitude=40.0), "past the capture range", True), stages=("affine", "regnet"))
    start = moved(p.fixed.grid, 25.0, (20.0, -30.0, 10.0))
    yield case("a wrong transform to start from", stages=("regnet_multistage",), initial=start)
    wide = replace(grid, spacing=tuple(1.6 * s for s in grid.spacing))
    yield case("a wrong voxel size", moving=Image(array, wide), stages=("rigid", "regnet_multistage"))
    yield case("another contrast for a CT's model", moving=Image((-900.0 - array).astype(np.float32), grid))
    shifted = Image(np.roll(p.fixed_mask.array, (0, 40, 0), (0, 1, 2)), p.fixed_mask.grid)
    yield case("a wrong mask", mask=shifted, truth=p.displacement)
    yield case("wrong in one place", initial=bump(p, 14.0), stages=("nothing",), truth=p.displacement)


def bump(p: Phantom, length: float) -> TransformChain:
    """Return the truth with an error around a point of the base of a lung."""
    grid = p.fixed.grid.isotropic(5.0)
    points = grid.points()
    inside = p.fixed.grid.index_to_point(np.argwhere(p.fixed_mask.array > 0)[:, ::-1].astype(float))
    place = inside[np.argsort(inside[:, 2])[len(inside) // 6]]
    weight = np.exp(-0.5 * (np.linalg.norm(points - place, axis=-1) / 25.0) ** 2)
    u = p.displacement.at(points) + length * weight[..., None] * np.array([0.5, -0.5, 0.7])
    return TransformChain((Link(DisplacementField(u.astype(np.float32), grid)),))


def good_cases(seed: int, images: list[Path], folder: Path) -> Iterator[Case]:
    """Yield pairs that register well."""
    for k, amplitude in enumerate((5.0, 10.0, 15.0, 20.0)):
        yield as_given(phantom(seed + 10 + k, amplitude=amplitude), f"breathing of {amplitude:g} mm, phantom {k}")
    for k in range(3):
        yield as_given(phantom(seed + 20 + k, "followup"), f"follow-up, phantom {k}")
    p = phantom(seed + 30, amplitude=12.0)
    yield replace(as_given(p, "by the general model"), stages=ANY)
    yield replace(as_given(p, "by B-splines"), stages=("affine", "bspline_3r"), mask=p.fixed_mask)
    yield replace(as_given(p, "inside the mask"), mask=p.fixed_mask)
    inverted = Image((-900.0 - p.moving.array).astype(np.float32), p.moving.grid)
    yield replace(as_given(p, "another contrast, general model"), stages=ANY, moving=inverted)
    yield replace(as_given(p, "an image and itself"), moving=p.fixed, truth=None, stages=("rigid",))
    for k, path in enumerate(images):
        yield deformed(path, folder, seed + k)


def deformed(path: Path, folder: Path, seed: int) -> Case:
    """Return an image that waves of 10 mm have deformed, registered by what the program chooses."""
    from benchmark_anatomies import waves

    image = read_image(path)
    name = path.name.split(".")[0]
    here = folder / name
    if not here.is_dir():
        region = Scan(image).find("foreground")
        make_deformed(
            here, image, Image(region.array.astype(np.uint8), image.grid), waves(image.grid, 10.0, seed),
            np.random.default_rng(seed), noise=0.01 * float(np.ptp(np.percentile(image.array, (1, 99)))),
            background=float(image.array.min()),
        )  # fmt: skip
    truth = read_displacement_field(here / "true_displacement.mha")
    fixed, moving = read_image(here / "fixed.mha"), read_image(here / "moving.mha")
    return Case(f"deformed {name}", False, fixed, moving, ANY, truth=truth)


def judge(case: Case) -> dict[str, object]:
    """Register a case, and return a row of the table."""
    if case.stages == ("nothing",):
        result = register(case.fixed, case.moving, stages=["rigid"], fixed_mask=case.mask)
        assert isinstance(result, RegistrationResult) and case.initial is not None
        result = replace(result, chain=case.initial, stages=(replace(result.stages[0], judgement=None),))
    else:
        result = case.run()
    verdict, errors = result.verdict, result.expected_error
    assert verdict is not None and errors is not None
    points = errors.grid.points()[errors.known]
    expected = errors.expected[errors.known]
    far = expected > FAR_OFF
    true = true_of_far = None
    if case.truth is not None:
        off = np.linalg.norm(result.chain.map_points(points) - case.truth.map_points(points), axis=1)
        true = round(float(off.mean()), 2)
        true_of_far = round(float(off[far].mean()), 2) if far.any() else None
    return {
        "case": case.name, "wrong": case.wrong, "verdict": verdict.word,
        "mistaken": (verdict.word == "good") == case.wrong,
        "expected_mm": round(float(expected.mean()), 2) if errors.known.any() else None,
        "true_mm": true,
        "far_off_cm3": round(float(far.sum() * np.prod(errors.grid.spacing)) / 1000.0),
        "true_mm_there": true_of_far,
        "reasons": "; ".join(verdict.reasons),
    }  # fmt: skip


def main() -> int:
    """Judge all cases, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=500)
    parser.add_argument("--only", help="cases whose names have this in them")
    given = parser.parse_args()
    rows = []
    make: list[Callable[[], Iterator[Case]]] = [
        lambda: wrong_cases(given.seed), lambda: good_cases(given.seed, given.images, given.out.with_suffix("")),
    ]  # fmt: skip
    for cases in make:
        for case in cases():
            if given.only and given.only not in case.name:
                continue
            rows.append(judge(case))
            print("  ".join(f"{value}" for value in rows[-1].values()), flush=True)
    for wrong in (True, False):
        part = [row for row in rows if row["wrong"] is wrong]
        right = sum(not row["mistaken"] for row in part)
        print(f"{'wrong' if wrong else 'good'} pairs: {right} of {len(part)} judged rightly")

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    write_whole(given.out, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
