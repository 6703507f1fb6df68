"""``regnet-itk transform``: the same files as transformix where that can, and right where it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from transform_cases import (
    CHAINS,
    DIFFERENTIABLE,
    FIXED,
    MOVING,
    SETTINGS,
    affine,
    fixed_points,
    moving_image,
    plain,
    read,
    read_output,
    smooth_field,
    transformix,
    write_points,
)

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, read_landmarks, write_landmarks
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk

needs_transformix = pytest.mark.skipif(shutil.which("transformix") is None, reason="transformix is not installed")
POINT_FILES = ("points.csv", "points.fcsv", "points.mrk.json", "points.vtk")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_image(moving_image(), folder / "moving.mha")
    write_image(Image(np.digitize(moving_image().array, (-150, -50, 80)).astype(np.uint16) * 20000, MOVING),
                folder / "labels.mha")  # fmt: skip
    write_points(folder / "points.txt", fixed_points())
    for name, chain in CHAINS.items():
        path_of(folder, name).parent.mkdir()
        write_elastix(chain, path_of(folder, name).parent)
    return folder


@pytest.fixture
def transform(inputs, tmp_path):
    """Call the command with the transform file of a chain, and return its status."""

    def run(chain, *arguments, out="out"):
        return call("transform", "-tp", path_of(inputs, chain), "-out", tmp_path / out, *arguments)

    return run


def path_of(folder, chain):
    return folder / re.sub(r"\W+", "-", chain) / f"TransformParameters.{len(CHAINS[chain].links) - 1}.txt"


# As transformix


@needs_transformix
@pytest.mark.parametrize("chain", CHAINS)
def test_all_files_are_those_of_transformix(chain, transform, inputs, tmp_path, capfd):
    arguments = ["-in", inputs / "moving.mha", "-def", inputs / "points.txt"]
    jacobian = ["-jac", "all", "-jacmat", "all"] if chain in DIFFERENTIABLE else []
    for folder in ("points", "all"):
        (tmp_path / folder).mkdir()
    transformix("-tp", path_of(inputs, chain), "-out", tmp_path / "points", *arguments, *jacobian)
    transformix("-tp", path_of(inputs, chain), "-out", tmp_path / "all", "-def", "all")
    assert transform(chain, *arguments, "-jac", "all", "-jacmat", "all", "-threads", "1") == 0
    assert transform(chain, "-def", "all") == 0
    ours, theirs = tmp_path / "out", tmp_path / "points"
    assert capfd.readouterr().out == ""
    assert {file.name for file in ours.iterdir()} == {
        "result.mha", "outputpoints.txt", "deformationField.mha", "spatialJacobian.mha", "spatialJacobian.json",
        "fullSpatialJacobian.mha", "transformix.log",
    }  # fmt: skip
    _assert_same_image(ours / "result.mha", theirs / "result.mha")
    for name in ("InputIndex", "InputPoint", "OutputIndexFixed", "OutputPoint", "Deformation", "OutputIndexMoving"):
        np.testing.assert_allclose(read_output(ours, name), read_output(theirs, name), atol=2e-5, err_msg=name)
    line = (theirs / "outputpoints.txt").read_text(encoding="utf-8").splitlines()[0]
    number = re.compile(r"-?\d+(\.\d+)?")
    assert number.sub("#", (ours / "outputpoints.txt").read_text(encoding="utf-8").splitlines()[0]) == number.sub(
        "#", line
    )
    np.testing.assert_allclose(
        read(ours / "deformationField.mha"), read(tmp_path / "all" / "deformationField.mha"), atol=1e-4
    )
    if jacobian:
        for name in ("spatialJacobian.mha", "fullSpatialJacobian.mha"):
            np.testing.assert_allclose(read(ours / name), read(theirs / name), atol=1e-5)


def _assert_same_image(ours, theirs):
    a, b = (sitk.ReadImage(str(path)) for path in (ours, theirs))
    assert a.GetPixelID() == b.GetPixelID()
    assert a.GetSize() == b.GetSize()
    for mine, other in ((a.GetOrigin(), b.GetOrigin()), (a.GetDirection(), b.GetDirection())):
        np.testing.assert_allclose(mine, other, atol=1e-9)
    difference = read(ours).astype(float) - read(theirs)
    assert np.abs(difference).max() <= 1  # where a decimal is cut off on either side of a whole number
    assert (difference != 0).mean() < 1e-3
    assert len(np.unique(read(ours))) > 100


@needs_transformix
@pytest.mark.parametrize(
    ("changed", "suffix"),
    [
        ({"ResultImagePixelType": "float", "FinalBSplineInterpolationOrder": "0", "ResultImageFormat": "nrrd"}, "nrrd"),
        ({"ResultImagePixelType": "double", "FinalBSplineInterpolationOrder": "1"}, "mha"),
        ({"ResultImagePixelType": "int", "ResultImageFormat": "nii.gz", "DefaultPixelValue": "-1000"}, "nii.gz"),
        ({"ResultImagePixelType": "float", "FinalBSplineInterpolationOrder": "2", "ResultImageFormat": "mhd"}, "mhd"),
    ],
)
def test_the_transform_file_says_how_to_resample(changed, suffix, inputs, tmp_path):
    link = plain(affine(), **{key: (value,) for key, value in changed.items()})
    path = write_elastix(TransformChain((link,)), tmp_path)[-1]
    arguments = ("-tp", path, "-in", inputs / "moving.mha", "-out")
    (tmp_path / "theirs").mkdir()
    transformix(*arguments, tmp_path / "theirs")
    assert call("transform", *arguments, tmp_path / "ours") == 0
    ours, theirs = (tmp_path / who / f"result.{suffix}" for who in ("ours", "theirs"))
    assert sitk.ReadImage(str(ours)).GetPixelID() == sitk.ReadImage(str(theirs)).GetPixelID()
    np.testing.assert_allclose(read(ours), read(theirs), atol=1e-3 if "float" in str(changed) else 1)


def test_elastix_s_defaults_and_compression(inputs, tmp_path):
    text = path_of(inputs, "affine").read_text(encoding="utf-8")
    keys = "ResultImageFormat|CompressResultImage|ResultImagePixelType|DefaultPixelValue|FinalBSplineInterp.*Order"
    (tmp_path / "t.txt").write_text(re.sub(rf"\(({keys}) .*\)\n", "", text))
    assert call("transform", "-tp", tmp_path / "t.txt", "-in", inputs / "moving.mha", "-out", tmp_path / "plain") == 0
    assert {file.suffix for file in (tmp_path / "plain").iterdir()} == {".mhd", ".raw", ".log"}
    image = sitk.ReadImage(str(tmp_path / "plain" / "result.mhd"))
    assert image.GetPixelID() == sitk.sitkInt16
    assert 0 in sitk.GetArrayFromImage(image)
    arguments = ("-tp", path_of(inputs, "affine"), "-in", inputs / "moving.mha", "-out", tmp_path / "small")
    assert call("transform", *arguments) == 0
    assert b"CompressedData = True" in (tmp_path / "small" / "result.mha").read_bytes()[:500]


def test_values_that_a_type_does_not_hold_are_clamped(inputs, tmp_path):
    path = write_elastix(TransformChain((plain(affine(), ResultImagePixelType=("unsigned char",)),)), tmp_path)[-1]
    for kind in ("mha", "float"):
        more = ("--order", 1, "--default", -1000) if kind == "float" else ("--order", 1)
        assert call("transform", "-tp", path, "-in", inputs / "moving.mha", "-out", tmp_path / kind, *more) == 0
    ours = read(tmp_path / "mha" / "result.mha")
    assert ours.dtype == np.uint8
    assert ours.min() == 0
    assert ours.max() == 255


# Beyond transformix


@pytest.mark.parametrize("name", ["affine, field", "bspline, field (parts)", "field, bspline"])
def test_jacobian_of_chains_that_transformix_refuses(name, transform, inputs, tmp_path):
    assert transform(name, "-jac", "all", "-jacmat", "all") == 0
    matrices = read(tmp_path / "out" / "fullSpatialJacobian.mha").reshape(*FIXED.shape, 3, 3)
    np.testing.assert_allclose(
        np.linalg.det(matrices), read(tmp_path / "out" / "spatialJacobian.mha"), atol=1e-5, rtol=1e-5
    )
    composite = CHAINS[name].to_sitk()
    axes = FIXED.index_to_point_matrix
    for x, y, z in ((8, 9, 7), (12, 6, 9), (5, 13, 5)):
        point = FIXED.index_to_point((x, y, z))
        ends = [[composite.TransformPoint((point + s * axis).tolist()) for axis in axes.T] for s in (0.5, -0.5)]
        expected = (np.array(ends[0]) - np.array(ends[1])).T @ np.linalg.inv(axes)
        np.testing.assert_allclose(matrices[z, y, x], expected, atol=0.08)
    summary = json.loads((tmp_path / "out" / "spatialJacobian.json").read_text(encoding="utf-8"))
    assert summary["share_not_positive"] == 0
    assert summary["min"] == pytest.approx(np.linalg.det(matrices).min(), abs=1e-4)


def test_summary_of_folding_inside_a_mask(transform, inputs, tmp_path, capfd):
    folded = write_elastix(TransformChain((link_field(smooth_field(peak=30.0), SETTINGS),)), tmp_path)[-1]
    mask = np.zeros(FIXED.shape, np.uint8)
    mask[6:10, 6:14, 6:14] = 1
    write_image(Image(mask, FIXED), tmp_path / "mask.mha")
    assert call("transform", "-tp", folded, "-jac", "all", "-out", tmp_path / "o", "--mask", tmp_path / "mask.mha") == 0
    values = read(tmp_path / "o" / "spatialJacobian.mha")[mask > 0]
    summary = json.loads((tmp_path / "o" / "spatialJacobian.json").read_text(encoding="utf-8"))
    assert summary["voxels"] == mask.sum()
    assert summary["share_not_positive"] == pytest.approx((values <= 0).mean())
    assert summary["share_not_positive"] > 0.01
    assert summary["std_log"] == pytest.approx(np.log(values[values > 0]).std(), rel=1e-4)
    assert f"det J <= 0 at {(values <= 0).mean():.3%} of {mask.sum()} voxels in the mask" in capfd.readouterr().err


def test_itk_files_need_a_grid_and_keep_the_pixel_type(inputs, tmp_path, capfd):
    write_itk(CHAINS["affine, field"], tmp_path / "t.h5")
    arguments = ("transform", "-tp", tmp_path / "t.h5", "-in", inputs / "labels.mha", "-out", tmp_path / "o")
    assert call(*arguments) == 1
    assert "give the fixed image: --like IMAGE" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()
    write_image(Image(np.zeros(FIXED.shape, np.float32), FIXED), tmp_path / "fixed.mha")
    assert call(*arguments, "--like", tmp_path / "fixed.mha", "--order", 0, "-jac", "all") == 0
    found = read(tmp_path / "o" / "result.mha")
    assert found.dtype == np.uint16
    reference = sitk.ReadImage(str(tmp_path / "fixed.mha"))
    theirs = sitk.Resample(sitk.ReadImage(str(inputs / "labels.mha")), reference,
                           sitk.ReadTransform(str(tmp_path / "t.h5")), sitk.sitkNearestNeighbor)  # fmt: skip
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(theirs))


def test_several_images_are_named_after_the_inputs(transform, inputs, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(inputs / "moving.mha", tmp_path / "b" / "moving.mha")
    write_image(moving_image(), tmp_path / "b" / "ct.v1.nii.gz")
    images = [inputs / "moving.mha", tmp_path / "b" / "moving.mha", tmp_path / "b" / "ct.v1.nii.gz"]
    assert transform("affine", *(word for image in images for word in ("-in", image))) == 0
    names = {"result.moving.mha", "result.moving-2.mha", "result.ct.v1.mha"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "transformix.log"}
    first, *others = (read(tmp_path / "out" / name) for name in names)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_segmentations_keep_their_labels(transform, inputs, tmp_path):
    chain, labels = "affine, field", sitk.ReadImage(str(inputs / "labels.mha"))
    reference = Image(np.zeros(FIXED.shape, np.float32), FIXED).to_sitk()
    for kind, interpolator in (((), sitk.sitkNearestNeighbor), (("linear",), getattr(sitk, "sitkLabelLinear", None))):
        assert transform(chain, "--label", *kind, "-in", inputs / "labels.mha") == 0
        found = read(tmp_path / "out" / "result.mha")
        assert found.dtype == np.uint16
        assert set(np.unique(found)) <= set(np.unique(sitk.GetArrayFromImage(labels)))
        if interpolator is None:  # SimpleITK before 2.4
            continue
        theirs = sitk.Resample(labels, reference, CHAINS[chain].to_sitk(), interpolator, 0)
        assert (found != sitk.GetArrayFromImage(theirs)).mean() < 2e-3
    nearest = sitk.GetArrayFromImage(sitk.Resample(labels, reference, CHAINS[chain].to_sitk(), 1, 0))
    assert (found != nearest).mean() > 0.01


def test_another_grid(transform, inputs, tmp_path):
    grid = Grid((9, 12, 10), (3.0, 2.6, 4.0), tuple(FIXED.index_to_point((2, 3, 1))), FIXED.direction)
    write_image(Image(np.zeros(grid.shape, np.uint8), grid), tmp_path / "like.nii.gz")
    more = ("--like", tmp_path / "like.nii.gz", "-in", inputs / "moving.mha", "-def", "all", "-jac", "all")
    assert transform("affine, field", *more) == 0
    out = tmp_path / "out"
    expected = moving_image().resampled(grid, CHAINS["affine, field"].to_sitk(), 3, -7.6).array
    inside = expected != np.float32(-7.6)
    assert np.abs(read(out / "result.mha") - np.trunc(expected))[inside].max() <= 1
    field = read(out / "deformationField.mha")
    points = grid.points()
    np.testing.assert_allclose(field, CHAINS["affine, field"].map_points(points) - points, atol=1e-4)
    assert read(out / "spatialJacobian.mha").shape == grid.shape


# Points


@pytest.mark.parametrize("name", POINT_FILES)
def test_points_come_back_in_the_format_that_they_were_given_in(name, transform, tmp_path):
    names = tuple(f"mark {i}" for i in range(12)) if not name.endswith("vtk") else ()
    write_landmarks(Landmarks(fixed_points(), names), tmp_path / name)
    assert transform("affine, field", "-def", tmp_path / name) == 0
    found = read_landmarks(tmp_path / "out" / name.replace("points", "outputpoints"))
    expected = CHAINS["affine, field"].map_points(fixed_points())
    np.testing.assert_allclose(found.points, expected, atol=1e-4)
    assert found.names == names
    np.testing.assert_allclose(read_output(tmp_path / "out"), expected, atol=1e-4)


@pytest.mark.parametrize("chain", CHAINS)
def test_points_of_the_moving_image_go_back(chain, transform, inputs, tmp_path, capfd):
    there = CHAINS[chain].map_points(fixed_points())
    write_points(tmp_path / "moving.txt", there)
    more = ("-def", tmp_path / "moving.txt", "--moving-to-fixed", "-in", inputs / "moving.mha")
    assert transform(chain, *more) == 0
    out = tmp_path / "out"
    np.testing.assert_allclose(read_output(out), fixed_points(), atol=2e-3)
    np.testing.assert_allclose(read_output(out, "InputIndex"), np.floor(MOVING.point_to_index(there) + 0.5))
    assert read_output(out, "Residual").max() < 1e-4
    assert re.search(r"12 points mapped moving to fixed; residual .* max \S+ mm", capfd.readouterr().err)


def test_voxel_indices_belong_to_the_image_that_the_points_lie_in(transform, inputs, tmp_path, capfd):
    index = np.array([[10.0, 9, 8], [11, 12, 9]])
    write_points(tmp_path / "index.txt", index, "index")
    assert transform("affine", "-def", tmp_path / "index.txt") == 0
    expected = CHAINS["affine"].map_points(FIXED.index_to_point(index))
    np.testing.assert_allclose(read_output(tmp_path / "out"), expected, atol=1e-5)
    more = ("-def", tmp_path / "index.txt", "--moving-to-fixed")
    assert transform("affine", *more) == 1
    assert "voxel indices" in capfd.readouterr().err
    assert transform("affine", *more, "-in", inputs / "moving.mha") == 0
    there = CHAINS["affine"].map_points(read_output(tmp_path / "out"))
    np.testing.assert_allclose(there, MOVING.index_to_point(index), atol=1e-4)


def test_points_without_an_inverse_are_named_and_the_status_tells(tmp_path, capfd):
    field = smooth_field()
    field.vectors[:] = 0
    field.vectors[:, :, :11, 0] = 30.0  # a tear: no x is mapped into the gap
    path = write_elastix(TransformChain((link_field(field, SETTINGS),)), tmp_path)[-1]
    good, torn = FIXED.index_to_point((18, 10, 8)), FIXED.index_to_point((1, 10, 8))
    write_landmarks(Landmarks(np.array([good, torn]), ("good", "torn")), tmp_path / "p.fcsv")
    arguments = ("-tp", path, "-def", tmp_path / "p.fcsv", "--moving-to-fixed", "-out", tmp_path / "o")
    assert call("transform", *arguments) == 3
    assert re.search(r"1 of 2 points have no inverse, .* 1 'torn' \(residual \S+ mm\)", capfd.readouterr().err)
    found = read_output(tmp_path / "o")
    np.testing.assert_allclose(found[0], good, atol=1e-4)
    assert np.isnan(found[1]).all()
    assert read_landmarks(tmp_path / "o" / "outputpoints.fcsv").names == ("good",)


def test_points_outside_the_fixed_image_are_mapped_with_a_warning(transform, tmp_path, capfd):
    far = np.array([FIXED.index_to_point((10, 9, 8)), FIXED.index_to_point((90, 9, 8))])
    write_points(tmp_path / "far.txt", far)
    assert transform("affine, field", "-def", tmp_path / "far.txt") == 0
    assert "warning: 1 of 2 points lie outside the fixed image (1)" in capfd.readouterr().err
    np.testing.assert_allclose(read_output(tmp_path / "out")[1], affine().map_points(far[1]), atol=1e-5)
    assert transform("affine, field", "-def", tmp_path / "far.txt", "-loglevel", "off") == 0
    assert capfd.readouterr().err == ""
    assert "warning: 1 of 2" in (tmp_path / "out" / "transformix.log").read_text(encoding="utf-8")


# Errors


def _without(folder, key, value=""):
    text = path_of(folder, "affine").read_text(encoding="utf-8")
    return re.sub(rf"\({key} .*\)\n", value, text)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-out", "o", "-def", "all"), 2, "Missing option '-tp'"),
        (("-tp", "t.txt", "-def", "all"), 2, "Missing option '-out'"),
        (("-tp", "t.txt", "-out", "o"), 2, "give at least one of -in, -def, -jac and -jacmat"),
        (("-tp", "t.txt", "-out", "o", "-jac", "some"), 2, "'some' is not 'all'"),
        (("-tp", "t.txt", "-out", "o", "-jack", "all"), 2, "there is no option '-jack'; did you mean '-jac'?"),
        (("-tp", "t.txt", "-out", "o", "-def", "all", "--moving-to-fixed"), 2, "regnet-itk invert"),
        (("-tp", "t.txt", "-out", "o", "-def", "all", "--label"), 2, "give them with -in"),
        (("-tp", "t.txt", "-out", "o", "-def", "all", "--mask", "m.mha"), 2, "add -jac all"),
        (("-tp", "none.txt", "-out", "o", "-def", "all"), 1, "'none.txt' does not exist"),
        (("-tp", "2d.txt", "-out", "o", "-def", "all"), 1, "'Size' has 3 values, and needs 2 in 2 dimensions"),
        (("-tp", "nogrid.txt", "-out", "o", "-def", "all"), 1, "--like IMAGE"),
        (("-tp", "cubic.txt", "-out", "o", "-in", "moving.mha"), 1, "'FinalCubicInterpolator' is not supported"),
        (("-tp", "type.txt", "-out", "o", "-in", "moving.mha"), 1, "did you mean 'short'?"),
        (("-tp", "t.txt", "-out", "o", "-in", "none.mha"), 1, "input image 'none.mha' does not exist"),
        (("-tp", "t.txt", "-out", "o", "-in", "far.mha"), 1, "far.mha: the transform maps the fixed image to a place"),
        (("-tp", "t.txt", "-out", "o", "-in", "vector.mha"), 1, "3 components"),
        (("-tp", "t.txt", "-out", "o", "-in", "moving.mha", "--label"), 1, "not whole numbers"),
        (("-tp", "t.txt", "-out", "o", "-def", "none.txt"), 1, "'none.txt' does not exist"),
        (("-tp", "t.txt", "-out", "o", "-def", "points.xyz"), 1, "needs the suffix"),
        (("-tp", "t.txt", "-out", "t.txt", "-def", "all"), 1, "'{here}/t.txt' is a file"),
        (("-tp", "t.txt", "-out", "o", "-in", "moving.mha", "-def", "none.txt"), 1, "does not exist"),
        (("-tp", "format.txt", "-out", "o", "-def", "all"), 1, "cannot write '{here}/o/deformationField.xyz'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, status, message, inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "t.txt": _without(inputs, "None"),
        "2d.txt": _without(inputs, "FixedImageDimension", "(FixedImageDimension 2)\n"),
        "nogrid.txt": _without(inputs, "Size"),
        "cubic.txt": _without(inputs, "ResampleInterpolator", '(ResampleInterpolator "FinalCubicInterpolator")\n'),
        "type.txt": _without(inputs, "ResultImagePixelType", '(ResultImagePixelType "shorter")\n'),
        "format.txt": _without(inputs, "ResultImageFormat", '(ResultImageFormat "xyz")\n'),
        "points.xyz": "point\n1\n1 2 3\n",
    }.items():
        (tmp_path / name).write_text(text)
    shutil.copy(inputs / "moving.mha", tmp_path)
    write_image(Image(moving_image().array, Grid(MOVING.size, origin=(900.0, 0.0, 0.0))), tmp_path / "far.mha")
    smooth_field().write(tmp_path / "vector.mha")
    assert call("transform", *arguments) == status
    error = capfd.readouterr().err
    assert message.format(here=tmp_path) in error
    assert error.count("\n") == 1
    assert "internal error" not in error
    assert not (tmp_path / "o").exists()


def test_the_output_folder_is_created_and_other_files_in_it_stay(transform, inputs, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.0.mha").write_text("from a run")
    assert transform("affine", "-in", inputs / "moving.mha", out="a") == 0
    assert (tmp_path / "a" / "result.0.mha").read_text(encoding="utf-8") == "from a run"
    assert transform("affine", "-in", inputs / "moving.mha", out="new/deeper") == 0
    assert (tmp_path / "new" / "deeper" / "result.mha").is_file()


def test_the_chain_of_parts_is_read_as_it_was_written(inputs):
    assert (path_of(inputs, "bspline, field (parts)").parent / "TransformParameters.1-part1.txt").is_file()
    chain = read_chain(path_of(inputs, "bspline, field (parts)"))
    expected = CHAINS["bspline, field (parts)"].map_points(fixed_points())
    np.testing.assert_allclose(chain.map_points(fixed_points()), expected, atol=1e-4)


def test_points_belong_to_the_fixed_image_whatever_the_output_grid(transform, tmp_path, capfd):
    small = FIXED.crop((0, 0, 0), (4, 4, 4))
    write_image(Image(np.zeros(small.shape, np.float32), small), tmp_path / "small.mha")
    write_points(tmp_path / "index.txt", np.array([[15.0, 12, 9]]), "index")
    assert transform("affine", "-def", tmp_path / "index.txt", "--like", tmp_path / "small.mha") == 0
    assert "warning" not in capfd.readouterr().err
    expected = CHAINS["affine"].map_points(FIXED.index_to_point([[15, 12, 9]]))
    np.testing.assert_allclose(read_output(tmp_path / "out"), expected, atol=1e-5)


def test_images_and_points_are_mapped_without_loading_torch(inputs, tmp_path):
    words = ["transform", "-tp", path_of(inputs, "affine, field"), "-in", inputs / "moving.mha", "-out", tmp_path / "o"]
    words += ["-def", inputs / "points.txt"]
    script = "import sys; from regnet_itk.cli.main import main\ntry: main(sys.argv[1:])\n"
    script += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
