"""A warped image as a DICOM series: derived from the moving series, in the frame of reference of the fixed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.dicom.new_objects import code, decimals, make_object, new_uid, refer_to_instances, refer_to_series, save
from regnet_itk.dicom.series import Series
from regnet_itk.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

_KINDS = {
    "1.2.840.10008.5.1.4.1.1.2": ("DERIVED", "SECONDARY", "AXIAL"),  # CT
    "1.2.840.10008.5.1.4.1.1.4": ("DERIVED", "SECONDARY", "OTHER"),  # MR
    "1.2.840.10008.5.1.4.1.1.128": ("DERIVED", "PRIMARY"),  # PET, which knows no other value
}
"""SOP classes that are written, and their Image Type."""

_ACQUISITION = (
    "BodyPartExamined", "ProtocolName", "KVP", "ConvolutionKernel", "ContrastBolusAgent", "ContrastBolusRoute",
    "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "RescaleType", "WindowCenter", "WindowWidth",
    "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength",
    "RepetitionTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "SequenceName",
    "Units", "CountsSource", "SeriesType", "CorrectedImage", "DecayCorrection", "CollimatorType", "FrameReferenceTime",
    "ActualFrameDuration", "DecayFactor", "DoseCalibrationFactor", "RadiopharmaceuticalInformationSequence",
    "PatientOrientationCodeSequence", "PatientGantryRelationshipCodeSequence",
)  # fmt: skip
"""What holds for the warped image as it did for the moving one."""

_LARGEST = 2**15 - 1


def check_writable_series(moving: Series) -> None:
    """Refuse a series of a kind that is not written as DICOM.

    Raises
    ------
    DicomError
    """
    if str(moving.first.SOPClassUID) not in _KINDS or "NumberOfFrames" in moving.first:
        raise DicomError(
            f"{moving.what} is of the kind '{moving.first.SOPClassUID.name}'; warped images are written as DICOM for "
            "plain CT, MR and PET series; leave `fixed_series` away to get another format"
        )


def check_slices(grid: Grid, what: str) -> None:
    """Refuse voxels that DICOM's slices cannot hold.

    Raises
    ------
    DicomError
        If the axes are not perpendicular.
    """
    direction = grid.direction_matrix
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise DicomError(f"DICOM cannot hold {what} on axes that are not perpendicular; give other voxels with `like`")


def write_image_series(image: Image, folder: Path, name: str, fixed: Series, moving: Series) -> list[Path]:
    """Write a warped image, a file a slice.

    Parameters
    ----------
    image : Image
        In the space of the fixed image; whole numbers are kept, others scaled to 16 bits.
    folder : Path
    name : str
        Of the files: ``name.0001.dcm`` ..
    fixed : Series
        Whose patient, study and frame of reference the new series has.
    moving : Series
        What it was derived from.

    Returns
    -------
    list of Path

    Raises
    ------
    DicomError
        If the moving series is of another kind than CT, MR or PET, or the voxels are not those of slices.
    """
    check_writable_series(moving)
    check_slices(image.grid, "a warped image")
    stored, slope = _sixteen_bits(image.array)
    common = _common(image.grid, fixed, moving)
    if slope != 1 or moving.modality != "MR":  # MR images have no scale of their own
        common.RescaleSlope, common.RescaleIntercept = decimals([slope])[0], 0  # PET has to have no intercept
    files = []
    for number, values in enumerate(stored, start=1):
        common.SOPInstanceUID, common.InstanceNumber = new_uid(), number
        common.ImagePositionPatient = decimals(image.grid.index_to_point([0, 0, number - 1]))
        if moving.modality == "PT":
            common.ImageIndex = number
        common.PixelData = values.tobytes()
        files.append(folder / f"{name}.{number:04}.dcm")
        save(common, files[-1])
    return files


def _common(grid: Grid, fixed: Series, moving: Series) -> Dataset:
    """Return what all slices have alike."""
    kind = str(moving.first.SOPClassUID)
    common = make_object(kind, moving.modality, fixed, f"Warped: {moving.first.get('SeriesDescription', '')}")
    common.ImageType = list(_KINDS[kind])
    common.DerivationDescription = (
        "Warped by regnet-itk to the fixed image: each voxel x has the value of the moving image at T(x)"
    )
    common.DerivationCodeSequence = [code("113085", "Spatial resampling")]
    common.SourceImageSequence = refer_to_instances(moving.headers)
    for item in common.SourceImageSequence:
        item.PurposeOfReferenceCodeSequence = [code("121322", "Source image for image processing operation")]
    if moving.modality != "PT":  # which says it with codes, that are taken from the moving series
        common.PatientPosition = fixed.first.get("PatientPosition")
    for keyword in _ACQUISITION:
        if keyword in moving.first:
            common.add(moving.first[keyword])
    if moving.modality == "PT":
        common.NumberOfSlices = grid.size[2]
    common.ImageOrientationPatient = decimals(grid.direction_matrix[:, :2].T)
    common.PixelSpacing = decimals([grid.spacing[1], grid.spacing[0]])
    common.SliceThickness = decimals([grid.spacing[2]])[0]
    common.SamplesPerPixel, common.PhotometricInterpretation = 1, "MONOCHROME2"
    common.Rows, common.Columns = grid.size[1], grid.size[0]
    common.BitsAllocated = common.BitsStored = 16
    common.HighBit, common.PixelRepresentation = 15, 1
    refer_to_series(common, fixed, moving)
    return common


def _sixteen_bits(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int16], float]:
    """Return values as signed numbers of 16 bits, and the slope that turns these back."""
    largest = float(np.abs(values).max())
    if largest <= _LARGEST and (values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))):
        return values.astype("<i2"), 1.0
    slope = float(decimals([largest / (_LARGEST - 1)])[0])  # as it is written, so that rounding comes last
    return np.rint(values.astype(float) / slope).astype("<i2"), slope
