"""The B-spline transform nearest to a chain, and how far two transforms are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import interpolate

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

_POINTS = 20_000
_SLAB_POINTS = 500_000
_SMOOTHING = 1e-6  # weight of second differences in the fit: for control points that hardly any voxel reaches


@dataclass(frozen=True)
class Deviation:
    """How far two transforms are apart, as lengths in mm at random points of a grid.

    Parameters
    ----------
    mean, p95, max : float
        mm; `p95` is the length that 95 % of the points stay below.
    count : int
        Number of points.
    """

    mean: float
    p95: float
    max: float
    count: int


def measure_deviation(first: TransformChain, second: TransformChain, grid: Grid, seed: int = 0) -> Deviation:
    """Measure how far two transforms are apart, at random points between the voxels of a grid.

    Parameters
    ----------
    first, second : TransformChain
    grid : Grid
        The points lie anywhere between the centres of its first and last voxels.
    seed : int
        Of the points.
    """
    points = grid.random_points(_POINTS, np.random.default_rng(seed))
    length = np.linalg.norm(first.map_points(points) - second.map_points(points), axis=1)
    return Deviation(float(length.mean()), float(np.percentile(length, 95)), float(length.max()), _POINTS)


def fit_bspline(chain: TransformChain, grid: Grid, spacing: float) -> TransformChain:
    """Return the cubic B-spline transform nearest to `chain`, in the sense of least squares over the voxels of `grid`.

    What the chain's matrices alone do is kept as it is, so that it holds beyond the grid as well; the B-splines are
    added to it: T(x) = A(x) + B(x). elastix can compute derivatives of that, and it cannot of a displacement field.

    Parameters
    ----------
    chain : TransformChain
    grid : Grid
        The voxels at which the two shall agree, those of the fixed image.
    spacing : float
        Distance of the control points in mm, along the axes of the grid.

    Raises
    ------
    TransformError
        If the control points would be closer than the voxels.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> spline = regnet_itk.fit_bspline(chain, regnet_itk.Grid(size=(8, 8, 4)), spacing=4.0)
    >>> spline.map_points([[3.0, 3.0, 2.0]]).round(3).tolist()
    [[5.0, 3.0, 1.0]]
    """
    if not spacing >= max(grid.spacing):
        raise TransformError(
            f"B-spline control points every {spacing:g} mm cannot be found from voxels of "
            f"{' x '.join(f'{s:g}' for s in grid.spacing)} mm; give a larger spacing"
        )
    matrices = TransformChain(tuple(link for link in chain.links if isinstance(link.transform, MatrixTransform)))
    keys = chain.links[-1].parameters if chain.links else ParameterMap({})
    base = TransformChain()
    if matrices.links:
        whole = matrices.links[0].transform if len(matrices.links) == 1 else matrices.as_matrix()
        assert isinstance(whole, MatrixTransform)
        base = TransformChain((Link(whole, parameters=keys),))
    control = _control_grid(grid, spacing)
    spline = BSplineTransform(
        _coefficients(lambda points: chain.map_points(points) - base.map_points(points), grid, control), control
    )
    return base.then(Link(spline, "add" if base.links else "compose", keys))


def _control_grid(grid: Grid, spacing: float) -> Grid:
    """Return control points whose B-splines cover the box that the voxels fill, in its middle."""
    step = spacing / np.asarray(grid.spacing)
    nx, ny, nz = np.ceil(np.asarray(grid.size) / step + 1e-6).astype(int) + 3
    first = (np.asarray(grid.size) - 1) / 2 - (np.array([nx, ny, nz]) - 1) / 2 * step
    x, y, z = grid.index_to_point(first)
    return Grid((nx, ny, nz), (spacing,) * 3, (x, y, z), grid.direction)


def _coefficients(displacement: Callable[[FloatArray], FloatArray], grid: Grid, control: Grid) -> FloatArray:
    """Return the coefficients (z, y, x, 3) that fit best at the voxels; the fit is one of each axis after the other."""
    first = control.point_to_index(np.asarray(grid.origin))
    step = np.asarray(grid.spacing) / np.asarray(control.spacing)
    fit_x, fit_y, fit_z = (_axis_fit(first[a] + step[a] * np.arange(grid.size[a]), control.size[a]) for a in range(3))
    found = np.zeros((control.size[2], 3, control.size[0], control.size[1]))
    for box in grid.slabs(_SLAB_POINTS):
        slab = displacement(grid.part(box).points())  # z, y, x, 3
        along_x = np.tensordot(slab, fit_x, axes=(2, 1))  # z, y, 3, X
        along_y = np.tensordot(along_x, fit_y, axes=(1, 1))  # z, 3, X, Y
        found += np.tensordot(fit_z[:, box[0]], along_y, axes=(1, 0))
    return np.ascontiguousarray(found.transpose(0, 3, 2, 1))


def _axis_fit(index: FloatArray, count: int) -> FloatArray:
    """Return the matrix (count, n) from n values at control-point indices to the coefficients of cubic B-splines."""
    knots = np.arange(-2, count + 2, dtype=float)
    basis = interpolate.BSpline.design_matrix(index, knots, 3).toarray()
    bend = np.diff(np.eye(count), n=2, axis=0)
    system = np.vstack([basis, _SMOOTHING * bend])
    wanted = np.vstack([np.eye(len(index)), np.zeros((len(bend), len(index)))])
    return np.asarray(np.linalg.lstsq(system, wanted, rcond=None)[0])
