"""Displacement fields: u on a grid, in millimetres, LPS.

T(x) = x + u(x) maps points of the fixed image to the moving image. A field is linear between its voxels and zero
outside its grid, exactly as ITK's DisplacementFieldTransform and elastix's DeformationFieldTransform.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.grid import LARGEST_LENGTH, Box, FloatArray, Grid
from regnet_itk.data.image import grid_of, place
from regnet_itk.data.image_files import open_image, read_voxels
from regnet_itk.errors import ImageError, TransformError
from regnet_itk.inputs import why_no_file

WriteBeside = Callable[[str, str, Callable[[Path], object]], str]
"""Writes a file beside another: is given what its name begins with, its suffix, and what writes it to a path; returns
the path by which the other file is to name it."""


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A displacement field; each equals itself only.

    Parameters
    ----------
    vectors : ndarray, shape (z, y, x, 3)
        u in mm, components along the physical axes x, y, z (LPS), not along the axes of the grid.
    grid : Grid
        Where the vectors lie.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import DisplacementField, Grid
    >>> grid = Grid(size=(4, 3, 2))
    >>> field = DisplacementField(np.full((*grid.shape, 3), (1.0, 0.0, -2.0)), grid)
    >>> field.map_points([[1.0, 1.0, 0.5]]).tolist()
    [[2.0, 1.0, -1.5]]
    """

    vectors: npt.NDArray[np.floating[Any]]
    grid: Grid

    def __post_init__(self) -> None:
        if self.vectors.shape != (*self.grid.shape, 3):
            raise TransformError(
                f"vectors of shape {self.vectors.shape} do not fit a grid of size (x, y, z) = {self.grid.size}"
            )

    def __repr__(self) -> str:
        squares = max(float(np.einsum("yxc,yxc->yx", u, u, dtype=float).max()) for u in self.vectors)  # little memory
        return f"DisplacementField({self.grid.describe()}, {self.vectors.dtype}, |u| up to {math.sqrt(squares):.4g} mm)"

    def at(self, points: npt.ArrayLike) -> FloatArray:
        """Return u (..., 3) in mm at the points (..., 3); zero outside the grid."""
        points = np.asarray(points, dtype=float)
        index = self.grid.point_to_index(points.reshape(-1, 3))
        coordinates = index[:, ::-1].T
        sampled = np.stack(
            [
                ndimage.map_coordinates(self.vectors[..., c], coordinates, np.float64, order=1, mode="nearest")
                for c in range(3)
            ],
            axis=-1,
        )
        inside = ((index >= -0.5) & (index < np.asarray(self.grid.size) - 0.5)).all(axis=-1)
        sampled[~inside] = 0.0
        return sampled.reshape(points.shape)

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T(x) = x + u(x) of the points (..., 3), fixed to moving."""
        points = np.asarray(points, dtype=float)
        return points + self.at(points)

    def times_matrix(self, matrix: FloatArray) -> DisplacementField:
        """Return the field `matrix` u."""
        return DisplacementField(self.vectors @ matrix.T.astype(self.vectors.dtype), self.grid)

    def describe(self) -> str:
        """Return its voxels in a few words."""
        return f"displacement field, {self.grid.describe()}"

    def facts(self) -> dict[str, Any]:
        """Return the grid, and the length of the longest vector in mm, as plain values."""
        longest = float(np.linalg.norm(self.vectors, axis=-1).max())
        return {"grid": self.grid.to_dict(), "longest_vector": longest}

    def elastix_values(self, write_beside: WriteBeside) -> dict[str, tuple[str, ...]]:
        """Write the field beside an elastix transform file, and return the keys that describe it in there."""
        return {
            "Transform": ("DeformationFieldTransform",),
            "NumberOfParameters": ("0",),
            "DeformationFieldFileName": (write_beside("deformationField", ".mha", self.write),),
            "DeformationFieldInterpolationOrder": ("1",),
            "UseDirectionCosines": ("true",),
        }

    def jacobian_determinant(self) -> FloatArray:
        """Return det(dT/dx) of T(x) = x + u(x) at every voxel, shape (z, y, x), by central differences.

        Below or at zero the transform folds; 1.1 is 10 % of growth from the fixed to the moving image.
        """
        return jacobian_determinant(self.vectors, self.grid)

    def to_sitk(self) -> Any:
        """Return the field as a SimpleITK image of float32 vectors."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(self.vectors, dtype=np.float32), isVector=True)
        return place(image, self.grid)

    def to_sitk_transform(self) -> Any:
        """Return a ``SimpleITK.DisplacementFieldTransform`` (linear, zero outside)."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.ascontiguousarray(self.vectors, dtype=np.float64), isVector=True)
        return sitk.DisplacementFieldTransform(place(image, self.grid))

    @classmethod
    def from_sitk(cls, image: Any) -> DisplacementField:
        """Take a SimpleITK image with three components a voxel."""
        import SimpleITK as sitk

        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
            raise TransformError(
                f"a displacement field has 3 dimensions and 3 components a voxel, not {image.GetDimension()} "
                f"and {image.GetNumberOfComponentsPerPixel()}"
            )
        return cls(sitk.GetArrayFromImage(image), grid_of(image))

    def write(self, path: str | Path) -> None:
        """Write the field as float32 vectors in mm, LPS (.mha, .mhd or .nrrd), compressed, whole or not at all.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        import SimpleITK as sitk

        from regnet_itk.outputs import write_whole

        write_whole(path, lambda part: sitk.WriteImage(self.to_sitk(), str(part), useCompression=True))


