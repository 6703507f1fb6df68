"""Structure sets from file to file, judged by pydicom's raw values, scikit-image and dciodvfy."""

from __future__ import annotations

import json
import re

import numpy as np
import pydicom
import pytest
from command import call
from dicom_cases import (
    FRAMES,
    ROOT,
    SERIES,
    STUDIES,
    check_with_dciodvfy,
    empty_image,
    outlines,
    write_series,
    write_structures,
)
from skimage.draw import polygon2mask
from transform_cases import CHAINS, FIXED, MOVING, read

from regnet_itk.data.image import Image
from regnet_itk.transforms.elastix_writing import write_elastix

CHAIN = CHAINS["affine, field"]
MIDDLE = CHAIN.map_points(FIXED.centre()[None])[0]


def inside(points):
    """A solid of the moving scan, with a hole along its middle."""
    away = (points - MIDDLE) @ MOVING.direction_matrix
    return (((away / [15.0, 17.0, 14.0]) ** 2).sum(axis=-1) < 1) & ((away[..., :2] ** 2).sum(axis=-1) > 25)


def structures():
    fine = MOVING.with_spacing((0.5, 0.5, MOVING.spacing[2]))
    solid = Image(inside(fine.points()), fine)
    marks = [("POINT", MIDDLE[None]), ("POINT", MIDDLE[None] + np.array([4.0, -3.0, 5.0]))]
    return [
        ("Heart \xe4", [255, 0, 10], outlines(solid)),
        ("marks", [0, 255, 0], marks),
        ("nothing yet", [1, 2, 3], []),
    ]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structures")
    write_elastix(CHAIN, folder)[-1].rename(folder / "t.txt")
    write_series(empty_image(FIXED), folder / "fixed", "fixed")
    write_series(empty_image(MOVING), folder / "moving", "moving")
    write_structures(structures(), folder / "structures.dcm", MOVING)
    return folder


def warp(here, out, *more, given="structures.dcm", series=("fixed", "moving")):
    words = [word for side in series for word in (f"--{side}-series", here / side)]
    return call("transform", "-tp", here / "t.txt", "-in", here / given, "-out", out, *words, *more)


@pytest.fixture(scope="module")
def warped(here, tmp_path_factory):
    out = tmp_path_factory.mktemp("warped")
    assert warp(here, out, "--label", "-loglevel", "off") == 0
    return out


def rasterised(dataset, number):
    """The mask of a structure on the fixed grid, by its file's raw values and scikit-image."""
    (drawn,) = [item for item in dataset.ROIContourSequence if item.ReferencedROINumber == number]
    mask = np.zeros(FIXED.shape, dtype=bool)
    for item in drawn.ContourSequence:
        index = FIXED.point_to_index(np.array(item.ContourData, float).reshape(-1, 3))
        z = round(index[:, 2].mean())
        np.testing.assert_allclose(index[:, 2], z, atol=1e-3)  # in the fixed image's slices
        mask[z] ^= polygon2mask(FIXED.shape[1:], index[:, 1::-1])
    return mask


def test_contours_and_labels_are_where_the_transform_says(warped):
    wanted = inside(CHAIN.map_points(FIXED.points()))
    dataset = pydicom.dcmread(warped / "result.dcm")
    for found in (rasterised(dataset, 1), read(next(warped.glob("result.mask-01-*.mha"))) > 0):
        dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
        assert dice > 0.96
        assert found.sum() == pytest.approx(wanted.sum(), rel=0.03)
    holes = [c for c in dataset.ROIContourSequence[0].ContourSequence if len(c.ContourData) < 3 * 45]
    assert holes


def test_points_of_the_moving_scan_go_by_the_inverse(warped):
    dataset = pydicom.dcmread(warped / "result.dcm")
    items = dataset.ROIContourSequence[1].ContourSequence
    assert [item.ContourGeometricType for item in items] == ["POINT", "POINT"]
    found = np.array([[float(v) for v in item.ContourData] for item in items])
    np.testing.assert_allclose(CHAIN.map_points(found), MIDDLE + np.array([[0, 0, 0], [4.0, -3.0, 5.0]]), atol=2e-3)
    assert np.linalg.norm(found - MIDDLE, axis=1).max() > 3


