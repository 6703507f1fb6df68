"""Instance optimisation: a displacement field improved on the very pair it is for.

What a network has found in one shot, a few steps of gradient descent make exact: B-splines are added to the field so
that self-similarity contexts agree. As in elastix, every step looks at some of the voxels only, so that its
time hardly depends on the image's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.networks.devices import find_device, limited_threads
from regnet_itk.networks.self_similarity import REACH, mind_features
from regnet_itk.networks.separable import along_axes
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.transforms.point_samplers import centred_bspline

VOXEL_SIZE = 1.5
"""mm. The images are compared on voxels of this size, if the memory is enough for it."""

SLICE_DISTANCE = 2.5
"""mm. Slices farther apart tell less of a displacement, and want it smoother."""

CONTROL_SPACING = 6.0
"""mm between the B-splines' control points."""

MARGIN = 24.0
"""mm around the region that are looked at as well: a displacement may lead there."""

_STEP_LENGTH = 0.15  # mm that a control point moves in the first steps; it falls to a fifth
_LAST_STEP = 0.2
_LEASH = 0.2  # weight of the length of what is added, against its bending: it ends where nothing is compared
_SAMPLES = 30_000  # voxels that a step looks at
_BYTES_PER_VOXEL = 115  # measured peak, both images' features and what they are made of
_BYTES = 200_000_000  # the same for what does not depend on the image


@dataclass(frozen=True)
class InstanceOptions:
    """How a field is improved.

    Parameters
    ----------
    iterations : int
        Steps of gradient descent.
    smoothness : float
        Weight of the bending of what is added, against the similarity.
    seed : int
        Of the voxels that the steps look at.
    device : str
        "auto" (CUDA, else Apple's GPU, else CPU), or a torch device.
    threads : int, optional
        CPU threads; all by default.
    scale : float
        Of all lengths: `VOXEL_SIZE`, `CONTROL_SPACING`, the steps. Below 1 for small organs on fine voxels.
    """

    iterations: int = 30
    smoothness: float = 0.02
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ParameterError(f"instance optimisation takes 0 steps or more, not {self.iterations}")
        if self.smoothness < 0:
            raise ParameterError(f"the smoothness of instance optimisation is 0 or more, not {self.smoothness}")


@dataclass(frozen=True)
class InstancePair:
    """What a field is improved on, all on one grid of cubic voxels, best of `VOXEL_SIZE` mm.

    Parameters
    ----------
    fixed, moving : Image
        In one unit.
    region : Image
        Boolean: where the images have to agree.
    known : Image
        Boolean: where the moving image is known. What would be compared with anything else is left out.
    intensity_range : tuple of float
        These values are scaled to 0 .. 1; what lies outside is clipped.
    further : tuple of (Image, Image)
        More fixed and moving images, on the same grid, that have to agree as well.
    """

    fixed: Image
    moving: Image
    region: Image
    known: Image
    intensity_range: tuple[float, float] = CHEST_CT.intensity_range
    further: tuple[tuple[Image, Image], ...] = ()

    @property
    def images(self) -> tuple[tuple[Image, Image], ...]:
        """All fixed images with their moving ones."""
        return ((self.fixed, self.moving), *self.further)


