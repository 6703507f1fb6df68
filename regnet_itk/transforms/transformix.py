"""Transforms that only elastix's library can evaluate, handed to its transformix; of two, three or four dimensions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.image_nd import ImageND, read_own
from regnet_itk.elastix.jobs import Follower, job_folder, run_job, write_images, writing_to
from regnet_itk.errors import ParameterError, RegistrationError, TransformError
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, locate_file
from regnet_itk.transforms.elastix_reading import file_keys, list_transform_maps, locate_initial

_SUB_TRANSFORMS = "SubTransforms"
_IMAGES = {"field": "deformationField", "determinant": "spatialJacobian", "matrices": "fullSpatialJacobian"}


@dataclass(frozen=True)
class Wanted:
    """What transformix shall do.

    Parameters
    ----------
    points : str, optional
        elastix's text of points to map, fixed to moving.
    field, determinant, matrices : bool
        The displacement field, the Jacobian determinant, the Jacobian matrices, on the fixed image's voxels.
    """

    points: str | None = None
    field: bool = False
    determinant: bool = False
    matrices: bool = False


@dataclass(frozen=True, eq=False)
class Applied:
    """What transformix made.

    Parameters
    ----------
    warped : ImageND or None
        The moving image on the fixed image's voxels, float32.
    images : dict
        SimpleITK images by the names that transformix gives them: "deformationField" ..
    points : str or None
        Its text of the mapped points.
    """

    warped: ImageND | None
    images: dict[str, Any] = field(default_factory=dict)
    points: str | None = None


class ElastixTransform:
    """A transform file with all that it starts from, for transformix.

    Parameters
    ----------
    path : str or Path

    Raises
    ------
    TransformError
        If a file is missing or malformed.

    Attributes
    ----------
    parameters : ParameterMap
        Of the file itself.
    dimension : int
        Of the images.
    """

    def __init__(self, path: str | Path) -> None:
        self.maps = list_transform_maps(path)
        self.parameters = self.maps[0]
        self.dimension = self.parameters.get_int("FixedImageDimension", 3)
        for values in self.maps:
            check_sizes(values, self.dimension)

    def apply(
        self,
        moving: ImageND | None,
        wanted: Wanted,
        *,
        changes: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> Applied:
        """Let transformix apply the transform.

        Parameters
        ----------
        moving : ImageND, optional
            The image to warp.
        wanted : Wanted
            What else to make; elastix's library maps no points when it makes a field.
        changes : mapping, optional
            Keys of the file with other values: the interpolation, the value outside of the image.
        threads : int, optional
            All processors by default.

        Raises
        ------
        TransformError
            If transformix fails, or cannot make what is wanted of this transform; one line with its reason.
        """
        told: list[str] = []
        with job_folder() as job:
            output = job / "output"
            with writing_to(job):
                settings = {
                    "task": "transform", "dimension": self.dimension, "threads": threads, "priority": None,
                    "moving": write_images([moving or self._blank()], job / "moving")[0],
                    "transform": self._write(job, changes or {}),
                    "points": _write_points(wanted.points, job),
                    "field": wanted.field, "determinant": wanted.determinant, "matrices": wanted.matrices,
                    "warped": None if moving is None else str(job / "warped.mha"),
                }  # fmt: skip
            follower = Follower(output / "transformix.log", told.append)
            try:
                run_job(job, settings, follower, self.parameters.source)
            except (ParameterError, RegistrationError) as error:
                raise TransformError(str(error).replace("elastix failed", "transformix failed")) from None
            images = {
                name: self._made(output / f"{name}.mha", told) for key, name in _IMAGES.items() if getattr(wanted, key)
            }
            points = None
            if wanted.points is not None:
                points = (output / "outputpoints.txt").read_text(encoding="utf-8")
                if moving is None:  # the indices are those of no image of the user's
                    points = re.sub(r"\t; OutputIndexMoving = \[[^]]*\]", "", points)
            return Applied(None if moving is None else read_own(str(job / "warped.mha")), images, points)

    def _made(self, file: Path, told: list[str]) -> Any:
        import SimpleITK as sitk

        if file.is_file():
            return sitk.ReadImage(str(file))
        reason = next((line.rpartition("): ")[2] for line in told if line.startswith("Description: ")), "")
        raise TransformError(
            f"{self.parameters.source}: transformix cannot make the {file.stem}: {reason or 'it gives no reason'}"
        )

    def _blank(self) -> ImageND:
        """Return an image for transformix to warp if there is none: it insists on one."""
        d = self.dimension
        return ImageND(np.zeros((4,) * d, np.float32), (1.0,) * d, (0.0,) * d, np.eye(d))

    def _write(self, job: Path, asked: Mapping[str, Any]) -> str:
        """Write the files of the transform, with paths that do not depend on the working folder; return the first."""
        changes: dict[str, Any] = {**asked, "ResultImageFormat": "mha", "CompressResultImage": False}
        for number, values in enumerate(self.maps):
            folder = Path(values.source).resolve().parent
            start = locate_initial(values, folder)
            if start is not None:
                last = number == len(self.maps) - 1
                name = str(start.resolve()) if last else str(job / f"transform{number + 1}.txt")
                changes |= {key: name for key in INITIAL_KEYS if key in values}
            for key in (*file_keys(), _SUB_TRANSFORMS):
                if key in values:
                    found = [locate_file(name, folder) for name in values[key]]
                    changes[key] = [
                        name if file is None else str(file.resolve())
                        for name, file in zip(values[key], found, strict=True)
                    ]
            (job / f"transform{number}.txt").write_text(values.with_(changes).to_text(), encoding="utf-8")
            changes = {}
        return str(job / "transform0.txt")


def check_sizes(values: ParameterMap, dimension: int) -> None:
    """Refuse a transform file that contradicts itself: elastix would take what it needs, and drop the rest.

    Parameters
    ----------
    values : ParameterMap
    dimension : int
        Of the images.

    Raises
    ------
    TransformError
        If it is of another dimension, or holds other numbers of values than it needs or declares.
    """
    found = values.get_int("FixedImageDimension", 3)
    if found != dimension:
        raise TransformError(f"{values.source}: the transform is of {found} dimensions, and {dimension} are needed")
    wanted = {**dict.fromkeys(("Size", "Index", "Spacing", "Origin"), dimension), "Direction": dimension**2}
    for key, count in wanted.items():
        if key in values and len(values[key]) != count:
            raise TransformError(
                f"{values.source}: '{key}' has {len(values[key])} values, and needs {count} in {dimension} dimensions"
            )
    if "NumberOfParameters" in values and not values.get_bool("UseBinaryFormatForTransformationParameters", False):
        declared, count = values.get_int("NumberOfParameters"), len(values.values.get("TransformParameters", ()))
        if declared != count and "TransformParameters" in values:
            raise TransformError(
                f"{values.source}: the file declares {declared} parameters and holds {count}; it may be cut off"
            )


def _write_points(text: str | None, job: Path) -> str | None:
    if text is None:
        return None
    (job / "points.txt").write_text(text, encoding="utf-8")
    return str(job / "points.txt")