def test_volumes_are_told_before_and_after(here, warped, tmp_path, capsys):
    rows = json.loads((warped / "result.structures.json").read_text(encoding="utf-8"))["structures"]
    heart = rows[0]
    assert (heart["name"], heart["colour"]) == ("Heart \xe4", [255, 0, 10])
    voxels = MOVING.with_spacing((0.5, 0.5, 0.5))
    truth = inside(voxels.points()).sum() * 0.5**3 / 1000
    assert heart["volume_before_cm3"] == pytest.approx(truth, rel=0.02)
    fine = FIXED.with_spacing((0.5, 0.5, 0.5))
    truth = inside(CHAIN.map_points(fine.points())).sum() * 0.5**3 / 1000
    assert heart["volume_after_cm3"] == pytest.approx(truth, rel=0.02)
    assert (warped / heart["mask"]).is_file()
    assert [row["volume_after_cm3"] for row in rows[1:]] == [None, None]
    assert warp(here, tmp_path) == 0
    assert re.search(r"structure 'Heart ä': [\d.]+ cm3 before, [\d.]+ after", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.mha"))  # masks for --label alone


def test_info_knows_structures(here, capsys):
    assert call("info", here / "structures.dcm", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["facts"]["frame_of_reference"]) == ("DICOM structures", FRAMES["moving"])
    assert re.fullmatch(r"\d+ contours, 12\.\d\d cm3", found["facts"]["structures"]["Heart \xe4"])
    assert found["facts"]["structures"]["marks"] == "2 contours, no volume"


def test_names_colours_and_references(warped):
    dataset = pydicom.dcmread(warped / "result.dcm")
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Heart \xe4", "marks", "nothing yet"]
    assert [list(item.ROIDisplayColor) for item in dataset.ROIContourSequence] == [[255, 0, 10], [0, 255, 0], [1, 2, 3]]
    assert {roi.ReferencedFrameOfReferenceUID for roi in dataset.StructureSetROISequence} == {FRAMES["fixed"]}
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == FRAMES["fixed"]
    (study,) = frame.RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == STUDIES["fixed"]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == SERIES["fixed"]
    for item in dataset.ROIContourSequence[0].ContourSequence:  # each names the slice that it lies in
        z = round(FIXED.point_to_index(np.array(item.ContourData[:3], float))[2])
        assert item.ContourImageSequence[0].ReferencedSOPInstanceUID == f"{SERIES['fixed']}.{z + 1}"
    assert (dataset.StudyInstanceUID, dataset.PatientName) == (STUDIES["fixed"], "M\xfcller^Ada")
    assert dataset.PredecessorStructureSetSequence[0].ReferencedSOPInstanceUID == ROOT + "7.1"
    assert dataset.ApprovalStatus == "UNAPPROVED"  # nobody has looked at it yet
    assert "ReviewerName" not in dataset
    assert [item.RTROIInterpretedType for item in dataset.RTROIObservationsSequence] == ["ORGAN"] * 3


def test_the_validator_finds_no_error(warped):
    check_with_dciodvfy(warped / "result.dcm")


def test_what_is_wrong_is_told_in_a_line(here, tmp_path, capsys):
    given = structures()
    bent = [("CLOSED_PLANAR", MIDDLE + np.array([[0, 0, 0], [9, 0, 0], [9, 9, 4.0], [0, 9, 0]]))]
    single = [("bone", [1, 1, 1], given[0][2][:1])]
    for name, (some, changes) in {
        "other": (given, {"patient": "P2"}),
        "elsewhere": (given, {"frames": dict.fromkeys(("Heart \xe4", "marks", "nothing yet"), "1.2.3")}),
        "both": (given, {"frames": {"marks": "1.2.3"}}),
        "of_fixed": (given, {"frames": dict.fromkeys(("Heart \xe4", "marks", "nothing yet"), FRAMES["fixed"])}),
        "bent": ([("bent", [1, 1, 1], bent)], {}),
        "single": (single, {}),
        "none": ([], {}),
        "odd": ([("odd", [1, 1, 1], [("SPLINE", MIDDLE[None])])], {}),
    }.items():
        write_structures(some, tmp_path / f"{name}.dcm", MOVING, **changes)
    broken = pydicom.dcmread(tmp_path / "single.dcm")
    broken.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    broken.save_as(tmp_path / "broken.dcm")
    write_series(empty_image(MOVING), tmp_path / "shared", "moving", FrameOfReferenceUID=FRAMES["fixed"])
    write_structures(
        given, tmp_path / "shared.dcm", FIXED, "fixed", frames=dict.fromkeys(("Heart \xe4", "marks"), FRAMES["fixed"])
    )
    capsys.readouterr()
    for name, series, more, message in (
        ("other", ("fixed",), (), "of patient 'P2'"),
        ("elsewhere", ("fixed", "moving"), (), "it belongs to another scan"),
        ("both", ("fixed",), (), "lie in 2 frames of reference"),
        ("of_fixed", ("fixed",), (), "lies in the frame of reference of the fixed series"),
        ("shared", ("fixed",), ("--moving-series", tmp_path / "shared"), "were drawn on the fixed series"),
        ("bent", ("fixed",), (), "that are not planar"),
        ("single", ("fixed",), (), "give the series that it was drawn on with --moving-series"),
        ("none", ("fixed",), (), "hold no structure"),
        ("odd", ("fixed",), (), "there is no kind of contours 'SPLINE'"),
        ("broken", ("fixed",), (), "a contour has 4 numbers"),
        ("single", ("fixed", "moving"), ("--order", "1"), "is no image"),
    ):
        words = ("-loglevel", "off", *more)
        assert warp(here, tmp_path / "out", *words, given=tmp_path / f"{name}.dcm", series=series) == 1, name
        (line,) = capsys.readouterr().err.splitlines()
        assert "internal error" not in line
        assert message in line, line
    assert not (tmp_path / "out").exists()
    assert warp(here, tmp_path / "out", given=tmp_path / "single.dcm") == 0  # the moving series knows the thickness
