"""A digital chest phantom: two states of one thorax whose true displacement is known exactly.

The anatomy is a formula (:mod:`regnet_itk.chest`) in the space of the moving image. The moving image shows it at
y, the fixed image at T(x), so that I_F(x) = I_M(T(x)) holds without any resampling; noise and blur are each
image's own. Landmarks are forks of the vessels of the lungs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.anatomy.chest import (
    AIR,
    ARTERIES,
    BLOOD,
    VEINS,
    Branch,
    Chest,
    Waves,
    grow_tree,
    hounsfield,
)
from regnet_itk.anatomy.sliding_cage import SlidingCage
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid, Triple
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.ramps import smooth_step
from regnet_itk.errors import ParameterError, did_you_mean
from regnet_itk.outputs import staged_folder


@dataclass(frozen=True)
class Motion:
    """The exact map T from the fixed to the moving space: a rigid change of pose, a slide if any, then a breath.

    Parameters
    ----------
    rotation : ndarray, shape (3, 3)
        Turns the fixed points about zero, the middle of the chest.
    shift : ndarray, shape (3,)
        Added after it, mm.
    diaphragm : float
        How far the diaphragm goes down, mm.
    ribs : tuple of float
        How far the ribs go outwards and forwards, mm.
    dome : float
        z of the diaphragm in the fixed state, mm.
    apex : float
        z of the top of the lungs, mm.
    irregular : Waves
        A small smooth random part, three components in mm.
    sliding : SlidingCage, optional
        What goes down along the wall of the chest; `diaphragm` is 0 then.
    """

    rotation: FloatArray
    shift: FloatArray
    diaphragm: float
    ribs: tuple[float, float]
    dome: float
    apex: float
    irregular: Waves
    sliding: SlidingCage | None = None

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T(x) (..., 3) of the points x (..., 3), mm, LPS, fixed to moving."""
        return self._moved(self._posed(points))

    def slides(self, points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Say which points x (..., 3) of the fixed image slide along the others."""
        posed = self._posed(points)
        return np.zeros(posed.shape[:-1], dtype=bool) if self.sliding is None else self.sliding.holds(posed)

    def invert_points(self, points: npt.ArrayLike, tolerance: float = 1e-8) -> FloatArray:
        """Return the points x (..., 3) with T(x) = y for the points y (..., 3), to `tolerance` mm."""
        goal = np.asarray(points, dtype=float)
        posed = goal - self._breath(goal)
        for _ in range(200):
            error = goal - posed - self._breath(posed)
            posed = posed + error
            if np.abs(error).max(initial=0.0) < tolerance:
                break
        if self.sliding is not None:
            posed = self.sliding.invert_points(posed)
        return (posed - self.shift) @ self.rotation

    def jacobian_determinant(self, points: npt.ArrayLike) -> FloatArray:
        """Return det(dT/dx) at the points (..., 3), by central differences of 0.1 mm on their side of what slides."""
        posed = self._posed(points)
        held = self.sliding.holds(posed) if self.sliding is not None else None
        steps = 0.05 * self.rotation.T
        columns = [(self._moved(posed + step, held) - self._moved(posed - step, held)) / 0.1 for step in steps]
        return np.asarray(np.einsum("...i,...i", columns[0], np.cross(columns[1], columns[2])))

    def _posed(self, points: npt.ArrayLike) -> FloatArray:
        return np.asarray(np.asarray(points, dtype=float) @ self.rotation.T + self.shift)

    def _moved(self, posed: FloatArray, held: npt.NDArray[np.bool_] | None = None) -> FloatArray:
        """Return where the breath moves points; those that are `held` by the cage slide, by default those in it."""
        slid = posed if self.sliding is None else self.sliding.map_points(posed, held)
        return slid + self._breath(slid)

    def _breath(self, posed: FloatArray) -> FloatArray:
        """Return the displacement (..., 3) of the breath, in mm."""
        x, y, z = (np.ascontiguousarray(posed[..., axis]) for axis in range(3))
        spine = 1.0 - np.exp(-((x / 36.0) ** 2 + ((y - 72.0) / 36.0) ** 2) / 2)
        radius = np.sqrt((x / 125.0) ** 2 + ((y - 5.0) / 85.0) ** 2)
        free = spine * (1.0 - 0.75 * smooth_step((radius - 0.7) / 0.55))
        fall = smooth_step((self.apex - z) / (self.apex - self.dome)) ** 1.3
        fall *= 1.0 - 0.6 * smooth_step((self.dome - z) / 130.0)
        middle = np.exp(-(((z + 15.0) / 105.0) ** 2)) * spine
        ux, uy, uz = self.irregular(x, y, z)
        weight = middle * (1.0 - 0.8 * smooth_step((radius - 0.8) / 0.5))
        ux = ux * weight + self.ribs[0] * np.tanh(x / 80.0) * middle
        uy = uy * weight - self.ribs[1] * middle / (1.0 + np.exp((y - 5.0) / 22.0))
        uz = uz * weight - self.diaphragm * fall * free * (1.0 + 0.12 * np.tanh(y / 50.0))
        return np.stack([ux, uy, uz], axis=-1)


@dataclass(frozen=True, eq=False)
class Phantom:
    """Two images of one digital patient, and the truth about them.

    Parameters
    ----------
    fixed, moving : Image
        int16, Hounsfield units.
    fixed_mask, moving_mask : Image
        uint8, 1 in the lungs.
    displacement : DisplacementField
        The exact u of T(x) = x + u(x) at the voxels of the fixed image, fixed to moving, mm.
    fixed_landmarks, moving_landmarks : ndarray, shape (n, 3)
        Forks of vessels in mm, LPS; ``motion.map_points(fixed_landmarks)`` are the moving ones.
    motion : Motion
        T itself, at any point.
    fixed_sliding : Image or None
        uint8, 1 in what slides along the wall of the chest, if anything does.
    """

    fixed: Image
    moving: Image
    fixed_mask: Image
    moving_mask: Image
    displacement: DisplacementField
    fixed_landmarks: FloatArray = field(repr=False)
    moving_landmarks: FloatArray = field(repr=False)
    motion: Motion = field(repr=False)
    fixed_sliding: Image | None = None


@dataclass(frozen=True)
class _Kind:
    """What a kind of pair looks like; ranges are drawn from uniformly."""

    diaphragm: tuple[float, float]
    ribs: tuple[float, float]
    irregular: float
    degrees: float
    shift: float
    sliding: bool = False


_KINDS = {
    "breathing": _Kind((11.5, 13.5), (2.4, 3.8), 0.9, 1.5, 1.5),
    "followup": _Kind((3.0, 4.5), (0.6, 1.2), 0.5, 0.9, 1.2),
    "sliding": _Kind((18.0, 25.0), (2.4, 3.8), 0.9, 1.5, 1.5, sliding=True),
}


_LARGEST_AMPLITUDE = 45.0  # mm; there det J is still above 0.6 everywhere


def make_phantom(
    seed: int = 0,
    kind: str = "breathing",
    *,
    spacing: Triple = (1.5, 1.5, 2.0),
    extent: Triple = (324.0, 252.0, 280.0),
    amplitude: float | None = None,
    noise: float = 20.0,
    oblique: bool = True,
    density_change: bool = True,
    landmarks: int = 100,
) -> Phantom:
    """Make two images of one digital patient with their exact displacement field and landmarks.

    Parameters
    ----------
    seed : int
        Chooses the patient (shape, vessels), the motion and the noise. The same seed gives the same phantom.
    kind : {"breathing", "followup", "sliding"}
        The fixed image is breathed out and the moving image breathed in (mean over the lungs 6-9 mm, largest
        14-19 mm), or both are breathed in, at two visits (largest below 8 mm), or lungs and belly slide along the
        wall of the chest by 18 to 25 mm at the diaphragm.
    spacing : tuple of float
        Voxel size (x, y, z) of both images in mm.
    extent : tuple of float
        Field of view (x, y, z) of the fixed image in mm; that of the moving image is a little larger. The chest
        is about 300 x 220 mm wide and deep.
    amplitude : float, optional
        How far the diaphragm goes down in mm, instead of a random one.
    noise : float
        Standard deviation of the noise in HU; 0 for none.
    oblique : bool
        Turn the grids by a few degrees, each in another way.
    density_change : bool
        Make the lung denser where it is smaller, so that its mass stays: then I_F(x) = I_M(T(x)) does not hold
        for the values of the parenchyma, as in real scans.
    landmarks : int
        Largest number of landmarks.

    Raises
    ------
    ParameterError
        If `kind` is unknown, `noise` is negative, or `amplitude` is negative or above 45 mm.
    ImageError
        If `spacing` is not positive, or so large that a grid has fewer than 5 voxels along an axis.

    Examples
    --------
    >>> from regnet_itk import make_phantom, write_phantom
    >>> phantom = make_phantom(seed=1, spacing=(8.0, 8.0, 10.0), extent=(160.0, 140.0, 130.0))
    >>> phantom.fixed.grid.size
    (20, 18, 13)
    >>> write_phantom(phantom, "phantom")  # fixed.mha, moving.mha, masks, landmarks, the true displacement
    """
    _check(kind, amplitude, noise)
    rng = np.random.default_rng([seed, sorted(_KINDS).index(kind)])
    patient = np.random.default_rng(seed)
    chest = Chest.draw(patient)
    trees = _Trees.grow(chest, patient)
    motion = _draw_motion(chest, rng, _KINDS[kind], amplitude)
    fixed_grid, moving_grid = _grids(rng, spacing, extent, oblique)
    softness = max(1.4, 0.7 * max(spacing))
    warped = _moved(motion, fixed_grid)
    fixed, fixed_mask = _render(chest, trees, _View(fixed_grid, warped, softness, motion, density_change))
    moving, moving_mask = _render(chest, trees, _View(moving_grid, _moved(None, moving_grid), softness))
    space = _Space(chest, motion, fixed_grid, moving_grid)
    moving_points = _pick_landmarks(trees, patient, space, landmarks)
    return Phantom(
        fixed=_exposed(fixed, fixed_grid, rng, blur=0.5, noise=noise),
        moving=_exposed(moving, moving_grid, rng, blur=0.65, noise=1.2 * noise),
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        displacement=DisplacementField((warped - _moved(None, fixed_grid)).transpose(1, 2, 3, 0), fixed_grid),
        fixed_landmarks=motion.invert_points(moving_points),
        moving_landmarks=moving_points,
        motion=motion,
        fixed_sliding=_sliding_mask(motion, fixed_grid),
    )


def _check(kind: str, amplitude: float | None, noise: float) -> None:
    if kind not in _KINDS:
        raise ParameterError(f"no phantom of kind '{kind}'{did_you_mean(kind, _KINDS)}; there are {', '.join(_KINDS)}")
    if amplitude is not None and not 0.0 <= amplitude <= _LARGEST_AMPLITUDE:
        raise ParameterError(f"an amplitude of {amplitude} mm; give one between 0 and {_LARGEST_AMPLITUDE:g} mm")
    if not noise >= 0.0:
        raise ParameterError(f"a noise of {noise} HU; give 0 or more")


def _rotation(degrees: Sequence[float] | FloatArray) -> FloatArray:
    """Return the rotation by small angles about x, y, z."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())


def _draw_motion(chest: Chest, rng: np.random.Generator, kind: _Kind, amplitude: float | None) -> Motion:
    diaphragm = float(rng.uniform(*kind.diaphragm))
    outwards, forwards = rng.uniform(*kind.ribs, size=2)
    diaphragm = diaphragm if amplitude is None else amplitude
    slide = SlidingCage(chest, diaphragm, chest.dome_right + diaphragm) if kind.sliding else None
    axis = rng.normal(size=3)
    direction = rng.normal(size=3)
    return Motion(
        rotation=_rotation(kind.degrees * axis / np.linalg.norm(axis)),
        shift=kind.shift * direction / np.linalg.norm(direction),
        diaphragm=0.0 if kind.sliding else diaphragm,
        ribs=(float(outwards), float(forwards)),
        dome=chest.dome_right * chest.scale[2] + diaphragm,
        apex=120.0 * chest.scale[2],
        irregular=Waves.draw(rng, 8, (70.0, 150.0), kind.irregular, 3),
        sliding=slide,
    )


def _grids(rng: np.random.Generator, spacing: Triple, extent: Triple, oblique: bool) -> tuple[Grid, Grid]:
    """Return the grids of the fixed and the moving image."""
    grids = []
    for more, degrees in ((0.0, (-2.5, 1.5, 2.0)), (6.0, (1.5, 2.0, -3.0))):
        size = [max(1, round((e + more) / s)) for e, s in zip(extent, spacing, strict=True)]
        direction = _rotation(degrees) if oblique else np.eye(3)
        centre = rng.uniform(-3.0, 3.0, 3)
        grid = Grid((size[0], size[1], size[2]), spacing, direction=direction)  # type: ignore[arg-type]
        origin = centre - grid.centre()
        grids.append(Grid(grid.size, spacing, tuple(origin), grid.direction))
    return grids[0], grids[1]


def _moved(motion: Motion | None, grid: Grid) -> npt.NDArray[np.float64]:
    """Return T of the voxel centres of `grid` (or the centres themselves), shape (3, z, y, x)."""
    moved = np.empty((3, *grid.shape))
    for z, points in enumerate(_slices(grid)):
        moved[:, z] = (points if motion is None else motion.map_points(points)).transpose(2, 0, 1)
    return moved


def _sliding_mask(motion: Motion, grid: Grid) -> Image | None:
    """Return what slides along the rest, on the grid of the fixed image."""
    if motion.sliding is None:
        return None
    return Image(np.stack([motion.slides(part) for part in _slices(grid)]).astype(np.uint8), grid)


def _slices(grid: Grid) -> Iterator[FloatArray]:
    """Yield the points (y, x, 3) of each slice of a grid."""
    for z in range(grid.size[2]):
        yield grid.crop((0, 0, z), (*grid.size[:2], 1)).points()[0]


@dataclass(frozen=True)
class _Trees:
    """All tubes of the lungs."""

    vessels: list[Branch]
    airways: list[Branch]

    @classmethod
    def grow(cls, chest: Chest, rng: np.random.Generator) -> _Trees:
        """Grow arteries with airways beside them, and veins, in both lungs."""
        vessels: list[Branch] = []
        airways: list[Branch] = []
        for side in (0, 1):
            arteries = grow_tree(chest, rng, side, ARTERIES)
            vessels += arteries
            airways += [_beside(branch) for branch in arteries if branch.radii[0] > 1.7]
            vessels += grow_tree(chest, rng, side, VEINS)
        return cls(vessels, airways)


def _beside(branch: Branch) -> Branch:
    """Return an airway that runs beside an artery."""
    radii = 0.62 * branch.radii
    away = np.array([0.0, 1.0, 0.12])
    return Branch(branch.path + away * (branch.radii + radii + 0.3)[:, None], radii, branch.forks)


@dataclass(frozen=True)
class _View:
    """How an image is taken: its grid, the anatomy's points there (3, z, y, x), and the width of edges in mm."""

    grid: Grid
    points: npt.NDArray[np.float64]
    softness: float
    motion: Motion | None = None
    density_change: bool = False


def _render(chest: Chest, trees: _Trees, view: _View) -> tuple[npt.NDArray[np.float32], Image]:
    """Return the Hounsfield units (z, y, x) and the mask of the lungs."""
    points = view.points.astype(np.float32)
    factors = _density_factors(view)
    hu = np.empty(view.grid.shape, dtype=np.float32)
    lungs = np.empty(view.grid.shape, dtype=np.float32)
    for z in range(view.grid.size[2]):
        growth = _slice_of(factors, view.grid, z)
        hu[z], lungs[z] = hounsfield(chest, points[:, z], view.softness, growth)
    vessels, airways = _Pieces.of(trees.vessels), _Pieces.of(trees.airways)
    for pieces, wall, value in ((airways, 0.7, 0.0), (airways, 0.0, AIR), (vessels, 0.0, BLOOD)):
        share = _cover(pieces, wall, view, points)
        hu += share * (value - hu)
    mask = ndimage.binary_opening(lungs < 0, iterations=1)
    return hu, Image(mask.astype(np.uint8), view.grid)


def _density_factors(view: _View) -> FloatArray | None:
    """Return det(dT/dx) (z, y, x) on about every 6 mm, and None if the density shall not change."""
    if view.motion is None or not view.density_change:
        return None
    return view.motion.jacobian_determinant(view.grid.every(_density_step(view.grid)).points())


def _density_step(grid: Grid) -> int:
    return max(1, int(6.0 / max(grid.spacing)))


def _slice_of(coarse: FloatArray | None, grid: Grid, z: int) -> FloatArray | None:
    """Return slice `z` (y, x) of what :func:`_density_factors` gives, linear between its values."""
    if coarse is None:
        return None
    nx, ny, _ = grid.size
    index = np.stack(np.broadcast_arrays(z, np.arange(ny)[:, None], np.arange(nx))) / _density_step(grid)
    return np.asarray(ndimage.map_coordinates(coarse, index, np.float32, order=1, mode="nearest"))


def _cover(pieces: _Pieces, wall: float, view: _View, points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return how much of each voxel the tubes fill, 0 to 1, with `wall` mm added to their radii."""
    filled = np.zeros(view.grid.shape, dtype=np.float32)
    low, high = pieces.boxes(view, wall)
    for number in np.nonzero((low < high).all(axis=1))[0].tolist():
        block = tuple(slice(a, b) for a, b in zip(low[number, ::-1].tolist(), high[number, ::-1].tolist(), strict=True))
        share = pieces.share(number, points[(slice(None), *block)], wall, view.softness)
        np.maximum(filled[block], share, out=filled[block])
    return filled


@dataclass(frozen=True)
class _Pieces:
    """Straight, tapering pieces of tubes: starts and steps to the ends (n, 3), radii there (n, 2), float32, mm."""

    starts: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]
    radii: npt.NDArray[np.float32]

    @classmethod
    def of(cls, branches: list[Branch]) -> _Pieces:
        """Cut branches into their pieces."""
        starts = np.concatenate([branch.path[:-1] for branch in branches])
        ends = np.concatenate([branch.path[1:] for branch in branches])
        radii = np.concatenate([np.stack([b.radii[:-1], b.radii[1:]], axis=1) for b in branches])
        return cls(starts.astype(np.float32), (ends - starts).astype(np.float32), radii.astype(np.float32))

    def boxes(self, view: _View, wall: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Return first and last-plus-one index (n, 3) of the voxels that each piece may touch in an image."""
        ends = np.stack([self.starts, self.starts + self.steps]).astype(float)
        if view.motion is not None:
            ends = view.motion.invert_points(ends, tolerance=1e-2)
        index = view.grid.point_to_index(ends)
        margin = (view.softness / 2 + wall + 1.0 + self.radii[:, :1]) / np.asarray(view.grid.spacing)
        low = np.floor(index.min(axis=0) - margin).astype(int)
        high = np.ceil(index.max(axis=0) + margin).astype(int) + 1
        return np.maximum(low, 0), np.minimum(high, view.grid.size)

    def share(
        self, number: int, points: npt.NDArray[np.float32], wall: float, softness: float
    ) -> npt.NDArray[np.float32]:
        """Return how much of the voxels at the points (3, ...) a piece fills; thin tubes are fainter, as in CT."""
        first, last = self.radii[number] + np.float32(wall)
        x, y, z = points - self.starts[number][:, None, None, None]
        dx, dy, dz = self.steps[number]
        t = (x * dx + y * dy + z * dz) / max(dx * dx + dy * dy + dz * dz, np.float32(1e-9))
        t = np.minimum(np.maximum(t, np.float32(0)), np.float32(1))
        distance = np.sqrt((x - t * dx) ** 2 + (y - t * dy) ** 2 + (z - t * dz) ** 2)
        share = np.float32(0.5) + (first + t * (last - first) - distance) / np.float32(softness)
        faint = 1 - np.exp(-((first / np.float32(0.6)) ** 2))
        return np.asarray(faint * np.minimum(np.maximum(share, np.float32(0)), np.float32(1)))


_GRAIN_VOXELS = 0.6  # width of the grains of the noise
_GRAIN_DEVIATION = float((ndimage.gaussian_filter1d(np.eye(1, 21, 10)[0], _GRAIN_VOXELS) ** 2).sum() ** 1.5)


def _exposed(hu: npt.NDArray[np.float32], grid: Grid, rng: np.random.Generator, blur: float, noise: float) -> Image:
    """Return the values as a scanner gives them: blurred (mm), with grainy noise of `noise` HU, int16."""
    seen = ndimage.gaussian_filter(hu, [blur / s for s in grid.spacing[::-1]])
    grain = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), _GRAIN_VOXELS)
    seen += noise / _GRAIN_DEVIATION * grain
    return Image(np.clip(np.rint(seen), -1024, 3071).astype(np.int16), grid)


