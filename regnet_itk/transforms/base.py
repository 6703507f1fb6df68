"""What every type of transform can do, and what reading, writing and sampling need to know of it.

T maps points of the fixed image to the moving image, in mm, LPS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy.typing as npt

from regnet_itk.data.field import WriteBeside
from regnet_itk.data.grid import FloatArray
from regnet_itk.parameters import ParameterMap

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["compose", "add", "innermost"]
"""How a transform C joins the transform P before it: C(P(x)), P(x) + C(x) - x, or P(C(x))."""


class Transform(Protocol):
    """One transform of a chain, C. It is not changed once it is made."""

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return C of the points (..., 3) in mm, LPS, as float64."""

    def times_matrix(self, matrix: FloatArray) -> Self | None:
        """Return x + `matrix` (C(x) - x), exactly; None if this type of transform cannot hold it.

        Without it, some chains have to be sampled before ITK or elastix can have them.
        """

    def to_sitk_transform(self) -> Any | None:
        """Return SimpleITK's transform that maps as this one does; None if there is none, and it has to be sampled."""

    def elastix_values(self, write_beside: WriteBeside) -> Mapping[str, tuple[str, ...]]:
        """Return the keys that describe it in an elastix transform file, ``Transform`` first.

        Parameters
        ----------
        write_beside : callable
            For what does not fit in there: `write_beside("deformationField", ".mha", write)` calls `write(path)` to
            write a file beside the transform file, and returns the path by which to name it.
        """

    def describe(self) -> str:
        """Return what it is, in a few words."""

    def facts(self) -> dict[str, Any]:
        """Return what is worth knowing about it, as plain values for JSON; lengths in mm, points and axes in LPS."""


class PointSampler(Protocol):
    """A transform prepared for many points, on Torch, with its derivatives. Several threads use it at once."""

    def map(self, points: Tensor) -> Tensor:
        """Return C of the points (n, 3), float64, mm, LPS."""

    def map_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return C of the points (n, 3), and dC_i/dx_j there as a tensor (3, 3, n), float32."""


@dataclass(frozen=True)
class TransformType:
    """A type of transform; `regnet_itk.transforms.registry` holds those that are known.

    Parameters
    ----------
    of : type
        The class of its transforms.
    elastix_names : tuple of str
        What elastix calls it: the values of ``(Transform "..")``.
    read : callable
        Makes the transform from the keys of an elastix transform file, whose names of other files are relative to a
        folder (`elastix_keys.locate_file` finds them). A ParameterError, TransformError or ValueError says what is
        wrong.
    keys : tuple of str
        The keys of an elastix file that describe it, beside ``Transform`` itself.
    file_keys : tuple of str
        Those of them that name a file.
    in_stages : bool
        Whether elastix finds such a transform in a stage.
    itk_names : tuple of str
        SimpleITK's classes of it.
    from_sitk : callable, optional
        Makes the transform from one of SimpleITK's.
    sampler : callable, optional
        Prepares a transform for many points at once. Without it, they are mapped by `map_points`, and derivatives are
        taken by differences, which is right and slower.
    """

    of: type
    elastix_names: tuple[str, ...]
    read: Callable[[ParameterMap, Path], Transform]
    keys: tuple[str, ...] = ()
    file_keys: tuple[str, ...] = ()
    in_stages: bool = False
    itk_names: tuple[str, ...] = ()
    from_sitk: Callable[[Any], Transform] | None = None
    sampler: Callable[[Any], PointSampler] | None = None
