"""Chains of transforms, and how elastix and ITK write them.

T maps points of the fixed image to the moving image, in mm, LPS. elastix "Compose" applies the initial transform to
the fixed point first: T(x) = C(T0(x)). A RegNet stage finds u on the fixed grid such that T(x) = T0(x + u(x)): its
field is *innermost*, and elastix is told so by "Add" of v(x) = T0(x + u(x)) - T0(x).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import linalg, ndimage

from regnet_itk.displacement import DisplacementField, read_displacement_field
from regnet_itk.errors import ParameterError, RegNetItkError, TransformError, did_you_mean
from regnet_itk.geometry import IDENTITY_DIRECTION, FloatArray, Grid
from regnet_itk.images import grid_of, place
from regnet_itk.parameters import ParameterMap, as_values, parse_parameter_text, parse_parameter_toml

Combine = Literal["compose", "add", "innermost"]
INITIAL_KEYS = ("InitialTransformParameterFileName", "InitialTransformParametersFileName")
NO_INITIAL = "NoInitialTransform"
ITK_SUFFIXES = (".h5", ".hdf5", ".tfm")
FIELD_TOLERANCE = 2e-3  # mm; a sampled field is made this fine, if that is possible
MAX_FIELD_VOXELS = 40_000_000
_SLAB_POINTS = 2_000_000

_log = logging.getLogger(__name__)


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
    def offset(self) -> FloatArray:
        """The vector b of T(x) = matrix x + b."""
        return np.asarray(self.centre + self.translation - self.matrix @ self.centre)

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3), fixed to moving."""
        return np.asarray(points, dtype=float) @ self.matrix.T + self.offset

    def to_sitk(self) -> Any:
        """Return a ``SimpleITK.AffineTransform``."""
        import SimpleITK as sitk

        matrix, translation, centre = self.matrix.ravel().tolist(), self.translation.tolist(), self.centre.tolist()
        return sitk.AffineTransform(matrix, translation, centre)

    def elastix_values(self) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file."""
        if self.values:
            return dict(self.values)
        return {
            "Transform": ("AffineTransform",),
            "NumberOfParameters": ("12",),
            "TransformParameters": as_values([*self.matrix.ravel(), *self.translation]),
            "CenterOfRotationPoint": as_values(self.centre),
        }


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

    def to_sitk(self) -> Any:
        """Return a ``SimpleITK.BSplineTransform``."""
        import SimpleITK as sitk

        images = [
            place(sitk.GetImageFromArray(np.ascontiguousarray(self.coefficients[..., c], dtype=float)), self.grid)
            for c in range(3)
        ]
        return sitk.BSplineTransform(images, self.order)

    def elastix_values(self) -> dict[str, tuple[str, ...]]:
        """Return the keys that describe the transform in an elastix file."""
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


Transform = MatrixTransform | BSplineTransform | DisplacementField


@dataclass(frozen=True, eq=False)
class Link:
    """One transform of a chain.

    Parameters
    ----------
    transform : MatrixTransform, BSplineTransform or DisplacementField
        C, of its own.
    combine : {"compose", "add", "innermost"}
        How it joins the transform P so far: C(P(x)), P(x) + C(x) - x, or P(C(x)).
    parameters : ParameterMap
        The other keys of its elastix file: the grid and the settings with which to resample the moving image.
    """

    transform: Transform
    combine: Combine = "compose"
    parameters: ParameterMap = field(default_factory=lambda: ParameterMap({}))


def _join(combine: Combine, transform: Transform, previous: TransformChain, points: FloatArray) -> FloatArray:
    if combine == "innermost":
        return previous.map_points(transform.map_points(points))
    if combine == "add":
        return previous.map_points(points) + transform.map_points(points) - points
    return transform.map_points(previous.map_points(points))


@dataclass(frozen=True, eq=False)
class TransformChain:
    """Transforms in the order in which stages found them; without links, the identity.

    Parameters
    ----------
    links : tuple of Link
        The first is the initial transform.
    """

    links: tuple[Link, ...] = ()

    def map_points(self, points: npt.ArrayLike) -> FloatArray:
        """Return T of the points (..., 3) in mm, LPS, fixed to moving."""
        points = np.array(points, dtype=float)
        if not self.links:
            return points
        last = self.links[-1]
        return _join(last.combine, last.transform, TransformChain(self.links[:-1]), points)

    def then(self, link: Link) -> TransformChain:
        """Return the chain with one link more."""
        return TransformChain((*self.links, link))

    def as_matrix(self) -> MatrixTransform | None:
        """Return the whole chain as one matrix, or None if it holds anything else."""
        if not all(isinstance(link.transform, MatrixTransform) for link in self.links):
            return None
        offset, *ends = self.map_points(np.vstack([np.zeros(3), np.eye(3)]))
        return MatrixTransform(np.stack([end - offset for end in ends], axis=1), translation=offset)

    def displacement_on(self, grid: Grid) -> DisplacementField:
        """Return T(x) - x at the voxels of `grid`, as float32, computed slab by slab."""
        return _sampled(lambda points: self.map_points(points) - points, grid)

    def to_sitk(self, grid: Grid | None = None) -> Any:
        """Return the chain as a ``SimpleITK.CompositeTransform``.

        Parameters
        ----------
        grid : Grid, optional
            Needed only if a transform is added to something else than matrices: the voxels, in the fixed image,
            on which the sum is sampled. All other chains are converted exactly.

        Raises
        ------
        TransformError
            If such a grid is needed and missing.
        """
        import SimpleITK as sitk

        composite = sitk.CompositeTransform(3)
        for transform in reversed(self.applied(grid)):  # ITK applies the transform added last first
            composite.AddTransform(
                transform.to_sitk_transform() if isinstance(transform, DisplacementField) else transform.to_sitk()
            )
        if not self.links:
            composite.AddTransform(sitk.Transform(3, sitk.sitkIdentity))
        return composite

    def applied(self, grid: Grid | None = None) -> list[Transform]:
        """Return transforms whose plain composition, the first applied first, is this chain; see `to_sitk`."""
        order: list[Transform] = []
        for i, link in enumerate(self.links):
            before = TransformChain(self.links[:i])
            if link.combine == "innermost" or (link.combine == "add" and not before.links):
                order.insert(0, link.transform)
            elif link.combine == "compose":
                order.append(link.transform)
            else:
                order = _apply_sum(before, link, order, grid)
        return order

    def write_elastix(self, folder: str | Path, final_folder: str | Path | None = None, first: int = 0) -> list[Path]:
        """Write the chain as ``TransformParameters.N.txt``, with ``deformationField.N.mha`` for fields.

        Each of these files stands for the chain up to its link. An innermost link on top of a chain that holds more
        than matrices needs further files, ``TransformParameters.N-part1.txt`` .., so that elastix can have it exactly.

        Parameters
        ----------
        folder : str or Path
            Where to write; it must exist.
        final_folder : str or Path, optional
            Where the files will lie in the end, if `folder` is a temporary one. elastix needs absolute paths.
        first : int
            Number of the first file.

        Returns
        -------
        list of Path
            The transform files, one for each link; the last one stands for the whole chain.

        Raises
        ------
        OutputError
            If a file cannot be written.
        """
        folder = Path(folder)
        final = Path(final_folder if final_folder is not None else folder).resolve()
        written: list[Path] = []
        for i, link in enumerate(self.links):
            initial = str(final / written[-1].name) if written else NO_INITIAL
            parts, how, initial = _for_elastix(TransformChain(self.links[:i]), link, initial)
            for part, transform in enumerate(parts, start=1):
                tag = f"{first + i}" if part == len(parts) else f"{first + i}-part{part}"
                values = {
                    **_elastix_values(transform, folder, final, f"deformationField.{tag}.mha"),
                    "HowToCombineTransforms": (how,),
                    **dict.fromkeys(INITIAL_KEYS, (initial,)),
                    "FixedImageDimension": ("3",),
                    "MovingImageDimension": ("3",),
                }
                rest = {key: value for key, value in link.parameters.values.items() if key not in values}
                file = folder / f"TransformParameters.{tag}.txt"
                _write_text(file, ParameterMap({**values, **rest}).to_text())
                initial = str(final / file.name)
            written.append(file)
        return written

    def write_itk(self, path: str | Path, grid: Grid | None = None) -> None:
        """Write the chain as an ITK composite transform (.h5 or .tfm), whole or not at all.

        Parameters
        ----------
        path : str or Path
        grid : Grid, optional
            See `to_sitk`.

        Raises
        ------
        TransformError
            If the suffix is not one of ITK's, or a grid is needed.
        OutputError
            If the file cannot be written.
        """
        import SimpleITK as sitk

        from regnet_itk.outputs import write_whole

        if Path(path).suffix.lower() not in ITK_SUFFIXES:
            raise TransformError(f"'{path}': an ITK transform file ends in {', '.join(ITK_SUFFIXES)}")
        composite = self.to_sitk(grid)
        write_whole(path, lambda part: sitk.WriteTransform(composite, str(part)))


def _sampled(function: Callable[[FloatArray], FloatArray], grid: Grid) -> DisplacementField:
    """Return a function of points as a field on `grid`, computed slab by slab to spare memory."""
    vectors = np.empty((*grid.shape, 3), dtype=np.float32)
    nx, ny, nz = grid.size
    rows = max(1, _SLAB_POINTS // (nx * ny))
    for start, stop in pairwise([*range(0, nz, rows), nz]):
        vectors[start:stop] = function(grid.crop((0, 0, start), (nx, ny, stop - start)).points())
    return DisplacementField(vectors, grid)


def _apply_sum(before: TransformChain, link: Link, order: list[Transform], grid: Grid | None) -> list[Transform]:
    """Return what is applied for P(x) + C(x) - x, exactly if P is a matrix L: then L^-1 (C(x) - x) is innermost."""
    total = before.then(link).as_matrix()
    if total is not None:
        return [total]
    matrix = before.as_matrix()
    if matrix is not None and not isinstance(link.transform, MatrixTransform):
        if abs(np.linalg.det(matrix.matrix)) < 1e-9:
            raise TransformError("a transform is added to a matrix that cannot be inverted; register again")
        return [_linear(np.linalg.inv(matrix.matrix), link.transform), *order]
    if grid is None:
        raise TransformError(
            "this chain adds a transform to one that is not a matrix, which ITK cannot express; "
            "give the grid on which to sample the sum"
        )
    return [before.then(link).displacement_on(grid)]


def _linear(
    matrix: FloatArray, transform: BSplineTransform | DisplacementField
) -> BSplineTransform | DisplacementField:
    """Return the transform whose displacement is `matrix` times that of `transform`, exactly."""
    if isinstance(transform, BSplineTransform):
        return replace(transform, coefficients=transform.coefficients @ matrix.T)
    return DisplacementField((transform.vectors @ matrix.T.astype(transform.vectors.dtype)), transform.grid)


def _for_elastix(before: TransformChain, link: Link, initial: str) -> tuple[list[Transform], str, str]:
    """Return the transforms that elastix shall write for a link, how they combine, and what the first starts from."""
    how = "Add" if link.combine == "add" else "Compose"
    if link.combine != "innermost" or not before.links:
        return [link.transform], how, initial
    matrix = before.as_matrix()
    if matrix is not None and isinstance(link.transform, MatrixTransform):
        inner = link.transform  # P(C(x)) - P(x) + x is a matrix again
        change = matrix.matrix @ (inner.matrix - np.eye(3)) + np.eye(3)
        return [MatrixTransform(change, translation=matrix.matrix @ inner.offset)], "Add", initial
    if matrix is not None and not isinstance(link.transform, MatrixTransform):
        return [_linear(matrix.matrix, link.transform)], "Add", initial
    try:  # v(x) = P(C(x)) - P(x) is not on C's grid: state P(C(x)) itself, beginning with C
        return before.then(link).applied(), "Compose", NO_INITIAL
    except TransformError:  # P holds a sum
        return [_sampled_sum(before, link.transform)], "Add", initial


def _sampled_sum(before: TransformChain, transform: Transform) -> DisplacementField:
    """Return v(x) = P(C(x)) - P(x), sampled so finely that linear interpolation is good, if memory allows."""
    if isinstance(transform, MatrixTransform):
        raise TransformError(
            "a matrix inside a transform that is not a matrix cannot be written for elastix; write it for ITK (.h5)"
        )
    base = transform.grid
    factors = [k for k in (1, 3, 5) if k == 1 or k**3 * math.prod(base.size) <= MAX_FIELD_VOXELS]
    for factor in factors:
        grid = _refined(base, factor)
        error = _interpolation_error(before, transform, grid)
        if error <= FIELD_TOLERANCE:
            break
    else:
        _log.warning("the field written for elastix is off by up to %.3f mm between its voxels", error)
    return _sampled(lambda points: _sum_at(before, transform, points), grid)


def _sum_at(before: TransformChain, transform: Transform, points: FloatArray) -> FloatArray:
    return before.map_points(transform.map_points(points)) - before.map_points(points)


def _refined(grid: Grid, factor: int) -> Grid:
    """Return the grid that fills the same box with voxels `factor` (odd) times smaller; old centres remain centres."""
    nx, ny, nz = (n * factor for n in grid.size)
    sx, sy, sz = (s / factor for s in grid.spacing)
    first = -0.5 + 0.5 / factor
    return Grid((nx, ny, nz), (sx, sy, sz), tuple(grid.index_to_point([first] * 3)), grid.direction)


def _interpolation_error(before: TransformChain, transform: Transform, grid: Grid, samples: int = 4000) -> float:
    """Return how far, in mm, linear interpolation on `grid` is off (99 % of points in random voxels)."""
    rng = np.random.default_rng(0)
    corner = np.floor(rng.random((samples, 3)) * (np.asarray(grid.size) - 1))
    inside = rng.random((samples, 3))
    mixed = np.zeros((samples, 3))
    for offset in np.ndindex(2, 2, 2):
        weight = np.where(offset, inside, 1 - inside).prod(axis=1)
        mixed += weight[:, None] * _sum_at(before, transform, grid.index_to_point(corner + offset))
    exact = _sum_at(before, transform, grid.index_to_point(corner + inside))
    return float(np.percentile(np.linalg.norm(mixed - exact, axis=1), 99))


def _elastix_values(transform: Transform, folder: Path, final: Path, field_name: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(transform, DisplacementField):
        return transform.elastix_values()
    transform.write(folder / field_name)
    return {
        "Transform": ("DeformationFieldTransform",),
        "NumberOfParameters": ("0",),
        "DeformationFieldFileName": (str(final / field_name),),
        "DeformationFieldInterpolationOrder": ("1",),
        "UseDirectionCosines": ("true",),
    }


def rename_elastix_files(
    folder: Path, new_names: Mapping[str, str], final_folder: Path, written_for: Path | None = None
) -> None:
    """Give a chain's elastix files other names, also where one of them names another by its path.

    Parameters
    ----------
    folder : Path
        Where the files are.
    new_names : mapping
        Old name to new name.
    final_folder : Path
        Where the files will lie in the end.
    written_for : Path, optional
        The folder by which they name each other now; `final_folder` by default.
    """
    before = written_for or final_folder
    new_paths = {f'"{before / old}"': f'"{final_folder / new}"' for old, new in new_names.items()}
    mentioned = re.compile("|".join(map(re.escape, new_paths)))
    for old in new_names:
        (folder / old).rename(folder / f"{old}.old")
    for old, new in new_names.items():
        (folder / f"{old}.old").rename(folder / new)
        if old.endswith(".txt"):
            text = (folder / new).read_text(encoding="utf-8")
            changed = mentioned.sub(lambda match: new_paths[match[0]], text)
            (folder / new).write_text(changed, encoding="utf-8")


def _write_text(path: Path, text: str) -> None:
    from regnet_itk.outputs import write_whole

    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def resampling_parameters(
    grid: Grid, order: int = 3, default: float = -1000, pixel_type: str = "short", format: str = "mha"
) -> dict[str, tuple[str, ...]]:
    """Return the keys of an elastix transform file that say how the moving image is resampled.

    Parameters
    ----------
    grid : Grid
        The fixed image's.
    order : int
        Order of the B-spline interpolation; 1 is linear, 0 takes the nearest voxel (labels).
    default : float
        Value outside the moving image.
    pixel_type, format : str
        Type and file suffix of the result image.
    """
    return {
        "FixedImageDimension": ("3",),
        "MovingImageDimension": ("3",),
        "FixedInternalImagePixelType": ("float",),
        "MovingInternalImagePixelType": ("float",),
        "Size": as_values(grid.size),
        "Index": ("0", "0", "0"),
        "Spacing": as_values(grid.spacing),
        "Origin": as_values(grid.origin),
        "Direction": as_values(grid.direction_matrix.T.ravel()),
        "UseDirectionCosines": ("true",),
        "ResampleInterpolator": ("FinalBSplineInterpolator",),
        "FinalBSplineInterpolationOrder": as_values(order),
        "Resampler": ("DefaultResampler",),
        "DefaultPixelValue": as_values(default),
        "ResultImageFormat": (format,),
        "ResultImagePixelType": (pixel_type,),
        "CompressResultImage": ("true",),
    }


def resampling_grid(parameters: ParameterMap) -> Grid | None:
    """Return the grid on which an elastix transform file resamples the moving image, or None if it does not say.

    Raises
    ------
    ParameterError, ImageError
        If the keys are there and are no grid.
    """
    if not all(key in parameters for key in ("Size", "Spacing", "Origin")):
        return None
    nx, ny, nz = parameters.get_ints("Size", 3)
    sx, sy, sz = parameters.get_floats("Spacing", 3)
    x, y, z = parameters.get_floats("Origin", 3)
    direction = np.reshape(parameters.get_floats("Direction", 9, np.eye(3).ravel()), (3, 3)).T
    grid = Grid((nx, ny, nz), (sx, sy, sz), (x, y, z), direction)  # type: ignore[arg-type]
    return grid.crop(parameters.get_ints("Index", 3, (0, 0, 0)), (nx, ny, nz))


def field_link(u: DisplacementField, parameters: Mapping[str, tuple[str, ...]] | None = None) -> Link:
    """Return the link of a RegNet stage: T(x) = T0(x + u(x)).

    Parameters
    ----------
    u : DisplacementField
        On the fixed image; the grid may be coarser than the image's.
    parameters : mapping, optional
        Keys for resampling; by default `resampling_parameters` of the field's own grid.
    """
    return Link(u, "innermost", ParameterMap(dict(parameters or resampling_parameters(u.grid))))


# Reading elastix's files


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


_MATRIX_PARAMETERS = {
    "TranslationTransform": 3,
    "EulerTransform": 6,
    "SimilarityTransform": 7,
    "AffineTransform": 12,
    "AffineLogTransform": 12,
}
_BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")
KNOWN_TRANSFORMS = (*_MATRIX_PARAMETERS, *_BSPLINES, "DeformationFieldTransform")


def _read_matrix(name: str, values: ParameterMap) -> MatrixTransform:
    p = np.array(_parameters(values, _MATRIX_PARAMETERS[name]))
    kept = {k: values[k] for k in ("Transform", "NumberOfParameters", "TransformParameters") if k in values}
    if name == "TranslationTransform":
        return MatrixTransform(np.eye(3), np.zeros(3), p, name, kept)
    centre = np.array(_floats(values, "CenterOfRotationPoint", 3))
    kept["CenterOfRotationPoint"] = values["CenterOfRotationPoint"]
    if name == "EulerTransform":
        kept["ComputeZYX"] = (values.get_str("ComputeZYX", "false"),)
        matrix, translation = _euler_matrix(p[:3], values.get_bool("ComputeZYX", False)), p[3:]
    elif name == "SimilarityTransform":
        matrix, translation = p[6] * _versor_matrix(p[:3]), p[3:6]
    else:
        matrix, translation = p[:9].reshape(3, 3), p[9:]
        if name == "AffineLogTransform":
            matrix = linalg.expm(matrix)
    return MatrixTransform(matrix, centre, translation, name, kept)


def _parameters(values: ParameterMap, count: int) -> list[float]:
    found = _floats(values, "TransformParameters")
    declared = values.get_int("NumberOfParameters", len(found))
    if not len(found) == declared == count:
        raise TransformError(
            f"{values.source}: a {values.get_str('Transform')} has {count} parameters here, but the file declares "
            f"{declared} and holds {len(found)}; it may be cut off"
        )
    return found


def _floats(values: ParameterMap, key: str, count: int | None = None) -> list[float]:
    found = values.get_floats(key, count)
    if not all(math.isfinite(value) for value in found):
        raise TransformError(f"{values.source}: '{key}' holds a value that is not finite")
    return found


def _read_bspline(name: str, values: ParameterMap) -> BSplineTransform:
    if values.get_bool("UseCyclicTransform", False):
        raise TransformError(f"{values.source}: a cyclic B-spline transform is not supported")
    order = values.get_int("BSplineTransformSplineOrder", 3)
    if order not in (1, 2, 3):
        raise TransformError(f"{values.source}: the B-spline order {order} is not supported; known are 1, 2 and 3")
    nx, ny, nz = values.get_ints("GridSize", 3)
    direction = np.reshape(_floats(values, "GridDirection", 9), (3, 3)).T if "GridDirection" in values else None
    grid = Grid(
        (nx, ny, nz),
        tuple(_floats(values, "GridSpacing", 3)),  # type: ignore[arg-type]
        tuple(_floats(values, "GridOrigin", 3)),  # type: ignore[arg-type]
        IDENTITY_DIRECTION if direction is None else direction,  # type: ignore[arg-type]
    ).crop(values.get_ints("GridIndex", 3, (0, 0, 0)), (nx, ny, nz))
    found = np.array(_parameters(values, 3 * nx * ny * nz))
    return BSplineTransform(np.moveaxis(found.reshape(3, nz, ny, nx), 0, -1), grid, order, name)


def _read_field(values: ParameterMap, folder: Path) -> DisplacementField:
    if values.get_int("DeformationFieldInterpolationOrder", 0) != 1:
        raise TransformError(
            f"{values.source}: the deformation field is to be read with the nearest vector; "
            "set (DeformationFieldInterpolationOrder 1)"
        )
    name = values.get_str("DeformationFieldFileName")
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its deformation field '{name}' does not exist; correct the path")
    return read_displacement_field(path)


def _read_transform_of_itk(values: ParameterMap, folder: Path) -> Transform:
    """Return the transform that elastix (5.2 and later) left in an ITK file, or that 3D Slicer hands to it."""
    name = values.get_str("TransformFileName")
    path = locate_file(name, folder)
    if path is None:
        raise TransformError(f"{values.source}: its transform '{name}' does not exist; correct the path")
    chain = _read_itk(path)
    whole = chain.as_matrix() if len(chain.links) != 1 else chain.links[0].transform
    if whole is None:
        raise TransformError(
            f"{values.source}: '{name}' holds {len(chain.links)} transforms, and elastix reads one; "
            "give the file itself"
        )
    return whole


def _read_transform(values: ParameterMap, folder: Path) -> Transform:
    name = values.get_str("Transform")
    if name in _MATRIX_PARAMETERS:
        return _read_matrix(name, values)
    if name in _BSPLINES:
        return _read_bspline(name, values)
    if name == "DeformationFieldTransform":
        return _read_field(values, folder)
    if name == "File":
        return _read_transform_of_itk(values, folder)
    near = did_you_mean(name, KNOWN_TRANSFORMS)
    raise TransformError(
        f"{values.source}: the transform type '{name}' is not supported{near or ';'} "
        f"known are {', '.join(KNOWN_TRANSFORMS)}"
    )


_OF_TRANSFORM = (
    *INITIAL_KEYS, "Transform", "NumberOfParameters", "TransformParameters", "CenterOfRotationPoint", "ComputeZYX",
    "GridSize", "GridIndex", "GridSpacing", "GridOrigin", "GridDirection", "BSplineTransformSplineOrder",
    "UseCyclicTransform", "DeformationFieldFileName", "DeformationFieldInterpolationOrder", "HowToCombineTransforms",
    "UseBinaryFormatForTransformationParameters", "TransformFileName",
)  # fmt: skip


def _link_from(values: ParameterMap, folder: Path) -> Link:
    """Return the link that one elastix transform map describes."""
    for key in ("FixedImageDimension", "MovingImageDimension"):
        if values.get_int(key, 3) != 3:
            raise TransformError(f"{values.source}: '{key}' is {values.get_str(key)}; only 3D transforms can be used")
    how = values.get_str("HowToCombineTransforms", "Compose")
    if how not in ("Compose", "Add"):
        raise TransformError(f"{values.source}: HowToCombineTransforms must be Compose or Add, not '{how}'")
    if not values.get_bool("UseDirectionCosines", True) and not _axis_aligned(values):
        raise TransformError(
            f'{values.source}: it was made with (UseDirectionCosines "false") on an image with a direction, '
            'and does not hold in physical space; register again with "true"'
        )
    transform = _read_transform(values, folder)
    return Link(transform, "add" if how == "Add" else "compose", values.without(*_OF_TRANSFORM))


def _axis_aligned(values: ParameterMap) -> bool:
    direction = values.get_floats("Direction", 9, np.eye(3).ravel())
    return bool(np.allclose(direction, np.eye(3).ravel(), atol=1e-6))


def _checked_link(values: ParameterMap, folder: Path) -> Link:
    try:
        return _link_from(values, folder)
    except (ParameterError, TransformError) as error:
        raise TransformError(str(error)) from None
    except (RegNetItkError, ValueError, OverflowError) as error:  # numbers that no grid can have
        raise TransformError(f"{values.source}: {error}") from None


def initial_file(values: ParameterMap) -> str | None:
    """Return the name of the file that a transform map starts from: the new spelling of the key wins, as in elastix."""
    for key in INITIAL_KEYS:
        if key in values:
            name = values.get_str(key)
            return None if name == NO_INITIAL else name
    return None


def locate_file(name: str, folder: Path) -> Path | None:
    """Find a file by its name in another: from the working directory, from that file's folder, or moved beside it."""
    for path in (Path(name), folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    return None


def read_chain(path: str | Path) -> TransformChain:
    """Read a transform with all that it starts from.

    Parameters
    ----------
    path : str or Path
        An elastix transform file (.txt or .toml), or an ITK transform file (.h5, .tfm).

    Raises
    ------
    TransformError
        If a file is missing, cut off, not 3D, of an unknown type, or refers to itself.
    """
    path = Path(path)
    if not path.is_file():
        raise TransformError(f"transform file '{path}' does not exist")
    if path.suffix.lower() in (*ITK_SUFFIXES, ".mat", ".xfm"):
        return _read_itk(path)
    return _read_elastix(path, ())


def _read_elastix(path: Path, seen: tuple[Path, ...]) -> TransformChain:
    here = path.resolve()
    if here in seen:
        raise TransformError(f"transform file '{path}' has itself as initial transform; correct {INITIAL_KEYS[0]}")
    values = read_transform_map(path)
    if "Transform" not in values:
        raise TransformError(f"'{path}' is not a transform file: it has no (Transform ..)")
    return _initial_chain(values, here.parent, (*seen, here)).then(_checked_link(values, here.parent))


def _initial_chain(values: ParameterMap, folder: Path, seen: tuple[Path, ...]) -> TransformChain:
    name = initial_file(values)
    if name is None:
        return TransformChain()
    found = locate_file(name, folder)
    if found is None:
        raise TransformError(f"{values.source}: its initial transform '{name}' does not exist; correct the path")
    return _read_itk(found) if found.suffix.lower() in ITK_SUFFIXES else _read_elastix(found, seen)


def read_transform_map(path: Path) -> ParameterMap:
    """Read the keys of one elastix transform file (.txt or .toml), without the files that it names.

    Raises
    ------
    TransformError
        If it cannot be read or is malformed.
    """
    parse = parse_parameter_toml if path.suffix.lower() == ".toml" else parse_parameter_text
    try:
        return parse(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise TransformError(f"'{path}' is not a transform file: it is not text") from None
    except OSError as error:
        raise TransformError(f"transform file '{path}' cannot be read: {error.strerror}") from None
    except ParameterError as error:
        raise TransformError(f"{error}; the transform file may be cut off") from None


def chain_from_maps(maps: Sequence[ParameterMap]) -> TransformChain:
    """Return the chain of the maps of one ParameterObject; the first is applied first.

    Parameters
    ----------
    maps : sequence of ParameterMap
        Only the first may name a file to start from, as in elastix's library.

    Raises
    ------
    TransformError
        As for `read_chain`.
    """
    chain = TransformChain()
    for i, values in enumerate(maps):
        if i == 0:
            chain = _initial_chain(values, Path.cwd(), ())
        chain = chain.then(_checked_link(values, Path.cwd()))
    return chain


# Reading ITK's files


def _check_hdf5(path: Path) -> None:
    """Refuse what is no HDF5 file, or was cut off, before HDF5's library prints pages about it."""
    with path.open("rb") as file:
        head = file.read(48)
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise TransformError(f"transform file '{path}' cannot be read: it is no HDF5 file")
    where = 40 if head[8] < 2 else 28  # of the address of the end, by the version of the header
    end, size = int.from_bytes(head[where : where + 8], "little"), path.stat().st_size
    if size < end:
        raise TransformError(f"transform file '{path}' cannot be read: it is cut off ({size} of {end} bytes)")


def _read_itk(path: Path) -> TransformChain:
    import SimpleITK as sitk

    if path.suffix.lower() in (".h5", ".hdf5"):
        _check_hdf5(path)
    try:
        found = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise TransformError(f"transform file '{path}' cannot be read: {reason}") from None
    if found.GetDimension() != 3:
        raise TransformError(f"transform file '{path}' is {found.GetDimension()}D; only 3D transforms can be used")
    return chain_from_sitk(found, str(path))


def chain_from_sitk(transform: Any, source: str = "the transform") -> TransformChain:
    """Return the chain of a SimpleITK transform: a matrix, a B-spline, a field, or a composite of them.

    Raises
    ------
    TransformError
        If it is of another type.
    """
    import SimpleITK as sitk

    transform = transform.Downcast()
    kind = type(transform).__name__
    if isinstance(transform, sitk.CompositeTransform):
        chain = TransformChain()
        for i in reversed(range(transform.GetNumberOfTransforms())):
            for link in chain_from_sitk(transform.GetNthTransform(i), source).links:
                chain = chain.then(link)
        return chain
    if transform.IsLinear():
        offset, *ends = (np.array(transform.TransformPoint(p)) for p in np.vstack([np.zeros(3), np.eye(3)]).tolist())
        return TransformChain((Link(MatrixTransform(np.stack(ends, axis=1) - offset[:, None], translation=offset)),))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return TransformChain((Link(DisplacementField.from_sitk(transform.GetDisplacementField())),))
    if isinstance(transform, sitk.BSplineTransform):
        images = transform.GetCoefficientImages()
        coefficients = np.stack([sitk.GetArrayFromImage(image) for image in images], axis=-1)
        return TransformChain((Link(BSplineTransform(coefficients, grid_of(images[0]), transform.GetOrder())),))
    raise TransformError(
        f"{source}: the ITK transform {kind} is not supported; give a matrix, B-spline, field or composite"
    )
