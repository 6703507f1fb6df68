"""New DICOM objects: of the fixed image's patient and study, with UIDs of their own, saying what made them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.dicom.files import load_pydicom
from regnet_itk.dicom.series import Series

if TYPE_CHECKING:
    from pydicom import Dataset

_PATIENT_AND_STUDY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "StudyDescription",
)  # fmt: skip
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber",
)  # fmt: skip
"""Elements that have to be there, and may be empty (type 2)."""

NAME = "regnet-itk"
LONGEST_DESCRIPTION = 64
"""Characters of a text of the type LO."""


def new_uid() -> str:
    """Return a UID that nothing else has, made of a random UUID (2.25.)."""
    load_pydicom()
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))


def make_object(sop_class: str, modality: str, fixed: Series, description: str) -> Dataset:
    """Return a new object in a series of its own: of the patient, study and frame of reference of the fixed image.

    Parameters
    ----------
    sop_class : str
        UID.
    modality : str
    fixed : Series
    description : str
        Of the series.
    """
    dataset: Dataset = load_pydicom().Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = sop_class
    dataset.Modality = modality
    dataset.SeriesInstanceUID = new_uid()
    dataset.SeriesNumber = 1
    dataset.Laterality = None
    dataset.SeriesDescription = description[:LONGEST_DESCRIPTION]
    dataset.FrameOfReferenceUID = fixed.frame_of_reference
    dataset.PositionReferenceIndicator = fixed.first.get("PositionReferenceIndicator")
    claim(dataset, fixed)
    return dataset


def claim(dataset: Dataset, fixed: Series) -> None:
    """Make an object one of the fixed image's patient and study, made here and now, with a new UID."""
    for keyword in _PATIENT_AND_STUDY:
        if keyword in dataset:
            delattr(dataset, keyword)
        if keyword in fixed.first:
            dataset.add(fixed.first[keyword])  # as it is: what is odd about it is not for us to mend
        elif keyword in _MAY_BE_EMPTY:
            setattr(dataset, keyword, None)
    now = datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = date
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = time
    dataset.Manufacturer = dataset.ManufacturerModelName = NAME
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = version(NAME)
    dataset.OperatorsName = None
    dataset.InstanceNumber = 1
    dataset.SOPInstanceUID = new_uid()


def save(dataset: Dataset, path: Path, *, long_texts: bool = False) -> None:
    """Write an object as a DICOM file, little endian.

    Parameters
    ----------
    dataset : Dataset
    path : Path
    long_texts : bool
        Whether one of its texts, as the numbers of a contour, may have more than the 64 kB that explicit VR can say.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    pydicom = load_pydicom()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    uid = pydicom.uid
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if long_texts else uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def decimals(values: npt.ArrayLike) -> list[str]:
    """Return numbers as texts of the type DS, which has at most 16 characters each."""
    load_pydicom()
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in np.ravel(values)]


def code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    """Return the item of a sequence of codes."""
    item: Dataset = load_pydicom().Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def refer_to_instances(headers: Iterable[Dataset]) -> list[Dataset]:
    """Return the items by which a sequence names some slices."""
    items = []
    for header in headers:
        item = load_pydicom().Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        items.append(item)
    return items


def refer_to_series(dataset: Dataset, *referred: Series) -> None:
    """List in an object whatever its sequences name (the module Common Instance Reference)."""
    new = load_pydicom().Dataset
    studies: dict[str, list[Dataset]] = {}
    for series in {str(s.first.SeriesInstanceUID): s for s in referred}.values():
        item = new()
        item.SeriesInstanceUID = series.first.SeriesInstanceUID
        item.ReferencedInstanceSequence = refer_to_instances(series.headers)
        studies.setdefault(str(series.first.StudyInstanceUID), []).append(item)
    own = studies.pop(str(dataset.StudyInstanceUID), None)
    if own:
        dataset.ReferencedSeriesSequence = own
    others = []
    for uid, items in studies.items():
        study = new()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = uid, items
        others.append(study)
    if others:
        dataset.StudiesContainingOtherReferencedInstancesSequence = others
