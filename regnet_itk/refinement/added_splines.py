"""Cubic B-splines that a displacement field is composed with, moved by gradient descent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.networks.separable import along_axes
from regnet_itk.refinement.agreement import Drawn
from regnet_itk.transforms.point_samplers import centred_bspline

_LARGEST = 0.4
"""Of the distance between control points: as far as one may move and the B-splines cannot fold."""


class AddedSplines:
    """Cubic B-splines over a grid, zero at first, that never fold; displacements in mm along the axes of the grid.

    Their control points are kept closer than what Choi and Lee, "Injectivity conditions of 2D and 3D uniform cubic
    B-spline functions", Graphical Models 2000, found to be enough for that: the distance between them over 2.48.

    Parameters
    ----------
    grid : Grid
        With cubic voxels.
    between : float
        mm between control points.
    device : torch.device
    """

    def __init__(self, grid: Grid, between: float, device: torch.device) -> None:
        self._grid, self._between = grid, between
        self._counts = [int(np.ceil((n - 1) * grid.spacing[0] / between)) + 4 for n in grid.shape]
        self._control = torch.zeros(1, 3, *self._counts, device=device, requires_grad=True)
        self._adam = _Adam(self._control)

    def at_drawn(self, drawn: Drawn) -> Tensor:
        """Return the displacement (n, 3) x, y, z of voxels of the grid."""
        on_lattice = self._at([self._grid.spacing[0] * index for index in drawn.lattice])
        return on_lattice.flatten(2)[0].T[drawn.chosen]

    def at(self, index: Tensor) -> Tensor:
        """Return the displacement (n, 3) x, y, z at indices (n, 3) z, y, x of the grid; 0 beyond the control points."""
        place = index * (self._grid.spacing[0] / self._between) + 0.5
        first = place.detach().floor().long()  # of the 4 control points along each axis that reach here
        counts = torch.tensor(self._counts, device=index.device)
        rows, weights = first.new_zeros(len(index), 1), index.new_ones(len(index), 1)
        for axis in range(3):
            numbers = first[:, axis, None] + torch.arange(4, device=index.device)
            there = (numbers >= 0) & (numbers < counts[axis])
            near = centred_bspline(place[:, axis, None] - (numbers - 1).to(place), 3) * there
            numbers = numbers.clamp(min=0).minimum(counts[axis] - 1)
            rows = (rows[:, :, None] * counts[axis] + numbers[:, None]).flatten(1)
            weights = (weights[:, :, None] * near[:, None]).flatten(1)
        return functional.embedding_bag(rows, self._control[0].flatten(1).T, per_sample_weights=weights, mode="sum")

    def on(self, grid: Grid) -> Tensor:
        """Return the displacement (z, y, x, component) on a grid with the same axes; 0 where no control point is."""
        first = self._grid.direction_matrix.T @ (np.asarray(grid.origin) - np.asarray(self._grid.origin))
        places = [first[axis] + grid.spacing[axis] * np.arange(grid.size[axis]) for axis in (2, 1, 0)]
        with torch.no_grad():
            return self._at(places)[0].movedim(0, -1)

    def _at(self, places: list[FloatArray]) -> Tensor:
        """Return the displacement on planes along z, y, x, in mm from the grid's first voxel."""
        matrices = []
        for at, count in zip(places, self._counts, strict=True):
            distance = at[:, None] / self._between - (np.arange(count) - 1.5)
            matrices.append(centred_bspline(torch.from_numpy(distance).float(), 3).to(self._control.device))
        return along_axes(self._control, matrices)

    def bending(self) -> Tensor:
        """Return the mean squared second difference along each axis, in mm^2."""
        total = self._control.new_zeros(())
        for axis in (2, 3, 4):
            total = total + self._control.diff(n=2, dim=axis).square().mean()
        return total

    def length(self) -> Tensor:
        """Return the mean squared control point, in mm^2."""
        return self._control.square().mean()

    def descend(self, cost: Tensor, rate: float) -> None:
        """Move the control points against the gradient of a cost, by about `rate` mm."""
        (gradient,) = torch.autograd.grad(cost, self._control)
        self._adam.step(gradient, rate)
        largest = _LARGEST * self._between
        with torch.no_grad():
            self._control.clamp_(-largest, largest)


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
