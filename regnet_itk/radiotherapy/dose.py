"""Dose distributions (RT Dose): read as images in Gy, and written for another scan."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.dicom.files import DOSE, load_pydicom, read_dataset
from regnet_itk.dicom.image_series import check_slices
from regnet_itk.dicom.new_objects import LONGEST_DESCRIPTION, claim, decimals, new_uid, save
from regnet_itk.dicom.series import Series
from regnet_itk.errors import DicomError, RegNetItkError

if TYPE_CHECKING:
    from pydicom import Dataset

_EVEN = 0.1  # mm; by which a plane may lie beside its place, as offsets are rounded
_LARGEST = 2**31 - 1
_OF_THE_OTHER_SCAN = (
    "DVHSequence", "DVHNormalizationPoint", "DVHNormalizationDoseValue", "ReferencedStructureSetSequence",
    "StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence", "ReferencedFrameOfReferenceSequence",
    "ReferencedImageSequence", "NormalizationPoint",
)  # fmt: skip
"""What no longer holds once the dose is warped."""


@dataclass(frozen=True, eq=False)
class Dose:
    """A dose distribution.

    Parameters
    ----------
    image : Image
        Gy, float32.
    header : Dataset
        All that its file says beside the voxels.
    what : str
        What to call it in a message.
    """

    image: Image
    header: Dataset
    what: str

    @property
    def frame_of_reference(self) -> str:
        """The UID of the frame of reference in which it lies."""
        return str(self.header.get("FrameOfReferenceUID", ""))


def read_dose(path: str | Path) -> Dose:
    """Read an RT Dose file.

    Raises
    ------
    DicomError
        If it cannot be read, holds no absolute dose, or its planes are not evenly spaced.
    """
    what = f"dose '{path}'"
    dataset = read_dataset(path, "dose")
    if str(dataset.get("SOPClassUID", "")) != DOSE:
        raise DicomError(f"{what} is no RT Dose object; give one")
    units, kind = (str(dataset.get(keyword, "")) for keyword in ("DoseUnits", "DoseType"))
    if units != "GY":
        raise DicomError(f"{what} is in units of {units or 'nothing'} (DoseUnits); give an absolute dose, in GY")
    if kind == "ERROR":
        raise DicomError(f"{what} holds the error of a dose (DoseType ERROR); give the dose itself")
    try:
        image = _image(dataset, what)
    except RegNetItkError as error:
        raise error if what in str(error) else DicomError(f"{what}: {error}") from None
    except Exception as error:  # pydicom lets through whatever its parts raise at damaged values
        raise DicomError(f"{what} is damaged: {str(error) or type(error).__name__}") from None
    for keyword in ("PixelData", "PixelPaddingValue"):
        if keyword in dataset:
            delattr(dataset, keyword)
    return Dose(image, dataset, what)


def _image(dataset: Dataset, what: str) -> Image:
    offsets = np.atleast_1d(np.array(dataset.get("GridFrameOffsetVector") or [], dtype=float))
    stored = dataset.pixel_array
    scaling = float(dataset.DoseGridScaling)
    if stored.ndim != 3 or len(offsets) != len(stored):
        planes = len(stored) if stored.ndim == 3 else 1
        raise DicomError(f"{what} has {planes} planes, and places for {len(offsets)} (GridFrameOffsetVector)")
    if not (np.isfinite(scaling) and scaling > 0):
        raise DicomError(f"{what} has a DoseGridScaling of {scaling}, which gives no dose")
    steps = np.diff(offsets)
    straight = np.linspace(offsets[0], offsets[-1], len(offsets))
    if not len(steps) or np.abs(offsets - straight).max() > _EVEN or not steps.all():
        gaps = f"{np.abs(steps).min():g} to {np.abs(steps).max():g} mm apart" if len(steps) else "only one"
        raise DicomError(f"{what} has planes that are {gaps}; export it with evenly spaced planes")
    along_x, along_y = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(along_x, along_y)
    first = np.array(dataset.ImagePositionPatient, dtype=float)
    step = float(steps.mean()) * _offset_sign(offsets[0], first[2], normal, what)
    if step < 0:  # planes against the normal: the other way round
        stored, first, step = stored[::-1], first + step * len(steps) * normal, -step
    between_rows, between_columns = (float(v) for v in dataset.PixelSpacing)
    grid = Grid(
        (stored.shape[2], stored.shape[1], stored.shape[0]), (between_columns, between_rows, step),
        tuple(first), np.stack([along_x, along_y, normal], axis=1),  # type: ignore[arg-type]
    )  # fmt: skip
    return Image((stored.astype(float) * scaling).astype(np.float32), grid)


def _offset_sign(offset: float, z: float, normal: FloatArray, what: str) -> float:
    """Return whether planes go along their normal (1) or against it (-1), for offsets that begin with `offset`.

    PS3.3 C.8.8.3.2: they are distances along the normal, and begin with 0; or they are the z of transverse planes.
    """
    if offset == 0:
        return 1.0
    if abs(offset - z) > 1 or abs(normal[2]) < 0.99:
        raise DicomError(
            f"{what} has planes that begin at {offset:g} (GridFrameOffsetVector), which is neither 0 nor the z of its "
            f"first plane, {z:g} mm"
        )
    return float(np.sign(normal[2]))


def dose_grid(fixed: Grid, dose: Grid) -> Grid:
    """Return voxels for a warped dose: along the fixed image's axes, over all of it, as large as those of the dose."""
    like = np.abs(fixed.direction_matrix.T @ dose.direction_matrix).argmax(axis=1)
    return fixed.with_spacing([dose.spacing[axis] for axis in like])


