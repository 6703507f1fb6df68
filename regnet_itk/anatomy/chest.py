"""The anatomy of a digital chest: Hounsfield units as a function of the point, and vessel and airway trees.

Everything is a formula of the point (x, y, z) in mm, LPS, with the middle of the chest at zero, so that an image
of it can be taken on any grid, and after any deformation, without resampling. Shapes are implicit functions:
negative inside, positive outside, about the distance to the surface in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from regnet_itk.data.grid import FloatArray, Triple
from regnet_itk.data.ramps import smooth_step

AIR, BLOOD, MUSCLE, FAT = -1000.0, 45.0, 52.0, -100.0

_TABLE_Z = np.arange(-300.0, 301.0)


class Profile:
    """A smooth curve over z through given knots, constant beyond them, with its derivative."""

    def __init__(self, *knots: tuple[float, float]) -> None:
        z, value = np.array(sorted(knots)).T
        curve = PchipInterpolator(z, value)
        clipped = np.clip(_TABLE_Z, z[0], z[-1])
        self._value = curve(clipped)
        self._slope = np.where(clipped == _TABLE_Z, curve.derivative()(clipped), 0.0)

    def __call__(self, z: FloatArray) -> FloatArray:
        """Return the values at `z` (mm)."""
        return np.interp(z, _TABLE_Z, self._value).astype(z.dtype)

    def slope(self, z: FloatArray) -> FloatArray:
        """Return the derivatives by z at `z` (mm)."""
        return np.interp(z, _TABLE_Z, self._slope).astype(z.dtype)


@dataclass(frozen=True)
class Waves:
    """A smooth random function of the point: a sum of plane waves.

    Parameters
    ----------
    vectors : ndarray, shape (n, 3)
        Wave vectors in radians a mm.
    phases : ndarray, shape (n,)
        Phases in radians.
    amplitudes : ndarray, shape (n, components)
        What a wave adds to each component of the value.
    """

    vectors: FloatArray
    phases: FloatArray
    amplitudes: FloatArray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, count: int, wavelengths: tuple[float, float], deviation: float, components: int
    ) -> Waves:
        """Draw `count` waves of `wavelengths` (shortest, longest; mm) whose sum has the given standard deviation."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        numbers = 2 * np.pi / rng.uniform(*wavelengths, size=(count, 1))
        amplitudes = rng.normal(size=(count, components))
        amplitudes *= deviation * np.sqrt(2.0) / np.linalg.norm(amplitudes, axis=0)
        return cls(directions * numbers, rng.uniform(0, 2 * np.pi, count), amplitudes)

    def __call__(self, x: FloatArray, y: FloatArray, z: FloatArray) -> list[FloatArray]:
        """Return the components of the value at the points, one array each."""
        total = [np.zeros_like(x) for _ in range(self.amplitudes.shape[1])]
        for (kx, ky, kz), phase, amplitude in zip(
            self.vectors.tolist(), self.phases.tolist(), self.amplitudes.tolist(), strict=True
        ):
            wave = np.sin(kx * x + ky * y + kz * z + phase)
            for component, factor in zip(total, amplitude, strict=True):
                np.add(component, factor * wave, out=component)
        return total


def smooth_union(a: FloatArray, b: FloatArray, radius: float) -> FloatArray:
    """Join two implicit shapes, with the edge between them rounded over `radius` mm."""
    share = np.clip(0.5 + 0.5 * (b - a) / radius, 0.0, 1.0)
    return b + (a - b) * share - radius * share * (1.0 - share)


def smooth_intersection(a: FloatArray, b: FloatArray, radius: float) -> FloatArray:
    """Intersect two implicit shapes, with the edge between them rounded over `radius` mm."""
    return -smooth_union(-a, -b, radius)


def ellipsoid(p: Points, centre: Triple, axes: Triple) -> FloatArray:
    """Return the implicit function of an axis-aligned ellipsoid (half-axes in mm)."""
    x, y, z = ((q - c) / a for q, c, a in zip((p.x, p.y, p.z), centre, axes, strict=True))
    k0 = np.sqrt(x * x + y * y + z * z)
    k1 = np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-6)


