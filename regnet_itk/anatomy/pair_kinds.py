"""Kinds of pairs that registrations meet, made of the digital chest: cropped, padded, turned, with a lung missing ..

Each is a pair of images with landmarks, so that what a registration does to the landmarks' distance can be told. All
are changes of one phantom's images, or of where they lie; the anatomy's true map stays known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.grid import FloatArray, Grid, Triple
from regnet_itk.data.image import Image

BoolArray = npt.NDArray[np.bool_]

_WIDE: Triple = (460.0, 300.0, 280.0)  # field of view in mm, with room for the arms and the table
_NARROW = {"x": (0.15, 0.85), "y": (0.08, 0.92)}  # of it, round the body

_AIR, _SOFT_TISSUE, _BONE, _PADDING = -1000, 30, 500, -3024
_BLOOD = (20, 75)  # HU, without a contrast agent
_CONTRAST = 220
_ARM = (185.0, 20.0, 36.0)  # |x|, y and radius in mm


@dataclass(frozen=True, eq=False)
class KnownPair:
    """A pair of images with landmarks.

    Parameters
    ----------
    fixed, moving : Image
        Hounsfield units.
    fixed_landmarks, moving_landmarks : ndarray, shape (n, 3)
        Corresponding points, mm, LPS.
    fixed_mask, moving_mask : Image
        Of the lungs, on the grids of the images.
    """

    fixed: Image
    moving: Image
    fixed_landmarks: FloatArray = field(repr=False)
    moving_landmarks: FloatArray = field(repr=False)
    fixed_mask: Image = field(repr=False)
    moving_mask: Image = field(repr=False)

    def landmark_error(self, mapping: Callable[[FloatArray], FloatArray] = lambda points: points) -> float:
        """Return the mean distance in mm of the landmarks that a map (n, 3) from fixed to moving leaves."""
        return float(np.linalg.norm(mapping(self.fixed_landmarks) - self.moving_landmarks, axis=1).mean())

    def _keep(self, kept: BoolArray) -> KnownPair:
        """Return the pair with some of its landmarks."""
        return replace(self, fixed_landmarks=self.fixed_landmarks[kept], moving_landmarks=self.moving_landmarks[kept])

    def _of(self, **arrays: npt.NDArray[np.integer]) -> KnownPair:
        """Return the pair with other values in an image, by its name."""
        changed: dict[str, Any] = {
            name: Image(array.astype(np.int16), getattr(self, name).grid) for name, array in arrays.items()
        }
        return replace(self, **changed)

    def _crop(
        self, role: str, x: Sequence[float] = (0, 1), y: Sequence[float] = (0, 1), z: Sequence[float] = (0, 1)
    ) -> KnownPair:
        """Return the pair with a part of one image along x, y, z, in shares of its size, and the landmarks there."""
        image, mask = getattr(self, role), getattr(self, f"{role}_mask")
        nz, ny, nx = image.array.shape
        box = tuple(slice(round(a * n), round(b * n)) for (a, b), n in ((z, nz), (y, ny), (x, nx)))
        grid = image.grid.part(box)
        parts: dict[str, Any] = {role: Image(image.array[box], grid), f"{role}_mask": Image(mask.array[box], grid)}
        inside = grid.contains(getattr(self, f"{role}_landmarks"))
        return replace(self, **parts)._keep(inside)

    def _narrow(self) -> KnownPair:
        """Return the pair with fields of view that end round the body."""
        return self._crop("fixed", **_NARROW)._crop("moving", **_NARROW)

    def _place_moving(self, matrix: FloatArray, shift: Sequence[float]) -> KnownPair:
        """Return the pair with the moving image elsewhere: a point y of it comes to lie at `matrix` y + `shift`."""
        grid = self.moving.grid
        origin = matrix @ np.asarray(grid.origin) + np.asarray(shift)
        placed = Grid(grid.size, grid.spacing, tuple(origin), matrix @ grid.direction_matrix)  # type: ignore[arg-type]
        return replace(
            self,
            moving=Image(self.moving.array, placed),
            moving_mask=Image(self.moving_mask.array, placed),
            moving_landmarks=self.moving_landmarks @ matrix.T + np.asarray(shift),
        )


def make_whole_pair(seed: int = 3, spacing: float = 4.0, oblique: bool = False) -> KnownPair:
    """Make the pair that all kinds are changes of: a chest breathed out and in, with room around it.

    Parameters
    ----------
    seed : int
        Chooses the patient, the breath and the noise.
    spacing : float
        Edge of a voxel in mm.
    oblique : bool
        Turn the grids by a few degrees, each in another way.
    """
    made = make_phantom(seed, spacing=(spacing,) * 3, extent=_WIDE, oblique=oblique)
    return KnownPair(
        made.fixed, made.moving, made.fixed_landmarks, made.moving_landmarks, made.fixed_mask, made.moving_mask
    )


def change_pair(whole: KnownPair, kind: str) -> KnownPair:
    """Return a pair of one kind.

    Parameters
    ----------
    whole : KnownPair
        As `make_whole_pair` makes it.
    kind : str
        One of `PAIR_KINDS`.
    """
    return PAIR_KINDS[kind](whole if kind in _NEEDS_ROOM else whole._narrow())


def _turn(axis: int, degrees: float) -> FloatArray:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_rotvec(np.eye(3)[axis] * degrees, degrees=True).as_matrix())


def _disc(image: Image, value: int) -> npt.NDArray[np.integer]:
    """Return the values with `value` outside the largest circle of each axial slice that fits along x."""
    _, ny, nx = image.array.shape
    y, x = np.indices((ny, nx)) - np.array([(ny - 1) / 2, (nx - 1) / 2])[:, None, None]
    return np.where(np.hypot(x, y) > nx / 2, value, image.array)


def _without_left_lung(pair: KnownPair) -> KnownPair:
    """Fill the left lung of the fixed image, as a collapse with fluid does."""
    left = pair.fixed.grid.points()[..., 0] > 0
    lung = ndimage.binary_dilation(pair.fixed_mask.array > 0, iterations=2) & (pair.fixed.array < _SOFT_TISSUE)
    filled = np.where(left & lung, _SOFT_TISSUE, pair.fixed.array)
    mask = Image((pair.fixed_mask.array * ~left).astype(np.uint8), pair.fixed.grid)
    return replace(pair._of(fixed=filled), fixed_mask=mask)._keep(pair.fixed_landmarks[:, 0] < -5)


def _with_arms(pair: KnownPair) -> KnownPair:
    """Lay the arms beside the body in the moving image; in the fixed one they are up, beside the apices."""
    changed = {}
    for role, up in (("fixed", True), ("moving", False)):
        image = getattr(pair, role)
        x, y, z = np.moveaxis(image.grid.points(), -1, 0)
        radius = np.hypot(np.abs(x) - _ARM[0] + (z - 60 if up else 0) * 0.6, y - _ARM[1])
        length = z > 60 if up else z < 110
        arm = np.where(radius < _ARM[2] / 3, _BONE, _SOFT_TISSUE)
        changed[role] = np.where((radius < _ARM[2]) & length & (image.array < -500), arm, image.array)
    return pair._of(**changed)


def _on_table(pair: KnownPair, turned: bool) -> KnownPair:
    """Lay both patients on a table; the moving one on the other side of the body, if it is `turned`."""
    changed = {}
    for role, side in (("fixed", 1), ("moving", -1 if turned else 1)):
        image = getattr(pair, role)
        x, y, _ = np.moveaxis(image.grid.points(), -1, 0)
        height = side * y - 120 - (x / 100) ** 2 * 4
        table = (height > 0) & (height < 18) & (image.array < -500)
        changed[role] = np.where(table, -100, image.array)
    return pair._of(**changed)


def _with_contrast(pair: KnownPair) -> KnownPair:
    """Give the moving image a contrast agent: in the heart, the great vessels, and those of the lungs."""
    x, y, z = np.moveaxis(pair.moving.grid.points(), -1, 0)
    heart = (np.abs(x) < 65) & (np.abs(y) < 55) & (np.abs(z) < 120)
    lungs = ndimage.binary_erosion(ndimage.binary_closing(pair.moving_mask.array > 0, iterations=2))
    array = pair.moving.array
    blood = (array > _BLOOD[0]) & (array < _BLOOD[1])
    bright = (heart & ndimage.median_filter(blood.astype(np.uint8), 3).astype(bool)) | (lungs & (array > -300))
    return pair._of(moving=np.where(bright, array + _CONTRAST, array))


def _with_thick_slices(pair: KnownPair) -> KnownPair:
    """Give the moving image slices of about 10 mm."""
    grid = pair.moving.grid
    count = max(2, round(10.0 / grid.spacing[2]))
    slices = grid.size[2] // count
    thick = pair.moving.array[: slices * count].reshape(slices, count, *grid.shape[1:]).mean(axis=1)
    spacing = (*grid.spacing[:2], grid.spacing[2] * count)
    origin = grid.index_to_point([0, 0, (count - 1) / 2])
    coarse = Grid((*grid.size[:2], slices), spacing, tuple(origin), grid.direction)
    mask = pair.moving_mask.array[count // 2 :: count][:slices]
    return replace(pair, moving=Image(np.rint(thick).astype(np.int16), coarse), moving_mask=Image(mask, coarse))


def _with_other_patient(pair: KnownPair) -> KnownPair:
    """Take the moving image of another patient, 12 % smaller; the landmarks are extreme points of the lungs."""
    spacing = pair.moving.grid.spacing[0]
    other = make_phantom(11, spacing=(spacing,) * 3, extent=_WIDE, oblique=False)
    size = 0.88
    scaled = []
    for image in (other.moving, other.moving_mask):
        g = image.grid
        smaller = Grid(g.size, tuple(size * s for s in g.spacing), tuple(size * o for o in g.origin), g.direction)  # type: ignore[arg-type]
        scaled.append(Image(image.array, smaller))
    moving, mask = scaled
    return replace(
        pair, moving=moving, moving_mask=mask, fixed_landmarks=_lung_points(pair.fixed_mask),
        moving_landmarks=_lung_points(mask),
    )  # fmt: skip


def _lung_points(mask: Image) -> FloatArray:
    """Return the ends of each lung along z and y, its outer end and its middle (12, 3), mm."""
    points = mask.grid.points()[mask.array > 0]
    found = []
    for side in (-1, 1):
        lung = points[side * points[:, 0] > 0]
        for axis, sign in ((2, 1), (2, -1), (1, 1), (1, -1), (0, side)):
            along = sign * lung[:, axis]
            found.append(lung[along >= np.quantile(along, 0.995)].mean(axis=0))
        found.append(lung.mean(axis=0))
    return np.array(found)


PAIR_KINDS: dict[str, Callable[[KnownPair], KnownPair]] = {
    "whole chest": lambda pair: pair,
    "half of the fixed chest": lambda pair: pair._crop("fixed", x=(0, 0.5)),
    "half of the moving chest": lambda pair: pair._crop("moving", x=(0, 0.5)),
    "one lung in the fixed image": _without_left_lung,
    "fixed image without apices": lambda pair: pair._crop("fixed", z=(0, 0.6)),
    "moving image without bases": lambda pair: pair._crop("moving", z=(0.4, 1)),
    "without apices and without bases": lambda pair: pair._crop("fixed", z=(0, 0.7))._crop("moving", z=(0.3, 1)),
    "padding of -3024": lambda pair: pair._of(fixed=_disc(pair.fixed, _PADDING), moving=_disc(pair.moving, _PADDING)),
    "padding of the fixed image only": lambda pair: pair._of(fixed=_disc(pair.fixed, _PADDING)),
    "arms up and down": _with_arms,
    "on a table": lambda pair: _on_table(pair, turned=False),
    "prone and supine": lambda pair: _on_table(pair, turned=True)._place_moving(_turn(2, 180), (0, 30, 10)),
    "feet first": lambda pair: pair._place_moving(_turn(0, 180), (10, 0, -40)),
    "turned by 20 degrees": lambda pair: pair._place_moving(_turn(2, 20), (15, 10, 0)),
    "far origins": lambda pair: pair._place_moving(np.eye(3), (310, -640, 1480)),
    "contrast agent": _with_contrast,
    "thick slices": _with_thick_slices,
    "another patient": _with_other_patient,
    "no overlap": lambda pair: pair._crop("fixed", z=(0, 0.45))._crop("moving", z=(0.6, 1)),
}
"""The kinds, by name; each makes its pair of a phantom's."""

_NEEDS_ROOM = ("arms up and down", "on a table", "prone and supine", "another patient")
