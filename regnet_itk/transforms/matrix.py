"""Matrices: the transforms that are affine, as elastix's five types of them.

T maps points of the fixed image to the moving image, in mm, LPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from regnet_itk.data.field import WriteBeside
from regnet_itk.data.grid import FloatArray
from regnet_itk.errors import TransformError
from regnet_itk.parameters import ParameterMap, as_values
from regnet_itk.transforms.base import PointSampler, TransformType
from regnet_itk.transforms.elastix_keys import read_floats, read_parameters

_RIGID = 1e-6
EULER = "EulerTransform"
"""What elastix calls a rotation with a shift."""


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
    def is_identity(self) -> bool:
        """Whether it moves no point at all."""
        return np.array_equal(self.matrix, np.eye(3)) and not self.translation.any()

    @property
    def is_rigid(self) -> bool:
        """Whether it is a rotation with a shift."""
        return np.allclose(self.matrix @ self.matrix.T, np.eye(3), atol=_RIGID) and np.linalg.det(self.matrix) > 0

    @property
    def offset(self) -> FloatArray:
        """The vector b of T(x) = matrix x + b."""
        return np.asarray(self.centre + self.translation - self.matrix @ self.centre)

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3), fixed to moving."""
        return np.asarray(points, dtype=float) @ self.matrix.T + self.offset

    def times_matrix(self, matrix: FloatArray) -> MatrixTransform:
        """Return x + `matrix` (T(x) - x), which is affine again."""
        identity = np.eye(3)
        return MatrixTransform(matrix @ (self.matrix - identity) + identity, translation=matrix @ self.offset)

    def to_sitk_transform(self) -> Any:
        """Return a ``SimpleITK.AffineTransform``."""
        import SimpleITK as sitk

        matrix, translation, centre = self.matrix.ravel().tolist(), self.translation.tolist(), self.centre.tolist()
        return sitk.AffineTransform(matrix, translation, centre)

    def elastix_values(self, write_beside: WriteBeside | None = None) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file; nothing is written beside it."""
        if self.values:
            return dict(self.values)
        return {
            "Transform": ("AffineTransform",),
            "NumberOfParameters": ("12",),
            "TransformParameters": as_values([*self.matrix.ravel(), *self.translation]),
            "CenterOfRotationPoint": as_values(self.centre),
        }

    def __repr__(self) -> str:
        matrix, offset = self.matrix.round(4).tolist(), self.offset.round(3).tolist()
        return f"{type(self).__name__}({self.name}, A {matrix}, b {offset} mm)"

    def describe(self) -> str:
        """Return what elastix calls it."""
        return self.name

    def facts(self) -> dict[str, Any]:
        """Return A and b of T(x) = A x + b, in mm, LPS."""
        return {"matrix": self.matrix.tolist(), "offset": self.offset.tolist()}


def matrix_of(mapping: Callable[[FloatArray], FloatArray]) -> MatrixTransform:
    """Return an affine map, given as a function of points (n, 3) in mm, LPS, as its matrix."""
    offset, *ends = mapping(np.vstack([np.zeros(3), np.eye(3)]))
    return MatrixTransform(np.stack([end - offset for end in ends], axis=1), translation=offset)


def as_euler(rotation: MatrixTransform) -> MatrixTransform:
    """Return a rotation with a shift as elastix's Euler transform.

    Parameters
    ----------
    rotation : MatrixTransform
        Its matrix is a rotation.
    """
    from scipy.spatial.transform import Rotation

    z, x, y = Rotation.from_matrix(rotation.matrix).as_euler("ZXY")
    values = {
        "Transform": EULER,
        "NumberOfParameters": 6,
        "TransformParameters": [x, y, z, *rotation.translation],
        "CenterOfRotationPoint": rotation.centre,
        "ComputeZYX": False,
    }
    return read_matrix(ParameterMap({}).with_(values), Path())


# How elastix and ITK write it

_PARAMETERS = {
    "TranslationTransform": 3,
    EULER: 6,
    "SimilarityTransform": 7,
    "AffineTransform": 12,
    "AffineLogTransform": 12,
}


def read_matrix(values: ParameterMap, folder: Path) -> MatrixTransform:
    """Read any of elastix's transforms that are affine; see `TransformType.read`.

    Raises
    ------
    ParameterError, TransformError
        If a key is missing or does not hold what it should.
    """
    name = values.get_str("Transform")
    p = np.array(read_parameters(values, _PARAMETERS[name]))
    kept = {k: values[k] for k in ("Transform", "NumberOfParameters", "TransformParameters") if k in values}
    if name == "TranslationTransform":
        return MatrixTransform(np.eye(3), np.zeros(3), p, name, kept)
    centre = np.array(read_floats(values, "CenterOfRotationPoint", 3))
    kept["CenterOfRotationPoint"] = values["CenterOfRotationPoint"]
    if name == EULER:
        kept["ComputeZYX"] = (values.get_str("ComputeZYX", "false"),)
        matrix, translation = _euler_matrix(p[:3], values.get_bool("ComputeZYX", False)), p[3:]
    elif name == "SimilarityTransform":
        matrix, translation = p[6] * _versor_matrix(p[:3]), p[3:6]
    else:
        matrix, translation = p[:9].reshape(3, 3), p[9:]
        if name == "AffineLogTransform":
            matrix = linalg.expm(matrix)
    return MatrixTransform(matrix, centre, translation, name, kept)


# Written out as ITK does it. scipy's Rotation goes by unit quaternions and gives other last digits (up to 6e-16) in all
# but 4 of 20000 Euler matrices and in 8 of 10 versors, which files written from them would show.


def _euler_matrix(angles: FloatArray, zyx: bool) -> FloatArray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x if zyx else z @ x @ y)


def _versor_matrix(versor: FloatArray) -> FloatArray:
    x, y, z = versor
    w = math.sqrt(max(0.0, 1.0 - float(versor @ versor)))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + 2 * w * cross + 2 * cross @ cross)


def _sampler(transform: MatrixTransform) -> PointSampler:
    from regnet_itk.transforms.point_samplers import MatrixSampler  # torch is slow to start

    return MatrixSampler(transform.matrix, transform.offset)


MATRIX = TransformType(
    MatrixTransform,
    tuple(_PARAMETERS),
    read_matrix,
    keys=("NumberOfParameters", "TransformParameters", "CenterOfRotationPoint", "ComputeZYX"),
    in_stages=True,
    sampler=_sampler,
)