def tube(p: Points, path: Sequence[Triple], radius: float) -> FloatArray:
    """Return the implicit function of a round tube along a polyline."""
    distance = np.full_like(p.x, np.inf)
    for start, end in pairwise(path):
        ax, ay, az = start
        dx, dy, dz = (e - s for s, e in zip(start, end, strict=True))
        x, y, z = p.x - ax, p.y - ay, p.z - az
        t = np.clip((x * dx + y * dy + z * dz) / (dx * dx + dy * dy + dz * dz), 0.0, 1.0)
        np.minimum(distance, (x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2, out=distance)
    return np.sqrt(distance) - radius


@dataclass(frozen=True)
class Points:
    """Points in the standard chest: arrays of one shape, in mm."""

    x: FloatArray
    y: FloatArray
    z: FloatArray


@dataclass(frozen=True)
class Trunk:
    """A horizontal superellipse whose half-axes and middle change with height.

    Parameters
    ----------
    half_width, half_depth, middle : Profile
        Half-axes along x and y, and y of the middle, over z.
    top : float
        z above which there is nothing.
    power : float
        2 is an ellipse, more is more like a box.
    """

    half_width: Profile
    half_depth: Profile
    middle: Profile
    top: float
    power: float = 2.3

    def __call__(self, p: Points) -> FloatArray:
        """Return the implicit function, scaled to about the distance in mm."""
        a, b = self.half_width(p.z), self.half_depth(p.z)
        y = p.y - self.middle(p.z)
        u, v = np.abs(p.x) / a, np.abs(y) / b
        up, vp = u ** (self.power - 1), v ** (self.power - 1)
        total = up * u + vp * v
        radius = np.maximum(total, 1e-6) ** (1 / self.power)
        steepness = radius / np.maximum(total, 1e-6)
        gx, gy = steepness * up / a, steepness * vp / b
        gz = steepness * (up * u * self.half_width.slope(p.z) / a + vp * v * self.half_depth.slope(p.z) / b)
        gz += gy * np.sign(y) * self.middle.slope(p.z)
        distance = (radius - 1.0) / np.maximum(np.sqrt(gx * gx + gy * gy + gz * gz), 1e-3)
        return np.maximum(distance, p.z - self.top)


BODY = Trunk(
    Profile((-150, 146), (-60, 150), (0, 152), (40, 150), (75, 138), (100, 110), (118, 76), (135, 60), (170, 54)),
    Profile((-150, 104), (-60, 108), (0, 106), (40, 101), (75, 92), (100, 78), (118, 64), (135, 58), (170, 56)),
    Profile((-150, 4), (0, 7), (60, 12), (100, 20), (140, 26), (170, 24)),
    top=400.0,
    power=2.5,
)
CAGE = Trunk(
    Profile((-160, 122), (-100, 125), (-40, 125), (0, 121), (40, 109), (70, 94), (90, 80), (105, 65), (114, 50)),
    Profile((-160, 80), (-100, 83), (-40, 83), (0, 80), (40, 71), (70, 59), (90, 47), (105, 32), (114, 14)),
    Profile((-150, 4), (0, 7), (40, 12), (90, 24), (114, 28)),
    top=114.0,
    power=2.2,
)
_MEDIASTINUM_HALF_WIDTH = Profile((-30, 26), (0, 38), (20, 42), (45, 37), (70, 31), (100, 30), (120, 36))
_SPINE_Y = Profile((-160, 54), (-60, 60), (10, 62), (70, 55), (140, 36))


@dataclass(frozen=True)
class Chest:
    """One patient.

    Parameters
    ----------
    scale : tuple of float
        Size relative to the standard chest along x, y, z.
    bend : Waves
        A small smooth deformation (mm) that makes this patient's shape irregular.
    dome_right, dome_left : float
        z of the tops of the diaphragm in mm.
    heart : float
        Size of the heart relative to the standard.
    fat : float
        Thickness of the fat under the skin in mm.
    lung_hu : float
        Mean of the lung's parenchyma, HU.
    rib_phase : float
        Shift of ribs and vertebrae along z, 0 to 1 of their distance.
    grain : ndarray, shape (n, n, n)
        Periodic random texture with standard deviation 1, one value each 2 mm.
    """

    scale: Triple
    bend: Waves
    dome_right: float
    dome_left: float
    heart: float
    fat: float
    lung_hu: float
    rib_phase: float
    grain: FloatArray = field(repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Chest:
        """Draw a patient."""
        sx, sy, sz = rng.uniform(0.95, 1.03, 3).tolist()
        dome = rng.uniform(-62, -46)
        return cls(
            scale=(sx, sy, sz),
            bend=Waves.draw(rng, 10, (90.0, 200.0), 2.2, 3),
            dome_right=dome,
            dome_left=dome - rng.uniform(5, 14),
            heart=rng.uniform(0.92, 1.08),
            fat=rng.uniform(6, 13),
            lung_hu=rng.uniform(-875, -835),
            rib_phase=rng.uniform(),
            grain=_draw_grain(rng),
        )

    def standard(self, points: FloatArray) -> Points:
        """Return where the points (3, ...) of this patient lie in the standard chest."""
        x, y, z = (points[axis] / np.asarray(self.scale[axis], points.dtype) for axis in range(3))
        dx, dy, dz = self.bend(x, y, z)
        return Points(x + dx, y + dy, z + dz)

    def diaphragm(self, p: Points) -> FloatArray:
        """Return the height of the points above the diaphragm in mm (about), negative in the belly."""
        tops = []
        for top, x, width in ((self.dome_right, -62.0, 74.0), (self.dome_left, 64.0, 72.0)):
            square = ((p.x - x) / width) ** 2 + ((p.y + 8.0) / 78.0) ** 2
            tops.append(top - 58.0 * square / np.sqrt(1.0 + 0.25 * square))
        height = -smooth_union(-tops[0], -tops[1], 24.0)
        return (p.z - height) * 0.75

    def heart_shape(self, p: Points) -> FloatArray:
        """Return the implicit function of the heart."""
        size = self.heart
        left = ellipsoid(p, (34.0, -30.0, -44.0), (44 * size, 36 * size, 37 * size))
        right = ellipsoid(p, (-10.0, -28.0, -36.0), (38 * size, 36 * size, 42 * size))
        base = ellipsoid(p, (6.0, -6.0, -14.0), (36 * size, 34 * size, 32 * size))
        return smooth_union(smooth_union(left, right, 10.0), base, 12.0)

    def mediastinum(self, p: Points) -> FloatArray:
        """Return the implicit function of all that lies between the lungs."""
        width = _MEDIASTINUM_HALF_WIDTH(p.z)
        upper = (np.sqrt((p.x / width) ** 2 + ((p.y - 6.0) / 40.0) ** 2) - 1.0) * np.minimum(width, 40.0)
        upper = np.maximum(upper, -22.0 - p.z)
        back = np.hypot(p.x - 10.0, p.y - 42.0) - 21.0
        spine = np.hypot(p.x, p.y - _SPINE_Y(p.z) - 3.0) - 21.0
        middle = np.abs(p.x - 3.0) - 2.0
        shape = smooth_union(self.heart_shape(p) - 3.5, upper, 14.0)
        shape = smooth_union(shape, smooth_union(back, spine, 12.0), 8.0)
        return smooth_union(shape, middle, 10.0)

    def lungs(self, p: Points, cage: FloatArray | None = None) -> FloatArray:
        """Return the implicit function of both lungs."""
        cage = CAGE(p) if cage is None else cage
        shape = smooth_intersection(cage, -self.mediastinum(p), 6.0)
        return smooth_intersection(shape, -self.diaphragm(p), 4.0)

    def lung_at(self, points: FloatArray) -> FloatArray:
        """Return the implicit function of the lungs at the points (n, 3) of this patient."""
        return self.lungs(self.standard(np.asarray(points).T))


def _draw_grain(rng: np.random.Generator) -> FloatArray:
    from scipy import ndimage

    noise = rng.normal(size=(96, 96, 96))
    fine = ndimage.gaussian_filter(noise, 0.9, mode="wrap")
    coarse = ndimage.gaussian_filter(noise[::-1], 3.0, mode="wrap")
    return np.asarray((0.8 * fine / fine.std() + 0.6 * coarse / coarse.std()), dtype=np.float32)


@dataclass
class Canvas:
    """Hounsfield units of a block of points, painted one organ over the other.

    Parameters
    ----------
    hu : ndarray
        The values so far.
    softness : float
        Width in mm over which an edge goes from one value to the other.
    """

    hu: FloatArray
    softness: float

    def paint(self, shape: FloatArray, value: float | FloatArray) -> None:
        """Give the inside of an implicit shape a value, with soft edges."""
        share = np.clip(0.5 - shape / self.softness, 0.0, 1.0)
        self.hu += share * (value - self.hu)


def hounsfield(
    chest: Chest, points: FloatArray, softness: float, growth: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the anatomy without the trees of the lungs.

    Parameters
    ----------
    chest : Chest
        The patient.
    points : ndarray, shape (3, ...)
        Points in mm, LPS.
    softness : float
        Width of an edge in mm.
    growth : ndarray, optional
        What the mass in a mm^3 of lung is multiplied with (1 by default).

    Returns
    -------
    hu : ndarray
        Hounsfield units, float32.
    lungs : ndarray
        The implicit function of the lungs.
    """
    scene = _Scene.of(chest, points)
    canvas = Canvas(np.full_like(scene.p.x, AIR), softness)
    _paint_wall(canvas, chest, scene)
    _paint_belly(canvas, scene)
    _paint_middle(canvas, chest, scene)
    _paint_spine(canvas, chest, scene.p)
    _paint_cage_bones(canvas, chest, scene)
    _paint_lungs(canvas, chest, scene, growth)
    return canvas.hu, scene.lungs


@dataclass(frozen=True)
class _Scene:
    """Points of the standard chest, and at each the implicit functions that several organs need."""

    p: Points
    body: FloatArray
    cage: FloatArray
    dome: FloatArray
    lungs: FloatArray
    grain: FloatArray

    @classmethod
    def of(cls, chest: Chest, points: FloatArray) -> _Scene:
        """Evaluate them at points (3, ...) of the patient."""
        p = chest.standard(points)
        cage = CAGE(p)
        return cls(p, _body(p), cage, chest.diaphragm(p), chest.lungs(p, cage), _grain_at(chest.grain, p))


def _grain_at(grain: FloatArray, p: Points) -> FloatArray:
    """Return the texture at the points, linear between its values."""
    from scipy import ndimage

    coordinates = np.stack([p.z, p.y, p.x]) * np.float32(0.5)
    return ndimage.map_coordinates(grain, coordinates, output=np.float32, order=1, mode="grid-wrap")


def _body(p: Points) -> FloatArray:
    """Return the implicit function of trunk, neck and raised arms."""
    arm = tube(Points(np.abs(p.x), p.y, p.z), [(88.0, 30.0, 62.0), (112.0, 26.0, 110.0), (128.0, 20.0, 190.0)], 36.0)
    return smooth_union(BODY(p), arm, 22.0)


def _paint_wall(canvas: Canvas, chest: Chest, scene: _Scene) -> None:
    """Paint skin, fat and muscle, with the raised arms."""
    p, cage, body, grain = scene.p, scene.cage, scene.body, scene.grain
    side = Points(np.abs(p.x), p.y, p.z)
    fat = chest.fat * (1.0 - 0.45 * smooth_step((p.y - 20.0) / 80.0)) * (1.0 - 0.3 * smooth_step(p.z / 120.0))
    canvas.paint(body, 10.0)
    canvas.paint(body + 2.2, FAT + 6.0 * grain)
    canvas.paint(body + 2.2 + fat, MUSCLE + 7.0 * grain)
    wall = np.abs(cage - 12.0 - 3.0 * np.sin(p.z / 17.0)) - 0.9
    canvas.paint(np.maximum(wall, body + 8.0), FAT)
    axilla = ellipsoid(side, (116.0, 4.0, 58.0), (20.0, 26.0, 44.0))
    canvas.paint(np.maximum(axilla, 6.0 - cage), FAT + 12.0 * grain)
    canvas.paint(tube(side, [(112.0, 6.0, 20.0), (120.0, 10.0, 150.0)], 4.0), BLOOD)
    bone = tube(side, [(104.0, 26.0, 92.0), (128.0, 20.0, 190.0)], 11.0)
    canvas.paint(bone, 900.0)
    canvas.paint(bone + 4.0, 60.0)


def _paint_belly(canvas: Canvas, scene: _Scene) -> None:
    """Paint the diaphragm, liver, stomach and spleen."""
    p, cage, dome, grain = scene.p, scene.cage, scene.dome, scene.grain
    inside = np.maximum(cage + 2.0, dome)
    canvas.paint(inside, MUSCLE)
    inside = smooth_intersection(cage + 5.0, dome + 3.0, 4.0)
    canvas.paint(inside, FAT + 8.0 * grain)
    liver = smooth_union(
        ellipsoid(p, (-56.0, 2.0, -112.0), (72.0, 82.0, 74.0)),
        ellipsoid(p, (6.0, -32.0, -108.0), (50.0, 34.0, 36.0)),
        20.0,
    )
    canvas.paint(smooth_intersection(liver, inside, 5.0), 62.0 + 5.0 * grain)
    stomach = smooth_intersection(ellipsoid(p, (62.0, -16.0, -112.0), (40.0, 48.0, 46.0)), inside + 1.0, 6.0)
    canvas.paint(stomach, 42.0)
    canvas.paint(stomach + 4.5, 18.0 + 6.0 * grain)
    canvas.paint(np.maximum(stomach + 4.5, p.y + 38.0), AIR + 15.0)
    spleen = ellipsoid(p, (88.0, 40.0, -114.0), (24.0, 38.0, 42.0))
    canvas.paint(smooth_intersection(spleen, inside, 5.0), 54.0 + 3.0 * grain)


_VESSELS: tuple[tuple[tuple[Triple, ...], float], ...] = (
    (((20.0, 46.0, -170.0), (21.0, 43.0, 0.0), (22.0, 38.0, 36.0)), 12.0),  # descending aorta
    (((22.0, 38.0, 36.0), (17.0, 22.0, 52.0), (4.0, -4.0, 54.0), (-8.0, -22.0, 36.0), (-10.0, -26.0, 0.0)), 13.0),
    (((-26.0, -8.0, 112.0), (-24.0, -10.0, 60.0), (-22.0, -6.0, -10.0)), 9.0),  # superior vena cava
    (((34.0, -18.0, 112.0), (0.0, -28.0, 76.0), (-24.0, -12.0, 58.0)), 6.5),  # left brachiocephalic vein
    (((-2.0, -10.0, 58.0), (-18.0, -2.0, 100.0), (-24.0, -6.0, 170.0)), 6.0),
    (((8.0, 4.0, 60.0), (14.0, 6.0, 110.0), (24.0, 0.0, 170.0)), 4.5),
    (((15.0, 16.0, 58.0), (24.0, 20.0, 100.0), (46.0, 14.0, 130.0)), 5.0),
    (((10.0, -28.0, -8.0), (16.0, -18.0, 16.0), (20.0, -2.0, 26.0)), 13.0),  # pulmonary trunk
    (((20.0, -4.0, 22.0), (-8.0, 4.0, 16.0), (-48.0, 15.0, 9.0)), 9.0),  # right pulmonary artery
    (((18.0, -4.0, 26.0), (34.0, 10.0, 22.0), (52.0, 20.0, 3.0)), 9.0),  # left pulmonary artery
    (((-20.0, 20.0, -170.0), (-18.0, 8.0, -40.0)), 12.0),  # inferior vena cava
    (((-48.0, 12.0, -8.0), (-10.0, 8.0, -10.0)), 6.5),  # pulmonary veins
    (((50.0, 16.0, -6.0), (16.0, 8.0, -10.0)), 6.5),
)
CARINA: Triple = (2.0, 24.0, 40.0)
HILA: tuple[Triple, Triple] = ((-48.0, 24.0, 10.0), (52.0, 29.0, 4.0))


def _paint_middle(canvas: Canvas, chest: Chest, scene: _Scene) -> None:
    """Paint the fat, heart, great vessels, oesophagus and central airways between the lungs."""
    p, cage, dome = scene.p, scene.cage, scene.dome
    canvas.paint(np.maximum(np.maximum(cage + 1.0, chest.mediastinum(p)), -dome), FAT + 8.0)
    heart = chest.heart_shape(p)
    canvas.paint(np.maximum(heart, 2.0 - dome), MUSCLE)
    groove = np.abs(p.x + 0.35 * p.y - 0.3 * p.z - 8.0) - 1.2
    canvas.paint(np.maximum(np.maximum(groove, np.abs(heart) - 5.0), 2.0 - dome), FAT)
    z = (float(p.z.min()), float(p.z.max()))
    for path, radius in _VESSELS:
        if z[0] < max(q[2] for q in path) + radius + 2 and z[1] > min(q[2] for q in path) - radius - 2:
            canvas.paint(tube(p, path, radius), BLOOD)
    canvas.paint(tube(p, [(2.0, 36.0, 170.0), (5.0, 40.0, 20.0), (2.0, 34.0, -110.0)], 6.5), 32.0)
    windpipe = tube(p, [(0.0, 10.0, 190.0), (0.0, 14.0, 110.0), CARINA], 8.5)
    for hilum, radius in zip(HILA, (6.5, 6.0), strict=True):
        windpipe = smooth_union(windpipe, tube(p, [CARINA, hilum], radius), 4.0)
    canvas.paint(windpipe - 1.6, 35.0)
    canvas.paint(windpipe, AIR + 5.0)


def _paint_spine(canvas: Canvas, chest: Chest, p: Points) -> None:
    """Paint vertebrae with discs, canal, arches and processes."""
    y = p.y - _SPINE_Y(p.z)
    phase = p.z / 25.0 + chest.rib_phase
    along = (phase - np.round(phase)) * 25.0  # from the middle of a vertebra
    waist = 1.5 * np.cos(along / 12.5 * np.pi)
    body = (np.sqrt((p.x / 17.0) ** 2 + (y / 14.0) ** 2) - 1.0) * 14.0 + waist
    canvas.paint(body, 75.0)
    vertebra = np.maximum(body, np.abs(along) - 10.0)
    canvas.paint(vertebra, 480.0)
    canvas.paint(vertebra + 1.8, 170.0)
    canal = np.hypot(p.x, y - 23.0)
    arch = np.maximum(np.maximum(canal - 13.0, 9.0 - canal), np.abs(along + 2.0) - 8.0)
    canvas.paint(arch, 420.0)
    spinous = np.maximum(np.maximum(np.abs(p.x) - 3.5, np.abs(y - 36.0) - 7.0), np.abs(along + (y - 36.0) * 0.4) - 5.0)
    canvas.paint(spinous, 380.0)
    reach = np.abs(p.x) - 14.0
    sideways = np.maximum(np.abs(reach - 10.0) - 12.0, np.hypot(y - 20.0 - 0.25 * reach, along - 4.0) - 4.5)
    canvas.paint(sideways, 360.0)
    canvas.paint(canal - 8.5, 12.0)
    canvas.paint(canal - 4.5, 40.0)


def _paint_cage_bones(canvas: Canvas, chest: Chest, scene: _Scene) -> None:
    """Paint ribs with their cartilage, sternum, collar bones and shoulder blades."""
    p, cage, body = scene.p, scene.cage, scene.body
    distance = 26.0
    height = p.z - 0.42 * p.y + 0.0016 * p.x * p.x
    phase = height / distance + chest.rib_phase
    along = (phase - np.round(phase)) * distance * 0.9
    rib = (np.sqrt(((cage - 5.0) / 3.6) ** 2 + (along / 6.2) ** 2) - 1.0) * 3.6
    front = smooth_step((-32.0 - p.y - 0.15 * np.abs(p.x)) / 14.0)
    lost = np.where(p.y < -16.0, 0.35 * (-74.0 - height), -50.0)  # the lowest ribs end at the side
    joint = np.where(p.y > 40.0, 15.0 - np.abs(p.x), -50.0)
    rib = np.maximum(np.maximum(rib, lost), np.maximum(joint, np.maximum(p.z - 103.0, body + 5.0)))
    canvas.paint(rib, 560.0 - 440.0 * front)
    canvas.paint(rib + 1.5, 240.0 - 130.0 * front)
    sternum = np.sqrt(((cage - 8.0) / 5.5) ** 2 + (p.x / (15.0 + 0.08 * p.z)) ** 2) - 1.0
    sternum = np.maximum(sternum * 5.5, np.maximum(np.abs(p.z - 18.0) - 66.0, p.y))
    canvas.paint(sternum, 420.0)
    canvas.paint(sternum + 1.6, 130.0)
    side = Points(np.abs(p.x), p.y, p.z)
    collar = tube(side, [(16.0, -38.0, 88.0), (60.0, -32.0, 112.0), (108.0, 8.0, 122.0)], 6.0)
    blade = np.maximum(np.abs(cage - 21.0 - 3.0 * np.sin(p.z / 30.0)) - 2.2, np.abs(p.z - 52.0) - 52.0)
    blade = np.maximum(
        blade, np.maximum(np.abs(side.x - 84.0 - 0.1 * p.z) - 30.0 + 0.2 * np.abs(p.z - 70.0), 22.0 - p.y)
    )
    for bone in (np.maximum(collar, body + 5.0), np.maximum(blade, body + 6.0)):
        canvas.paint(bone, 520.0)
        canvas.paint(bone + 1.7, 190.0)


def _paint_lungs(canvas: Canvas, chest: Chest, scene: _Scene, growth: FloatArray | None) -> None:
    """Paint the parenchyma: denser at the back, grainy, with fissures."""
    p = scene.p
    value = chest.lung_hu + 0.35 * p.y + 22.0 * scene.grain
    if growth is not None:
        value = (value - AIR) * growth + AIR
    right = p.x < 0
    oblique = np.where(right, p.z + 22.0 - 0.95 * p.y, p.z + 14.0 - 1.0 * p.y) + 7.0 * np.cos(p.x / 30.0)
    flat = np.where(right & (oblique > 0), p.z - 4.0 - 0.06 * p.y + 4.0 * np.cos(p.y / 28.0), 50.0)
    fissure = np.minimum(np.abs(oblique) * 0.72, np.abs(flat))
    value = value + 130.0 * np.exp(-((fissure / 0.9) ** 2))
    canvas.paint(scene.lungs, value)


@dataclass(frozen=True)
class Branch:
    """A curved, tapering tube.

    Parameters
    ----------
    path : ndarray, shape (n, 3)
        The centre line in mm, LPS.
    radii : ndarray, shape (n,)
        Radii in mm along it.
    forks : bool
        Whether it ends in two branches.
    """

    path: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    forks: bool


@dataclass(frozen=True)
class TreeKind:
    """What a tree of one lung is like.

    Parameters
    ----------
    offset : tuple of float
        Where it begins relative to the hilum, mm.
    root_radius : float
        Radius of the first branch, mm.
    points : int
        Number of points to supply; about a tenth of it is the number of twigs.
    """

    offset: Triple
    root_radius: float
    points: int


ARTERIES = TreeKind((0.0, -9.0, -1.0), 6.0, 6000)
VEINS = TreeKind((0.0, -10.0, -14.0), 5.6, 5000)


def grow_tree(chest: Chest, rng: np.random.Generator, side: int, kind: TreeKind) -> list[Branch]:
    """Grow a tree that fills one lung, from its hilum.

    The points to supply are split in two again and again; each branch reaches towards the middle of its share.

    Parameters
    ----------
    chest : Chest
        The patient.
    rng : numpy.random.Generator
        Source of all randomness.
    side : {0, 1}
        0 is the right lung (x < 0), 1 the left.
    kind : TreeKind
        Where it begins, how thick and how fine it is.
    """
    cloud = _points_in_lung(chest, rng, side, kind.points)
    hilum = (np.asarray(HILA[side]) + np.asarray(kind.offset)) * np.asarray(chest.scale)
    outwards = np.array([1.0 if side else -1.0, 0.0, -0.3])
    branches: list[Branch] = []
    buds = [_Bud(cloud, hilum, outwards / np.linalg.norm(outwards))]
    while buds:
        shoots = [shoot for bud in buds for shoot in _shoots(bud, rng)]
        outside = chest.lung_at(np.array([shoot.end for shoot in shoots]).reshape(-1, 3)) > -2.0
        shoots = [shoot.shorter() if out else shoot for shoot, out in zip(shoots, outside, strict=True)]
        branches += [shoot.branch(kind) for shoot in shoots]
        buds = [shoot.bud() for shoot in shoots if shoot.forks]
    return branches


def _points_in_lung(chest: Chest, rng: np.random.Generator, side: int, count: int) -> FloatArray:
    found: list[FloatArray] = []
    low, high = np.array([0.0, -90.0, -135.0]), np.array([135.0, 105.0, 125.0])
    while sum(map(len, found)) < count:
        batch = rng.uniform(low, high, (count, 3)) * (1 if side else -1, 1, 1)
        found.append(batch[chest.lung_at(batch) < -3.5])
    return np.concatenate(found)[:count]


_REACH, _SMALLEST, _WIGGLE = 0.42, 9, 0.12  # share of the way to the middle; points of a twig; share of the length


@dataclass(frozen=True)
class _Bud:
    """Where two branches of a growing tree begin: the points (n, 3) they supply, the place and the direction."""

    cloud: FloatArray
    start: FloatArray
    heading: FloatArray


@dataclass(frozen=True)
class _Shoot:
    """A branch of a growing tree, from `start` to `end`, that supplies `cloud` (n, 3)."""

    cloud: FloatArray
    start: FloatArray
    bend: FloatArray
    end: FloatArray

    @property
    def forks(self) -> bool:
        """Whether it has enough to supply for two branches."""
        return len(self.cloud) >= 2.4 * _SMALLEST

    def shorter(self) -> _Shoot:
        """Return a shoot straight into the middle of its points, for one that left the lung."""
        return _Shoot(self.cloud, self.start, self.bend, self.start + 0.25 * (self.cloud.mean(axis=0) - self.start))

    def bud(self) -> _Bud:
        """Return the fork at its end."""
        arrival = self.end - self.bend
        return _Bud(self.cloud, self.end, arrival / max(float(np.linalg.norm(arrival)), 1e-9))

    def branch(self, kind: TreeKind) -> Branch:
        """Return the tube; its radius follows Murray's law."""
        radius = max(0.68, kind.root_radius * (len(self.cloud) / kind.points) ** (1 / 3))
        t = np.linspace(0.0, 1.0, 4 if np.linalg.norm(self.end - self.start) > 6 else 3)[:, None]
        path = (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.bend + t**2 * self.end
        return Branch(path, np.linspace(radius, 0.9 * radius, len(path)), self.forks)


def _shoots(bud: _Bud, rng: np.random.Generator) -> list[_Shoot]:
    """Return up to two branches that leave a bud, each towards the middle of its part of the points."""
    shoots = []
    for part in _split(bud.cloud, bud.start, rng):
        wish = _REACH * (part.mean(axis=0) - bud.start)
        length = float(np.linalg.norm(wish))
        end = bud.start + wish + rng.normal(size=3) * _WIGGLE * length
        if len(part) >= _SMALLEST and length >= 2.5:
            shoots.append(_Shoot(part, bud.start, bud.start + 0.38 * length * bud.heading, end))
    return shoots


def _split(cloud: FloatArray, start: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Split points in two by a plane through the line from `start` to their middle."""
    centred = cloud - cloud.mean(axis=0)
    along = cloud.mean(axis=0) - start
    along = along / max(float(np.linalg.norm(along)), 1e-9)
    across = centred - (centred @ along)[:, None] * along * 0.8
    _, vectors = np.linalg.eigh(across.T @ across)
    score = centred @ (vectors[:, -1] + 0.25 * rng.normal(size=3))
    cut = np.quantile(score, rng.uniform(0.36, 0.64))
    return cloud[score < cut], cloud[score >= cut]