def smoothness_factor(*images: Image, scale: float = 1.0) -> float:
    """Tell how much more smoothness coarse images want.

    The fewer voxels lie within a B-spline's reach, the more of what it follows is noise.

    Parameters
    ----------
    *images : Image
        The images as they were given, before resampling to `VOXEL_SIZE`.
    scale : float
        Of all lengths, as :class:`InstanceOptions` has it.

    Returns
    -------
    float
        1 for images whose finest voxel side is at most `VOXEL_SIZE` and whose coarsest is at most `SLICE_DISTANCE`,
        else the sixth power of the larger ratio to these. Chosen by phantoms and deformed CTs on coarser voxels.
    """
    spacings = [image.grid.spacing for image in images]
    return max(1.0, *(max(min(s) / VOXEL_SIZE, max(s) / SLICE_DISTANCE) / scale for s in spacings)) ** 6


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
    stochastic gradient descent on voxels drawn anew in each step.
    """
    if not options.iterations or not pair.region.array.any():
        return start
    axes = start.grid.direction_matrix.astype(np.float32)
    along = np.ascontiguousarray(np.moveaxis(start.vectors @ axes, -1, 0), dtype=np.float32)
    with limited_threads(options.threads), torch.enable_grad():
        fit = _Fit(pair, start.grid, torch.from_numpy(along), options)
        progress(0.2)
        generator = np.random.default_rng(options.seed)
        for step in range(options.iterations):
            fit.improve(generator, step / options.iterations, options.smoothness)
            progress(0.2 + 0.8 * (step + 1) / options.iterations)
        added = fit.added_on_start()[0].cpu().numpy()
    return DisplacementField(start.vectors + np.moveaxis(added, 0, -1) @ axes.T, start.grid)


def _scaled(image: Image, intensity_range: tuple[float, float]) -> Tensor:
    low, high = intensity_range
    values = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
    return (values.clamp(low, high) - low) / (high - low)


def _dependable(known: Image) -> Tensor:
    """Return where the features depend on nothing but what is known."""
    unknown = torch.from_numpy(np.ascontiguousarray(~known.array.astype(bool), dtype=np.float32))[None]
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = 2 * REACH + 1, REACH
        unknown = functional.max_pool3d(unknown, window, stride=1, padding=padding)
    return unknown[0] < 0.5


class _Adam:
    """Adam (Kingma and Ba, ICLR 2015) for one tensor.

    The first use of torch's own loads its compiler, which takes as long as ten of these steps.
    """

    def __init__(self, parameter: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._parameter, self._betas, self._steps = parameter, betas, 0
        self._mean, self._square = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the parameter against its gradient, by about `rate`."""
        (first, second), self._steps = self._betas, self._steps + 1
        with torch.no_grad():
            self._mean.lerp_(gradient, 1.0 - first)
            self._square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
            spread = (self._square / (1.0 - second**self._steps)).sqrt_().add_(1e-8)
            self._parameter.addcdiv_(self._mean, spread, value=-rate / (1.0 - first**self._steps))


