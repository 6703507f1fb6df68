"""The expected error of a registration, in mm, all over the fixed image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import grid_of, place
from regnet_itk.data.image_files import open_image
from regnet_itk.errors import ImageError

MODEL_FILE = Path(__file__).parent / "error_model.safetensors"
"""The network that tells the errors; it ships inside the package."""

_NUMBER = re.compile(r"TransformParameters\.(\d+)(-Composite)?\.(txt|toml|h5)")
_APART = 25.0  # mm


@dataclass(frozen=True, eq=False)
class ErrorMap:
    """How far a transform may be from the truth.

    Parameters
    ----------
    values : ndarray, shape (z, y, x, 2)
        mm: the expected error |T(x) - truth|, and the radius within which the truth lies in 90 % of the cases. NaN
        where nothing can be said: outside of the region, and where T leads out of the moving image.
    grid : Grid
        Of about 4 mm, along the fixed image's axes.
    unusual : tuple of str
        In which respects the pair is unlike all that the model was made with; the radius is wider then.
    """

    values: npt.NDArray[np.float32]
    grid: Grid
    unusual: tuple[str, ...] = ()

    @property
    def expected(self) -> npt.NDArray[np.float32]:
        """The expected error (z, y, x) in mm."""
        return self.values[..., 0]

    @property
    def radius(self) -> npt.NDArray[np.float32]:
        """The radius (z, y, x) in mm."""
        return self.values[..., 1]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Where anything can be said, (z, y, x)."""
        return np.isfinite(self.values[..., 0])

    @property
    def mean(self) -> float | None:
        """The mean expected error in mm; None if nothing can be said anywhere."""
        return float(self.expected[self.known].mean()) if self.known.any() else None

    def at(self, points: npt.ArrayLike) -> FloatArray:
        """Return the expected error and the radius (.., 2) in mm at points (.., 3) of the fixed image, mm, LPS.

        Between the voxels it is linear, as far as they are known; NaN where none around is.
        """
        points = np.asarray(points, dtype=float)
        index = self.grid.point_to_index(points.reshape(-1, 3))[:, ::-1].T
        weights = _sampled(self.known.astype(np.float32), index)
        filled = np.where(self.known[..., None], self.values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.stack([_sampled(filled[..., k], index) for k in range(2)], axis=-1) / weights[:, None]
        found[weights < 1e-3] = np.nan
        return found.reshape(*points.shape[:-1], 2)

    def expected_at(self, points: npt.ArrayLike) -> FloatArray:
        """Return the expected error (..) in mm at points (.., 3); see `at`."""
        return self.at(points)[..., 0]

    def summary(self, region: str) -> dict[str, Any]:
        """Return what ``registration.json`` tells of it; `region` is what its region is called."""
        told: dict[str, Any] = {"region": region, "known_share": round(float(self.known.mean()), 4)}
        if not self.known.any():
            return told
        expected, radius = self.values[self.known].T.astype(float)
        return {
            **told,
            "mean_mm": round(float(expected.mean()), 3),
            "median_mm": round(float(np.median(expected)), 3),
            "a_tenth_above_mm": round(float(np.percentile(expected, 90)), 3),
            "mean_radius_90_mm": round(float(radius.mean()), 3),
            "unusual": list(self.unusual),
            "worst_places": self.worst_places(),
        }

    def worst_places(self, count: int = 5) -> list[dict[str, Any]]:
        """Return the points (mm, LPS) where the largest error is expected, at least `_APART` mm from each other."""
        left = np.where(self.known, self.expected, -np.inf)
        points, found = self.grid.points(), []
        for _ in range(count):
            at = np.unravel_index(int(np.argmax(left)), left.shape)
            if not np.isfinite(left[at]):
                break
            found.append({
                "point": [round(float(c), 2) for c in points[at]],
                "expected_mm": round(float(self.expected[at]), 2), "radius_90_mm": round(float(self.radius[at]), 2),
            })  # fmt: skip
            left[np.linalg.norm(points - points[at], axis=-1) < _APART] = -np.inf
        return found

    def to_sitk(self) -> Any:
        """Return a SimpleITK image with both numbers at each voxel."""
        import SimpleITK as sitk

        return place(sitk.GetImageFromArray(np.ascontiguousarray(self.values), isVector=True), self.grid)

    def write(self, path: str | Path) -> None:
        """Write both numbers as an image (.mha, .nii.gz, .nrrd), whole or not at all.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        import SimpleITK as sitk

        from regnet_itk.outputs import write_whole

        write_whole(Path(path), lambda part: sitk.WriteImage(self.to_sitk(), str(part), useCompression=True))


def _sampled(values: npt.NDArray[np.float32], index: FloatArray) -> FloatArray:
    return np.asarray(ndimage.map_coordinates(values, index, np.float64, order=1, mode="constant", cval=0.0))


def find_error_map_of(transform_file: str | Path) -> Path | None:
    """Return the file with the error map of an elastix transform file of a run, or None if there is none beside it."""
    path = Path(transform_file)
    number = _NUMBER.fullmatch(path.name)
    beside = path.with_name(f"errorMap.{number[1]}.mha") if number else None
    return beside if beside is not None and beside.is_file() else None


def read_error_map(path: str | Path) -> ErrorMap:
    """Read what :meth:`ErrorMap.write` has written.

    Parameters
    ----------
    path : str or Path
        ``errorMap.N.mha`` of a run.

    Raises
    ------
    ImageError
        If it cannot be read, or is no error map.

    Examples
    --------
    >>> import numpy as np
    >>> from regnet_itk import ErrorMap, Grid, read_error_map
    >>> grid = Grid(size=(4, 3, 2), spacing=(4.0, 4.0, 4.0))
    >>> ErrorMap(np.full((*grid.shape, 2), (1.0, 2.5), dtype=np.float32), grid).write("errorMap.0.mha")
    >>> read_error_map("errorMap.0.mha").at([[2.0, 2.0, 2.0]]).tolist()
    [[1.0, 2.5]]
    """
    import SimpleITK as sitk

    image = open_image(Path(path), "error map")
    if image.GetDimension() != 3 or image.GetNumberOfComponents() != 2:
        raise ImageError(f"'{path}' is no error map: it has not two numbers at each voxel of three dimensions")
    found = sitk.ReadImage(str(path), sitk.sitkVectorFloat32)
    return ErrorMap(sitk.GetArrayFromImage(found), grid_of(found))
