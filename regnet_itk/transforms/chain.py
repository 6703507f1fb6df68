"""Chains of transforms, and how elastix and ITK write them.

T maps points of the fixed image to the moving image, in mm, LPS. elastix "Compose" applies the initial transform to
the fixed point first: T(x) = C(T0(x)). A RegNet stage finds u on the fixed grid such that T(x) = T0(x + u(x)): its
field is *innermost*, and elastix is told so by "Add" of v(x) = T0(x + u(x)) - T0(x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.resampling_keys import resampling_parameters
from regnet_itk.transforms.types import BSplineTransform, MatrixTransform, Transform

Combine = Literal["compose", "add", "innermost"]
_SLAB_POINTS = 2_000_000


@dataclass(frozen=True, eq=False)
class Link:
    """One transform of a chain.

    Parameters
    ----------
    transform : MatrixTransform, BSplineTransform or DisplacementField
        C, of its own.
    combine : {"compose", "add", "innermost"}
        How it joins the transform P so far: C(P(x)), P(x) + C(x) - x, or P(C(x)).
    parameters : ParameterMap
        The other keys of its elastix file: the grid and the settings with which to resample the moving image.
    """

    transform: Transform
    combine: Combine = "compose"
    parameters: ParameterMap = field(default_factory=lambda: ParameterMap({}))


def _join(combine: Combine, transform: Transform, previous: TransformChain, points: FloatArray) -> FloatArray:
    if combine == "innermost":
        return previous.map_points(transform.map_points(points))
    if combine == "add":
        return previous.map_points(points) + transform.map_points(points) - points
    return transform.map_points(previous.map_points(points))


@dataclass(frozen=True, eq=False)
class TransformChain:
    """Transforms in the order in which stages found them; without links, the identity.

    Parameters
    ----------
    links : tuple of Link
        The first is the initial transform.
    """

    links: tuple[Link, ...] = ()

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3) in mm, LPS, fixed to moving."""
        points = np.array(points, dtype=float)
        if not self.links:
            return points
        last = self.links[-1]
        return _join(last.combine, last.transform, TransformChain(self.links[:-1]), points)

    def then(self, link: Link) -> TransformChain:
        """Return the chain with one link more."""
        return TransformChain((*self.links, link))

    def as_matrix(self) -> MatrixTransform | None:
        """Return the whole chain as one matrix, or None if it holds anything else."""
        if not all(isinstance(link.transform, MatrixTransform) for link in self.links):
            return None
        offset, *ends = self.map_points(np.vstack([np.zeros(3), np.eye(3)]))
        return MatrixTransform(np.stack([end - offset for end in ends], axis=1), translation=offset)

    def displacement_on(self, grid: Grid) -> DisplacementField:
        """Return T(x) - x at the voxels of `grid`, as float32, computed slab by slab."""
        return sampled(lambda points: self.map_points(points) - points, grid)

    def to_sitk(self, grid: Grid | None = None) -> Any:
        """Return the chain as a ``SimpleITK.CompositeTransform``.

        Parameters
        ----------
        grid : Grid, optional
            Needed only if a transform is added to something else than matrices: the voxels, in the fixed image,
            on which the sum is sampled. All other chains are converted exactly.

        Raises
        ------
        TransformError
            If such a grid is needed and missing.
        """
        import SimpleITK as sitk

        composite = sitk.CompositeTransform(3)
        for transform in reversed(self.applied(grid)):  # ITK applies the transform added last first
            composite.AddTransform(
                transform.to_sitk_transform() if isinstance(transform, DisplacementField) else transform.to_sitk()
            )
        if not self.links:
            composite.AddTransform(sitk.Transform(3, sitk.sitkIdentity))
        return composite

    def applied(self, grid: Grid | None = None) -> list[Transform]:
        """Return transforms whose plain composition, the first applied first, is this chain; see `to_sitk`."""
        order: list[Transform] = []
        for i, link in enumerate(self.links):
            before = TransformChain(self.links[:i])
            if link.combine == "innermost" or (link.combine == "add" and not before.links):
                order.insert(0, link.transform)
            elif link.combine == "compose":
                order.append(link.transform)
            else:
                order = _apply_sum(before, link, order, grid)
        return order


def sampled(function: Callable[[FloatArray], FloatArray], grid: Grid) -> DisplacementField:
    """Return a function of points as a field on `grid`, computed slab by slab to spare memory."""
    vectors = np.empty((*grid.shape, 3), dtype=np.float32)
    nx, ny, nz = grid.size
    rows = max(1, _SLAB_POINTS // (nx * ny))
    for start, stop in pairwise([*range(0, nz, rows), nz]):
        vectors[start:stop] = function(grid.crop((0, 0, start), (nx, ny, stop - start)).points())
    return DisplacementField(vectors, grid)


def _apply_sum(before: TransformChain, link: Link, order: list[Transform], grid: Grid | None) -> list[Transform]:
    """Return what is applied for P(x) + C(x) - x, exactly if P is a matrix L: then L^-1 (C(x) - x) is innermost."""
    total = before.then(link).as_matrix()
    if total is not None:
        return [total]
    matrix = before.as_matrix()
    if matrix is not None and not isinstance(link.transform, MatrixTransform):
        if abs(np.linalg.det(matrix.matrix)) < 1e-9:
            raise TransformError("a transform is added to a matrix that cannot be inverted; register again")
        return [with_matrix(np.linalg.inv(matrix.matrix), link.transform), *order]
    if grid is None:
        raise TransformError(
            "this chain adds a transform to one that is not a matrix, which ITK cannot express; "
            "give the grid on which to sample the sum"
        )
    return [before.then(link).displacement_on(grid)]


def with_matrix(
    matrix: FloatArray, transform: BSplineTransform | DisplacementField
) -> BSplineTransform | DisplacementField:
    """Return the transform whose displacement is `matrix` times that of `transform`, exactly."""
    if isinstance(transform, BSplineTransform):
        return replace(transform, coefficients=transform.coefficients @ matrix.T)
    return DisplacementField((transform.vectors @ matrix.T.astype(transform.vectors.dtype)), transform.grid)


def field_link(u: DisplacementField, parameters: Mapping[str, tuple[str, ...]] | None = None) -> Link:
    """Return the link of a RegNet stage: T(x) = T0(x + u(x)).

    Parameters
    ----------
    u : DisplacementField
        On the fixed image; the grid may be coarser than the image's.
    parameters : mapping, optional
        Keys for resampling; by default `resampling_parameters` of the field's own grid.
    """
    return Link(u, "innermost", ParameterMap(dict(parameters or resampling_parameters(u.grid))))
