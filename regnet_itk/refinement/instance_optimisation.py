"""Instance optimisation: a displacement field improved on the very pair it is for.

What a network has found in one shot, a few steps of gradient descent make exact: B-splines are added to the field so
that self-similarity contexts agree, and the images share information. B-splines of several sizes can follow one
another, the widest first. As in elastix, every step looks at some of the voxels only, so that its time hardly depends
on the image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid, cut_slabs
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.networks.devices import find_device, limited_threads
from regnet_itk.networks.interpolation import interpolate
from regnet_itk.refinement.added_splines import AddedSplines
from regnet_itk.refinement.agreement import Agreement, InstancePair
from regnet_itk.refinement.terms import Term

VOXEL_SIZE = 1.5
"""mm. The images are compared on voxels of this size, if the memory is enough for it."""

SLICE_DISTANCE = 2.5
"""mm. Slices farther apart tell less of a displacement, and want it smoother."""

CONTROL_SPACING = 6.0
"""mm between the control points of the last B-splines."""

MARGIN = 24.0
"""mm around the region that are looked at as well: a displacement may lead there."""

_STEP_LENGTH = 0.3  # mm that a control point moves in the first steps
_LAST_STEP = 0.1  # of the first one
_LEASH = 0.2  # weight of the length of what is added, against its bending: it ends where nothing is compared
_BYTES_PER_VOXEL = 130  # measured peak, both images' features and what they are made of
_SLAB_VOXELS = 400_000  # composed at once
_BYTES = 200_000_000  # the same for what does not depend on the image


@dataclass(frozen=True)
class InstanceOptions:
    """How a field is improved.

    Parameters
    ----------
    iterations : tuple of int
        Steps of gradient descent, one number for each size of B-splines: the last ones' control points lie
        `CONTROL_SPACING` apart, those before them twice as far, and so on.
    smoothness : float
        Weight of the bending of what is added, against the differences of the self-similarity contexts.
    information : float
        Weight of the mutual information, against the same.
    seed : int
        Of the voxels that the steps look at.
    device : str
        "auto" (CUDA, else Apple's GPU, else CPU), or a torch device.
    threads : int, optional
        CPU threads; all by default.
    scale : float
        Of all lengths: `VOXEL_SIZE`, `CONTROL_SPACING`, the steps. Below 1 for small organs on fine voxels.
    """

    iterations: tuple[int, ...] = (30,)
    smoothness: float = 0.02
    information: float = 0.0
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if any(steps < 0 for steps in self.iterations):
            raise ParameterError(f"instance optimisation takes 0 steps or more, not {min(self.iterations)}")
        for name in ("smoothness", "information"):
            if getattr(self, name) < 0:
                raise ParameterError(f"the {name} of instance optimisation is 0 or more, not {getattr(self, name)}")


def smoothness_factor(*images: Image) -> float:
    """Tell how much more smoothness coarse images want.

    The fewer voxels lie within a B-spline's reach, the more of what it follows is noise.

    Parameters
    ----------
    *images : Image
        The images as they were given, before resampling to `VOXEL_SIZE`.

    Returns
    -------
    float
        1 for images whose finest voxel side is at most `VOXEL_SIZE` and whose coarsest is at most `SLICE_DISTANCE`,
        else the sixth power of the larger ratio to these. Chosen by phantoms and deformed CTs on coarser voxels.
    """
    spacings = [image.grid.spacing for image in images]
    return max(1.0, *(max(min(s) / VOXEL_SIZE, max(s) / SLICE_DISTANCE) for s in spacings)) ** 6


def voxel_size_within(memory: float, voxels: int, voxel_size: float = VOXEL_SIZE) -> float:
    """Return the size in mm of the voxels that a memory budget is enough for.

    Parameters
    ----------
    memory : float
        GB.
    voxels : int
        How many voxels of `voxel_size` there would be.
    voxel_size : float
        The smallest that is wanted.

    Raises
    ------
    ParameterError
        If so little memory is not enough for any.
    """
    left = memory * 1e9 - _BYTES
    if left <= 0:
        raise ParameterError(
            f"a memory budget of {memory} GB is too small for instance optimisation; "
            f"(RegNetMemoryBudget {_BYTES / 1e9 + 0.1:g}) is the least"
        )
    return voxel_size * max(1.0, (voxels * _BYTES_PER_VOXEL / left) ** (1 / 3))


def optimise_field(
    pair: InstancePair,
    start: DisplacementField,
    options: InstanceOptions = InstanceOptions(),
    progress: Callable[[float], None] = lambda _: None,
    terms: Sequence[Term] = (),
) -> DisplacementField:
    """Improve u with fixed(x) = moving(x + u(x)) inside a region.

    Parameters
    ----------
    pair : InstancePair
    start : DisplacementField
        u so far, mm, on a grid with the same axes as the pair's.
    options : InstanceOptions
    progress : callable
        Is given the fraction that is done.
    terms : sequence of Term
        What else counts beside the images' agreement.

    Returns
    -------
    DisplacementField
        On the grid of `start`. What is added fades out where nothing is compared.

    Raises
    ------
    ParameterError
        If the device is not there.

    References
    ----------
    Siebert, Hansen and Heinrich, "Fast 3D registration with accurate optimisation and little learning for Learn2Reg
    2021" (convexAdam), for Adam on self-similarity contexts; Klein, Staring and Pluim, "Evaluation of optimization
    methods for nonrigid medical image registration using mutual information and B-splines", IEEE TIP 2007, for
    stochastic gradient descent on voxels drawn anew in each step, and mutual information.
    """
    if not any(options.iterations) or not (terms or pair.region.array.any()):
        return start
    axes = start.grid.direction_matrix.astype(np.float32)
    along = np.ascontiguousarray(start.vectors @ axes, dtype=np.float32)
    with limited_threads(options.threads), torch.enable_grad():
        found = _improve(pair, start.grid, torch.from_numpy(along), options, progress, terms=terms).cpu().numpy()
    return DisplacementField(start.vectors + (found - along) @ axes.T, start.grid)


def _improve(
    pair: InstancePair,
    grid: Grid,
    field: Tensor,
    options: InstanceOptions,
    progress: Callable[[float], None],
    *,
    terms: Sequence[Term],
) -> Tensor:
    """Compose a field (z, y, x, component), mm along its grid, with B-splines of one size after the other."""
    device = find_device(options.device)
    field = field.to(device)
    agreement = Agreement(pair, device)
    progress(0.2)
    random = np.random.default_rng(options.seed)
    done, levels = 0, len(options.iterations)
    for level, steps in enumerate(options.iterations):
        scale = options.scale * 2 ** (levels - 1 - level)
        splines = AddedSplines(pair.fixed.grid, CONTROL_SPACING * scale, device)
        at = partial(_displacement_at, splines, field, grid, pair.fixed.grid)
        for step in range(steps):
            drawn = agreement.draw(random)
            added = splines.at_drawn(drawn)
            u = added + interpolate(field, moved_index(grid, pair.fixed.grid, drawn.index, added))
            costs = [term.cost(at).to(device) for term in terms]
            unlike = agreement.difference(drawn, u, options.information)
            if unlike is not None:
                costs = [unlike, *costs]
            if costs:
                rough = splines.bending() + _LEASH * splines.length()
                rate = scale * _STEP_LENGTH * (1.0 - (1.0 - _LAST_STEP) * step / steps)
                splines.descend(torch.stack(costs).sum() + options.smoothness / scale**2 * rough, rate)
            done += 1
            progress(0.2 + 0.8 * done / sum(options.iterations))
        field = _composed(field, splines.on(grid), grid)
    return field


def _displacement_at(splines: AddedSplines, field: Tensor, grid: Grid, seen: Grid, index: Tensor) -> Tensor:
    """Return u at indices (n, 3) of the grid `seen`: what is added, and the field so far, on `grid`, where it leads."""
    added = splines.at(index.to(field))
    return (added + interpolate(field, moved_index(grid, seen, index.to(field), added))).to(index.device)


def moved_index(grid: Grid, seen: Grid, index: Tensor, added: Tensor) -> Tensor:
    """Return where indices of a grid are on another one with the same axes, once they are moved.

    Parameters
    ----------
    grid : Grid
        Where they are wanted.
    seen : Grid
        Where they are.
    index : Tensor, shape (n, 3)
        z, y, x.
    added : Tensor, shape (n, 3)
        By how much they are moved: x, y, z in mm along the axes.
    """
    first = np.asarray(grid.point_to_index(seen.origin))[::-1].copy()
    step = (np.asarray(seen.spacing) / np.asarray(grid.spacing))[::-1].copy()
    there = torch.from_numpy(first).to(index) + index * torch.from_numpy(step).to(index)
    return there + added.flip(1) / there.new_tensor(grid.spacing[::-1])


def _composed(field: Tensor, added: Tensor, grid: Grid) -> Tensor:
    """Return added(x) + field(x + added(x)), all (z, y, x, component) on a grid, mm along its axes."""
    found, voxels = torch.empty_like(field), added.new_tensor(grid.spacing[::-1])
    for slab in cut_slabs(grid.shape, _SLAB_VOXELS):
        part = added[slab]
        axes = [torch.arange(float(slab.start), slab.stop), *(torch.arange(float(n)) for n in grid.shape[1:])]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(part) + part.flip(3) / voxels
        found[slab] = part + interpolate(field, index.flatten(0, 2)).view_as(part)
    return found
