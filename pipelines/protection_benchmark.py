"""What masks of patients after surgery are worth: registrations with and without them, where the motion is known.

``python pipelines/protection_benchmark.py --out DIR [--seeds 1 2] [--images FOLDER --names NAME ..]`` makes phantoms
and deformed CTs in which a tumour has grown, a lobe was resected, or an implant was put in, and registers them with and
without masks of that. Then it registers CTs whose bones are rigid in truth, with masks of the bones and of a ball in a
lung that is to keep its volume. It prints the tables of docs/protection.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.distances import distance_to
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.outputs import write_whole
from regnet_itk.registration import register
from regnet_itk.results import RegistrationResult
from regnet_itk.stages.guides import Guides
from regnet_itk.training.paper_pairs import breathing_displacement, deform_pair

Bools = npt.NDArray[np.bool_]

CHAINS = {"B-spline 3R": ("affine", "bspline_3r"), "RegNet": ("affine", "regnet_multistage")}
NEAR = 20.0  # mm around what is ignored, where the error is measured
_TISSUE, _FLUID, _METAL, _AIR = 40.0, 10.0, 3000.0, -1000.0  # HU
_NOISE = 15.0  # HU, of what is put in
_BONE, _LEAST_BONE = 220.0, 1500.0  # HU, mm3
_MOST_BONES = 16
_POINTS = 4000  # of a part, where it is judged


@dataclass(frozen=True, eq=False)
class KnownMotion:
    """Two images of one patient, the displacement between them, and a place in the moving one.

    Parameters
    ----------
    name : str
    fixed, moving : Image
    truth : DisplacementField
        At the voxels of the fixed image.
    body : bool array
        In the fixed image.
    place : ndarray, shape (3,)
        In a lung of the moving image, mm.
    """

    name: str
    fixed: Image
    moving: Image
    truth: DisplacementField
    body: Bools
    place: FloatArray

    def fixed_points(self) -> FloatArray:
        """Return where the fixed image's voxels are in the moving one."""
        return self.fixed.grid.points() + self.truth.vectors

    def errors(self, result: RegistrationResult) -> FloatArray:
        """Return the error (z, y, x) of a registration at the voxels of the fixed image, in mm."""
        return np.linalg.norm(result.displacement.vectors - self.truth.vectors, axis=-1)


def phantom(seed: int, spacing: float) -> KnownMotion:
    """Return a phantom that breathes."""
    made = make_phantom(seed, spacing=(spacing,) * 3)
    return KnownMotion(
        f"phantom {seed}", made.fixed, made.moving, made.displacement,
        Scan(made.fixed).find("body").array > 0, place_in(made.moving_mask),
    )  # fmt: skip


def deformed_ct(path: Path, number: int, spacing: float) -> KnownMotion:
    """Return a CT that is deformed as by a breath of 15 mm."""
    return _deformed(path, number, spacing)[0]


def with_rigid_bones(path: Path, number: int, spacing: float) -> tuple[KnownMotion, Image]:
    """Return a CT that is turned and shifted, and breathes but for its bones; with the bones of the fixed image."""
    pair, image, u = _deformed(path, number, spacing)
    bones = find_bones(image)
    turn = Rotation.from_rotvec([0.02, -0.03, 0.025])
    middle, grid = image.grid.centre(), image.grid
    points = turn.apply((grid.points() - middle).reshape(-1, 3)).reshape(*grid.shape, 3) + middle + (2.0, -3.0, 2.5)
    free = np.clip(distance_to(bones.array > 0, grid.spacing) / 25.0, 0.0, 1.0)
    free = Image((free * free * (3.0 - 2.0 * free)).astype(np.float32), grid)
    index = np.moveaxis(grid.point_to_index(points)[..., ::-1], -1, 0)
    share = ndimage.map_coordinates(free.array, index, order=1, mode="nearest")
    truth = DisplacementField((points + share[..., None] * u.at(points) - grid.points()).astype(np.float32), grid)
    made = deform_pair(image, truth, 5.0, np.random.default_rng(number))
    seen = bones.resampled(grid, truth.to_sitk_transform(), order=0)
    body = Scan(made.fixed).find("body").array > 0
    pair = replace(pair, fixed=made.fixed, moving=made.moving, truth=truth, body=body)
    return pair, Image(np.rint(seen.array).astype(np.int16), grid)


