"""Clues to the error of a registration: what the images show of it at points on a coarse lattice.

All of them compare the fixed image with the warped one: how much their self-similarity contexts differ, whether they
would differ less if the warped image were moved, how sharp that minimum is, what structure there is to tell it by, and
how the transform bends. Nothing is asked of the method that found the transform, so that every chain can be judged. All
lengths are in working voxels, so that what was learnt holds for large and small bodies.
"""

from __future__ import annotations

import math
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
from regnet_itk.networks.resampling import resample_for_network
from regnet_itk.networks.self_similarity import REACH, mind_features
from regnet_itk.stages.ignored import Ignored
from regnet_itk.trust.costs import mean_around, moved_costs

if TYPE_CHECKING:
    import numpy.typing as npt

    from regnet_itk.transforms.chain import TransformChain

_VOXELS_WANTED = 1_500_000  # of the region's box
_SMALLEST = 0.5  # mm of a working voxel
_POOL = 2  # working voxels along an edge of the lattice's
_FAR = {"far": 2, "wide": 4, "widest": 8}  # working voxels of a step
_SEARCH = 2  # steps in all directions
_PERCENTILES = (1.0, 99.0)
_TEMPERATURE = 0.02  # of differences of self-similarity contexts
_LEAST_CURVATURE = 1e-3  # of the same
_DEEPEST = 20.0  # working voxels from a border, beyond which it does not matter