def write_dose(image: Image, path: Path, dose: Dose, fixed: Series, *, how: str, rigid: bool) -> None:
    """Write a warped dose as RT Dose, for the fixed image.

    Parameters
    ----------
    image : Image
        Gy, in the space of the fixed image.
    path : Path
    dose : Dose
        What it was made from: its plan and kind are those of the new one.
    fixed : Series
        Whose patient, study and frame of reference the new dose has.
    how : str
        How it was mapped, for the comment in the file.
    rigid : bool
        Whether by a rotation and a shift alone.

    Raises
    ------
    DicomError
        If the voxels are not those of slices.
    """
    check_slices(image.grid, "a dose")
    if np.linalg.det(image.grid.direction_matrix) < 0:
        image = Image(image.array[::-1], image.grid.backwards())
    dataset = copy.deepcopy(dose.header)
    dataset.remove_private_tags()
    for keyword in _OF_THE_OTHER_SCAN:
        if keyword in dataset:
            delattr(dataset, keyword)
    claim(dataset, fixed)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = new_uid(), fixed.frame_of_reference
    dataset.SeriesDescription = f"Warped: {dataset.get('SeriesDescription', '')}"[:LONGEST_DESCRIPTION]
    dataset.DoseComment = f"warped by regnet-itk, {how}"[:LONGEST_DESCRIPTION]
    dataset.SpatialTransformOfDose = "RIGID" if rigid else "NON_RIGID"
    dataset.ReferencedSpatialRegistrationSequence = []
    _place(dataset, image.grid)
    dataset.DoseUnits = "GY"
    stored, dataset.DoseGridScaling = _scaled(image.array)
    dataset.PixelData = stored.tobytes()
    save(dataset, path)


def _place(dataset: Dataset, grid: Grid) -> None:
    load_pydicom()
    from pydicom.tag import Tag

    dataset.ImagePositionPatient = decimals(grid.origin)
    dataset.ImageOrientationPatient = decimals(grid.direction_matrix[:, :2].T)
    dataset.PixelSpacing = decimals([grid.spacing[1], grid.spacing[0]])
    dataset.SliceThickness = decimals([grid.spacing[2]])[0]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = grid.shape
    dataset.FrameIncrementPointer = Tag("GridFrameOffsetVector")
    dataset.GridFrameOffsetVector = decimals(np.arange(grid.size[2]) * grid.spacing[2])
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 32
    dataset.HighBit, dataset.PixelRepresentation = 31, 0


def _scaled(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint32], str]:
    """Return doses as whole numbers, and the scaling that turns them back, as text."""
    values = np.maximum(values, 0)
    text = decimals([float(values.max()) / _LARGEST or 1.0])[0]
    return np.rint(values / float(text)).astype("<u4"), text
