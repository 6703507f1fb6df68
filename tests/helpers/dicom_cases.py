"""DICOM files as scanners and planning systems write them, made with pydicom alone, and read with it by themselves."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scipy import ndimage
from skimage import measure

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image

ROOT = "1.2.826.0.1.3680043.8.498."
CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
FRAMES = {"fixed": ROOT + "1.1", "moving": ROOT + "1.2"}
STUDIES = {"fixed": ROOT + "2.1", "moving": ROOT + "2.2"}
SERIES = {"fixed": ROOT + "3.1", "moving": ROOT + "3.2"}


def dataset(side, class_uid, uid, modality, patient="P1"):
    """An object of the fixed or the moving scan, without what its kind needs."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = class_uid, uid, modality
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "M\xfcller^Ada", patient, "19500102", "F"
    made.StudyInstanceUID, made.StudyDate, made.StudyTime, made.StudyID = STUDIES[side], "20260102", "101112", "S"
    made.ReferringPhysicianName, made.AccessionNumber = "", side
    made.SeriesInstanceUID, made.SeriesNumber = SERIES[side] + f".{sum(map(ord, modality))}", 3
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = FRAMES[side], ""
    made.Manufacturer, made.ManufacturerModelName = "Scanners", "One"
    made.DeviceSerialNumber, made.SoftwareVersions = "7", "1.0"
    made.InstanceNumber = 1
    return made


def save(made, path, syntax=ExplicitVRLittleEndian):
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)
    return path


def ds(values):
    return [f"{value:.10g}"[:16] for value in np.ravel(values)]


def write_series(image, folder, side="fixed", modality="CT", patient="P1", **changes):
    """Write whole numbers as a series, its files in no order of the slices."""
    folder = Path(folder)
    folder.mkdir()
    direction, spacing = image.grid.direction_matrix, image.grid.spacing
    for z in range(len(image.array)):
        class_uid = {"CT": CT, "MR": MR, "PT": PET}[modality]
        made = dataset(side, class_uid, f"{SERIES[side]}.{z + 1}", modality, patient)
        made.SeriesInstanceUID = SERIES[side]
        made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
        made.InstanceNumber, made.AcquisitionNumber, made.PatientPosition = z + 1, 1, "HFS"
        made.ImagePositionPatient = ds(image.grid.index_to_point([0, 0, z]))
        made.ImageOrientationPatient = ds(direction[:, :2].T)
        made.PixelSpacing, made.SliceThickness = ds([spacing[1], spacing[0]]), ds([spacing[2]])[0]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.Rows, made.Columns = image.array.shape[1:]
        made.BitsAllocated = made.BitsStored = 16
        made.HighBit, made.PixelRepresentation = 15, 1
        if modality == "CT":
            made.KVP, made.RescaleIntercept, made.RescaleSlope, made.RescaleType = "120", -1024, 1, "HU"
            stored = image.array[z].astype(int) + 1024
        elif modality == "PT":
            made.ImageType = ["ORIGINAL", "PRIMARY"]
            made.Units, made.CountsSource, made.SeriesType = "BQML", "EMISSION", ["WHOLE BODY", "IMAGE"]
            made.CorrectedImage, made.DecayCorrection, made.CollimatorType = ["ATTN"], "START", "NONE"
            made.FrameReferenceTime, made.ActualFrameDuration, made.DecayFactor = "0", 1000, "1"
            made.AcquisitionDate, made.AcquisitionTime = "20260102", "101010"
            made.ImageIndex, made.NumberOfSlices = z + 1, len(image.array)
            made.PatientOrientationCodeSequence = made.PatientGantryRelationshipCodeSequence = []
            radionuclide = Dataset()
            radionuclide.RadionuclideCodeSequence = []
            made.RadiopharmaceuticalInformationSequence = [radionuclide]
            made.RescaleIntercept, made.RescaleSlope = 0, f"{0.5 + 0.01 * z:g}"
            stored = image.array[z]
        else:
            made.ScanningSequence, made.SequenceVariant, made.ScanOptions = "SE", "NONE", ""
            made.MRAcquisitionType, made.EchoTime, made.EchoTrainLength, made.RepetitionTime = "2D", "10", 1, "500"
            stored = image.array[z]
        made.PixelData = stored.astype("<i2").tobytes()
        for keyword, value in changes.items():
            setattr(made, keyword, value)
        save(made, folder / f"{(z * 7919) % 10007:05}.dcm")
    return folder


