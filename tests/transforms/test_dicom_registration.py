"""Chains as DICOM registration objects, judged by pydicom's raw values and by dciodvfy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from command import call
from dicom_cases import (
    FRAMES,
    SERIES,
    STUDIES,
    check_with_dciodvfy,
    dataset,
    empty_image,
    raw_matrix,
    registered_to_source,
    save,
    write_series,
)
from transform_cases import CHAINS, FIXED, MOVING, ROTATED, SETTINGS, affine, smooth_field

from regnet_itk.data.grid import Grid
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import DicomError, TransformError
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.reading import read_transform

POINTS = FIXED.index_to_point(np.random.default_rng(0).uniform(0, np.asarray(FIXED.size) - 1, (500, 3)))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(empty_image(FIXED), folder / "fixed", "fixed")
    write_series(empty_image(MOVING), folder / "moving", "moving")
    return {"fixed_series": folder / "fixed", "moving_series": folder / "moving"}


@pytest.fixture
def flags(series):
    return [word for name, path in series.items() for word in (f"--{name.replace('_', '-')}", path)]


EXACT = {"affine": True, "affine, bspline": False, "affine, field": True, "bspline, field (parts)": False,
         "field, bspline": False}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_another_reader_and_ours_map_points_as_the_chain_does(name, series, tmp_path):
    chain = CHAINS[name]
    done = convert(chain, tmp_path / "reg.dcm", **series)
    assert done.exact is EXACT[name]
    tolerance = 1e-3 if done.exact else done.deviation.max + 1e-3
    wanted = chain.map_points(POINTS)
    for found in (registered_to_source(tmp_path / "reg.dcm", POINTS),
                  read_transform(tmp_path / "reg.dcm").map_points(POINTS)):  # fmt: skip
        assert np.linalg.norm(found - wanted, axis=1).max() <= tolerance
    assert np.linalg.norm(wanted - POINTS, axis=1).mean() > 1


@pytest.mark.parametrize("name", ["affine", "affine, field"])
def test_the_matrix_holds_outside_of_the_grid(name, series, tmp_path):
    convert(CHAINS[name], tmp_path / "reg.dcm", **series)
    far = POINTS + np.array([500.0, -300.0, 200.0])
    for found in (
        registered_to_source(tmp_path / "reg.dcm", far),
        read_transform(tmp_path / "reg.dcm").map_points(far),
    ):
        np.testing.assert_allclose(found, affine().map_points(far), atol=1e-3)


@pytest.mark.parametrize("name", ["affine", "affine, field"])
def test_it_refers_to_the_fixed_patient_and_to_both_series(name, series, tmp_path):
    convert(CHAINS[name], tmp_path / "reg.dcm", **series)
    read = pydicom.dcmread(tmp_path / "reg.dcm")
    assert (read.PatientID, read.PatientName, read.Modality) == ("P1", "M\xfcller^Ada", "REG")
    assert (read.FrameOfReferenceUID, read.StudyInstanceUID) == (FRAMES["fixed"], STUDIES["fixed"])
    assert read.SeriesInstanceUID not in SERIES.values()
    if name == "affine":
        named = {item.FrameOfReferenceUID: item for item in read.RegistrationSequence}
        assert set(named) == set(FRAMES.values())
        still = raw_matrix(named[FRAMES["fixed"]].MatrixRegistrationSequence[0].MatrixSequence[0])
        np.testing.assert_array_equal(still, np.eye(4))
        images = named[FRAMES["moving"]].ReferencedImageSequence
    else:
        assert read.DeformableRegistrationSequence[0].SourceFrameOfReferenceUID == FRAMES["moving"]
        images = read.DeformableRegistrationSequence[0].ReferencedImageSequence
    assert {i.ReferencedSOPInstanceUID for i in images} == {
        f"{SERIES['moving']}.{z + 1}" for z in range(MOVING.size[2])
    }
    assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES["fixed"]
    (other,) = read.StudiesContainingOtherReferencedInstancesSequence
    assert other.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES["moving"]


@pytest.mark.parametrize("name", ["affine", "affine, field", "affine, bspline"])
def test_the_validator_finds_no_error(name, series, tmp_path):
    convert(CHAINS[name], tmp_path / "reg.dcm", **series)
    check_with_dciodvfy(tmp_path / "reg.dcm")


def test_a_left_handed_grid_is_turned_and_a_sheared_one_sampled(series, tmp_path):
    mirrored = Grid(FIXED.size, FIXED.spacing, FIXED.origin, ROTATED * np.array([1.0, 1.0, -1.0]))
    chain = TransformChain((link_field(smooth_field(grid=mirrored), SETTINGS),))
    done = convert(chain, tmp_path / "reg.dcm", **series)
    points = mirrored.index_to_point(np.random.default_rng(0).uniform(0, np.asarray(FIXED.size) - 1, (500, 3)))
    assert done.exact
    np.testing.assert_allclose(registered_to_source(tmp_path / "reg.dcm", points), chain.map_points(points), atol=1e-3)
    sheared = Grid(FIXED.size, FIXED.spacing, FIXED.origin, ROTATED @ [[1, 0, 0.3], [0, 1, 0], [0, 0, 1]])
    chain = TransformChain((link_field(smooth_field(grid=sheared), {}),))
    with pytest.raises(TransformError, match="axes are not perpendicular"):
        convert(chain, tmp_path / "sheared.dcm", **series)
    done = convert(chain, tmp_path / "sheared.dcm", like=FIXED, **series)
    assert not done.exact
    assert done.deviation.max < 1.5


def test_axes_with_the_digits_of_a_header(series, tmp_path):
    rounded = Grid(FIXED.size, FIXED.spacing, FIXED.origin, np.round(ROTATED, 5))
    chain = TransformChain((link_field(smooth_field(grid=rounded), SETTINGS),))
    assert convert(chain, tmp_path / "reg.dcm", **series).exact
    found = registered_to_source(tmp_path / "reg.dcm", POINTS)
    np.testing.assert_allclose(found, chain.map_points(POINTS), atol=2e-3)


def test_coarser_voxels(series, tmp_path):
    fine = convert(CHAINS["affine, field"], tmp_path / "a.dcm", **series)
    coarse = convert(CHAINS["affine, field"], tmp_path / "b.dcm", spacing=[5.0], **series)
    (item,) = pydicom.dcmread(tmp_path / "b.dcm").DeformableRegistrationSequence
    assert list(item.DeformableRegistrationGridSequence[0].GridResolution) == [5.0, 5.0, 5.0]
    assert fine.deviation.max < 1e-3 < coarse.deviation.max < 2
    assert not coarse.exact


def test_there_and_back_by_the_command_line(series, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written = write_elastix(CHAINS["affine, field"], tmp_path)[-1]
    assert call("convert", written, "reg.dcm", *flags) == 0
    assert "exact" in capsys.readouterr().out
    for name in ("field.mha", "all.h5", "all.txt", "again.dcm"):
        assert call("convert", "reg.dcm", name, *flags) == 0
        found = read_transform(name).map_points(POINTS)
        np.testing.assert_allclose(found, CHAINS["affine, field"].map_points(POINTS), atol=2e-3)
    assert call("convert", "reg.dcm", "alone.tfm") == 0
    write_image(empty_image(MOVING), "moving.mha")
    write_image(empty_image(FIXED), "fixed.mha")
    assert call("transform", "-tp", "reg.dcm", "-in", "moving.mha", "--like", "fixed.mha", "-out", "warped") == 0
    assert call("invert", "-tp", "reg.dcm", "--fixed", "fixed.mha", "-out", "inverse") == 0
    capsys.readouterr()
    assert call("info", "reg.dcm") == 0
    told = capsys.readouterr().out
    assert "DICOM deformable registration" in told
    assert FRAMES["fixed"] in told
    assert FRAMES["moving"] in told


# What other programs write


STILL = np.eye(4)


def write_deformable(path, before=STILL, after=STILL, vectors=None, frames=("moving",), **changes):
    """A registration as another program might write it."""
    made = dataset("fixed", "1.2.840.10008.5.1.4.1.1.66.3", "1.2.3.4", "REG")
    made.DeformableRegistrationSequence = []
    for side in frames:
        item, lattice = pydicom.Dataset(), pydicom.Dataset()
        item.SourceFrameOfReferenceUID = FRAMES[side]
        for keyword, matrix in (("Pre", before), ("Post", after)):
            entry = pydicom.Dataset()
            entry.FrameOfReferenceTransformationMatrixType = "AFFINE"
            entry.FrameOfReferenceTransformationMatrix = [f"{v:.12g}"[:16] for v in np.ravel(matrix)]
            setattr(item, f"{keyword}DeformationMatrixRegistrationSequence", [entry])
        lattice.ImagePositionPatient = [f"{v:.10g}" for v in FIXED.origin]
        lattice.ImageOrientationPatient = [f"{v:.10g}" for v in FIXED.direction_matrix[:, :2].T.ravel()]
        lattice.GridDimensions, lattice.GridResolution = list(FIXED.size), list(FIXED.spacing)
        lattice.VectorGridData = (smooth_field().vectors if vectors is None else vectors).astype("<f4").tobytes()
        for keyword, value in changes.items():
            setattr(lattice, keyword, value)
        item.DeformableRegistrationGridSequence = [lattice]
        made.DeformableRegistrationSequence.append(item)
    return save(made, path)


def homogeneous(matrix):
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = matrix.matrix, matrix.offset
    return whole


def test_matrices_before_and_after_the_deformation(tmp_path, caplog):
    before, after = MatrixTransform(ROTATED, translation=[9.0, -4.0, 2.0]), affine()
    path = write_deformable(tmp_path / "both.dcm", homogeneous(before), homogeneous(after))
    u = smooth_field()
    wanted = after.map_points(before.map_points(POINTS) + u.at(POINTS))
    np.testing.assert_allclose(read_transform(path).map_points(POINTS), wanted, atol=1e-4)
    np.testing.assert_allclose(registered_to_source(path, POINTS), wanted, atol=1e-4)
    assert "matrix before its deformation" in caplog.text


def test_several_matrices_and_a_fixed_frame_that_is_not_the_registered_one(series, tmp_path, caplog):
    """The first matrix of an item is applied first, and all lead to the registered frame."""
    steps = [homogeneous(affine()), homogeneous(MatrixTransform(ROTATED, translation=[1.0, 2.0, 3.0]))]
    made = dataset("fixed", "1.2.840.10008.5.1.4.1.1.66.1", "1.2.3.5", "REG")
    made.FrameOfReferenceUID = "1.2.3.99"
    made.RegistrationSequence = []
    for side, matrices in (("fixed", steps[:1]), ("moving", steps)):
        item, registration = pydicom.Dataset(), pydicom.Dataset()
        item.FrameOfReferenceUID = FRAMES[side]
        registration.MatrixSequence = []
        for matrix in matrices:
            entry = pydicom.Dataset()
            entry.FrameOfReferenceTransformationMatrixType = "AFFINE"
            entry.FrameOfReferenceTransformationMatrix = [f"{v:.12g}"[:16] for v in matrix.ravel()]
            registration.MatrixSequence.append(entry)
        item.MatrixRegistrationSequence = [registration]
        made.RegistrationSequence.append(item)
    path = save(made, tmp_path / "reg.dcm")
    convert(path, tmp_path / "out.tfm", **series)
    assert "has 2 matrices one after the other" in caplog.text
    moving = read_transform(tmp_path / "out.tfm").map_points(POINTS)
    in_registered = [p.copy() for p in (POINTS, moving)]
    in_registered[0] = POINTS @ steps[0][:3, :3].T + steps[0][:3, 3]
    for step in steps:
        in_registered[1] = in_registered[1] @ step[:3, :3].T + step[:3, 3]
    np.testing.assert_allclose(in_registered[0], in_registered[1], atol=1e-5)
    with pytest.raises(DicomError, match="names several frames of reference"):
        read_transform(path)


@pytest.mark.parametrize("kind", [sitk.VersorRigid3DTransform, lambda: sitk.AffineTransform(3)])
def test_what_plastimatch_writes_is_read_as_it_was_meant(kind, series, tmp_path):
    """Another program that turns a transform of ITK, fixed to moving, into a spatial registration."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.skip("plastimatch is missing")
    given = kind()
    given.SetMatrix(ROTATED.ravel().tolist())
    given.SetTranslation((9.0, -4.0, 2.0))
    sitk.WriteTransform(given, str(tmp_path / "given.tfm"))
    command = [program, "xf-convert", "--input", "given.tfm", "--output-dicom", "out",
               "--fixed-rcs", str(series["fixed_series"]), "--moving-rcs", str(series["moving_series"])]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (path,) = (tmp_path / "out").glob("sro_*.dcm")
    convert(path, tmp_path / "read.tfm", **series)
    wanted = np.array([given.TransformPoint(point) for point in POINTS.tolist()])
    np.testing.assert_allclose(read_transform(tmp_path / "read.tfm").map_points(POINTS), wanted, atol=1e-3)


