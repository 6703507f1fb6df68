"""Points through a finished transform, either way, and transformix's ``outputpoints.txt``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.transforms.chain import TransformChain

NO_INVERSE = 0.01
"""mm; a point y has no inverse x if T(x) stays further away from y than this."""


@dataclass(frozen=True, eq=False)
class MappedPoints:
    """Points before and after a transform.

    Parameters
    ----------
    given : Landmarks
        mm, LPS.
    mapped : ndarray, shape (n, 3)
        mm, LPS.
    residual : ndarray of shape (n,), or None
        |T(mapped) - given| in mm, for points that went moving to fixed.
    """

    given: Landmarks
    mapped: FloatArray
    residual: npt.NDArray[np.float64] | None = None

    @property
    def failed(self) -> npt.NDArray[np.intp]:
        """Numbers of the points without an inverse."""
        if self.residual is None:
            return np.array([], dtype=np.intp)
        return np.flatnonzero(~(self.residual <= NO_INVERSE))

    def name(self, number: int) -> str:
        """Return what to call a point in a message."""
        names = self.given.names
        return f"{number} '{names[number]}'" if names and names[number] else str(number)

    def landmarks(self) -> Landmarks:
        """Return the mapped points with their names, without those that have no inverse."""
        kept = np.setdiff1d(np.arange(len(self.given)), self.failed)
        names = tuple(self.given.names[i] for i in kept) if self.given.names else ()
        return Landmarks(self.mapped[kept], names)


def map_landmarks(
    chain: TransformChain, landmarks: Landmarks, moving_to_fixed: bool = False, fixed_grid: Grid | None = None
) -> MappedPoints:
    """Map points fixed to moving, or the other way by solving T(x) = y for each.

    Parameters
    ----------
    chain : TransformChain
        T, fixed to moving.
    landmarks : Landmarks
        In the fixed image, or in the moving image if `moving_to_fixed`.
    moving_to_fixed : bool
    fixed_grid : Grid, optional
        Helps to find an inverse where displacements are large.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (2.0, 0.0, -1.0)))
    >>> landmarks = regnet_itk.Landmarks(np.array([[10.0, -20.0, 30.0]]))
    >>> regnet_itk.map_landmarks(chain, landmarks).mapped.tolist()
    [[12.0, -20.0, 29.0]]
    """
    if moving_to_fixed:
        from regnet_itk.transforms.inverse import invert_points  # torch is slow to start

        return MappedPoints(landmarks, *invert_points(chain, landmarks.points, fixed_grid))
    return MappedPoints(landmarks, chain.map_points(landmarks.points))


def output_points_text(points: MappedPoints, fixed: Grid | None = None, moving: Grid | None = None) -> str:
    """Return the text of transformix's ``outputpoints.txt``; points without an inverse are ``nan``.

    Parameters
    ----------
    points : MappedPoints
    fixed, moving : Grid, optional
        The images' grids; indices in an image that is not known are left out. Of points that went moving to fixed
        the indices of the input are in the moving image, and each line ends with the residual in mm.
    """
    back = points.residual is not None
    mapped = points.mapped.copy()
    mapped[points.failed] = np.nan
    columns = [
        ("InputIndex", _indices(moving if back else fixed, points.given.points)),
        ("InputPoint", _decimals(points.given.points)),
        ("OutputIndexFixed", _indices(fixed, mapped)),
        ("OutputPoint", _decimals(mapped)),
        ("Deformation", _decimals(mapped - points.given.points)),
        ("OutputIndexMoving", None if back else _indices(moving, mapped)),
        ("Residual", None if points.residual is None else _decimals(points.residual[:, None])),
    ]
    lines = []
    for i in range(len(mapped)):
        cells = [f"{name} = [ {texts[i]} ]" for name, texts in columns if texts is not None]
        lines.append("\t; ".join([f"Point\t{i}", *cells]))
    return "\n".join(lines) + "\n"


def _decimals(values: FloatArray) -> list[str]:
    return [" ".join(f"{value:.6f}" for value in row) for row in values]


def _indices(grid: Grid | None, points: FloatArray) -> list[str] | None:
    if grid is None:
        return None
    index = np.floor(grid.point_to_index(points) + 0.5)
    return [" ".join("nan" if np.isnan(value) else str(int(value)) for value in row) for row in index]