def turned(image, rotation, shift=(0.0, 0.0, 0.0)):
    """The same voxels on a grid whose space is turned."""
    return Image(image.array, turned_grid(image.grid, rotation, shift))


def turned_grid(grid, rotation, shift=(0.0, 0.0, 0.0)):
    origin = rotation @ np.asarray(grid.origin) + shift
    return replace(grid, origin=tuple(origin), direction=rotation @ grid.direction_matrix)


def check_with_dciodvfy(path):
    """Let the validator of dicom3tools look at a file, if it is installed; it finds no error."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian: dicom3tools) is missing")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert not errors, "\n".join(errors)


# Registrations, read by themselves: pydicom's raw values, numpy and SciPy


def raw_matrix(item):
    return np.array([float(v) for v in item.FrameOfReferenceTransformationMatrix]).reshape(4, 4)


def affine_points(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def registered_to_source(path, points):
    """Map points as a program that knows the standard would, and none of ours."""
    read = pydicom.dcmread(path)
    if "RegistrationSequence" in read:
        (source,) = [i for i in read.RegistrationSequence if i.FrameOfReferenceUID != read.FrameOfReferenceUID]
        source_to_registered = raw_matrix(source.MatrixRegistrationSequence[0].MatrixSequence[0])
        return affine_points(np.linalg.inv(source_to_registered), points)
    (item,) = read.DeformableRegistrationSequence
    lattice = item.DeformableRegistrationGridSequence[0]
    nx, ny, nz = lattice.GridDimensions
    vectors = np.frombuffer(lattice.VectorGridData, "<f4").reshape(nz, ny, nx, 3)
    row, column = np.array(lattice.ImageOrientationPatient, float).reshape(2, 3)
    axes = np.stack([row, column, np.cross(row, column)], axis=1) * np.array(lattice.GridResolution, float)
    index = np.linalg.solve(axes, (points - np.array(lattice.ImagePositionPatient, float)).T)
    moved = [ndimage.map_coordinates(vectors[..., c], index[::-1], float, order=1, mode="nearest") for c in range(3)]
    inside = ((index >= -0.5) & (index < np.array([[nx], [ny], [nz]]) - 0.5)).all(axis=0)
    before = raw_matrix(item.PreDeformationMatrixRegistrationSequence[0])
    after = raw_matrix(item.PostDeformationMatrixRegistrationSequence[0])
    return affine_points(after, affine_points(before, points) + np.where(inside, moved, 0).T)


def empty_image(grid):
    return Image(np.zeros(grid.shape, np.int16), grid)


# Radiotherapy: a dose and structures of the moving scan

DOSE_CLASS, STRUCTURE_CLASS = "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.481.3"


def write_dose(image, path, side="moving", patient="P1", **changes):
    """Write Gy as a treatment planning system does: 16 bits, offsets from the first plane."""
    made = dataset(side, DOSE_CLASS, ROOT + "5.1", "RTDOSE", patient)
    grid, scaling = image.grid, float(f"{max(image.array.max(), 1e-3) / 60000:.9g}")
    made.Laterality, made.SeriesDescription = "", "Plan 1"
    made.ImagePositionPatient = ds(grid.origin)
    made.ImageOrientationPatient = ds(grid.direction_matrix[:, :2].T)
    made.PixelSpacing, made.SliceThickness = ds([grid.spacing[1], grid.spacing[0]]), ds([grid.spacing[2]])[0]
    made.NumberOfFrames, made.Rows, made.Columns = grid.shape
    made.FrameIncrementPointer = 0x3004000C
    made.GridFrameOffsetVector = ds(np.arange(grid.size[2]) * grid.spacing[2])
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelRepresentation = 15, 0
    made.DoseUnits, made.DoseType, made.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    made.DoseGridScaling = ds([scaling])[0]
    plan = Dataset()
    plan.ReferencedSOPClassUID, plan.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.5", ROOT + "6.1"
    made.ReferencedRTPlanSequence = [plan]
    made.PixelData = np.rint(image.array / scaling).astype("<u2").tobytes()
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    return save(made, path)


def raw_dose(path):
    """Return the Gy (z, y, x) of a file, and the points of its voxels, by pydicom's values alone."""
    read = pydicom.dcmread(path)
    gray = read.pixel_array * float(read.DoseGridScaling)
    row, column = np.array(read.ImageOrientationPatient, float).reshape(2, 3)
    down, along = (float(v) for v in read.PixelSpacing)
    normal = np.cross(row, column)
    offsets = np.array(read.GridFrameOffsetVector, float) - float(read.GridFrameOffsetVector[0])
    z, y, x = np.meshgrid(*(np.arange(n) for n in gray.shape), indexing="ij")
    first = np.array(read.ImagePositionPatient, float)
    return gray, first + x[..., None] * along * row + y[..., None] * down * column + offsets[z][..., None] * normal


