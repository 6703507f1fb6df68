"""Clues to the error of a registration: what the images show of it at points on a coarse lattice.

All of them compare the fixed image with the warped one: how much their self-similarity contexts differ, whether they
would differ less if the warped image were moved, how sharp that minimum is, what structure there is to tell it by, and
how the transform bends. Nothing is asked of the method that found the transform, so that every chain can be judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.networks.coarse_to_fine import cube_of_offsets
from regnet_itk.networks.correlation import correlate
from regnet_itk.networks.resampling import resample_for_network
from regnet_itk.networks.self_similarity import CHANNELS, REACH, mind_features

if TYPE_CHECKING:
    import numpy.typing as npt

    from regnet_itk.transforms.chain import TransformChain

_VOXELS_WANTED = 1_500_000  # of the region's box
_VOXEL_SIZES = (1.0, 2.5)  # mm
_POOL = 2  # working voxels along an edge of the lattice's
_SEARCH = 2  # lattice voxels in all directions
_PERCENTILES = (1.0, 99.0)
_SLAB_VALUES = 20_000_000  # of the cost volume, at once
_TEMPERATURE = 0.02  # of differences of self-similarity contexts

NAMES = (
    "difference", "difference_around", "could_be_less_far", "less_at_far", "soft_far", "spread_far",
    "could_be_less_near", "soft_near", "structure", "structure_least", "correlation", "contrast",
    "log_determinant", "bending", "from_affine", "to_border", "to_moving_border",
    "all_difference", "all_could_be_less", "all_soft_far", "all_correlation", "all_overlap", "voxel_size", "coarsest",
)  # fmt: skip
"""What the columns of the clues are; those of ``all_`` are the same everywhere in a pair. Lengths in mm."""


@dataclass(frozen=True, eq=False)
class Clues:
    """What the images show of a registration's error.

    Parameters
    ----------
    grid : Grid
        The lattice.
    values : ndarray, shape (z, y, x, len(NAMES)), float32
    known : ndarray, shape (z, y, x), bool
        Where anything can be said: inside the region, and where T leads into the moving image.
    """

    grid: Grid
    values: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]


def find_clues(fixed: Image, moving: Image, chain: TransformChain, region: Image | None = None) -> Clues:
    """Look for clues to the error of a transform.

    Parameters
    ----------
    fixed, moving : Image
        Of any contrast.
    chain : TransformChain
        Fixed to moving.
    region : Image, optional
        On the fixed image's grid: where anything is to be said; its foreground by default.

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.
    """
    working = _working_grid(fixed, region)
    lattice = _lattice(working)
    inside = _region_on(fixed, region, lattice)
    u = chain.displacement_on(lattice)
    transform = chain.to_sitk(working)
    known = _known(moving, working, transform)
    seen = [
        _scaled(resample_for_network(image, working, float(image.array.min()), by, averaged=True), where)
        for image, by, where in ((fixed, None, None), (moving, transform, known))
    ]
    valid = inside & _pooled_least(known)
    columns = _compare(*seen, working.spacing[0])
    columns |= _local_correlation(*seen)
    columns |= _of_the_field(u)
    columns |= _borders(fixed, moving, lattice, u)
    columns |= _of_all(columns, valid, inside, working, fixed, moving)
    values = np.stack([np.broadcast_to(columns[name], lattice.shape) for name in NAMES], axis=-1)
    return Clues(lattice, values.astype(np.float32), valid)


def _working_grid(fixed: Image, region: Image | None) -> Grid:
    """Return the voxels on which images are compared: those of the region's box, a multiple of the lattice's."""
    coarse = fixed.grid.isotropic(max(4.0, min(fixed.grid.spacing)))
    found = _region_on(fixed, region, coarse)
    box = bounding_box(found if found.any() else np.ones_like(found), 2)
    grid = coarse.part(box)
    volume = float(np.prod(grid.spacing) * np.prod(grid.size))
    size = float(np.clip((volume / _VOXELS_WANTED) ** (1 / 3), *_VOXEL_SIZES))
    return grid.isotropic(size)


def _lattice(grid: Grid) -> Grid:
    """Return the grid of voxels that are `_POOL` times as long; what is left over at the ends is dropped."""
    size = tuple(n // _POOL for n in grid.size)
    first = grid.index_to_point(np.full(3, (_POOL - 1) / 2))
    return Grid(size, tuple(s * _POOL for s in grid.spacing), tuple(first), grid.direction)  # type: ignore[arg-type]


def _region_on(fixed: Image, region: Image | None, grid: Grid) -> npt.NDArray[np.bool_]:
    if region is None:
        return Scan(fixed).find("foreground", grid).array > 0
    shown = Image((region.array != 0).astype(np.uint8), region.grid)
    return shown.resampled(grid, order=0).array > 0


def _known(moving: Image, grid: Grid, transform: object) -> Tensor:
    everywhere = Image(np.ones(moving.grid.shape, dtype=np.uint8), moving.grid)
    return torch.from_numpy(everywhere.resampled(grid, transform, order=0).array > 0)


def _scaled(image: Image, where: Tensor | None) -> Tensor:
    """Return an image with its percentiles, of what is known, at 0 and 1."""
    values = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
    chosen = values.numpy()[::2, ::2, ::2] if where is None else values[where].numpy()[::5]
    low, high = np.percentile(chosen, _PERCENTILES) if chosen.size else (0.0, 1.0)
    return ((values - float(low)) / max(float(high - low), 1e-6)).clamp(0.0, 1.0)


def _pooled(values: Tensor) -> Tensor:
    """Return means (channel, z, y, x) over the voxels of the lattice."""
    return functional.avg_pool3d(values[None], _POOL)[0]


def _pooled_least(known: Tensor) -> npt.NDArray[np.bool_]:
    """Say which voxels of the lattice depend on nothing but what is known."""
    unknown = (~known).float()[None, None]
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * REACH + 1, REACH
        unknown = functional.max_pool3d(unknown, window, stride=1, padding=padding)
    return functional.max_pool3d(unknown, _POOL)[0, 0].numpy() < 0.5


def _compare(fixed: Tensor, warped: Tensor, spacing: float) -> dict[str, FloatArray]:
    """Compare self-similarity contexts where they are, and where they would be if the warped image moved."""
    a, b = (mind_features(image).movedim(-1, 0).contiguous() for image in (fixed, warped))
    near = _moved_costs(a, b, 1, spacing)
    far = _moved_costs(_pooled(a), _pooled(b), _SEARCH, spacing * _POOL)
    own = _moved_costs(_pooled(a), _pooled(a), 1, spacing * _POOL, own=True)
    found = {
        "difference": _pooled(((a - b) ** 2).mean(0, keepdim=True))[0],
        "difference_around": far["at_rest"],
        "could_be_less_far": far["gain"],
        "less_at_far": far["at"],
        "soft_far": far["soft"],
        "spread_far": far["spread"],
        "could_be_less_near": _pooled(near["gain"][None])[0],
        "soft_near": _pooled(near["soft"][None])[0],
        "structure": own["mean"],
        "structure_least": own["least"],
    }
    return {name: values.numpy() for name, values in found.items()}


def _moved_costs(fixed: Tensor, moving: Tensor, radius: int, spacing: float, own: bool = False) -> dict[str, Tensor]:
    """Return what the mean squared difference of features would be if one image moved by up to some voxels.

    Parameters
    ----------
    fixed, moving : Tensor, shape (channel, z, y, x)
    radius : int
        Voxels.
    spacing : float
        mm of a voxel.
    own : bool
        Whether to tell of all steps but none: of an image against itself.
    """
    offsets = cube_of_offsets(radius)
    rest = len(offsets) // 2
    lengths = spacing * torch.tensor(offsets).float().norm(dim=1).view(-1, 1, 1, 1)
    rows = max(1, _SLAB_VALUES // (len(offsets) * fixed[0, 0].numel()))
    halo, parts = radius + 1, []
    for start in range(0, fixed.shape[1], rows):
        low, high = max(0, start - halo), min(fixed.shape[1], start + rows + halo)
        f, m = fixed[:, low:high], moving[:, low:high]
        cost = _costs(f, m, offsets)[:, start - low : start - low + rows]
        parts.append(_told_own(cost, rest) if own else _told(cost, rest, lengths))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _costs(fixed: Tensor, moving: Tensor, offsets: list[tuple[int, int, int]]) -> Tensor:
    """Return mean squared differences (offset, z, y, x) over 3x3x3 voxels; beyond the border those of no step."""
    products = correlate(fixed[None], moving[None], offsets)[0]
    squares = functional.pad(moving.square().sum(0)[None, None], [max(map(max, offsets))] * 6, value=float("nan"))[0, 0]
    of_fixed = fixed.square().sum(0)
    reach, shape = max(map(max, offsets)), of_fixed.shape
    for k, (dz, dy, dx) in enumerate(offsets):
        z, y, x = dz + reach, dy + reach, dx + reach
        there = squares[z : z + shape[0], y : y + shape[1], x : x + shape[2]]
        products[k] = (of_fixed + there - 2.0 * products[k]) / len(fixed)
    rest = products[len(offsets) // 2].clone()
    costs = torch.where(products.isnan(), rest, products).clamp_(min=0.0)
    for axis in (1, 2, 3):
        costs = _mean_of_three(costs, axis)
    return costs


def _mean_of_three(values: Tensor, axis: int) -> Tensor:
    """Average with both neighbours along an axis: several times faster than pooling of many channels."""
    count = values.shape[axis]
    found = values.clone()
    found.narrow(axis, 1, count - 1).add_(values.narrow(axis, 0, count - 1))
    found.narrow(axis, 0, count - 1).add_(values.narrow(axis, 1, count - 1))
    found.narrow(axis, 0, 1).add_(values.narrow(axis, 0, 1))
    found.narrow(axis, count - 1, 1).add_(values.narrow(axis, count - 1, 1))
    return found.div_(3.0)


def _told(cost: Tensor, rest: int, lengths: Tensor) -> dict[str, Tensor]:
    """Return what the costs of all steps say: how much less one could be, which one, how sure that is."""
    least, at = cost.min(0)
    weights = (-cost / _TEMPERATURE).softmax(0)
    soft = (weights * lengths).sum(0)
    return {
        "at_rest": cost[rest],
        "gain": cost[rest] - least,
        "at": lengths.flatten()[at],
        "soft": soft,
        "spread": ((weights * lengths**2).sum(0) - soft**2).clamp(min=0.0).sqrt(),
    }


def _told_own(cost: Tensor, rest: int) -> dict[str, Tensor]:
    others = torch.cat([cost[:rest], cost[rest + 1 :]])
    return {"mean": others.mean(0), "least": others.amin(0)}


def _local_correlation(fixed: Tensor, warped: Tensor) -> dict[str, FloatArray]:
    """Return squared correlations over cubes of 5 voxels of the lattice, and how much the fixed image varies there."""

    def mean(values: Tensor) -> Tensor:
        pooled = functional.avg_pool3d(values[None, None], _POOL)
        return functional.avg_pool3d(pooled, 5, stride=1, padding=2, count_include_pad=False)[0, 0]

    f, w = mean(fixed), mean(warped)
    ff, ww, fw = mean(fixed**2) - f**2, mean(warped**2) - w**2, mean(fixed * warped) - f * w
    correlation = fw.square() / (ff * ww).clamp(min=1e-8)
    return {"correlation": correlation.clamp(0.0, 1.0).numpy(), "contrast": ff.clamp(min=0.0).sqrt().numpy()}


def _of_the_field(u: DisplacementField) -> dict[str, FloatArray]:
    """Return how the transform stretches, bends, and how far it is from the affine one that fits best."""
    determinant = u.jacobian_determinant()
    smooth = np.stack(np.gradient(u.vectors, axis=(0, 1, 2)), axis=-1) / u.grid.spacing[0]
    second = sum(np.gradient(smooth[..., axis], axis=axis) ** 2 for axis in range(3))
    points = u.grid.points().reshape(-1, 3)
    design = np.column_stack([points - points.mean(0), np.ones(len(points))])
    step = max(1, len(points) // 20_000)
    fitted = np.linalg.lstsq(design[::step], u.vectors.reshape(-1, 3)[::step], rcond=None)[0]
    rest = u.vectors.reshape(-1, 3) - design @ fitted
    return {
        "log_determinant": np.log(np.clip(determinant, 0.05, 20.0)),
        "bending": np.sqrt(second.sum(-1)),
        "from_affine": np.linalg.norm(rest, axis=1).reshape(u.grid.shape),
    }


def _borders(fixed: Image, moving: Image, lattice: Grid, u: DisplacementField) -> dict[str, FloatArray]:
    """Return how many mm it is to where an image ends, 40 at most, on both sides."""
    points = lattice.points()
    return {
        "to_border": _depth(fixed.grid, points),
        "to_moving_border": _depth(moving.grid, points + u.vectors),
    }


def _depth(grid: Grid, points: FloatArray) -> FloatArray:
    index = grid.point_to_index(points)
    inside = np.minimum(index, np.array(grid.size) - 1 - index) * np.array(grid.spacing)
    return np.clip(inside.min(-1), -5.0, 40.0)


def _of_all(
    columns: dict[str, FloatArray], valid: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_], working: Grid,
    fixed: Image, moving: Image,
) -> dict[str, float]:  # fmt: skip
    """Return what holds for the whole pair."""

    def mean(name: str) -> float:
        return float(columns[name][valid].mean()) if valid.any() else 0.0

    return {
        "all_difference": mean("difference"),
        "all_could_be_less": mean("could_be_less_far"),
        "all_soft_far": mean("soft_far"),
        "all_correlation": mean("correlation"),
        "all_overlap": float(valid.sum() / max(1, inside.sum())),
        "voxel_size": working.spacing[0],
        "coarsest": max(*fixed.grid.spacing, *moving.grid.spacing),
    }
