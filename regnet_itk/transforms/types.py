"""The transforms that chains are made of: matrices, B-splines, displacement fields.

T maps points of the fixed image to the moving image, in mm, LPS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import place
from regnet_itk.errors import TransformError
from regnet_itk.parameters import as_values


@dataclass(frozen=True, eq=False)
class MatrixTransform:
    """T(x) = matrix (x - centre) + centre + translation.

    Parameters
    ----------
    matrix : ndarray, shape (3, 3)
    centre : ndarray, shape (3,)
        In mm, LPS.
    translation : ndarray, shape (3,)
        In mm, LPS.
    name : str
        What elastix calls it.
    values : mapping
        The keys that describe it in an elastix file, as they were read; made from the matrix if empty.
    """

    matrix: FloatArray
    centre: FloatArray = field(default_factory=lambda: np.zeros(3))
    translation: FloatArray = field(default_factory=lambda: np.zeros(3))
    name: str = "AffineTransform"
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shape in (("matrix", (3, 3)), ("centre", (3,)), ("translation", (3,))):
            array = np.array(getattr(self, name), dtype=float)
            if array.shape != shape:
                raise TransformError(f"the {name} of a transform needs shape {shape}, not {array.shape}")
            object.__setattr__(self, name, array)
        if not self.values and self.name != "AffineTransform":
            raise TransformError(f"a {self.name} needs its parameters; call it AffineTransform to write its matrix")

    @property
    def offset(self) -> FloatArray:
        """The vector b of T(x) = matrix x + b."""
        return np.asarray(self.centre + self.translation - self.matrix @ self.centre)

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3), fixed to moving."""
        return np.asarray(points, dtype=float) @ self.matrix.T + self.offset

    def to_sitk(self) -> Any:
        """Return a ``SimpleITK.AffineTransform``."""
        import SimpleITK as sitk

        matrix, translation, centre = self.matrix.ravel().tolist(), self.translation.tolist(), self.centre.tolist()
        return sitk.AffineTransform(matrix, translation, centre)

    def elastix_values(self) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file."""
        if self.values:
            return dict(self.values)
        return {
            "Transform": ("AffineTransform",),
            "NumberOfParameters": ("12",),
            "TransformParameters": as_values([*self.matrix.ravel(), *self.translation]),
            "CenterOfRotationPoint": as_values(self.centre),
        }


@dataclass(frozen=True, eq=False)
class BSplineTransform:
    """T(x) = x + sum of B-splines on a grid of control points; the identity outside the grid's valid region.

    Parameters
    ----------
    coefficients : ndarray, shape (z, y, x, 3)
        In mm, components x, y, z (LPS).
    grid : Grid
        The control points.
    order : {1, 2, 3}
        Order of the splines.
    name : {"BSplineTransform", "RecursiveBSplineTransform"}
        What elastix calls it; both give the same T.
    """

    coefficients: npt.NDArray[np.floating[Any]]
    grid: Grid
    order: int = 3
    name: str = "BSplineTransform"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise TransformError(f"the B-spline order {self.order} is not supported; known are 1, 2 and 3")
        if min(self.grid.size) <= self.order:
            raise TransformError(f"a B-spline of order {self.order} needs more control points than {self.grid.size}")
        if self.coefficients.shape != (*self.grid.shape, 3):
            raise TransformError(
                f"coefficients of shape {self.coefficients.shape} do not fit {self.grid.size} control points"
            )

    def at(self, points: npt.ArrayLike) -> FloatArray:
        """Return the displacement (..., 3) in mm at the points (..., 3); zero outside the valid region."""
        points = np.asarray(points, dtype=float)
        index = self.grid.point_to_index(points.reshape(-1, 3))
        low = 0.5 * (self.order - 1)
        high = np.asarray(self.grid.size) - 1 - low
        valid = ((index >= low) & (index < high)).all(axis=-1)
        displacement = np.zeros_like(index)
        for c in range(3):
            displacement[valid, c] = ndimage.map_coordinates(
                self.coefficients[..., c], index[valid, ::-1].T, np.float64, order=self.order, prefilter=False
            )
        return displacement.reshape(points.shape)

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3), fixed to moving."""
        points = np.asarray(points, dtype=float)
        return points + self.at(points)

    def to_sitk(self) -> Any:
        """Return a ``SimpleITK.BSplineTransform``."""
        import SimpleITK as sitk

        images = [
            place(sitk.GetImageFromArray(np.ascontiguousarray(self.coefficients[..., c], dtype=float)), self.grid)
            for c in range(3)
        ]
        return sitk.BSplineTransform(images, self.order)

    def elastix_values(self) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file."""
        return {
            "Transform": (self.name,),
            "NumberOfParameters": as_values(self.coefficients.size),
            "TransformParameters": as_values(np.moveaxis(self.coefficients, -1, 0).ravel()),
            "GridSize": as_values(self.grid.size),
            "GridIndex": ("0", "0", "0"),
            "GridSpacing": as_values(self.grid.spacing),
            "GridOrigin": as_values(self.grid.origin),
            "GridDirection": as_values(self.grid.direction_matrix.T.ravel()),
            "BSplineTransformSplineOrder": as_values(self.order),
            "UseCyclicTransform": ("false",),
        }


Transform = MatrixTransform | BSplineTransform | DisplacementField