def write_structures(structures, path, grid, side="moving", patient="P1", frames=None, **changes):
    """Write structures (name, colour, contours of (kind, points)), each contour with the slice it lies in."""
    made = dataset(side, STRUCTURE_CLASS, ROOT + "7.1", "RTSTRUCT", patient)
    made.StructureSetLabel, made.StructureSetDate, made.StructureSetTime = "PLANNING", "20260103", "120000"
    made.ApprovalStatus, made.ReviewDate, made.ReviewTime, made.ReviewerName = "APPROVED", "20260104", "1200", "Doc"
    images = [Dataset() for _ in range(grid.size[2])]
    for z, image in enumerate(images):
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = CT, f"{SERIES[side]}.{z + 1}"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = SERIES[side], images
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", STUDIES[side]
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = FRAMES[side], [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence, made.RTROIObservationsSequence = [], [], []
    for number, (name, colour, contours) in enumerate(structures, start=1):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = (frames or {}).get(name, FRAMES[side])
        drawn.ROIDisplayColor, drawn.ReferencedROINumber, drawn.ContourSequence = colour, number, []
        for kind, points in contours:
            item = Dataset()
            z = int(np.clip(round(grid.point_to_index(np.mean(points, axis=0))[2]), 0, len(images) - 1))
            item.ContourImageSequence = [images[z]]
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{v:.3f}" for v in np.ravel(points)]
            drawn.ContourSequence.append(item)
        observed.ObservationNumber, observed.ReferencedROINumber = number, number
        observed.RTROIInterpretedType, observed.ROIInterpreter = "ORGAN", ""
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
        made.RTROIObservationsSequence.append(observed)
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    return save(made, path, ImplicitVRLittleEndian)  # for contours of many points


def outlines(mask):
    """Return the contours of a mask on its slices, as (kind, points)."""
    found = []
    for z, plane in enumerate(np.pad(mask.array.astype(float), ((0, 0), (1, 1), (1, 1)))):
        for line in measure.find_contours(plane, 0.5):
            index = np.column_stack([line[:-1, 1] - 1, line[:-1, 0] - 1, np.full(len(line) - 1, z)])
            found.append(("CLOSED_PLANAR", mask.grid.index_to_point(index)))
    return found


# A patient whose motion is known


def planned_dose(points, centre):
    """60 Gy around a centre in the moving scan, falling off at 25 mm within a centimetre, in Gy."""
    return 60 / (1 + np.exp((np.linalg.norm(points - centre, axis=-1) - 25) / 3))


def tumour_centre(phantom):
    """A place of the moving scan in the lower lung, where breathing moves it most."""
    low = np.argsort(phantom.moving_landmarks[:, 2])
    return phantom.moving_landmarks[low[len(low) // 8]]


STILL = np.eye(3)


def write_patient(phantom, folder, rotation=STILL, shift=(0.0, 0.0, 0.0)):
    """Write fixed_series, moving_series, and dose.dcm and structures.dcm of the moving scan, in a turned space."""
    centre = rotation @ tumour_centre(phantom) + shift
    for side in ("fixed", "moving"):
        image = turned(getattr(phantom, side), rotation, shift)
        write_series(image, folder / f"{side}_series", side, SeriesDescription=f"{side} CT")
    grid = Grid((46, 46, 46), (3.0, 3.0, 3.0), tuple(centre - 70.0))
    write_dose(Image(planned_dose(grid.points(), centre), grid), folder / "dose.dcm")
    lungs = turned(phantom.moving_mask, rotation, shift)
    fine = lungs.grid.with_spacing((0.5, 0.5, lungs.grid.spacing[2]))
    tumour = Image(np.linalg.norm(fine.points() - centre, axis=-1) < 18.0, fine)
    structures = [("Lungs", [80, 170, 230], outlines(lungs)), ("Tumour", [230, 60, 40], outlines(tumour)),
                  ("Isocentre", [250, 220, 60], [("POINT", centre[None])])]  # fmt: skip
    write_structures(structures, folder / "structures.dcm", lungs.grid)
    return centre