def _pick_landmarks(trees: _Trees, rng: np.random.Generator, space: _Space, count: int) -> FloatArray:
    """Return forks of vessels (n, 3) of the moving space inside the lungs and both images, 8 mm apart or more."""
    points = np.array([branch.path[-1] for branch in trees.vessels if branch.forks and branch.radii[-1] > 1.1])
    points = points[rng.permutation(len(points))]
    chosen: list[FloatArray] = []
    for point in points[space.shows(points)]:
        if len(chosen) < count and all(np.linalg.norm(point - other) > 8.0 for other in chosen):
            chosen.append(point)
    return np.array(chosen).reshape(-1, 3)


@dataclass(frozen=True)
class _Space:
    """What decides whether a landmark can be seen in both images."""

    chest: Chest
    motion: Motion
    fixed_grid: Grid
    moving_grid: Grid

    def shows(self, points: FloatArray) -> npt.NDArray[np.bool_]:
        """Say which points (n, 3) of the moving space lie 6 mm deep in the lungs, and in both images."""
        deep = self.chest.lung_at(points) < -6.0
        inner = [grid.pad((-2, -2, -2), (-2, -2, -2)) for grid in (self.fixed_grid, self.moving_grid)]
        seen = inner[0].contains(self.motion.invert_points(points)) & inner[1].contains(points)
        return np.asarray(deep & seen)


def write_phantom(phantom: Phantom, folder: str | Path) -> None:
    """Write the phantom as files that elastix reads; all of them appear, or none.

    ``fixed.mha``, ``moving.mha``, ``fixed_mask.mha``, ``moving_mask.mha``, ``true_displacement.mha`` (u in mm,
    LPS, on the fixed grid), ``fixed_points.txt`` and ``moving_points.txt`` (elastix point files, mm, LPS); if anything
    slides, ``fixed_sliding.mha``.

    Parameters
    ----------
    phantom : Phantom
        What to write.
    folder : str or Path
        Where; created if needed.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    with staged_folder(folder) as stage:
        for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
            write_image(getattr(phantom, name), stage / f"{name}.mha")
        if phantom.fixed_sliding is not None:
            write_image(phantom.fixed_sliding, stage / "fixed_sliding.mha")
        phantom.displacement.write(stage / "true_displacement.mha")
        for name, points in (("fixed", phantom.fixed_landmarks), ("moving", phantom.moving_landmarks)):
            lines = ["point", str(len(points)), *(" ".join(map(repr, point)) for point in points.tolist())]
            (stage / f"{name}_points.txt").write_text("\n".join(lines) + "\n", encoding="ascii")
