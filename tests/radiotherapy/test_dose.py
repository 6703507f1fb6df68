"""Doses through known transforms, judged by formulas and by pydicom's raw values."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from command import call
from dicom_cases import (
    FRAMES,
    ROOT,
    STUDIES,
    check_with_dciodvfy,
    empty_image,
    raw_dose,
    save,
    write_dose,
    write_series,
)
from pydicom.uid import ImplicitVRLittleEndian
from scipy.spatial.transform import Rotation
from transform_cases import CHAINS, FIXED, MOVING, SETTINGS, plain

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.radiotherapy.dose import read_dose
from regnet_itk.radiotherapy.dose_mapping import map_dose, map_energy
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.matrix import MatrixTransform

MIDDLE = CHAINS["affine"].map_points(FIXED.centre()[None])[0]
TURN = Rotation.from_euler("x", 35, degrees=True).as_matrix()
DOSE_GRID = Grid((60, 56, 50), (2.0, 2.2, 2.5), tuple(MIDDLE - TURN @ [60.0, 62.0, 62.0]), TURN)


def gray(points):
    """A smooth dose of 60 Gy in the moving scan, in Gy."""
    return 60 * np.exp(-(((points - MIDDLE) / [25.0, 30.0, 20.0]) ** 2).sum(axis=-1) / 2)


def dose_image(grid=DOSE_GRID):
    return Image(gray(grid.points()), grid)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dose")
    write_elastix(CHAINS["affine, field"], folder)[-1].rename(folder / "t.txt")
    write_series(empty_image(FIXED), folder / "fixed", "fixed")
    write_series(empty_image(MOVING), folder / "moving", "moving")
    dvh = pydicom.Dataset()
    dvh.DVHType = "DIFFERENTIAL"
    write_dose(dose_image(), folder / "dose.dcm", DVHSequence=[dvh])
    return folder


def warp(here, out, *more, dose="dose.dcm", transform="t.txt"):
    words = ("-in", here / dose, "--fixed-series", here / "fixed", "-loglevel", "off", "-out", out)
    return call("transform", "-tp", here / transform, *words, *more)


def test_the_dose_is_that_of_the_point_it_came_from(here, tmp_path):
    assert warp(here, tmp_path, "--moving-series", here / "moving") == 0
    found, points = raw_dose(tmp_path / "result.dcm")
    wanted = gray(CHAINS["affine, field"].map_points(points))
    assert found.max() > 50
    assert np.abs(found - wanted).max() < 0.5  # of 60 Gy: the dose is linear between its voxels
    backwards = gray(2 * points - CHAINS["affine, field"].map_points(points))
    assert np.abs(found - backwards).max() > 5  # the other direction is no alternative


def test_voxels_are_those_of_the_dose_over_the_fixed_image_or_those_asked_for(here, tmp_path):
    assert warp(here, tmp_path / "a") == 0
    _, points = raw_dose(tmp_path / "a" / "result.dcm")
    read = pydicom.dcmread(tmp_path / "a" / "result.dcm")
    assert sorted([*map(float, read.PixelSpacing), float(read.SliceThickness)]) == [2.0, 2.2, 2.5]
    low, high = (getattr(FIXED.point_to_index(points).reshape(-1, 3), end)(axis=0) for end in ("min", "max"))
    assert (low < 0.5).all()
    assert (high > np.asarray(FIXED.size) - 1.5).all()
    like = Grid((20, 18, 16), (3.0, 3.0, 3.0), tuple(FIXED.index_to_point([2, 3, 1])), FIXED.direction)
    write_image(empty_image(like), tmp_path / "like.mha")
    assert warp(here, tmp_path / "b", "--like", tmp_path / "like.mha") == 0
    found, points = raw_dose(tmp_path / "b" / "result.dcm")
    np.testing.assert_allclose(points, like.points(), atol=1e-5)
    assert np.abs(found - gray(CHAINS["affine, field"].map_points(points))).max() < 0.5


def test_it_refers_to_the_fixed_scan_and_keeps_its_plan(here, tmp_path):
    assert warp(here, tmp_path) == 0
    read = pydicom.dcmread(tmp_path / "result.dcm")
    assert (read.FrameOfReferenceUID, read.StudyInstanceUID) == (FRAMES["fixed"], STUDIES["fixed"])
    assert (read.PatientName, read.AccessionNumber) == ("M\xfcller^Ada", "fixed")
    assert (read.DoseUnits, read.DoseType, read.DoseSummationType) == ("GY", "PHYSICAL", "PLAN")
    assert read.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == ROOT + "6.1"
    assert read.SpatialTransformOfDose == "NON_RIGID"
    assert "value of each point" in read.DoseComment
    assert "DVHSequence" not in read
    assert read.SOPInstanceUID != ROOT + "5.1"
    check_with_dciodvfy(tmp_path / "result.dcm")


def test_a_file_in_implicit_vr(here, tmp_path):
    """As many planning systems write."""
    given = pydicom.dcmread(here / "dose.dcm")
    save(given, tmp_path / "implicit.dcm", ImplicitVRLittleEndian)
    assert warp(here, tmp_path / "a") == 0
    assert warp(here, tmp_path / "b", dose=tmp_path / "implicit.dcm") == 0
    found = [raw_dose(tmp_path / name / "result.dcm")[0] for name in "ab"]
    np.testing.assert_array_equal(*found)
    check_with_dciodvfy(tmp_path / "b" / "result.dcm")


def test_planes_downwards_and_offsets_in_the_patient(tmp_path):
    """GridFrameOffsetVector may go down, and may hold z itself where the planes are transverse."""
    straight = Grid((20, 18, 16), (4.0, 4.5, 5.0), tuple(MIDDLE - 35))
    image = dose_image(straight)
    write_dose(image, tmp_path / "up.dcm")
    z = straight.origin[2] + 5.0 * np.arange(16)
    write_dose(image, tmp_path / "absolute.dcm", GridFrameOffsetVector=[f"{v:.6f}" for v in z])
    down = Image(image.array[::-1], straight)
    top = [f"{v:.6f}" for v in straight.index_to_point([0, 0, 15])]
    offsets = [f"{-5.0 * k:g}" for k in range(16)]
    write_dose(down, tmp_path / "down.dcm", ImagePositionPatient=top, GridFrameOffsetVector=offsets)
    # rows from left to right, seen from the feet: the normal points down, z of the planes still goes up
    mirrored = Image(image.array[:, :, ::-1], straight)
    corner = [f"{v:.6f}" for v in straight.index_to_point([19, 0, 0])]
    seen_from_below = {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0], "ImagePositionPatient": corner}
    write_dose(mirrored, tmp_path / "feet.dcm", **seen_from_below, GridFrameOffsetVector=[f"{v:.6f}" for v in z])
    found = read_dose(tmp_path / "feet.dcm").image
    np.testing.assert_allclose(found.array, gray(found.grid.points()), atol=1e-3)
    rounded = [f"{v:.1f}" for v in 5.0 * np.arange(16) + 0.04 * (-1.0) ** np.arange(16) - 0.04]
    write_dose(image, tmp_path / "rounded.dcm", GridFrameOffsetVector=rounded)
    assert read_dose(tmp_path / "rounded.dcm").image.grid.is_close(straight, 0.03)
    for name in ("up", "absolute", "down"):
        found = read_dose(tmp_path / f"{name}.dcm").image
        assert found.grid.is_close(straight), name
        np.testing.assert_allclose(found.array, image.array, atol=1e-3)


def scaled(factor):
    return TransformChain((Link(MatrixTransform(np.eye(3) * factor, MIDDLE)),))


def fluid(hounsfield):
    return Image(np.full((30, 30, 30), float(hounsfield)), Grid((30, 30, 30), (6.5, 6.5, 6.5), tuple(MIDDLE - 94)))


def test_energy_is_kept_where_the_tissue_swells(tmp_path):
    """The fixed image is half as large in each direction: by value each point keeps its Gy, by energy it gets 8 times.

    With eight times the density in the fixed image the mass is kept, and both are the same.
    """
    write_dose(dose_image(), tmp_path / "dose.dcm")
    dose, chain = read_dose(tmp_path / "dose.dcm"), scaled(2.0)
    grid = Grid((40, 40, 40), (2.0, 2.0, 2.0), tuple(MIDDLE - 40))
    value = map_dose(dose, chain, grid).array
    same_density = map_energy(dose, chain, grid, fluid(0), fluid(0)).array
    same_mass = map_energy(dose, chain, grid, fluid(0), fluid(-875.1)).array
    inside = value > 5
    np.testing.assert_allclose(same_density[inside], 8 * value[inside], rtol=0.02)
    np.testing.assert_allclose(same_mass[inside], value[inside], rtol=0.02)
    before = dose.image.array.sum(dtype=float) * np.prod(DOSE_GRID.spacing)
    assert same_density.sum(dtype=float) * 8 == pytest.approx(before, rel=0.03)  # of water: energy is dose x volume
    air = map_energy(dose, chain, grid, fluid(-1000), fluid(-1000)).array
    np.testing.assert_allclose(air[inside], value[inside], rtol=0.02)  # no mass to divide by


def test_energy_by_the_command_line(here, tmp_path, capsys):
    write_elastix(CHAINS["affine"], tmp_path)[-1].rename(tmp_path / "affine.txt")
    words = ("--dose", "energy", "--moving-series", here / "moving")
    assert warp(here, tmp_path / "out", *words, transform=tmp_path / "affine.txt") == 0
    assert "energy over mass" in pydicom.dcmread(tmp_path / "out" / "result.dcm").DoseComment
    found, points = raw_dose(tmp_path / "out" / "result.dcm")
    mapped = CHAINS["affine"].map_points
    determinant = np.linalg.det(CHAINS["affine"].as_matrix().matrix)
    wanted = gray(mapped(points)) * determinant
    assert abs(determinant - 1) > 0.05
    deep = np.abs(FIXED.point_to_index(points) - (np.asarray(FIXED.size) - 1) / 2) < np.asarray(FIXED.size) / 2 - 3
    moving = np.abs(MOVING.point_to_index(mapped(points)) - (np.asarray(MOVING.size) - 1) / 2)
    seen = deep.all(axis=-1) & (moving < np.asarray(MOVING.size) / 2 - 2).all(axis=-1) & (wanted > 10)
    assert seen.sum() > 1000
    assert np.abs(found - wanted)[seen].mean() < 0.5
    capsys.readouterr()
    write_series(empty_image(MOVING), tmp_path / "mr", "moving", "MR")
    for words, message in (
        ((), "give the moving one with --moving-series"),
        (("--moving-series", tmp_path / "mr"), "is of the kind MR"),
    ):
        assert warp(here, tmp_path / "no", "--dose", "energy", *words) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_info_knows_doses(here, capsys):
    assert call("info", here / "dose.dcm") == 0
    told = capsys.readouterr().out
    assert "DICOM dose" in told
    assert FRAMES["moving"] in told
    assert "60 x 56 x 50 voxels" in told


def test_rigid_and_rounding(here, tmp_path):
    rigid = TransformChain((plain(MatrixTransform(TURN, FIXED.centre(), MIDDLE - FIXED.centre())),))
    write_elastix(rigid, tmp_path)[-1].rename(tmp_path / "rigid.txt")
    assert warp(here, tmp_path / "out", transform=tmp_path / "rigid.txt") == 0
    read = pydicom.dcmread(tmp_path / "out" / "result.dcm")
    assert read.SpatialTransformOfDose == "RIGID"
    assert read.BitsAllocated == 32
    assert float(read.DoseGridScaling) < 1e-7 * raw_dose(tmp_path / "out" / "result.dcm")[0].max()


def test_what_is_wrong_is_told_in_a_line(here, tmp_path, capsys):
    small = dose_image(Grid((8, 8, 6), (9.0, 9.0, 9.0), tuple(MIDDLE - 30)))
    uneven = [0, 9, 18, 28, 37, 46]
    for name, changes in {
        "relative": {"DoseUnits": "RELATIVE"},
        "error": {"DoseType": "ERROR"},
        "uneven": {"GridFrameOffsetVector": uneven},
        "planes": {"GridFrameOffsetVector": [0, 9, 18]},
        "begin": {"GridFrameOffsetVector": [400, 409, 418, 427, 436, 445]},
        "unscaled": {"DoseGridScaling": "0"},
        "other": {"patient": "P2"},
        "here": {"FrameOfReferenceUID": FRAMES["fixed"]},
        "short": {"PixelData": b"\0" * 100},
        "far": {"ImagePositionPatient": [9000, 0, 0]},
    }.items():
        write_dose(small, tmp_path / f"{name}.dcm", **changes)
    capsys.readouterr()
    moving = ("--moving-series", here / "moving")
    for name, words, message in (
        ("relative", (), "is in units of RELATIVE (DoseUnits); give an absolute dose, in GY"),
        ("error", (), "holds the error of a dose"),
        ("uneven", (), "planes that are 9 to 10 mm apart"),
        ("planes", (), "has 6 planes, and places for 3"),
        ("begin", (), "planes that begin at 400"),
        ("unscaled", (), "a DoseGridScaling of 0.0"),
        ("other", (), "of patient 'P2'"),
        ("here", (), "lies in the frame of reference of the fixed series"),
        ("here", moving, "it belongs to another scan"),
        ("short", (), "is damaged"),
        ("far", (), "outside of the input image"),
        (here / "dose", ("--default", "3"), "is no image: leave --default"),
        (here / "dose", ("--label",), "is no image: leave --default"),
    ):
        assert warp(here, tmp_path / "out", *words, dose=tmp_path / f"{name}.dcm") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "internal error" not in line
        assert message in line, line
    assert call("transform", "-tp", here / "t.txt", "-in", here / "dose.dcm", "-out", tmp_path / "out") == 1
    assert "give its folder with --fixed-series" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert SETTINGS  # of the transform file: its DefaultPixelValue is not for doses
