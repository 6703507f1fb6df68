"""Compiled loops against the operations that they stand for: ``python pipelines/kernel_benchmark.py``.

Each loop and Torch's, NumPy's or SimpleITK's operations do the same work in turns, on random numbers and on a chest
phantom, of the sizes that a chest of 300 x 300 x 300 voxels asks for. Prints a table in Markdown: the shortest time of
each in ms, how many times faster the loop is, and the largest difference of their results. Leave the machine alone
meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.coarse_to_fine import cube_of_offsets
from regnet_itk.networks.correlation import correlate, correlate_by_operations
from regnet_itk.networks.layers import warp, warp_by_operations
from regnet_itk.refinement.unfolding import least_determinants, least_determinants_by_operations
from regnet_itk.threads import bound_resampling
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.point_samplers import FieldSampler
from regnet_itk.transforms.resampling import resample_through
from regnet_itk.trust.costs import costs_by_operations, moved_costs

_EDGE = 300.0  # mm of the chest
_SHIFT = 6.0  # mm of the field


@dataclass(frozen=True)
class Contest:
    """The same work in two ways.

    Parameters
    ----------
    name : str
    loop, operations : callable
        Each returns an array of the same shape.
    """

    name: str
    loop: Callable[[], FloatArray]
    operations: Callable[[], FloatArray]


def chest(spacing: float, random: bool, seed: int = 1) -> Image:
    """Return a chest of 300 mm along each axis, or as many random numbers."""
    if not random:
        return make_phantom(seed, spacing=(spacing,) * 3, extent=(_EDGE,) * 3).fixed
    grid = Grid((round(_EDGE / spacing),) * 3, (spacing,) * 3)
    return Image(np.random.default_rng(seed).normal(-400.0, 300.0, grid.shape).astype(np.float32), grid)


def smooth_field(grid: Grid) -> DisplacementField:
    """Return a smooth displacement field."""
    rng, coarse = np.random.default_rng(0), grid.isotropic(20.0)
    u = np.stack([ndimage.gaussian_filter(rng.normal(size=coarse.shape), 1.5) for _ in range(3)], axis=-1)
    field = DisplacementField((_SHIFT * u / np.abs(u).max()).astype(np.float32), coarse)
    return DisplacementField(field.at(grid.points()).astype(np.float32), grid)


def contests(random: bool) -> Iterator[Contest]:
    """Yield all of them."""
    fine, coarse = chest(2.0, random), chest(4.0, random)
    u = smooth_field(fine.grid)
    yield _correlation(coarse)
    yield _warping(fine, u)
    yield _costs(coarse)
    edges = u.grid.index_to_point_matrix.astype(np.float32)
    yield Contest(
        "least det J of each cell", lambda: least_determinants(u.vectors, u.grid),
        lambda: least_determinants_by_operations(u.vectors, edges),
    )  # fmt: skip
    sampler, points = FieldSampler(u.vectors, u.grid), torch.from_numpy(fine.grid.points().reshape(-1, 3) + 0.7)
    yield Contest(
        "points through a field", lambda: sampler.map(points).numpy(), lambda: sampler.map_by_operations(points).numpy()
    )
    whole, chain = chest(1.25, random), TransformChain((Link(u),))
    composite = chain.to_sitk(whole.grid)
    yield Contest(
        "image through a field, cubic", lambda: resample_through(whole, chain, whole.grid, 3, -1000.0).array,
        lambda: whole.resampled(whole.grid, composite, 3, -1000.0).array,
    )  # fmt: skip


def _features(image: Image, channels: int) -> torch.Tensor:
    """Return features of unit length (channel, z, y, x): an image and what is around each voxel."""
    around = [np.roll(image.array, k + 1, axis=k % 3) for k in range(channels)]
    features = torch.from_numpy(np.stack(around).astype(np.float32))
    return functional.normalize(features - features.mean(), dim=0)


def _correlation(image: Image) -> Contest:
    fixed, moving = _features(image, 16)[None], _features(image, 17)[None, 1:].contiguous()
    offsets = cube_of_offsets(2)
    return Contest(
        "correlation with 125 neighbours", lambda: correlate(fixed, moving, offsets).numpy(),
        lambda: correlate_by_operations(fixed, moving, offsets).numpy(),
    )  # fmt: skip


def _warping(image: Image, u: DisplacementField) -> Contest:
    features = _features(image, 12)[None]
    shift = torch.from_numpy(np.moveaxis(u.vectors / u.grid.spacing[0], -1, 0))[None].float().contiguous()

    def loop() -> FloatArray:
        with torch.no_grad():
            return warp(features, shift).numpy()

    return Contest("warping 12 channels", loop, lambda: warp_by_operations(features, shift).numpy())


def _costs(image: Image) -> Contest:
    fixed, moving, offsets = _features(image, 12), _features(image, 13)[1:].contiguous(), cube_of_offsets(1)
    return Contest(
        "cost of 27 steps", lambda: moved_costs(fixed, moving, offsets, 2).numpy(),
        lambda: costs_by_operations(fixed, moving, offsets, 2).numpy(),
    )  # fmt: skip


def measure(contest: Contest, rounds: int) -> tuple[float, float, float]:
    """Return the shortest times in seconds of the loop and of the operations, and the largest difference."""
    times: tuple[list[float], list[float]] = ([], [])
    found = contest.loop(), contest.operations()
    for _ in range(rounds):
        for way, run in enumerate((contest.loop, contest.operations)):
            began = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - began)
    return min(times[0]), min(times[1]), float(np.abs(found[0] - found[1]).max())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
        bound_resampling(given.threads)
    print("| work | input | operations, ms | loop, ms | times faster | largest difference |\n|---|---|---|---|---|---|")
    for random in (True, False):
        for contest in contests(random):
            loop, operations, difference = measure(contest, given.rounds)
            print(
                f"| {contest.name} | {'random' if random else 'chest'} | {1e3 * operations:.0f} | {1e3 * loop:.0f} "
                f"| {operations / loop:.1f} | {difference:.1g} |", flush=True,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