def _deformed(path: Path, number: int, spacing: float) -> tuple[KnownMotion, Image, DisplacementField]:
    given = read_image(path)
    image = given.resampled(given.grid.isotropic(spacing), default=_AIR)
    lungs, rng = lung_mask(image), np.random.default_rng(number)
    u = breathing_displacement(image.grid, lungs, 15.0 if number % 2 else -15.0, rng)
    pair = deform_pair(image, u, 5.0, rng)
    truth = DisplacementField(u.at(image.grid.points()).astype(np.float32), image.grid)
    body = Scan(pair.fixed).find("body").array > 0
    return KnownMotion(path.name.split(".")[0], pair.fixed, pair.moving, truth, body, place_in(lungs)), image, u


def place_in(lungs: Image) -> FloatArray:
    """Return the point that is deepest in the lungs."""
    inside = lungs.array > 0
    depth = distance_to(~inside, lungs.grid.spacing)
    at = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return lungs.grid.index_to_point(np.array(at[::-1], dtype=float))


def _put(image: Image, where: Bools, value: float) -> Image:
    values = value + np.random.default_rng(0).normal(0.0, _NOISE, image.array.shape)
    return Image(np.where(where, values, image.array).astype(np.float32), image.grid)


Changed = tuple[Image, Image, Bools, Bools]
"""Fixed and moving image with what is in one of them only, and where that is in each."""


def grow_tumour(pair: KnownMotion) -> Changed:
    """Put in a tumour of 10 mm radius, which has 25 mm in the moving image."""
    before = np.linalg.norm(pair.fixed_points() - pair.place, axis=-1) < 10.0
    after = np.linalg.norm(pair.moving.grid.points() - pair.place, axis=-1) < 25.0
    return _put(pair.fixed, before, _TISSUE), _put(pair.moving, after, _TISSUE), before, after


def resect_lobe(pair: KnownMotion) -> Changed:
    """Fill a cavity of 30 x 30 x 40 mm radius with fluid in the moving image."""
    away = (pair.moving.grid.points() - pair.place) / (30.0, 30.0, 40.0)
    cavity = np.linalg.norm(away, axis=-1) < 1.0
    return pair.fixed, _put(pair.moving, cavity, _FLUID), np.zeros(pair.fixed.grid.shape, dtype=bool), cavity


def put_implant_in(pair: KnownMotion) -> Changed:
    """Put a rod of metal with its streaks into the moving image; the mask covers both."""
    x, y, z = np.moveaxis(pair.moving.grid.points() - pair.place, -1, 0)
    radius, slab = np.hypot(x, y), np.abs(z) < 30.0
    streaks = 500.0 * np.sin(8 * np.arctan2(y, x)) * np.exp(-radius / 15.0)
    array = np.where(slab & (radius < 45.0), np.clip(pair.moving.array + streaks, _AIR, _METAL), pair.moving.array)
    moving = Image(np.where(slab & (radius < 6.0), _METAL, array).astype(np.float32), pair.moving.grid)
    return pair.fixed, moving, np.zeros(pair.fixed.grid.shape, dtype=bool), slab & (radius < 30.0)


KINDS: dict[str, Callable[[KnownMotion], Changed]] = {
    "a tumour that grew": grow_tumour,
    "a resected lobe": resect_lobe,
    "a metal implant": put_implant_in,
}


def _mask(where: Bools, grid: Grid) -> Image | None:
    return Image(where.astype(np.uint8), grid) if where.any() else None


