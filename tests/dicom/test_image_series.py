"""Warped images as DICOM series: SimpleITK reads them, pydicom and dciodvfy look at what they refer to."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from command import call
from dicom_cases import FRAMES, SERIES, STUDIES, check_with_dciodvfy, empty_image, write_series
from transform_cases import CHAINS, FIXED, moving_image, read

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.transforms.elastix_writing import write_elastix


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the series fixed, moving and mr (of the moving scan), a transform t.txt, and moving.mha."""
    folder = tmp_path_factory.mktemp("series")
    write_elastix(CHAINS["affine, field"], folder)[-1].rename(folder / "t.txt")
    image = moving_image()
    image = Image(np.rint(image.array).astype(np.int16), image.grid)
    write_image(image, folder / "moving.mha")
    write_series(empty_image(FIXED), folder / "fixed", "fixed", SeriesDescription="Planning")
    write_series(
        image, folder / "moving", "moving", SeriesDescription="Follow-up", WindowCenter="40", WindowWidth="350"
    )
    write_series(image, folder / "mr", "moving", "MR")
    write_series(image, folder / "pet", "moving", "PT")
    write_series(image, folder / "scaled", "moving", RescaleSlope="0.37", RescaleIntercept="5.25", RescaleType="US")
    return folder


def warp(here, out, *more, image="moving"):
    return call("transform", "-tp", here / "t.txt", "-in", here / image, "-out", out, *more, "-loglevel", "off")


def by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("name", ["moving", "mr", "scaled", "pet"])
def test_simpleitk_reads_what_is_written_in_other_formats(name, here, tmp_path):
    assert warp(here, tmp_path / "dicom", "--fixed-series", here / "fixed", image=name) == 0
    found = by_simpleitk(tmp_path / "dicom")
    values = sitk.GetArrayFromImage(found).astype(float)
    image = sitk.ReadImage(str(here / "moving.mha"), sitk.sitkFloat32)
    if name == "scaled":
        image = (image + 1024) * 0.37 + 5.25
    if name == "pet":  # each slice with a slope of its own
        slopes = (0.5 + 0.01 * np.arange(image.GetSize()[2]))[:, None, None]
        scaled = sitk.GetImageFromArray((sitk.GetArrayFromImage(image) * slopes).astype(np.float32))
        scaled.CopyInformation(image)
        image = scaled
    transform = CHAINS["affine, field"].to_sitk(FIXED)
    wanted = sitk.Resample(image, found, transform, sitk.sitkBSpline3, -7.6, sitk.sitkFloat32)
    away = np.abs(values - sitk.GetArrayFromImage(wanted))
    assert away.max() <= (
        0.5 + 1e-3 if name in ("moving", "mr") else 0.01
    )  # whole numbers are rounded, others have 16 bits
    assert values.std() > 10
    grid = Grid(found.GetSize(), found.GetSpacing(), found.GetOrigin(), np.reshape(found.GetDirection(), (3, 3)))
    assert grid.is_close(FIXED)


def test_it_is_of_the_fixed_patient_and_says_what_it_was_made_from(here, tmp_path):
    assert warp(here, tmp_path, "--fixed-series", here / "fixed", "--moving-series", here / "moving") == 0
    files = sorted(tmp_path.glob("result.*.dcm"))
    assert [file.name for file in files[:2]] == ["result.0001.dcm", "result.0002.dcm"]
    read_files = [pydicom.dcmread(file) for file in files]
    assert len(read_files) == FIXED.size[2]
    assert len({r.SOPInstanceUID for r in read_files}) == len(files)
    assert len({r.SeriesInstanceUID for r in read_files}) == 1
    first = read_files[0]
    assert first.SeriesInstanceUID not in SERIES.values()
    assert (first.StudyInstanceUID, first.FrameOfReferenceUID) == (STUDIES["fixed"], FRAMES["fixed"])
    assert (first.PatientID, first.PatientName, first.AccessionNumber) == ("P1", "M\xfcller^Ada", "fixed")
    assert (first.Modality, list(first.ImageType)) == ("CT", ["DERIVED", "SECONDARY", "AXIAL"])
    assert (first.SeriesDescription, first.WindowWidth, first.KVP) == ("Warped: Follow-up", 350, 120)
    assert "Warped by regnet-itk" in first.DerivationDescription
    sources = {item.ReferencedSOPInstanceUID for item in first.SourceImageSequence}
    assert all(uid.startswith(SERIES["moving"]) for uid in sources)
    assert len(sources) == moving_image().grid.size[2]


