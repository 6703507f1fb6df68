"""The series of an image, as far as other DICOM objects refer to it: its headers, without its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.data.dicom_folders import list_dicom_series
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.dicom.files import check_same_patient, read_dataset
from regnet_itk.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, eq=False)
class Series:
    """The headers of a DICOM series.

    Parameters
    ----------
    headers : tuple of Dataset
        One for each slice, in the order of the slices.
    what : str
        What to call the series in a message: "the fixed series 'ct1'".
    """

    headers: tuple[Dataset, ...]
    what: str

    @property
    def first(self) -> Dataset:
        """The header of the first slice, which speaks for the patient, the study and the series."""
        return self.headers[0]

    @property
    def frame_of_reference(self) -> str:
        """The UID of the patient-related coordinate system of the series."""
        return str(self.first.FrameOfReferenceUID)

    @property
    def modality(self) -> str:
        """CT, MR, PT .."""
        return str(self.first.get("Modality", ""))

    @property
    def date(self) -> str | None:
        """When the images were taken, as YYYYMMDD; else the date of the series or the study."""
        for keyword in ("AcquisitionDate", "SeriesDate", "StudyDate"):
            found = str(self.first.get(keyword) or "").strip()
            if found:
                return found
        return None

    def grid(self) -> Grid:
        """Return where the voxels lie, by the headers of the first and the last slice."""
        along_x, along_y = np.asarray(self.first.ImageOrientationPatient, dtype=float).reshape(2, 3)
        first, last = (np.asarray(self.headers[k].ImagePositionPatient, dtype=float) for k in (0, -1))
        count = len(self.headers)
        between_rows, between_columns = (float(v) for v in self.first.PixelSpacing)
        normal = np.cross(along_x, along_y)
        step = (
            float((last - first) @ normal) / (count - 1) if count > 1 else float(self.first.get("SliceThickness") or 1)
        )
        return Grid(
            (int(self.first.Columns), int(self.first.Rows), count), (between_columns, between_rows, abs(step)),
            tuple(first), np.stack([along_x, along_y, np.sign(step) * normal], axis=1),  # type: ignore[arg-type]
        )  # fmt: skip

    def find_slice(self, point: FloatArray, tolerance: float) -> Dataset | None:
        """Return the header of the slice whose plane a point (mm, LPS) lies in, to a tolerance in mm."""
        axes = np.asarray(self.first.ImageOrientationPatient, dtype=float)
        normal = np.cross(axes[:3], axes[3:])
        positions = np.array([header.ImagePositionPatient for header in self.headers], dtype=float)
        beside = np.abs((positions - point) @ normal)
        nearest = int(beside.argmin())
        return self.headers[nearest] if beside[nearest] <= tolerance else None


def read_series(folder: str | Path, role: str) -> Series:
    """Read the headers of the only DICOM series of a folder.

    Parameters
    ----------
    folder : str or Path
    role : str
        "fixed series", "moving series"

    Raises
    ------
    ImageError, DicomError
        If there is none or more than one, it cannot be read, or it is not placed in a patient.
    """
    what = f"the {role} '{folder}'"
    headers = tuple(read_dataset(file, role, pixels=False) for file in list_dicom_series(Path(folder), role))
    for keyword in ("FrameOfReferenceUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
                    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):  # fmt: skip
        if any(not header.get(keyword) for header in headers):
            raise DicomError(f"{what} has slices without {keyword}, so that nothing can refer to it; give another one")
    return Series(headers, what)


def read_both_series(fixed: str | Path, moving: str | Path) -> tuple[Series, Series]:
    """Read the series of the fixed and of the moving image, which have to be of one patient.

    Raises
    ------
    ImageError, DicomError
        See `read_series`; or if they are of two patients.
    """
    both = read_series(fixed, "fixed series"), read_series(moving, "moving series")
    check_same_patient(both[0].first, both[0].what, both[1].first, both[1].what)
    return both


def check_in_moving_frame(frame: str, what: str, fixed: Series, moving: Series | None) -> None:
    """Refuse what does not lie in the moving image's frame of reference.

    Parameters
    ----------
    frame : str
        UID of the frame of reference in which something lies.
    what : str
        That something, for the message.
    fixed : Series
    moving : Series, optional
        Without it, only what lies in the fixed image's frame is refused.

    Raises
    ------
    DicomError
    """
    if moving is not None and frame != moving.frame_of_reference:
        raise DicomError(
            f"{what} lies in the frame of reference {frame}, and {moving.what} in {moving.frame_of_reference}: it "
            "belongs to another scan"
        )
    if moving is None and frame == fixed.frame_of_reference:
        raise DicomError(
            f"{what} lies in the frame of reference of {fixed.what} already; if both scans have the same frame, give "
            "the moving one with `moving_series`, else the one that belongs to the moving image"
        )


def check_fixed_grid(grid: Grid, fixed: Series) -> None:
    """Refuse a series that a transform's fixed image does not lie in.

    Raises
    ------
    DicomError
    """
    if not fixed.grid().contains(grid.lattice(12)).any():
        at, there = (" ".join(f"{v:.0f}" for v in each.centre()) for each in (grid, fixed.grid()))
        raise DicomError(
            f"the transform's fixed image lies around ({at}) mm and {fixed.what} around ({there}) mm; give the series "
            "that was registered as the fixed image"
        )
