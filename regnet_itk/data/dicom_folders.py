"""A DICOM series in a folder of its own, read as one image, or refused where its slices do not make one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image, array_of, grid_of
from regnet_itk.errors import ImageError

SLICE_TOLERANCE = 0.1  # share of the slice spacing by which the slices may be off
_SHIFT_TOLERANCE = 0.02  # share of the slice spacing by which a slice may lie beside the one before: about 1 degree
_AXIS_TOLERANCE = 1e-3
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_SLOPE, _INTERCEPT = "0028|1053", "0028|1052"


@dataclass(frozen=True)
class _Slice:
    """What the header of a slice says; None where it says nothing."""

    position: FloatArray | None
    axes: FloatArray | None
    spacing: FloatArray | None
    slope: float
    intercept: float


def list_dicom_series(folder: Path, role: str) -> list[str]:
    """Return the files of the only DICOM series of a folder, in the order of their slices.

    Raises
    ------
    ImageError
        If there is none or more than one, or the folder cannot be read.
    """
    import SimpleITK as sitk

    what = f"{role} '{folder}'"
    try:
        odd = [
            entry.name for entry in os.scandir(folder) if not (entry.is_dir() or entry.is_file() or entry.is_symlink())
        ]
    except OSError as error:
        raise ImageError(f"{what} cannot be read: {error.strerror}") from None
    if odd:  # GDCM opens all that is there, and waits for ever at a pipe
        raise ImageError(f"{what} holds '{odd[0]}', which is neither a file nor a folder; remove it")
    try:
        with without_warnings():
            series = list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    except RuntimeError as error:
        raise ImageError(f"{what} cannot be read as a DICOM series: {last_line(error)}") from None
    if not series:
        raise ImageError(f"{what} is a folder without a DICOM series; give an image file")
    if len(series) > 1:
        raise ImageError(f"{what} holds {len(series)} DICOM series; put the wanted one into a folder of its own")
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))


def read_dicom_folder(folder: Path, role: str) -> Image:
    """Read the only DICOM series of a folder.

    Raises
    ------
    ImageError
        If there is none or more than one, if it cannot be read, or if its slices are not evenly spaced, parallel and
        one behind the other.
    """
    import SimpleITK as sitk

    what = f"{role} '{folder}'"
    files = list_dicom_series(folder, role)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = _executed(reader, what)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{what} is not a scalar 3D series")
    slices = [_slice(reader, number) for number in range(len(files))]
    _check_axes(slices, what)
    _check_positions(slices, what)
    if (
        len({(s.slope, s.intercept) for s in slices}) > 1
    ):  # ITK takes the type of the first slice for all, and cuts off what does not fit
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = _executed(reader, what)
    return Image(array_of(image), grid_of(image))


def _executed(reader: Any, what: str) -> Any:
    try:
        with without_warnings():
            return reader.Execute()
    except RuntimeError as error:
        raise ImageError(f"{what} cannot be read as a DICOM series: {last_line(error)}") from None


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keep ITK's warnings off the screen; what they tell is checked here."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def last_line(error: RuntimeError) -> str:
    """Return the last telling line of an ITK exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ").rstrip(".") if lines else "unknown reason"


def _slice(reader: Any, number: int) -> _Slice:
    def numbers(tag: str, count: int) -> FloatArray | None:
        try:
            found = np.array([float(text) for text in reader.GetMetaData(number, tag).split("\\")])
        except (RuntimeError, ValueError):
            return None
        return found if found.shape == (count,) and np.isfinite(found).all() else None

    slope, intercept = numbers(_SLOPE, 1), numbers(_INTERCEPT, 1)
    return _Slice(
        numbers(_POSITION, 3), numbers(_ORIENTATION, 6), numbers(_PIXEL_SPACING, 2),
        1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0]),
    )  # fmt: skip


def _check_axes(slices: list[_Slice], what: str) -> None:
    """Refuse slices that differ in orientation or pixel spacing: ITK would take the first one's for all."""
    for name, tolerance, values in (
        ("orientation (ImageOrientationPatient)", _AXIS_TOLERANCE, [s.axes for s in slices]),
        ("pixel spacing (PixelSpacing)", _AXIS_TOLERANCE, [s.spacing for s in slices]),
    ):
        known = [value for value in values if value is not None]
        if known and len(known) < len(values):
            raise ImageError(f"{what} has slices without an {name}, beside others with one; give one series")
        for number, value in enumerate(known):
            if np.abs(value - known[0]).max() > tolerance:
                first, other = ("\\".join(f"{v:g}" for v in each) for each in (known[0], value))
                raise ImageError(
                    f"{what} has slices of different {name}: {first} in slice 0 and {other} in slice {number}; they "
                    "are several images, put the wanted one into a folder of its own"
                )


def _check_positions(slices: list[_Slice], what: str) -> None:
    """Refuse gaps, which ITK would spread its slices over, and a tilted gantry, which it would straighten."""
    known = [s.position for s in slices if s.position is not None]
    if len(known) < 2 or len(known) < len(slices):
        return
    steps = np.diff(np.array(known), axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    if gaps.max() - gaps.min() > SLICE_TOLERANCE * np.median(gaps):
        raise ImageError(
            f"{what} has slices that are {gaps.min():.2f} to {gaps.max():.2f} mm apart: one is missing, or they are "
            "not evenly spaced; resample the series to an even spacing"
        )
    axes = slices[0].axes
    if axes is None or not gaps.all():
        return
    normal = np.cross(axes[:3], axes[3:])
    beside = np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1)
    if beside.max() > _SHIFT_TOLERANCE * np.median(gaps):
        angle = np.degrees(np.arcsin(min(1.0, float(np.median(beside / gaps)))))
        raise ImageError(
            f"{what} was scanned with a tilted gantry: each slice lies {np.median(beside):.2f} mm beside the one "
            f"before ({angle:.1f} degrees), and a straight image would be off by {beside.sum():.0f} mm at its end; "
            "resample it with its tilt first (dcm2niix does)"
        )
