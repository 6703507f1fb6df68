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
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from regnet_itk.data.image import Image

ROOT = "1.2.826.0.1.3680043.8.498."
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
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


def save(made, path):
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
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
        class_uid = {"CT": CT, "MR": MR}[modality]
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
