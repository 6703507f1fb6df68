"""Structure sets (RT Structure Set): contours and points in a frame of reference, read and written."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.data.grid import LARGEST_LENGTH, FloatArray
from regnet_itk.dicom.files import STRUCTURES, load_pydicom, read_dataset
from regnet_itk.dicom.new_objects import LONGEST_DESCRIPTION, claim, new_uid, refer_to_instances, save
from regnet_itk.dicom.series import Series
from regnet_itk.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Kinds of contours that enclose an area. Contours within contours are holes."""

POINT, OPEN = "POINT", "OPEN_NONPLANAR"
_KINDS = (*CLOSED, POINT, "OPEN_PLANAR", OPEN)
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_OF_THE_OTHER_SCAN = (
    "ReviewDate", "ReviewTime", "ReviewerName", "ReferencedSeriesSequence",
    "StudiesContainingOtherReferencedInstancesSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Contour:
    """A contour or a point.

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        mm, LPS.
    kind : str
        DICOM's Contour Geometric Type.
    """

    points: FloatArray
    kind: str = CLOSED[0]


@dataclass(frozen=True, eq=False)
class Structure:
    """A region of interest.

    Parameters
    ----------
    number : int
        By which its file names it.
    name : str
    colour : tuple of int, optional
        Red, green, blue, 0 to 255.
    contours : tuple of Contour
    """

    number: int
    name: str
    colour: tuple[int, ...] | None
    contours: tuple[Contour, ...]


@dataclass(frozen=True, eq=False)
class StructureSet:
    """The structures of a file.

    Parameters
    ----------
    structures : tuple of Structure
    frame_of_reference : str
        UID of the frame in which they all lie.
    header : Dataset
        All that the file says beside the contours.
    what : str
        What to call it in a message.
    """

    structures: tuple[Structure, ...]
    frame_of_reference: str
    header: Dataset
    what: str

    def series(self) -> set[str]:
        """Return the UIDs of the series that the contours were drawn on, as far as the file says."""
        return {
            str(series.SeriesInstanceUID)
            for frame in self.header.get("ReferencedFrameOfReferenceSequence", ())
            for study in frame.get("RTReferencedStudySequence", ())
            for series in study.get("RTReferencedSeriesSequence", ())
        }


def read_structures(path: str | Path) -> StructureSet:
    """Read an RT Structure Set file.

    Raises
    ------
    DicomError
        If it cannot be read, is damaged, holds no structure, or structures in several frames of reference.
    """
    what = f"structures '{path}'"
    dataset = read_dataset(path, "structures")
    if str(dataset.get("SOPClassUID", "")) != STRUCTURES:
        raise DicomError(f"{what} are no RT Structure Set object; give one")
    try:
        named = {int(roi.ROINumber): roi for roi in dataset.StructureSetROISequence}
        drawn = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence", ())}
        structures = tuple(_structure(roi, drawn.get(number), what) for number, roi in named.items())
        frames = {str(roi.get("ReferencedFrameOfReferenceUID", "")) for roi in named.values()}
    except (AttributeError, ValueError, TypeError) as error:
        raise DicomError(f"{what} are damaged: {error}") from None
    if "ROIContourSequence" in dataset:
        del dataset.ROIContourSequence
    if not structures:
        raise DicomError(f"{what} hold no structure")
    if len(frames) > 1 or "" in frames:
        raise DicomError(f"{what} lie in {len(frames)} frames of reference, or in none; export those of one scan")
    return StructureSet(structures, frames.pop(), dataset, what)


def _structure(roi: Dataset, drawn: Dataset | None, what: str) -> Structure:
    name = str(roi.get("ROIName", ""))
    items = drawn.get("ContourSequence", ()) if drawn is not None else ()
    contours = tuple(_contour(item, f"{what}, '{name}'") for item in items or ())
    colour = drawn.get("ROIDisplayColor") if drawn is not None else None
    return Structure(int(roi.ROINumber), name, tuple(int(c) for c in colour) if colour else None, contours)


def _contour(item: Dataset, where: str) -> Contour:
    kind = str(item.get("ContourGeometricType", ""))
    if kind not in _KINDS:
        raise DicomError(f"{where}: there is no kind of contours '{kind}'")
    numbers = np.array([float(v) for v in np.atleast_1d(item.ContourData)])
    if numbers.size % 3 or not numbers.size or not (np.abs(numbers) <= LARGEST_LENGTH).all():
        raise DicomError(f"{where}: a contour has {numbers.size} numbers that are no points of x, y, z")
    return Contour(numbers.reshape(-1, 3), kind)


def write_structures(
    contours: Mapping[int, Iterable[Contour]], path: Path, given: StructureSet, fixed: Series, tolerance: float
) -> None:
    """Write warped structures as RT Structure Set, for the fixed image.

    Parameters
    ----------
    contours : mapping of int to iterable of Contour
        Those of each structure, by its number, in the space of the fixed image.
    path : Path
    given : StructureSet
        What they were made from: names, colours, kinds and numbers are kept.
    fixed : Series
        Whose patient, study, frame of reference and slices they refer to.
    tolerance : float
        mm; a contour that is so near to a slice's plane refers to that slice.
    """
    dataset = copy.deepcopy(given.header)
    dataset.remove_private_tags()
    for keyword in _OF_THE_OTHER_SCAN:
        if keyword in dataset:
            delattr(dataset, keyword)
    new = load_pydicom().Dataset
    before = new()
    before.ReferencedSOPClassUID, before.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.PredecessorStructureSetSequence = [before]
    claim(dataset, fixed)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = new_uid(), fixed.frame_of_reference
    dataset.PositionReferenceIndicator = fixed.first.get("PositionReferenceIndicator")
    dataset.SeriesDescription = f"Warped: {dataset.get('SeriesDescription', '')}"[:LONGEST_DESCRIPTION]
    dataset.StructureSetDescription = "Warped by regnet-itk to another image; look at every contour before use"
    now = datetime.now()
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_item(fixed)]
    for roi in dataset.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = fixed.frame_of_reference
        for keyword in ("ROIVolume", "ROIDateTime"):
            if keyword in roi:
                delattr(roi, keyword)
    dataset.ROIContourSequence = [
        _roi_contours(structure, contours.get(structure.number, ()), fixed, tolerance) for structure in given.structures
    ]
    save(dataset, path, long_texts=True)


def _frame_item(fixed: Series) -> Dataset:
    new = load_pydicom().Dataset
    series, study, frame = new(), new(), new()
    series.SeriesInstanceUID = fixed.first.SeriesInstanceUID
    series.ContourImageSequence = refer_to_instances(fixed.headers)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _DETACHED_STUDY, fixed.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = fixed.frame_of_reference
    frame.RTReferencedStudySequence = [study]
    return frame


def _roi_contours(structure: Structure, contours: Iterable[Contour], fixed: Series, tolerance: float) -> Dataset:
    new = load_pydicom().Dataset
    whole = new()
    whole.ReferencedROINumber = structure.number
    if structure.colour is not None:
        whole.ROIDisplayColor = list(structure.colour)
    items: list[Any] = []
    for number, contour in enumerate(contours, start=1):
        item = new()
        if contour.kind in CLOSED and (header := fixed.find_slice(contour.points.mean(axis=0), tolerance)) is not None:
            item.ContourImageSequence = refer_to_instances([header])
        item.ContourGeometricType, item.NumberOfContourPoints = contour.kind, len(contour.points)
        item.ContourNumber = number
        item.ContourData = [f"{value:.4f}" for value in contour.points.ravel().tolist()]
        items.append(item)
    if items:
        whole.ContourSequence = items
    return whole
