"""DICOM files read with pydicom, which is an extra; and whether two of them belong together."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet_itk.errors import DicomError
from regnet_itk.inputs import why_no_file

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_SUFFIX = ".dcm"
_PREAMBLE = 128
_HEAD = 1024
_CLASS_ELEMENT = b"\x02\x00\x02\x00UI"
"""Tag and type of Media Storage SOP Class UID, in the header that every DICOM file begins with."""

REGISTRATION, DEFORMABLE, DOSE, STRUCTURES = (
    "1.2.840.10008.5.1.4.1.1.66.1", "1.2.840.10008.5.1.4.1.1.66.3",
    "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.481.3",
)  # fmt: skip
"""SOP classes: Spatial Registration, Deformable Spatial Registration, RT Dose, RT Structure Set."""


def load_pydicom() -> Any:
    """Return the module pydicom.

    Raises
    ------
    DicomError
        If it is not installed, with the command that does.
    """
    try:
        import pydicom
    except ImportError:
        raise DicomError("DICOM files of this kind need pydicom; install it: pip install 'regnet-itk[dicom]'") from None
    return pydicom


def is_dicom(path: str | Path) -> bool:
    """Say whether a file is of DICOM's file format, by its first bytes."""
    return _head(path)[_PREAMBLE:].startswith(b"DICM")


def sop_class(path: str | Path) -> str:
    """Return the UID of the kind of object that a DICOM file holds, without pydicom; empty if it is no such file."""
    head = _head(path)
    at = head.find(_CLASS_ELEMENT) if is_dicom(path) else -1
    if at < 0:
        return ""
    start = at + len(_CLASS_ELEMENT) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    return head[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")


def _head(path: str | Path) -> bytes:
    if why_no_file(path) is not None:
        return b""
    with Path(path).open("rb") as file:
        return file.read(_HEAD)


def read_dataset(path: str | Path, role: str = "DICOM file", pixels: bool = True) -> Dataset:
    """Read a DICOM file.

    Parameters
    ----------
    path : str or Path
    role : str
        What it is, for the messages.
    pixels : bool
        Whether all that comes before the voxels is enough.

    Raises
    ------
    DicomError
        If it is missing, cut off, or no DICOM file, or if pydicom is missing.
    """
    if (why := why_no_file(path)) is not None:
        raise DicomError(f"{role} '{path}' {why}")
    if not is_dicom(path):
        raise DicomError(f"{role} '{path}' is no DICOM file: it lacks the letters DICM at byte {_PREAMBLE}")
    pydicom = load_pydicom()
    try:
        with warnings.catch_warnings(action="ignore"), pydicom.config.disable_value_validation():
            dataset: Dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
            dataset.decode()  # all text, now: it is to go into files of another character set
    except Exception as error:  # pydicom lets through whatever its parts raise at damaged bytes
        raise DicomError(f"{role} '{path}' cannot be read: {str(error) or type(error).__name__}") from None
    return dataset


def check_same_patient(first: Dataset, first_is: str, second: Dataset, second_is: str) -> None:
    """Refuse two DICOM files of two patients.

    Parameters
    ----------
    first, second : Dataset
    first_is, second_is : str
        What they are, for the message.

    Raises
    ------
    DicomError
        If both have a patient ID, and the two differ.
    """
    ids = [str(dataset.get("PatientID") or "").strip() for dataset in (first, second)]
    if all(ids) and ids[0] != ids[1]:
        raise DicomError(
            f"{first_is} is of patient '{ids[0]}' and {second_is} of patient '{ids[1]}' (PatientID); give files of one "
            "patient"
        )
