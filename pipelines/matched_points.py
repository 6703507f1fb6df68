"""Hold methods against matched points of a real pair: ``python pipelines/matched_points.py FIXED MOVING``.

Where no expert has placed landmarks, distinctive points of the fixed image inside ``--fixed-mask`` (Foerstner's
operator) are matched by the correlation of the patches around them, once from the result of each of ``--matchers``. A
point is kept if every one of them leads to the same place, and the patches correlate. That favours no method for being
smooth, but it is no ground truth: what all matchers get wrong together stays wrong, and points are where there is
structure. ``--methods``, which may be others, are then held against the points, and against those alone that the first
of them leaves within 8 mm; a method that is a matcher too is judged by what it helped to find. ``--out DIR`` gets the
points as landmarks of both images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from torch.nn import functional

from regnet_itk import register
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.errors import ImageError, RegNetItkError
from regnet_itk.transforms.chain import TransformChain

MATCHERS = ("bspline_3r", "regnet_multistage", "regnet_general")
METHODS = ("affine", "bspline_3r", "regnet", "regnet_multistage_oneshot", "regnet_multistage", "regnet_general")
_AIR = -1000.0
_TOGETHER = 64  # patches
_NEAR = 8.0  # mm; the paper's capture range


@dataclass(frozen=True)
class Matching:
    """How points are matched.

    Parameters
    ----------
    voxel_size : float
        mm; both images are looked at on such voxels.
    patch, search : float
        How far the patch reaches from its point, and how far around the matcher's result the match is looked for, mm.
    agreement : float
        mm; matches that lie further apart are dropped.
    correlation : float
        Patches that correlate less are dropped.
    apart, lead : float
        A patch whose correlation more than `apart` mm from the best place is not lower by `lead` fits in many places,
        along an edge for one, and is dropped.
    depth : float
        mm; points nearer to the mask's border are not tried: along the wall of the lungs a patch fits in many places.
    most : int
        Points that are tried.
    """

    voxel_size: float = 1.25
    patch: float = 6.25
    search: float = 5.0
    agreement: float = 0.7
    correlation: float = 0.7
    apart: float = 2.5
    lead: float = 0.1
    depth: float = 8.0
    most: int = 3000


@dataclass(frozen=True)
class MatchedPoints:
    """Points of the fixed image, where they are in the moving image, and how many were tried; mm, LPS, (n, 3)."""

    fixed: FloatArray
    moving: FloatArray
    tried: int


def match_points(
    fixed: Image, moving: Image, mask: Image, chains: list[TransformChain], how: Matching = Matching()
) -> MatchedPoints:
    """Match distinctive points of the fixed image in the moving one.

    Parameters
    ----------
    fixed, moving : Image
        Of CTs, in HU.
    mask : Image
        Where points are looked for, on the grid of the fixed image.
    chains : list of TransformChain
        What several methods found; matches that begin with them must agree.
    how : Matching

    Raises
    ------
    ImageError
        If no point inside the mask can be tried, or none is matched.
    """
    grid = fixed.grid.isotropic(how.voxel_size)
    image = fixed.resampled(grid, default=_AIR)
    index = _distinctive(image, mask.resampled(grid, order=0).array > 0, how)
    if not len(index):
        raise ImageError("there is no distinctive point inside the mask of the fixed image; give a larger mask")
    matches = []
    for chain in chains:
        warped = moving.resampled(grid, chain.to_sitk(grid), default=_AIR)
        moved = _best_shifts(image.array, warped.array, index, how)
        matches.append(chain.map_points(grid.index_to_point((index + moved)[:, ::-1])))
    every = np.stack(matches)
    apart = np.linalg.norm(every[:, None] - every[None], axis=-1).max(axis=(0, 1))
    agreed = apart <= how.agreement  # not so if one is NaN
    if not agreed.any():
        raise ImageError(f"none of {len(index)} points was matched alike from all {len(chains)} results; look at them")
    return MatchedPoints(grid.index_to_point(index[:, ::-1])[agreed], every.mean(axis=0)[agreed], len(index))


def _distinctive(image: Image, mask: np.ndarray, how: Matching) -> np.ndarray:
    """Return voxels z, y, x, shape (n, 3), around which a patch can lie in one way only."""
    smoothed = ndimage.gaussian_filter(np.clip(image.array, _AIR, 200.0), 0.8)
    z, y, x = np.gradient(smoothed)
    zz, yy, xx, zy, zx, yx = (
        ndimage.gaussian_filter(a * b, 1.5) for a, b in ((z, z), (y, y), (x, x), (z, y), (z, x), (y, x))
    )
    minors = yy * xx - yx**2 + zz * xx - zx**2 + zz * yy - zy**2
    determinant = zz * (yy * xx - yx**2) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    sharpness = determinant / (minors + 1.0)  # one over the trace of the structure tensor's inverse
    inner = ndimage.distance_transform_edt(mask) * how.voxel_size >= how.depth
    reach = round(how.patch / how.voxel_size) + round(how.search / how.voxel_size)
    found = peak_local_max(sharpness, min_distance=2, labels=inner, num_peaks=how.most, exclude_border=reach + 1)
    return np.asarray(found)


def _best_shifts(fixed: np.ndarray, warped: np.ndarray, index: np.ndarray, how: Matching) -> FloatArray:
    """Return the shifts z, y, x in voxels, (n, 3), at which patches correlate best; NaN where that is in doubt."""
    patch, search = (round(mm / how.voxel_size) for mm in (how.patch, how.search))
    shifts = []
    for first in range(0, len(index), _TOGETHER):
        part = index[first : first + _TOGETHER]
        still, wide = _cut(fixed, part, patch), _cut(warped, part, patch + search)
        scores = _correlations(torch.from_numpy(still), torch.from_numpy(wide)).numpy()
        shifts.append(_peaks(scores, how) - search)
    return np.concatenate(shifts)


def _cut(array: np.ndarray, index: np.ndarray, reach: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(array, (2 * reach + 1,) * 3)
    z, y, x = (index - reach).T
    return windows[z, y, x].astype(np.float32)


def _correlations(still: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Return how patches (n, p, p, p) correlate with each part of larger ones (n, q, q, q): (n, q - p + 1, ..)."""
    count, edge = len(still), still.shape[-1]
    still = still - still.mean(dim=(1, 2, 3), keepdim=True)
    wide = wide - wide.mean(dim=(1, 2, 3), keepdim=True)
    both = functional.conv3d(wide[None], still[:, None], groups=count)[0]
    mean, square = (functional.avg_pool3d(v[None], edge, stride=1)[0] for v in (wide, wide.square()))
    variance = (square - mean.square()).clamp(min=1.0) * edge**3
    return both / (variance * still.square().sum(dim=(1, 2, 3)).clamp(min=1.0)[:, None, None, None]).sqrt()