@pytest.mark.parametrize("name", ["moving", "mr", "pet"])
def test_the_validator_finds_no_error(name, here, tmp_path):
    assert warp(here, tmp_path, "--fixed-series", here / "fixed", image=name) == 0
    check_with_dciodvfy(tmp_path / "result.0003.dcm")


def test_a_second_call_takes_the_place_of_the_first(here, tmp_path):
    fine = Image(
        np.zeros((4, 5, 6), np.int16), Grid((6, 5, 4), (5.0, 5.0, 5.0), tuple(FIXED.centre()), FIXED.direction)
    )
    write_image(fine, tmp_path / "like.mha")
    out = tmp_path / "out"
    assert warp(here, out, "--fixed-series", here / "fixed") == 0
    assert warp(here, out, "--fixed-series", here / "fixed", "--like", tmp_path / "like.mha") == 0
    assert len(list(out.glob("result.*.dcm"))) == 4
    assert warp(here, out) == 0  # without the series: the format that the transform file asks for
    assert not list(out.glob("result.*.dcm"))
    assert read(out / "result.mha").shape == FIXED.shape


def test_what_does_not_belong_together_is_told_in_a_line(here, tmp_path, capsys):
    image = moving_image()
    image = Image(np.rint(image.array).astype(np.int16), image.grid)
    away = Grid(FIXED.size, FIXED.spacing, (900.0, 0.0, 0.0), FIXED.direction)
    write_series(image, tmp_path / "other", "moving", patient="P2")
    write_series(image, tmp_path / "same_frame", "moving", FrameOfReferenceUID=FRAMES["fixed"])
    write_series(empty_image(away), tmp_path / "away", "fixed")
    write_series(image, tmp_path / "nm", "moving", SOPClassUID="1.2.840.10008.5.1.4.1.1.20")
    write_series(image, tmp_path / "gap", "moving")
    (tmp_path / "gap" / f"{(9 * 7919) % 10007:05}.dcm").unlink()
    skewed = Grid(FIXED.size, FIXED.spacing, FIXED.origin, FIXED.direction_matrix @ [[1, 0, 0.2], [0, 1, 0], [0, 0, 1]])
    write_image(empty_image(skewed), tmp_path / "skewed.mha")
    capsys.readouterr()
    fixed = ("--fixed-series", here / "fixed")
    for image_name, words, message in (
        (tmp_path / "other", fixed, "of patient 'P2' and the fixed series"),
        (tmp_path / "same_frame", fixed, "lies in the frame of reference of the fixed series"),
        (tmp_path / "same_frame", (*fixed, "--moving-series", here / "moving"), "it belongs to another scan"),
        (
            here / "moving",
            ("--fixed-series", tmp_path / "away"),
            "give the series that was registered as the fixed image",
        ),
        (tmp_path / "nm", fixed, "are written as DICOM for plain CT, MR and PET series"),
        (tmp_path / "gap", fixed, "one is missing"),
        (here / "moving", (*fixed, "--like", tmp_path / "skewed.mha"), "not perpendicular"),
        (here / "moving", ("--moving-series", here / "moving"), "give these with -in"),
        (here / "moving", ("--fixed-series", here / "moving.mha"), "cannot be read"),
        (here / "moving.mha", fixed, "is no DICOM series, dose or structure set"),
    ):
        assert warp(here, tmp_path / "out", *words, image=image_name) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert "internal error" not in line
        assert message in line
    assert not (tmp_path / "out").exists()
    count = len(list((here / "moving").iterdir()))
    assert warp(here, here / "moving", *fixed) == 1
    assert "holds a series that is read" in capsys.readouterr().err
    assert len(list((here / "moving").iterdir())) == count
    shared = ("--fixed-series", here / "fixed", "--moving-series", tmp_path / "same_frame")
    assert warp(here, tmp_path / "out", *shared, image=tmp_path / "same_frame") == 0  # phases of one scan share a frame
