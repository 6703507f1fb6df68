"""Chains of transforms, and how elastix and ITK write them.

T maps points of the fixed image to the moving image, in mm, LPS. elastix "Compose" applies the initial transform to
the fixed point first: T(x) = C(T0(x)). A RegNet stage finds u on the fixed grid such that T(x) = T0(x + u(x)): its
field is *innermost*, and elastix is told so by "Add" of v(x) = T0(x + u(x)) - T0(x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.base import Combine, Transform
from regnet_itk.transforms.matrix import MatrixTransform, matrix_of
from regnet_itk.transforms.registry import find_type
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

if TYPE_CHECKING:
    from regnet_itk.transforms.sampler import ChainSampler

MOST_LINKS = 100
"""Of a chain that is read: no study has so many, and each is a step deeper for all that works on chains."""

FEW_POINTS = 50_000
"""Up to so many points are mapped by NumPy, in 0.1 s, so that landmarks do not wait for Torch's import, which takes
more than one; above, Torch is two to three times as fast on one core, and uses all."""


@dataclass(frozen=True, eq=False)
class Link:
    """One transform of a chain.

    Parameters
    ----------
    transform : Transform
        C, of its own: a MatrixTransform, BSplineTransform, DisplacementField, or one of another type.
    combine : {"compose", "add", "innermost"}
        How it joins the transform P so far: C(P(x)), P(x) + C(x) - x, or P(C(x)).
    parameters : ParameterMap
        The other keys of its elastix file: the grid and the settings with which to resample the moving image.
    """

    transform: Transform
    combine: Combine = "compose"
    parameters: ParameterMap = field(default_factory=lambda: ParameterMap({}), repr=False)


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

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> chain.map_points([[10.0, -20.0, 30.0]]).tolist()
    [[12.0, -20.0, 29.0]]
    >>> chain.displacement_on(regnet_itk.Grid(size=(4, 3, 2))).vectors.shape
    (2, 3, 4, 3)
    """

    links: tuple[Link, ...] = ()

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3) in mm, LPS, fixed to moving.

        Few points (`FEW_POINTS`) are mapped in float64 throughout; many on Torch, whose displacements are float32.
        """
        points = np.array(points, dtype=float)
        if not self.links:
            return points
        if points.size > 3 * FEW_POINTS:
            return self.sampler().map_points(points)
        last = self.links[-1]
        return _join(last.combine, last.transform, TransformChain(self.links[:-1]), points)

    def sampler(self) -> ChainSampler:
        """Return T prepared for many points, with its derivatives; made of Torch, which takes a second to start."""
        from regnet_itk.transforms.sampler import ChainSampler, prepare

        return ChainSampler([(link.combine, prepare(link.transform, find_type(link.transform))) for link in self.links])

    def then(self, link: Link) -> TransformChain:
        """Return the chain with one link more."""
        return TransformChain((*self.links, link))

    def as_matrix(self) -> MatrixTransform | None:
        """Return the whole chain as one matrix, or None if it holds anything else."""
        if not all(isinstance(link.transform, MatrixTransform) for link in self.links):
            return None
        return matrix_of(self.map_points)

    def displacement_on(self, grid: Grid) -> DisplacementField:
        """Return T(x) - x at the voxels of `grid`, as float32."""
        if math.prod(grid.size) <= FEW_POINTS:
            points = grid.points()
            return DisplacementField((self.map_points(points) - points).astype(np.float32), grid)
        return self.sampler().displacement_on(grid)

    def to_sitk(self, grid: Grid | None = None) -> Any:
        """Return the chain as a ``SimpleITK.CompositeTransform``.

        Parameters
        ----------
        grid : Grid, optional
            Needed only if a transform is added to something else than matrices, or is of a type that ITK does not
            have: the voxels, in the fixed image, on which it is sampled, with all that is applied before it; at them
            it is exact, and outside of them it is lost. All other chains are converted exactly.

        Raises
        ------
        TransformError
            If such a grid is needed and missing.
        """
        import SimpleITK as sitk

        composite = sitk.CompositeTransform(3)
        for transform in reversed(self._applied_in_itk(grid)):  # ITK applies the transform added last first
            composite.AddTransform(transform)
        if not self.links:
            composite.AddTransform(sitk.Transform(3, sitk.sitkIdentity))
        return composite

    def _applied_in_itk(self, grid: Grid | None) -> list[Any]:
        applied = self._applied_on(grid)
        found = [transform.to_sitk_transform() for transform in applied]
        unknown = [i for i, transform in enumerate(found) if transform is None]
        if not unknown:
            return found
        if grid is None:
            raise TransformError(
                f"ITK cannot express a transform of this chain ({applied[unknown[0]].describe()}); "
                "give the grid on which to sample it"
            )
        start = TransformChain(tuple(Link(transform) for transform in applied[: unknown[-1] + 1]))
        return [start.displacement_on(grid).to_sitk_transform(), *found[unknown[-1] + 1 :]]

    def _applied_on(self, grid: Grid | None) -> list[Transform]:
        """Return what `applied` does; of a chain that has no such form, sampled on a grid."""
        try:
            return self.applied()
        except TransformError:
            if grid is None:
                raise
        last = max(i for i, link in enumerate(self.links) if link.combine != "compose")
        start = TransformChain(self.links[: last + 1])  # to its last link that is not put after the others
        return [start.displacement_on(grid), *(link.transform for link in self.links[last + 1 :])]

    def applied(self) -> list[Transform]:
        """Return transforms whose plain composition, the first applied first, is this chain.

        Raises
        ------
        TransformError
            If a transform is added to something else than matrices.
        """
        order: list[Transform] = []
        for i, link in enumerate(self.links):
            before = TransformChain(self.links[:i])
            if link.combine == "innermost" or (link.combine == "add" and not before.links):
                order.insert(0, link.transform)
            elif link.combine == "compose":
                order.append(link.transform)
            else:
                order = _apply_sum(before, link, order)
        return order


def _apply_sum(before: TransformChain, link: Link, order: list[Transform]) -> list[Transform]:
    """Return what is applied for P(x) + C(x) - x, where P is a matrix L: then L^-1 (C(x) - x) is innermost."""
    total = before.then(link).as_matrix()
    if total is not None:
        return [total]
    matrix = before.as_matrix()
    if matrix is not None:
        if abs(np.linalg.det(matrix.matrix)) < 1e-9:
            raise TransformError("a transform is added to a matrix that cannot be inverted; register again")
        innermost = link.transform.times_matrix(np.linalg.inv(matrix.matrix))
        if innermost is not None:
            return [innermost, *order]
    raise TransformError(
        "this chain adds a transform to one that is not a matrix, which ITK cannot express; "
        "give the grid on which to sample the sum"
    )


def link_field(u: DisplacementField, parameters: Mapping[str, tuple[str, ...]] | None = None) -> Link:
    """Return the link of a RegNet stage: T(x) = T0(x + u(x)).

    Parameters
    ----------
    u : DisplacementField
        On the fixed image; the grid may be coarser than the image's.
    parameters : mapping, optional
        Keys for resampling; by default `make_resampling_parameters` of the field's own grid.
    """
    return Link(u, "innermost", ParameterMap(dict(parameters or make_resampling_parameters(u.grid))))