def test_what_is_wrong_is_told_in_a_line(series, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nan = smooth_field().vectors.copy()
    nan[0, 0, :3] = np.nan
    write_deformable("good.dcm")
    write_deformable("nan.dcm", vectors=nan)
    write_deformable("short.dcm", GridDimensions=[22, 20, 17])
    write_deformable("turned.dcm", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    write_deformable("flat.dcm", before=np.diag([1.0, 1.0, 0.0, 1.0]))
    write_deformable("perspective.dcm", after=np.eye(4) + np.eye(4)[::-1] * 0.1)
    write_deformable("two.dcm", frames=("moving", "fixed"))
    whole = (tmp_path / "good.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.dcm").write_text("hello")
    write_series(empty_image(MOVING), tmp_path / "other", "moving", patient="P2")
    write_series(empty_image(MOVING), tmp_path / "nowhere", "moving", FrameOfReferenceUID="")
    slice_file = next((tmp_path / "other").iterdir())
    field = smooth_field()
    field.write("field.mha")
    fixed, moving = series["fixed_series"], series["moving_series"]
    both = ("--fixed-series", fixed, "--moving-series")
    for words, message in (
        (("nan.dcm", "x.mha"), r"does not say where 3 of its 7040 grid points go"),
        (("short.dcm", "x.mha"), "its grid has 84480 of 89760 bytes"),
        (("turned.dcm", "x.mha"), "cannot be inverted"),
        (("flat.dcm", "x.mha"), "matrix that cannot be inverted"),
        (("perspective.dcm", "x.mha"), "last row of a matrix"),
        (("two.dcm", "x.mha"), "say with --moving-series which one"),
        (("cut.dcm", "x.mha"), "cut.dcm"),
        (("text.dcm", "x.mha"), "is no DICOM file"),
        (("none.dcm", "x.mha"), "does not exist"),
        ((slice_file, "x.mha"), "is no DICOM registration, but of the kind 'CT Image Storage'"),
        (("field.mha", "x.dcm"), "with --fixed-series and --moving-series"),
        (("field.mha", "x.dcm", "--fixed-series", fixed), "with --fixed-series and --moving-series"),
        (("field.mha", "x.tfm", *flags), "are for DICOM registrations, and neither file is one"),
        (("field.mha", "x.dcm", *both, tmp_path / "other"), "patient 'P1' and .* of patient 'P2'"),
        (("field.mha", "x.dcm", *both, tmp_path / "nowhere"), "without FrameOfReferenceUID"),
        (("field.mha", "x.dcm", *both, tmp_path / "none"), "cannot be read: No such file"),
        (("good.dcm", "x.mha", "--fixed-series", moving, "--moving-series", fixed), "is registered to the frame"),
        (("good.dcm", "x.mha", "--fixed-series", fixed, "--moving-series", fixed), "no item for the moving image"),
    ):
        assert call("convert", *words) in (1, 2), words
        (line,) = capsys.readouterr().err.splitlines()
        assert "internal error" not in line
        assert re.search(message, line), (words, line)
    assert not list(tmp_path.glob("x.*"))


def test_without_pydicom_it_is_said_how_to_install_it(series, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DicomError, match=r"pip install 'regnet-itk\[dicom\]'"):
        convert(CHAINS["affine"], tmp_path / "reg.dcm", **series)
    assert list(tmp_path.iterdir()) == []