_LOCAL = (
    "difference", "gain_near", "shift_near", "common_shift_near", "sharpness", "sharpness_least",
    *(f"{what}_{where}" for where in _FAR for what in ("gain", "shift", "common_shift", "spread")),
    "structure", "structure_least", "correlation", "contrast",
    "log_determinant", "bending", "from_affine", "to_border", "to_moving_border",
)  # fmt: skip
_OF_ALL = (
    "difference",
    "common_shift_near",
    "common_shift_far",
    "common_shift_wide",
    "common_shift_widest",
    "correlation",
)
NAMES = (*_LOCAL, *(f"all_{name}" for name in _OF_ALL), *(f"worst_{name}" for name in _OF_ALL), "overlap", "coarsest")
"""What the columns of the clues are; from those of ``all_`` on they are the same everywhere in a pair: means, and the
values that a tenth of the lattice is worse than."""


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
    voxel_size : float
        mm of a working voxel.
    """

    grid: Grid
    values: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    voxel_size: float


def find_clues(
    fixed: Image, moving: Image, chain: TransformChain, region: Image | None = None, ignored: Ignored | None = None
) -> Clues:
    """Look for clues to the error of a transform.

    Parameters
    ----------
    fixed, moving : Image
        Of any contrast.
    chain : TransformChain
        Fixed to moving.
    region : Image, optional
        On any grid: where anything is to be said; the fixed image's foreground by default.
    ignored : Ignored, optional
        Where the images have nothing to compare, and nothing is said.

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.
    """
    region = region or _foreground(fixed)
    working = _working_grid(region, fixed.grid, moving.grid)
    lattice = _lattice(working)
    inside = _shown_on(region, lattice)
    transform = chain.to_sitk(working)
    known = _known(moving, working, transform)
    seen = [
        _scaled(resample_for_network(image, working, float(image.array.min()), by, averaged=True), where)
        for image, by, where in ((fixed, None, None), (moving, transform, known))
    ]
    overlap = inside & _pooled_least(known)
    valid = overlap
    if ignored is not None:
        hidden = ignored.in_fixed(working) | ignored.in_moving(working, transform)
        valid = overlap & _pooled_least(torch.from_numpy(~hidden))
    columns = {name: values.numpy() for name, values in (_compare(*seen) | _local_correlation(*seen)).items()}
    u = chain.displacement_on(lattice)
    columns |= _of_the_field(u, working.spacing[0])
    columns |= _borders(fixed, moving, u, working.spacing[0])
    shared = _of_all(columns, valid)
    shared["overlap"] = float(overlap.sum() / max(1, inside.sum()))
    shared["coarsest"] = max(*fixed.grid.spacing, *moving.grid.spacing) / working.spacing[0]
    values = np.stack([np.broadcast_to((columns | shared)[name], lattice.shape) for name in NAMES], axis=-1)
    return Clues(lattice, values.astype(np.float32), valid, working.spacing[0])


def _foreground(fixed: Image) -> Image:
    """Return what stands out of the fixed image, on voxels of 4 mm."""
    return Scan(fixed).find("foreground", fixed.grid.isotropic(max(4.0, min(fixed.grid.spacing))))


def _working_grid(region: Image, *grids: Grid) -> Grid:
    """Return the voxels on which images are compared: those of the region's box, no finer than the images' own.

    The largest steps fit into it a whole number of times.
    """
    shown = region.array > 0
    grid = region.grid.part(bounding_box(shown if shown.any() else np.ones_like(shown), 1))
    volume = float(np.prod(grid.spacing) * np.prod(grid.size))
    finest = min(float(np.prod(g.spacing)) ** (1 / 3) for g in grids)
    size = max(_SMALLEST, finest, (volume / _VOXELS_WANTED) ** (1 / 3))
    whole = max(_FAR.values())
    counts = [whole * math.ceil(n * s / size / whole) for n, s in zip(grid.size, grid.spacing, strict=True)]
    middle = grid.index_to_point([(n - 1) / 2 for n in grid.size])
    first = middle - size * np.asarray(grid.direction) @ [(n - 1) / 2 for n in counts]
    return Grid(tuple(counts), (size, size, size), tuple(first), grid.direction)


def _lattice(grid: Grid) -> Grid:
    """Return the grid of voxels that are `_POOL` times as long."""
    size = tuple(n // _POOL for n in grid.size)
    first = grid.index_to_point(np.full(3, (_POOL - 1) / 2))
    return Grid(size, tuple(s * _POOL for s in grid.spacing), tuple(first), grid.direction)  # type: ignore[arg-type]


def _shown_on(region: Image, grid: Grid) -> npt.NDArray[np.bool_]:
    shown = Image((region.array != 0).astype(np.uint8), region.grid)
    return np.asarray(shown.resampled(grid, order=0).array > 0)


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
    """Return means (channel, z, y, x) over cubes of twice the length."""
    return functional.avg_pool3d(values[None], _POOL)[0]


def _pooled_least(known: Tensor) -> npt.NDArray[np.bool_]:
    """Say which voxels of the lattice depend on nothing but what is known."""
    unknown = (~known).float()[None, None]
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * REACH + 1, REACH
        unknown = functional.max_pool3d(unknown, window, stride=1, padding=padding)
    return np.asarray(functional.max_pool3d(unknown, _POOL)[0, 0].numpy() < 0.5)


def _compare(fixed: Tensor, warped: Tensor) -> dict[str, Tensor]:
    """Compare self-similarity contexts where they are, and where they would be if the warped image moved."""
    a, b = (mind_features(image).movedim(-1, 0).contiguous() for image in (fixed, warped))
    found = _near(a, b)
    shape = found["difference"].shape
    a, b = _pooled(a), _pooled(b)
    for name, unit in _FAR.items():
        if unit > _POOL:
            a, b = _pooled(a), _pooled(b)
        told = _far(mean_around(moved_costs(a, b, cube_of_offsets(_SEARCH))), float(unit))
        found |= {f"{what}_{name}": _on_lattice(values, shape) for what, values in told.items()}
        if unit == _POOL:
            own = mean_around(moved_costs(a, a, cube_of_offsets(1)))
            others = torch.cat([own[: len(own) // 2], own[len(own) // 2 + 1 :]])
            found |= {"structure": others.mean(0), "structure_least": others.amin(0)}
    return found


def _near(fixed: Tensor, warped: Tensor) -> dict[str, Tensor]:
    """Tell how much features differ, where between the voxels they would differ least, and how sharp that is."""
    costs = mean_around(moved_costs(fixed, warped, cube_of_offsets(1), _POOL))
    rest = costs[_index_of((0, 0, 0))]
    shifts, sharpness = [], []
    for axis in range(3):
        step = tuple(int(other == axis) for other in range(3))
        ahead, back = costs[_index_of(step)], costs[_index_of(tuple(-s for s in step))]
        curvature = ahead + back - 2.0 * rest
        shifts.append((0.5 * (back - ahead) / curvature.clamp(min=_LEAST_CURVATURE)).clamp(-1.0, 1.0))
        sharpness.append(curvature)
    shift, sharp = torch.stack(shifts), torch.stack(sharpness)
    return {
        "difference": rest,
        "gain_near": rest - costs.amin(0),
        "shift_near": shift.norm(dim=0),
        "common_shift_near": mean_around(shift, 2).norm(dim=0),
        "sharpness": sharp.mean(0),
        "sharpness_least": sharp.amin(0),
    }


def _index_of(offset: tuple[int, ...]) -> int:
    return cube_of_offsets(1).index(offset)  # type: ignore[arg-type]


def _far(costs: Tensor, unit: float) -> dict[str, Tensor]:
    """Tell how much less the costs of some steps could be, where, and how sure that is; lengths in working voxels."""
    offsets = unit * torch.tensor(cube_of_offsets(_SEARCH)).float()
    rest, least = costs[len(offsets) // 2], costs.amin(0)
    weights = ((least - costs) / _TEMPERATURE).softmax(0)
    soft = torch.einsum("kzyx,ka->azyx", weights, offsets)
    square = torch.einsum("kzyx,k->zyx", weights, offsets.square().sum(1))
    return {
        "gain": rest - least,
        "shift": soft.norm(dim=0),
        "common_shift": mean_around(soft, 3).norm(dim=0),
        "spread": (square - soft.square().sum(0)).clamp(min=0.0).sqrt(),
    }


def _on_lattice(values: Tensor, shape: torch.Size) -> Tensor:
    """Return values of larger voxels on the lattice."""
    if values.shape == shape:
        return values
    return functional.interpolate(values[None, None], size=shape, mode="trilinear", align_corners=False)[0, 0]


def _local_correlation(fixed: Tensor, warped: Tensor) -> dict[str, Tensor]:
    """Return squared correlations over cubes of 5 voxels of the lattice, and how much the fixed image varies there."""

    def mean(values: Tensor) -> Tensor:
        return mean_around(_pooled(values[None])[0], 2)

    f, w = mean(fixed), mean(warped)
    ff, ww, fw = mean(fixed**2) - f**2, mean(warped**2) - w**2, mean(fixed * warped) - f * w
    correlation = fw.square() / (ff * ww).clamp(min=1e-8)
    return {"correlation": correlation.clamp(0.0, 1.0), "contrast": ff.clamp(min=0.0).sqrt()}


def _of_the_field(u: DisplacementField, unit: float) -> dict[str, FloatArray]:
    """Return how the transform stretches, bends, and how far it is from the affine one that fits best."""
    determinant = u.jacobian_determinant()
    smooth = np.stack(np.gradient(u.vectors, axis=(0, 1, 2)), axis=-1) / u.grid.spacing[0]
    second = np.sum([np.gradient(smooth[..., axis], axis=axis) ** 2 for axis in range(3)], axis=0)
    points = u.grid.points().reshape(-1, 3)
    design = np.column_stack([points - points.mean(0), np.ones(len(points))])
    step = max(1, len(points) // 20_000)
    fitted = np.linalg.lstsq(design[::step], u.vectors.reshape(-1, 3)[::step], rcond=None)[0]
    rest = u.vectors.reshape(-1, 3) - design @ fitted
    return {
        "log_determinant": np.log(np.clip(determinant, 0.05, 20.0)),
        "bending": np.sqrt(second.sum(-1)),
        "from_affine": np.linalg.norm(rest, axis=1).reshape(u.grid.shape) / unit,
    }


def _borders(fixed: Image, moving: Image, u: DisplacementField, unit: float) -> dict[str, FloatArray]:
    """Return how far it is to where an image ends, on both sides."""
    points = u.grid.points()
    return {
        "to_border": np.minimum(_depth(fixed.grid, points) / unit, _DEEPEST),
        "to_moving_border": np.minimum(_depth(moving.grid, points + u.vectors) / unit, _DEEPEST),
    }


def _depth(grid: Grid, points: FloatArray) -> FloatArray:
    """Return the mm to the nearest side of a grid; 0 outside."""
    index = grid.point_to_index(points)
    inside = np.minimum(index, np.array(grid.size) - 1 - index) * np.array(grid.spacing)
    return np.maximum(inside.min(-1), 0.0)


def _of_all(columns: dict[str, FloatArray], valid: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return what holds for the whole pair: means, and what a tenth of the lattice is worse than."""
    found = {}
    for name in _OF_ALL:
        there = columns[name][valid]
        share = 10.0 if name == "correlation" else 90.0
        found[f"all_{name}"] = float(there.mean()) if there.size else 0.0
        found[f"worst_{name}"] = float(np.percentile(there, share)) if there.size else 0.0
    return found