class _Fit:
    """B-splines that are added to a field; lengths in mm along the axes of the grids."""

    def __init__(self, pair: InstancePair, start: Grid, before: Tensor, options: InstanceOptions) -> None:
        device, self._scale = find_device(options.device), options.scale
        self.grid, self.start, self.before = pair.fixed.grid, start, before[None].to(device)
        self.fixed, self.moving = (
            torch.cat([mind_features(_scaled(i, pair.intensity_range).to(device)) for i in images], dim=-1)
            for images in zip(*pair.images, strict=True)
        )
        self.inside = torch.from_numpy(np.ascontiguousarray(pair.region.array, dtype=bool)).to(device)
        self.known = _dependable(pair.known).to(device)
        first = self.grid.direction_matrix.T @ (np.asarray(start.origin) - np.asarray(self.grid.origin))
        self._start_at = [  # mm from the first voxel of `grid`, for z, y, x
            first[axis] + start.spacing[axis] * np.arange(start.size[axis]) for axis in (2, 1, 0)
        ]
        self._counts = [int(np.ceil((n - 1) * self._spacing / self._between)) + 4 for n in self.grid.shape]
        self.control = torch.zeros(1, 3, *self._counts, device=device, requires_grad=True)
        self._adam = _Adam(self.control)
        self._stride = max(1, round((float(self.inside.sum()) / _SAMPLES) ** (1 / 3)))

    @property
    def _spacing(self) -> float:
        return self.grid.spacing[0]

    @property
    def _between(self) -> float:
        """Mm between control points."""
        return CONTROL_SPACING * self._scale

    def improve(self, generator: np.random.Generator, done: float, smoothness: float) -> None:
        """Take one step, looking at a lattice of voxels that begins somewhere else each time."""
        at = tuple(slice(int(o), None, self._stride) for o in generator.integers(0, self._stride, 3))
        chosen = self.inside[at].flatten().nonzero()[:, 0]
        lattice = [np.arange(n)[part] for n, part in zip(self.grid.shape, at, strict=True)]
        places = [self._spacing * index for index in lattice]
        u = along_axes(self.before, [self._linear(axis, place) for axis, place in enumerate(places)])
        u = u + along_axes(self.control, self._splines(places))
        u = u.flatten(2)[0][:, chosen] / self._spacing
        z, y, x = (torch.from_numpy(i.ravel()).to(u)[chosen] for i in np.meshgrid(*lattice, indexing="ij"))
        there = torch.stack([z + u[2], y + u[1], x + u[0]], dim=1)
        counts = self._known_at(there)
        if not counts.any():
            return
        unlike = _interpolated(self.moving, there[counts]) - self.fixed[at].flatten(0, 2)[chosen[counts]]
        rough = _bending(self.control) + _LEASH * self.control.square().mean()
        cost = unlike.square().mean() + smoothness / self._scale**2 * rough
        (gradient,) = torch.autograd.grad(cost, self.control)
        self._adam.step(gradient, self._scale * _STEP_LENGTH * (1.0 - (1.0 - _LAST_STEP) * done))

    def _known_at(self, index: Tensor) -> Tensor:
        """Say at which indices (n, 3) z, y, x the moving image is known."""
        nearest = index.detach().round().long()
        size = torch.tensor(self.known.shape, device=index.device)
        inside = ((nearest >= 0) & (nearest < size)).all(dim=1)
        z, y, x = torch.minimum(nearest.clamp(min=0), size - 1).unbind(dim=1)
        return inside & self.known[z, y, x]

    def added_on_start(self) -> Tensor:
        """Return the B-splines on the grid that the field is wanted on; zero where there is no control point."""
        with torch.no_grad():
            return along_axes(self.control, self._splines(self._start_at))

    def _splines(self, millimetres: list[FloatArray]) -> list[Tensor]:
        matrices = []
        for at, count in zip(millimetres, self._counts, strict=True):
            distance = at[:, None] / self._between - (np.arange(count) - 1.5)
            matrices.append(centred_bspline(torch.from_numpy(distance).float(), 3).to(self.control.device))
        return matrices

    def _linear(self, axis: int, millimetres: FloatArray) -> Tensor:
        """Return the matrix that interpolates the field so far at some places of an axis."""
        points, spacing = self._start_at[axis], self.start.spacing[2 - axis]
        index = np.clip((millimetres - points[0]) / spacing, 0, len(points) - 1)
        distance = torch.from_numpy(index[:, None] - np.arange(len(points))).float()
        return centred_bspline(distance, 1).to(self.control.device)


def _bending(control: Tensor) -> Tensor:
    """Return the mean squared second difference along each axis, in mm^2."""
    total = control.new_zeros(())
    for axis in (2, 3, 4):
        total = total + control.diff(n=2, dim=axis).square().mean()
    return total


def _interpolated(features: Tensor, index: Tensor) -> Tensor:
    """Interpolate features (z, y, x, c) linearly at indices (n, 3) z, y, x, and beyond the border take what is there.

    The features of a voxel lie side by side, which makes this several times faster than grid_sample.
    """
    shape = torch.tensor(features.shape[:3], device=index.device)
    index = torch.minimum(index.clamp(min=0.0), (shape - 1).to(index))
    low = torch.minimum(index.detach().floor().long(), (shape - 2).clamp(min=0))
    part = index - low
    rows, weights = [], []
    for corner in range(8):
        side = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=index.device)
        z, y, x = torch.minimum(low + side, shape - 1).unbind(dim=1)
        rows.append((z * shape[1] + y) * shape[2] + x)
        weights.append(torch.where(side > 0, part, 1.0 - part).prod(dim=1))
    return functional.embedding_bag(
        torch.stack(rows, dim=1), features.flatten(0, 2), per_sample_weights=torch.stack(weights, dim=1), mode="sum"
    )
