"""B-splines on a grid of control points.

T maps points of the fixed image to the moving image, in mm, LPS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.field import WriteBeside
from regnet_itk.data.grid import IDENTITY_DIRECTION, FloatArray, Grid
from regnet_itk.data.image import grid_of, place
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap, as_values
from regnet_itk.transforms.base import PointSampler, TransformType
from regnet_itk.transforms.elastix_keys import read_floats, read_parameters


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

    def times_matrix(self, matrix: FloatArray) -> BSplineTransform:
        """Return x + `matrix` (T(x) - x), with other coefficients."""
        return replace(self, coefficients=self.coefficients @ matrix.T)

    def to_sitk_transform(self) -> Any:
        """Return a ``SimpleITK.BSplineTransform``."""
        import SimpleITK as sitk

        images = [
            place(sitk.GetImageFromArray(np.ascontiguousarray(self.coefficients[..., c], dtype=float)), self.grid)
            for c in range(3)
        ]
        return sitk.BSplineTransform(images, self.order)

    def elastix_values(self, write_beside: WriteBeside | None = None) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file; nothing is written beside it."""
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def describe(self) -> str:
        """Return its type, order and control points."""
        return f"{self.name} of order {self.order}, {self.grid.describe('control points')}"

    def facts(self) -> dict[str, Any]:
        """Return the grid of control points, and the length of the longest coefficient in mm."""
        longest = float(np.linalg.norm(self.coefficients, axis=-1).max())
        return {"grid": self.grid.to_dict(), "largest_coefficient": longest}


# How elastix and ITK write it


def read_bspline(values: ParameterMap, folder: Path) -> BSplineTransform:
    """Read elastix's B-splines; see `TransformType.read`.

    Raises
    ------
    ParameterError, TransformError
        If a key is missing or does not hold what it should, or the B-spline is cyclic.
    """
    if values.get_bool("UseCyclicTransform", False):
        raise TransformError(f"{values.source}: a cyclic B-spline transform is not supported")
    order = values.get_int("BSplineTransformSplineOrder", 3)
    if order not in (1, 2, 3):
        raise TransformError(f"{values.source}: the B-spline order {order} is not supported; known are 1, 2 and 3")
    nx, ny, nz = values.get_ints("GridSize", 3)
    direction = np.reshape(read_floats(values, "GridDirection", 9), (3, 3)).T if "GridDirection" in values else None
    grid = Grid(
        (nx, ny, nz),
        tuple(read_floats(values, "GridSpacing", 3)),  # type: ignore[arg-type]
        tuple(read_floats(values, "GridOrigin", 3)),  # type: ignore[arg-type]
        IDENTITY_DIRECTION if direction is None else direction,  # type: ignore[arg-type]
    ).crop(values.get_ints("GridIndex", 3, (0, 0, 0)), (nx, ny, nz))
    found = np.array(read_parameters(values, 3 * nx * ny * nz))
    coefficients = np.moveaxis(found.reshape(3, nz, ny, nx), 0, -1)
    return BSplineTransform(coefficients, grid, order, values.get_str("Transform"))


def _from_sitk(transform: Any) -> BSplineTransform:
    import SimpleITK as sitk

    images = transform.GetCoefficientImages()
    coefficients = np.stack([sitk.GetArrayFromImage(image) for image in images], axis=-1)
    return BSplineTransform(coefficients, grid_of(images[0]), transform.GetOrder())


def _sampler(transform: BSplineTransform) -> PointSampler:
    from regnet_itk.transforms.point_samplers import BSplineSampler  # torch is slow to start

    return BSplineSampler(transform.coefficients, transform.grid, transform.order)


BSPLINE = TransformType(
    BSplineTransform,
    ("BSplineTransform", "RecursiveBSplineTransform"),
    read_bspline,
    keys=(
        "NumberOfParameters", "TransformParameters", "GridSize", "GridIndex", "GridSpacing", "GridOrigin",
        "GridDirection", "BSplineTransformSplineOrder", "UseCyclicTransform",
    ),
    in_stages=True,
    itk_names=("BSplineTransform",),
    from_sitk=_from_sitk,
    sampler=_sampler,
)  # fmt: skip