def try_ignoring(pair: KnownMotion, kind: str) -> Iterator[dict[str, object]]:
    """Register a pair that was changed, by each chain, with and without its masks."""
    fixed, moving, in_fixed, in_moving = KINDS[kind](pair)
    seen = Image(in_moving.astype(np.float32), moving.grid).resampled(
        fixed.grid, pair.truth.to_sitk_transform(), order=1
    )
    away = distance_to(in_fixed | (seen.array > 0), fixed.grid.spacing)
    near, far = pair.body & (away > 0) & (away < NEAR), pair.body & (away >= NEAR)
    for chain, stages in CHAINS.items():
        for masks in (False, True):
            guides = [
                Guides(ignore=_mask(where, image.grid)) if masks else Guides()
                for where, image in ((in_fixed, fixed), (in_moving, moving))
            ]
            result = register(fixed, moving, list(stages), fixed_guides=guides[0], moving_guides=guides[1], threads=1)
            assert isinstance(result, RegistrationResult)
            errors = pair.errors(result)
            yield {
                "pair": pair.name, "kind": kind, "chain": chain, "masks": masks,
                "inside": float(errors[pair.body & (away == 0)].mean()), "near": float(errors[near].mean()),
                "near_95": float(np.percentile(errors[near], 95)), "far": float(errors[far].mean()),
                "least_det": float(result.displacement.jacobian_determinant().min()),
                "seconds": result.stages[-1].seconds, "verdict": result.verdict.word if result.verdict else "",
            }  # fmt: skip


def find_bones(image: Image) -> Image:
    """Return the largest pieces of bone, numbered from 1."""
    thick = ndimage.binary_opening(ndimage.gaussian_filter(image.array.astype(np.float32), 0.7) > _BONE)
    grown = ndimage.binary_dilation(thick, np.ones((3, 3, 3)))  # what has less than two voxels between is one piece
    pieces, count = ndimage.label(grown, np.ones((3, 3, 3)))
    pieces[~thick] = 0
    sizes = ndimage.sum_labels(thick, pieces, np.arange(1, count + 1)) * np.prod(image.grid.spacing)
    chosen = [n + 1 for n in np.argsort(-sizes)[:_MOST_BONES] if sizes[n] >= _LEAST_BONE]
    numbers = np.zeros(count + 1, dtype=np.int16)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    return Image(numbers[pieces], image.grid)


def try_protecting(path: Path, number: int, spacing: float) -> Iterator[dict[str, object]]:
    """Register a CT with rigid bones, with no masks, those of bones, and that of a ball in a lung as a volume."""
    pair, bones = with_rigid_bones(path, number, spacing)
    away = np.linalg.norm(pair.fixed_points() - pair.place, axis=-1)
    ball = Image((away < 18.0).astype(np.uint8), pair.fixed.grid)
    lungs = lung_mask(pair.fixed).array > 0
    given = {"none": Guides(), "rigid": Guides(rigid=bones), "volume": Guides(volume=ball)}
    for masks, guides in given.items():
        result = register(pair.fixed, pair.moving, ["affine", "regnet_multistage"], fixed_guides=guides, threads=1)
        assert isinstance(result, RegistrationResult)
        errors = pair.errors(result)
        deviations = [_from_rigid(points, result) for points in _points_of(bones)]
        yield {
            "pair": pair.name, "masks": masks, "bones": len(deviations), "from_rigid": max(deviations),
            "volume": float(np.abs(_volumes(next(_points_of(ball)), result) - 1.0).max()),
            "in_bones": float(errors[bones.array > 0].mean()), "in_lungs": float(errors[lungs].mean()),
            "in_body": float(errors[pair.body].mean()),
            "least_det": float(result.displacement.jacobian_determinant().min()),
            "seconds": result.stages[-1].seconds,
        }  # fmt: skip


def _points_of(labels: Image) -> Iterator[FloatArray]:
    """Yield points anywhere in the voxels of each label."""
    rng = np.random.default_rng(0)
    for number in np.unique(labels.array)[1:]:
        index = np.argwhere(labels.array == number)[:, ::-1]
        chosen = index[rng.integers(0, len(index), _POINTS)] + rng.uniform(-0.5, 0.5, (_POINTS, 3))
        yield labels.grid.index_to_point(chosen)


def _from_rigid(points: FloatArray, result: RegistrationResult) -> float:
    """Return how far T is from the rigid motion that fits it best, by SciPy's alignment, in mm at most."""
    mapped = result.chain.map_points(points)
    middle, there = points.mean(axis=0), mapped.mean(axis=0)
    turn, _ = Rotation.align_vectors(mapped - there, points - middle)
    return float(np.linalg.norm(turn.apply(points - middle) + there - mapped, axis=1).max())


