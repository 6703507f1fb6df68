"""Where voxels lie in space: the :class:`Grid` that goes with every array of this package.

Conventions, quoted everywhere: points are (x, y, z) in millimetres, LPS; sizes, spacings, origins and indices
are (x, y, z); arrays are (z, y, x), or (z, y, x, 3) with the components (x, y, z) last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from regnet_itk.errors import ImageError

FloatArray = npt.NDArray[np.floating[Any]]
Triple = tuple[float, float, float]

IDENTITY_DIRECTION: tuple[Triple, Triple, Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


Box = tuple[slice, slice, slice]
"""Part of an array (z, y, x), with ends and without steps."""

_BLOCK_SLICES = 8
_BLOCK_VOXELS = 32_768


def cut_slabs(shape: Sequence[int], voxels: int) -> Iterator[slice]:
    """Give slices along z that cover an array (z, y, x), each of at most `voxels` voxels, or of one slice."""
    nz, ny, nx = shape
    rows = max(1, voxels // (ny * nx))
    for start in range(0, nz, rows):
        yield slice(start, min(start + rows, nz))


def _triple(values: Sequence[float] | FloatArray) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z


LARGEST_LENGTH = 1e12
"""mm; whatever is larger is damaged, and its square soon no number any more."""
LARGEST_COSINE = 1e3
"""Of a direction; ITK's singular value decomposition never ends with numbers such as 1e308."""
MOST_VOXELS = 2**36


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxel centres in physical space.

    Parameters
    ----------
    size : tuple of int
        Number of voxels along x, y, z.
    spacing : tuple of float
        Distance of neighbouring voxel centres in mm, along x, y, z.
    origin : tuple of float
        Point (LPS, mm) of the centre of voxel (0, 0, 0).
    direction : 3x3 nested tuple
        Column i is the unit vector along which index i grows (as SimpleITK's ``GetDirection()``, row by row).

    Raises
    ------
    ImageError
        If a size or spacing is not positive, a value is not finite, or the direction cannot be inverted.

    Examples
    --------
    >>> from regnet_itk import Grid
    >>> grid = Grid(size=(4, 3, 2), spacing=(1.0, 1.0, 2.5), origin=(10.0, 0.0, 0.0))
    >>> grid.shape  # of arrays
    (2, 3, 4)
    >>> grid.index_to_point([1, 0, 1]).tolist()  # x, y, z in mm
    [11.0, 0.0, 2.5]
    """

    size: tuple[int, int, int]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[Triple, Triple, Triple] = IDENTITY_DIRECTION

    def __post_init__(self) -> None:
        nx, ny, nz = (int(n) for n in self.size)
        object.__setattr__(self, "size", (nx, ny, nz))
        object.__setattr__(self, "spacing", _triple(self.spacing))
        object.__setattr__(self, "origin", _triple(self.origin))
        rows = np.asarray(self.direction, dtype=float).reshape(3, 3)
        object.__setattr__(self, "direction", tuple(_triple(row) for row in rows))
        if math.prod(self.size) > MOST_VOXELS:
            raise ImageError(f"a grid of {' x '.join(map(str, self.size))} voxels is larger than any image")
        if min(self.size) < 1:
            raise ImageError(f"a grid needs a size of at least 1 along every axis, not {self.size}")
        if not all(0 < s <= LARGEST_LENGTH for s in self.spacing):
            raise ImageError(
                f"the voxel spacing {self.spacing} mm is not positive, or no length; correct the image's header"
            )
        if not (np.abs(rows).max() <= LARGEST_COSINE and np.abs(self.origin).max() <= LARGEST_LENGTH):
            raise ImageError(
                "the origin or direction of the image is not finite, or too large; correct the image's header"
            )
        if abs(np.linalg.det(rows)) < 1e-6:
            raise ImageError(f"the direction matrix {rows.tolist()} cannot be inverted; correct the image's header")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of an array on this grid."""
        nx, ny, nz = self.size
        return nz, ny, nx

    @property
    def direction_matrix(self) -> FloatArray:
        """The direction as a (3, 3) array."""
        return np.asarray(self.direction, dtype=float)

    @property
    def index_to_point_matrix(self) -> FloatArray:
        """(3, 3) matrix that turns an index difference into a difference of points in mm."""
        return self.direction_matrix * np.asarray(self.spacing)

    def describe(self, what: str = "voxels") -> str:
        """Return the size and the spacing as a short text: "512 x 512 x 300 voxels of 0.7 x 0.7 x 1 mm"."""
        size, spacing = " x ".join(map(str, self.size)), " x ".join(f"{s:g}" for s in self.spacing)
        return f"{size} {what} of {spacing} mm"

    def to_dict(self) -> dict[str, list[Any]]:
        """Return size, spacing, origin and the rows of the direction, as plain values for JSON."""
        return {
            "size": list(self.size),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": [list(row) for row in self.direction],
        }

    def index_to_point(self, index: npt.ArrayLike) -> FloatArray:
        """Return the points (..., 3) in mm of the continuous indices (..., 3)."""
        return np.asarray(index, dtype=float) @ self.index_to_point_matrix.T + np.asarray(self.origin)

    def point_to_index(self, point: npt.ArrayLike) -> FloatArray:
        """Return the continuous indices (..., 3) of the points (..., 3) in mm."""
        inverse = np.linalg.inv(self.index_to_point_matrix)
        return (np.asarray(point, dtype=float) - np.asarray(self.origin)) @ inverse.T

    def contains(self, point: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Say which points (..., 3) lie in the box that the voxels fill (half a voxel around their centres)."""
        index = self.point_to_index(point)
        return np.asarray(((index >= -0.5) & (index < np.asarray(self.size) - 0.5)).all(axis=-1))

    def points(self) -> FloatArray:
        """Return the points of all voxel centres, shape (z, y, x, 3), float64, in mm."""
        nx, ny, nz = self.size
        matrix = self.index_to_point_matrix
        x = np.arange(nx)[:, None] * matrix[:, 0]
        y = np.arange(ny)[:, None, None] * matrix[:, 1]
        z = np.arange(nz)[:, None] * matrix[:, 2]
        rows = np.tile(z, nx)[:, None] + (y + x).reshape(ny, 3 * nx)  # whole rows at a time: 6 times as fast as points
        rows += np.tile(self.origin, nx)
        return rows.reshape(nz, ny, nx, 3)

    def corners(self) -> FloatArray:
        """Return the eight corners (8, 3) in mm of the box that the voxels fill."""
        return self.lattice(2, -0.5)

    def centre(self) -> FloatArray:
        """Return the point (3,) in mm in the middle of the grid."""
        return self.index_to_point((np.asarray(self.size) - 1) / 2)

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Grid:
        """Return the part of `size` voxels that begins at index `start`; it may reach outside this grid."""
        nx, ny, nz = (int(n) for n in size)
        return Grid((nx, ny, nz), self.spacing, _triple(self.index_to_point(start)), self.direction)

    def part(self, box: Sequence[slice]) -> Grid:
        """Return the part that a box cuts out of an array on this grid; its slices go along z, y, x.

        Parameters
        ----------
        box : sequence of 3 slices
            With ends, and no step, as :func:`regnet_itk.data.image.bounding_box` returns them.
        """
        along = tuple(reversed(box))
        return self.crop([s.start for s in along], [s.stop - s.start for s in along])

    def slabs(self, voxels: int) -> Iterator[Box]:
        """Give boxes of whole slices that cover the grid, each of at most `voxels` voxels, or of one slice."""
        nx, ny, _ = self.size
        for z in cut_slabs(self.shape, voxels):
            yield z, slice(0, ny), slice(0, nx)

    def blocks(self, step: int = 1) -> Iterator[Box]:
        """Give boxes that cover the grid, small enough for a processor's cache.

        Parameters
        ----------
        step : int
            They begin at multiples of it along z and y.
        """
        nz, ny, nx = self.shape
        slices = step * max(1, round(_BLOCK_SLICES / step))
        rows = step * max(1, _BLOCK_VOXELS // (slices * nx * step))
        for z in range(0, nz, slices):
            for y in range(0, ny, rows):
                yield slice(z, min(z + slices, nz)), slice(y, min(y + rows, ny)), slice(0, nx)

    def lattice(self, count: int, margin: float = 0.0) -> FloatArray:
        """Return points (n, 3) in mm, evenly spread over the grid: `count` along each axis, the last index fastest.

        Parameters
        ----------
        count : int
        margin : float
            Distance in voxels of the outermost points from the centres of the outermost voxels, inwards; -0.5 is the
            border of the box that the voxels fill. Where the grid is too thin for it, they lie in its middle.
        """
        along = np.linspace(*self._ends(margin), count)
        return self.index_to_point(np.stack(np.meshgrid(*along.T, indexing="ij"), axis=-1).reshape(-1, 3))

    def random_points(self, count: int, rng: np.random.Generator, margin: float = 0.0) -> FloatArray:
        """Return points (count, 3) in mm, anywhere in the grid and mostly between its voxels; see `lattice`."""
        return self.index_to_point(rng.uniform(*self._ends(margin), (count, 3)))

    def _ends(self, margin: float) -> tuple[FloatArray, FloatArray]:
        last = np.asarray(self.size) - 1
        return np.minimum(margin, last / 2), np.maximum(last - margin, last / 2)

    def backwards(self) -> Grid:
        """Return the grid of an array whose slices are put in the opposite order, ``array[::-1]``.

        Its axes are right-handed if those of this grid are not.
        """
        last = self.index_to_point([0, 0, self.size[2] - 1])
        direction = self.direction_matrix * np.array([1.0, 1.0, -1.0])
        return replace(self, origin=_triple(last), direction=direction)

    def pad(self, lower: Sequence[int], upper: Sequence[int]) -> Grid:
        """Return this grid with `lower` voxels more before, and `upper` more after, along x, y, z."""
        size = [n + a + b for n, a, b in zip(self.size, lower, upper, strict=True)]
        return self.crop([-a for a in lower], size)

    def every(self, step: int) -> Grid:
        """Return the grid of every `step`-th voxel, beginning with the first."""
        nx, ny, nz = (-(-n // step) for n in self.size)
        sx, sy, sz = self.spacing
        return Grid((nx, ny, nz), (sx * step, sy * step, sz * step), self.origin, self.direction)

    def steps_along(self, other: Grid) -> FloatArray | None:
        """Return how many voxels of this grid a step of another one takes along x, y, z.

        None if the axes differ: if they are not the same directions, in the same order.
        """
        steps = np.linalg.solve(self.index_to_point_matrix, other.index_to_point_matrix)
        along = np.diag(steps)
        return along if np.allclose(steps, np.diag(along), atol=1e-6) and along.min() > 0 else None

    def with_spacing(self, spacing: Sequence[float]) -> Grid:
        """Return the grid with voxels of another size along the same axes that fills the same box.

        The corners of the first voxels coincide; the last voxels may reach past the box by less than a voxel.

        Parameters
        ----------
        spacing : sequence of 3 float
            Edges of a voxel in mm.
        """
        wanted = np.asarray(spacing, dtype=float)
        nx, ny, nz = np.maximum(1, np.ceil(np.asarray(self.size) * self.spacing / wanted - 1e-4)).astype(int)
        first = self.index_to_point(-0.5 + 0.5 * wanted / np.asarray(self.spacing))
        return Grid((nx, ny, nz), _triple(wanted), _triple(first), self.direction)

    def isotropic(self, spacing: float) -> Grid:
        """Return the grid with cubic voxels on the same axes that fills the same box; see `with_spacing`.

        Parameters
        ----------
        spacing : float
            Edge of a voxel in mm.
        """
        return self.with_spacing((spacing,) * 3)

    def is_close(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Say whether both grids have the same size and their corners agree to `tolerance` voxels."""
        if self.size != other.size:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance * min(self.spacing))