def read_displacement_field(path: str | Path) -> DisplacementField:
    """Read a displacement field image (mm, LPS).

    Raises
    ------
    TransformError
        If the file is missing, unreadable, or not a 3D image of three components.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> from regnet_itk import read_displacement_field
    >>> sitk.WriteImage(sitk.Image((4, 3, 2), sitk.sitkVectorFloat64, 3), "u.mha")
    >>> read_displacement_field("u.mha").vectors.shape
    (2, 3, 4, 3)
    """
    path = Path(path)
    try:
        if (why := why_no_file(path)) is not None:
            raise TransformError(f"displacement field '{path}' {why}")
        reader = open_image(path, "displacement field")
        if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 3:
            raise TransformError(
                f"'{path}': a displacement field has 3 dimensions and 3 components a voxel, not "
                f"{reader.GetDimension()} and {reader.GetNumberOfComponents()}"
            )
        field = DisplacementField(read_voxels(reader, path, "displacement field"), grid_of(reader))
    except (ImageError, OSError) as error:
        raise TransformError(str(error)) from None
    if not (np.abs(field.vectors) <= LARGEST_LENGTH).all():
        raise TransformError(f"displacement field '{path}' holds vectors that are not finite")
    return field


def jacobian_determinant(vectors: FloatArray, grid: Grid, threads: int | None = None) -> FloatArray:
    """Return det(I + du/dx) of displacement vectors (z, y, x, 3) in mm on `grid`, float32, shape (z, y, x).

    Central differences inside, one-sided at the border; along an axis of one voxel u is taken as constant. Beside the
    result, little memory is needed: the voxels are worked on in blocks that fit the processor's cache.

    Parameters
    ----------
    vectors : ndarray, shape (z, y, x, 3)
    grid : Grid
    threads : int, optional
        All processors by default.
    """
    found = np.empty(grid.shape, dtype=np.float32)

    def fill(block: Box) -> None:
        found[block] = _block_determinant(vectors, block, grid.index_to_point_matrix)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for _ in pool.map(fill, grid.blocks()):  # numpy works without Python's lock
            pass
    return found


def _block_determinant(vectors: FloatArray, block: Box, index_to_point: FloatArray) -> npt.NDArray[np.float32]:
    """Return det(M + du/di) / det M, which is det(I + du/dx), with M = dx/di; all derivatives are taken twice."""
    twice = (2 * index_to_point).astype(np.float32)
    middle = slice(1, -1)
    jacobian = []
    for c in range(3):
        u = _with_halo(vectors[..., c], block)
        by_x = u[middle, middle, 2:] - u[middle, middle, :-2]
        by_y = u[middle, 2:, middle] - u[middle, :-2, middle]
        by_z = u[2:, middle, middle] - u[:-2, middle, middle]
        jacobian.append([slope + twice[c, axis] for axis, slope in enumerate((by_x, by_y, by_z))])
    (a, b, c_), (d, e, f), (g, h, i) = jacobian
    result = a * (e * i - f * h) + b * (f * g - d * i) + c_ * (d * h - e * g)
    result *= np.float32(1 / np.linalg.det(2 * index_to_point))
    return np.asarray(result)


def _with_halo(component: FloatArray, block: Box) -> npt.NDArray[np.float32]:
    """Return a block of slices and rows with one voxel more on all sides, continued linearly past the border."""
    whole = component.shape
    starts, stops = [part.start for part in block], [part.stop for part in block]
    result = np.zeros([b - a + 2 for a, b in zip(starts, stops, strict=True)], dtype=np.float32)
    low = [max(a - 1, 0) for a in starts]
    high = [min(b + 1, n) for b, n in zip(stops, whole, strict=True)]
    there = tuple(slice(lo - a + 1, hi - a + 1) for lo, hi, a in zip(low, high, starts, strict=True))
    result[there] = component[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
    for axis, n in enumerate(whole):
        view = np.moveaxis(result, axis, 0)
        if starts[axis] == 0:
            view[0] = view[1] if n == 1 else 2 * view[1] - view[2]
        if stops[axis] == n:
            view[-1] = view[-2] if n == 1 else 2 * view[-2] - view[-3]
    return result