def _volumes(points: FloatArray, result: RegistrationResult) -> FloatArray:
    """Return det J of T by finite differences of mapped points."""
    steps = 0.05 * np.eye(3)
    columns = [(result.chain.map_points(points + s) - result.chain.map_points(points - s)) / 0.1 for s in steps]
    return np.asarray(np.linalg.det(np.stack(columns, axis=-1)))


def main() -> int:
    """Make, register, measure; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what was measured; kept when run again")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--images", type=Path, help="folder of CTs")
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--spacing", type=float, default=2.0, help="edge of a voxel, mm")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    paths = [given.images / f"{name}.nii.gz" for name in given.names]
    kept = _Kept(given.out / "protection.json")
    for number, path in enumerate(paths):
        kept.measure(f"protecting {path.name}", lambda p=path, n=number: try_protecting(p, n, given.spacing))
    makers = [lambda s=seed: phantom(s, given.spacing) for seed in given.seeds]
    makers += [lambda p=path, n=number: deformed_ct(p, n, given.spacing) for number, path in enumerate(paths)]
    names = [f"phantom {seed}" for seed in given.seeds] + [path.name for path in paths]
    for name, make in zip(names, makers, strict=True):
        for kind in KINDS:
            kept.measure(f"{kind}, {name}", lambda m=make, k=kind: try_ignoring(m(), k))
    print("\n".join([*ignoring_table(kept.rows()), "", *protecting_table(kept.rows())]))
    return 0


class _Kept:
    """What was measured, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[dict[str, object]]] = json.loads(path.read_text()) if path.is_file() else {}

    def measure(self, name: str, work: Callable[[], Iterator[dict[str, object]]]) -> None:
        """Measure what was not measured before."""
        if name in self._found:
            return
        self._found[name] = []
        for row in work():
            print(row, flush=True)
            self._found[name].append(row)
        write_whole(self._path, lambda part: part.write_text(json.dumps(self._found, indent=1), encoding="utf-8"))

    def rows(self) -> list[dict[str, object]]:
        """Return all rows."""
        return [row for rows in self._found.values() for row in rows]


def ignoring_table(rows: list[dict[str, object]]) -> list[str]:
    """Return the table of pairs with something to ignore: means over the phantoms and over the CTs."""
    lines = [
        "| | pairs | chain | near, without | near, with masks | far, without | far, with "
        "| least det J, without | with |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["of"] = "phantom" if str(row["pair"]).startswith("phantom") else "CT"
    for kind, (of, chain) in product(KINDS, product(("phantom", "CT"), CHAINS)):
        found = [_of(rows, kind=kind, chain=chain, of=of, masks=masks) for masks in (False, True)]
        if found[1]:
            means = [f"{_mean(part, what):.2f}" for what in ("near", "far") for part in found]
            least = [f"{min(float(row['least_det']) for row in part):.2f}" for part in found]  # type: ignore[arg-type]
            lines.append(f"| {kind} | {len(found[1])} {of} | {chain} | {' | '.join((*means, *least))} |")
    return lines


def protecting_table(rows: list[dict[str, object]]) -> list[str]:
    """Return the table of what is protected."""
    lines = [
        "| masks | from rigid, mm at most | change of volume, at most | error in bones | in lungs | in the body "
        "| least det J |",
        "|---|---|---|---|---|---|---|",
    ]
    for masks in ("none", "rigid", "volume"):
        of = [row for row in _of(rows, masks=masks) if "from_rigid" in row]
        if of:
            worst = [max(float(row[what]) for row in of) for what in ("from_rigid", "volume")]  # type: ignore[arg-type]
            means = [np.mean([row[what] for row in of]) for what in ("in_bones", "in_lungs", "in_body")]
            least = min(row["least_det"] for row in of)
            lines.append(
                f"| {masks} | {worst[0]:.3g} | {worst[1]:.1%} | {' | '.join(f'{m:.2f}' for m in means)} | {least:.2f} |"
            )
    return lines


def _of(rows: list[dict[str, object]], **wanted: object) -> list[dict[str, object]]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _mean(rows: list[dict[str, object]], what: str) -> float:
    return float(np.mean([row[what] for row in rows]))


if __name__ == "__main__":
    sys.exit(main())