def _peaks(scores: np.ndarray, how: Matching) -> FloatArray:
    """Return the places (n, 3) of the highest scores (n, z, y, x), by parabolas along the axes.

    NaN where the score is low, at the border of what was searched (a higher one may lie beyond), and where others that
    are not near are almost as high.
    """
    numbers, shape = np.arange(len(scores)), scores.shape[1:]
    flat = scores.reshape(len(scores), -1)
    top = np.stack(np.unravel_index(flat.argmax(axis=1), shape), axis=1)
    best = flat.max(axis=1)
    inside = ((top > 0) & (top < np.array(shape) - 1)).all(axis=1)
    safe = np.clip(top, 1, np.array(shape) - 2)
    places = top.astype(float)
    for axis, step in enumerate(np.eye(3, dtype=int)):
        low, middle, high = (scores[numbers, *(safe + k * step).T] for k in (-1, 0, 1))
        places[:, axis] += 0.5 * (low - high) / np.minimum(low - 2.0 * middle + high, -1e-6)
    every = np.stack(np.unravel_index(np.arange(flat.shape[1]), shape), axis=1)
    away = np.linalg.norm(every - top[:, None], axis=-1) * how.voxel_size > how.apart
    others = np.where(away, flat, -1.0).max(axis=1)
    places[~inside | (best < how.correlation) | (best - others < how.lead)] = np.nan
    return places


@dataclass(frozen=True)
class _Registered:
    chain: TransformChain
    seconds: float


def _register_all(pair: dict[str, Image], names: list[str], threads: int | None) -> Iterator[tuple[str, _Registered]]:
    """Yield each method's result; all begin with the same affine stage, whose seconds are not counted."""
    masks = {f"{role}_mask": pair[f"{role}_mask"] for role in ("fixed", "moving")}
    begin = register(pair["fixed"], pair["moving"], "affine", threads=threads, **masks).chain
    for name in names:
        if name == "affine":
            yield name, _Registered(begin, 0.0)
            continue
        started = time.perf_counter()
        found = register(pair["fixed"], pair["moving"], name.split("+"), initial=begin, threads=threads, **masks)
        yield name, _Registered(found.chain, time.perf_counter() - started)


def _print_table(found: dict[str, _Registered], points: MatchedPoints) -> None:
    print(f"{len(points.fixed)} of {points.tried} points were matched\n")
    left = {
        name: np.linalg.norm(result.chain.map_points(points.fixed) - points.moving, axis=1)
        for name, result in found.items()
    }
    near = next(iter(left.values())) < _NEAR
    print(f"| method | seconds | distance, mm: mean / median / 95 % | mean of {near.sum()} that are near at first |")
    print("|---|---|---|---|")
    for name, off in left.items():
        shares = f"{off.mean():.2f} / {np.median(off):.2f} / {np.percentile(off, 95):.2f}"
        of_near = f"{off[near].mean():.2f}" if near.any() else ""
        print(f"| `{name}` | {found[name].seconds:.1f} | {shares} | {of_near} |")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for role in ("fixed", "moving"):
        parser.add_argument(role, type=Path)
        parser.add_argument(f"--{role}-mask", type=Path, required=True)
    parser.add_argument("--matchers", nargs="+", default=MATCHERS, help="parameter files, joined by + for chains")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as the matchers")
    parser.add_argument("--out", type=Path, help="folder for the points, as landmarks of both images")
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> int:
    """Match, judge and print."""
    given = _parse()
    try:
        roles = ("fixed", "moving", "fixed_mask", "moving_mask")
        pair = {role: read_image(getattr(given, role), role.replace("_", " ")) for role in roles}
        names = list(dict.fromkeys((*given.methods, *given.matchers)))
        found = dict(_register_all(pair, names, given.threads))
        chains = [found[name].chain for name in given.matchers]
        points = match_points(pair["fixed"], pair["moving"], pair["fixed_mask"], chains)
        _print_table({name: found[name] for name in given.methods}, points)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            for role in ("fixed", "moving"):
                write_landmarks(Landmarks(getattr(points, role)), given.out / f"{role}_landmarks.txt")
    except RegNetItkError as error:
        print(f"matched_points: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
