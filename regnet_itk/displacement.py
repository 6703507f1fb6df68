"""Displacement fields: u on a grid, in millimetres, LPS.

T(x) = x + u(x) maps points of the fixed image to the moving image. A field is linear between its voxels and zero
outside its grid, exactly as ITK's DisplacementFieldTransform and elastix's DeformationFieldTransform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.errors import ImageError, TransformError
from regnet_itk.geometry import FloatArray, Grid
from regnet_itk.images import bytes_per_value, check_complete, grid_of, place


@dataclass(frozen=True)
class DisplacementField:
    """A displacement field.

    Parameters
    ----------
    vectors : ndarray, shape (z, y, x, 3)
        u in mm, components along the physical axes x, y, z (LPS), not along the axes of the grid.
    grid : Grid
        Where the vectors lie.
    """

    vectors: npt.NDArray[np.floating[Any]]
    grid: Grid

    def __post_init__(self) -> None:
        if self.vectors.shape != (*self.grid.shape, 3):
            raise TransformError(
                f"vectors of shape {self.vectors.shape} do not fit a grid of size (x, y, z) = {self.grid.size}"
            )

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
    """
    import SimpleITK as sitk

    path = Path(path)
    if not path.is_file():
        raise TransformError(f"displacement field '{path}' does not exist")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        values = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
        check_complete(path, "displacement field", values * bytes_per_value(reader.GetPixelID()))
        image = reader.Execute()
    except ImageError as error:
        raise TransformError(str(error)) from None
    except RuntimeError as error:
        raise TransformError(f"displacement field '{path}' cannot be read: {str(error).splitlines()[-1]}") from None
    field = DisplacementField.from_sitk(image)
    if not np.isfinite(field.vectors).all():
        raise TransformError(f"displacement field '{path}' holds vectors that are not finite")
    return field


def jacobian_determinant(vectors: FloatArray, grid: Grid) -> FloatArray:
    """Return det(I + du/dx) of displacement vectors (z, y, x, 3) in mm on `grid`, shape (z, y, x).

    Central differences inside, one-sided at the border; along an axis of one voxel u is taken as constant.
    """
    by_index = np.zeros((*grid.shape, 3, 3), dtype=np.float32)
    for axis in range(3):  # axis counts x, y, z; the array's axes run the other way
        if grid.size[axis] > 1:
            by_index[..., axis] = np.gradient(vectors, axis=2 - axis)
    jacobian = by_index @ np.linalg.inv(grid.index_to_point_matrix).astype(np.float32)
    for axis in range(3):
        jacobian[..., axis, axis] += 1.0
    a, b, c = (jacobian[..., row, :] for row in range(3))
    return np.asarray(np.einsum("...i,...i", a, np.cross(b, c)))
