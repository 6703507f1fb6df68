"""Chains that elastix computes as a whole: the files and images are those of elastix's library, to the bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import command
import itk
import numpy as np
import pytest
import SimpleITK as sitk
from elastix_cases import QUICK, numbers_of, parameter_object, run_library, several_metrics, texture

from regnet_itk import ElastixResult, RegistrationResult, register, registration_method
from regnet_itk.cli.shim import stand_in
from regnet_itk.errors import ImageError, ParameterError, RegistrationError, TransformError
from regnet_itk.interfaces.itk_elastix import RegNetRegistrationMethod
from regnet_itk.parameters import read_parameter_map

SHAPES = {"2": (24, 26), "3": (12, 14, 16), "4": (4, 8, 10, 12)}
FLAT = QUICK.with_(FixedImageDimension=2, MovingImageDimension=2, Transform="EulerTransform")
FLAT_SPLINE = FLAT.with_(Transform="BSplineTransform", FinalGridSpacingInPhysicalUnits=15).without(
    "AutomaticScalesEstimation"
)
STACK = QUICK.with_(
    FixedImageDimension=4, MovingImageDimension=4, Transform="TranslationStackTransform",
    Metric="VarianceOverLastDimensionMetric", Interpolator="ReducedDimensionBSplineInterpolator",
    ResampleInterpolator="FinalReducedDimensionBSplineInterpolator", SubtractMean=True, NumAdditionalSamplesFixed=0,
    ReducedDimensionIndex=0, NumSamplesLastDimension=3, MovingImageDerivativeScales=[1, 1, 1, 0],
    FixedImagePyramidSchedule=[1, 1, 1, 1], MovingImagePyramidSchedule=[1, 1, 1, 1], MaximumNumberOfIterations=5,
).without("AutomaticScalesEstimation")  # fmt: skip
TURNED_STACK = STACK.with_(Transform="EulerStackTransform", AutomaticScalesEstimation=True)
SPLINE_STACK = STACK.with_(Transform="BSplineStackTransform", FinalGridSpacingInPhysicalUnits=[8, 8, 8])
WEIGHTED = QUICK.with_(Transform="WeightedCombinationTransform", SubTransforms=["x1.txt", "x2.txt"])
SPLINE_KERNEL = QUICK.with_(
    Transform="SplineKernelTransform", SplineKernelType="ThinPlateSpline", NumberOfResolutions=1
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    for kind, shape in SHAPES.items():
        for name, seed, shift in (("f", 0, 0), ("m", 0, 1), ("g", 1, 0), ("n", 1, 1)):
            sitk.WriteImage(texture(shape, seed, shift), str(folder / f"{name}{kind}.mha"))
    mask = sitk.GetImageFromArray(np.pad(np.ones((20, 22), np.uint8), 2))
    mask.CopyInformation(sitk.ReadImage(str(folder / "f2.mha")))
    sitk.WriteImage(mask, str(folder / "k2.mha"))
    for number, along in enumerate(([1, 0, 0], [0, 1, 0]), start=1):
        values = QUICK.with_(
            Transform="TranslationTransform", NumberOfParameters=3, TransformParameters=along,
            InitialTransformParameterFileName="NoInitialTransform", Size=[16, 14, 12], Index=[0, 0, 0],
            Spacing=[1.5, 2, 2.5], Origin=[3, -4, 5], FixedImageDimension=3, MovingImageDimension=3,
        )  # fmt: skip
        (folder / f"x{number}.txt").write_text(values.to_text())
    maps = {
        "flat": FLAT, "spline": FLAT_SPLINE, "stack": STACK, "turned_stack": TURNED_STACK, "spline_stack": SPLINE_STACK,
        "weighted": WEIGHTED, "kernel": SPLINE_KERNEL,
    }  # fmt: skip
    for name, values in maps.items():
        (folder / f"{name}.txt").write_text(values.to_text())
    (folder / "p2.txt").write_text("point\n3\n10 10\n20 5\n15 20.5\n")
    (folder / "q2.txt").write_text("point\n3\n12 9\n22 4\n17 19.5\n")
    return folder


@pytest.fixture
def here(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    return inputs


def same_file(ours: Path, theirs: Path) -> None:
    """Both transform files are equal but for the folder, the result image's type, and a key for older elastix."""
    texts = []
    for file in (ours, theirs):
        text = file.read_text().replace(f"{file.parent}/", "")
        texts.append(re.sub(r"\(ResultImagePixelType .*|\(InitialTransformParametersFileName .*\n", "", text))
    assert texts[0] == texts[1]


CHAINS = {
    "2D": ("2", ["flat", "spline"], [FLAT, FLAT_SPLINE]),
    "4D": ("4", ["stack"], [STACK]),
    "4D, turned": ("4", ["turned_stack"], [TURNED_STACK]),
    "4D, B-splines": ("4", ["spline_stack"], [SPLINE_STACK]),
    "a transform that only elastix evaluates": ("3", ["weighted"], [WEIGHTED]),
}


@pytest.mark.parametrize("case", CHAINS)
def test_the_command_and_the_stand_in_write_what_the_library_writes(case, here, tmp_path, capsys):
    kind, names, maps = CHAINS[case]
    theirs, _ = run_library(f"f{kind}.mha", f"m{kind}.mha", maps, tmp_path / "theirs")
    words = ["-f", f"f{kind}.mha", "-m", f"m{kind}.mha"]
    for name in names:
        words += ["-p", f"{name}.txt"]
    assert command.call("run", *words, "-out", tmp_path / "run") == 0
    told = capsys.readouterr().err
    assert told.count("as a whole, without what needs 3D transforms here: displacement field, det J, picture") == 1
    assert stand_in(["elastix", *words, "-out", str(tmp_path / "standin")]) == 0
    for number, _ in enumerate(names):
        for out in ("run", "standin"):
            same_file(*(tmp_path / where / f"TransformParameters.{number}.txt" for where in (out, "theirs")))
            found = sitk.ReadImage(str(tmp_path / out / f"result.{number}.mhd"))
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "theirs" / f"result.{number}.mhd")))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected.astype(np.int16))
            np.testing.assert_allclose(found.GetDirection(), sitk.ReadImage(f"f{kind}.mha").GetDirection())
    assert {f"IterationInfo.{n}.R0.txt" for n, _ in enumerate(names)} <= {f.name for f in (tmp_path / "run").iterdir()}
    record = json.loads((tmp_path / "run" / "registration.json").read_text())
    assert [stage["elastix"][0] for stage in record["stages"]] == ["5"] * len(names)
    assert record["computed_by"] == "elastix as a whole"
    assert np.asarray(theirs).ndim == int(kind)


@pytest.mark.skipif(shutil.which("elastix") is None, reason="the program elastix is not installed")
def test_two_dimensions_as_the_program(here, tmp_path):
    words = ["-f", "f2.mha", "-m", "m2.mha", "-fMask", "k2.mha", "-p", "flat.txt", "-threads", "1"]
    (tmp_path / "theirs").mkdir()
    subprocess.run(["elastix", *words, "-out", str(tmp_path / "theirs")], check=True, capture_output=True)
    assert stand_in(["elastix", *words, "-out", str(tmp_path / "ours")]) == 0
    assert {f.name for f in (tmp_path / "ours").iterdir()} == {f.name for f in (tmp_path / "theirs").iterdir()}
    numbers = [
        read_parameter_map(tmp_path / name / "TransformParameters.0.txt").get_floats("TransformParameters")
        for name in ("ours", "theirs")
    ]
    np.testing.assert_allclose(*numbers, atol=2e-2)


@pytest.mark.parametrize("case", CHAINS)
def test_python_gives_itk_elastixs_result_and_transformix_takes_it(case, here, tmp_path):
    kind, _, maps = CHAINS[case]
    expected, theirs = run_library(f"f{kind}.mha", f"m{kind}.mha", maps, tmp_path / "theirs")
    fixed, moving = (itk.imread(f"{name}{kind}.mha", itk.F) for name in "fm")
    image, found = registration_method(fixed, moving, parameter_object=parameter_object(*maps))
    assert type(image) is type(expected)
    assert numbers_of(found) == numbers_of(theirs)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(itk.transformix_filter(moving, found)), np.asarray(expected))


def test_several_images_masks_and_points_of_two_dimensions(here, tmp_path):
    guided = several_metrics(
        "AdvancedMeanSquares", "CorrespondingPointsEuclideanDistanceMetric", Metric0Weight=0.0, Metric1Weight=1.0,
        FixedImageDimension=2, MovingImageDimension=2,
    )  # fmt: skip
    names = (["f2.mha", "g2.mha"], ["m2.mha", "n2.mha"])
    _, theirs = run_library(
        *names, [guided], tmp_path / "theirs", SetFixedMask=itk.imread("k2.mha", itk.UC),
        SetFixedPointSetFileName="p2.txt", SetMovingPointSetFileName="q2.txt",
    )  # fmt: skip
    result = register(*names, guided, fixed_mask="k2.mha", fixed_landmarks="p2.txt", moving_landmarks="q2.txt")
    assert isinstance(result, ElastixResult)
    (found,) = result.transform_maps(tmp_path)
    assert found["TransformParameters"] == numbers_of(theirs)[0]
    np.testing.assert_allclose(found.get_floats("TransformParameters"), [2, -1], atol=0.3)
    arrays = [np.array([[10, 10], [20, 5], [15, 20.5]]) + shift for shift in ([0, 0], [2, -1])]
    again = register(*names, guided, fixed_mask="k2.mha", fixed_landmarks=arrays[0], moving_landmarks=arrays[1])
    assert again.transform_maps(tmp_path)[0]["TransformParameters"] == found["TransformParameters"]


def test_points_make_a_spline_kernel(here, tmp_path):
    points = np.random.default_rng(0).uniform(0, 1, (12, 3)) * [14, 16, 18] + [6, 2, 9]
    args = ["f3.mha", "m3.mha", SPLINE_KERNEL]
    result = register(*args, fixed_landmarks=points, moving_landmarks=points + np.array([1, 0, 0]))
    (found,) = result.transform_maps(tmp_path)
    assert found.get_str("Transform") == "SplineKernelTransform"
    with pytest.raises(RegistrationError, match=r"-fp should be given.*`fixed_landmarks`"):
        register(*args)


def test_it_starts_from_a_transform_file(here, tmp_path):
    first = register("f2.mha", "m2.mha", FLAT)
    first.write(tmp_path / "first")
    start = tmp_path / "first" / "TransformParameters.0.txt"
    _, theirs = run_library(
        "f2.mha", "m2.mha", [FLAT_SPLINE], tmp_path / "theirs", SetInitialTransformParameterFileName=str(start)
    )  # fmt: skip
    words = ["-f", "f2.mha", "-m", "m2.mha", "-t0", start, "-p", "spline.txt"]
    assert command.call("run", *words, "-out", tmp_path / "second") == 0
    found = read_parameter_map(tmp_path / "second" / "TransformParameters.0.txt")
    assert found["TransformParameters"] == numbers_of(theirs)[0]
    assert found.get_str("InitialTransformParameterFileName") == str(start)
    weighted = tmp_path / "weighted"
    assert command.call("run", "-f", "f3.mha", "-m", "m3.mha", "-p", "weighted.txt", "-out", weighted) == 0
    after = register("f3.mha", "m3.mha", QUICK, initial=weighted / "TransformParameters.0.txt")
    assert isinstance(after, ElastixResult)
    assert isinstance(register("f3.mha", "m3.mha", QUICK), RegistrationResult)


# What is written


@pytest.mark.parametrize("suffix", ["gipl", "hdr", "dcm", "nii.gz", "png"])
def test_result_formats(suffix, here, tmp_path):
    values = QUICK.with_(ResultImageFormat=suffix, ResultImagePixelType="unsigned char", MaximumNumberOfIterations=2)
    (tmp_path / "p.txt").write_text(values.to_text())
    kind = "2" if suffix == "png" else "3"
    words = ["-f", f"f{kind}.mha", "-m", f"m{kind}.mha", "-p", tmp_path / "p.txt", "-out", tmp_path / "out"]
    assert command.call("run", *words) == 0
    found = sitk.ReadImage(str(tmp_path / "out" / f"result.0.{suffix}"))
    assert found.GetPixelID() == sitk.sitkUInt8
    assert found.GetSize()[: int(kind)] == sitk.ReadImage(f"f{kind}.mha").GetSize()


def test_a_format_that_cannot_hold_the_image_does_not_lose_it(here, tmp_path, capsys):
    values = QUICK.with_(ResultImageFormat="dcm", ResultImagePixelType="float", MaximumNumberOfIterations=2)
    (tmp_path / "p.txt").write_text(values.to_text())
    for kind in "23":
        out = tmp_path / kind
        assert (
            command.call("run", "-f", f"f{kind}.mha", "-m", f"m{kind}.mha", "-p", tmp_path / "p.txt", "-out", out) == 0
        )
        assert "result.0.dcm cannot hold this image" in capsys.readouterr().err
        assert (out / "result.0.mha").is_file()
        assert not (out / "result.0.dcm").exists()


def test_what_else_the_map_asks_for_is_kept(here, tmp_path):
    values = FLAT.with_(
        WriteTransformParametersEachResolution=True, WriteResultImageAfterEachResolution=True, WriteResultImage=False,
        ITKTransformOutputFileNameExtension="h5", WriteITKCompositeTransform=True,
    )  # fmt: skip
    result = register("f2.mha", "m2.mha", values)
    with pytest.raises(RegistrationError, match="no result image, as"):
        _ = result.warped
    out = tmp_path / "out"
    result.write(out)
    names = {file.name for file in out.iterdir()}
    assert {"TransformParameters.0.R0.txt", "result.0.R0.mha", "TransformParameters.0-Composite.h5"} <= names
    assert read_parameter_map(out / "TransformParameters.0.txt")["TransformFileName"] == (
        str(out / "TransformParameters.0.h5"),
    )
    register("f2.mha", "m2.mha", FLAT).write(out)  # and goes with the run
    left = {
        "TransformParameters.0.txt",
        "result.0.mhd",
        "IterationInfo.0.R0.txt",
        "registration.json",
        "regnet-itk.log",
    }
    assert {file.name for file in out.iterdir()} - {"result.0.zraw"} == left


# transform


def test_transform_hands_on_what_it_cannot_evaluate(here, tmp_path):
    assert (
        command.call(
            "run", "-f", "f2.mha", "-m", "m2.mha", "-p", "flat.txt", "-p", "spline.txt", "-out", tmp_path / "r"
        )
        == 0
    )
    last = tmp_path / "r" / "TransformParameters.1.txt"
    words = ["-tp", last, "-in", "m2.mha", "-jac", "all", "-jacmat", "all"]
    assert command.call("transform", *words, "-def", "all", "-out", tmp_path / "t") == 0
    result, expected = (sitk.ReadImage(str(tmp_path / name)) for name in ("t/result.mhd", "r/result.1.mhd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), sitk.GetArrayFromImage(expected))
    assert result.GetPixelID() == sitk.sitkInt16
    assert command.call("transform", "-tp", last, "-def", "p2.txt", "-out", tmp_path / "p") == 0
    text = (tmp_path / "p" / "outputpoints.txt").read_text()
    rows = [re.findall(r"(Input|Output)Point = \[ (\S+) (\S+) \]", line) for line in text.splitlines()]
    given, mapped = (np.array([[float(v) for v in row[i][1:]] for row in rows]) for i in (0, 1))
    assert "OutputIndexMoving" not in text
    field = sitk.ReadImage(str(tmp_path / "t" / "deformationField.mhd"), sitk.sitkVectorFloat64)
    moved = sitk.DisplacementFieldTransform(sitk.Image(field))
    np.testing.assert_allclose([moved.TransformPoint(p) for p in given.tolist()], mapped, atol=0.02)
    if shutil.which("transformix"):
        (tmp_path / "theirs").mkdir()
        subprocess.run(["transformix", *map(str, words), "-out", tmp_path / "theirs"], check=True, capture_output=True)
        for name in ("result", "spatialJacobian", "fullSpatialJacobian"):
            pair = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f / f"{name}.mhd"))) for f in ("t", "theirs")]
            assert np.abs(pair[0].astype(float) - pair[1]).max() <= (1 if name == "result" else 1e-3)


def test_labels_and_order_and_default_are_handed_on(here, tmp_path):
    assert command.call("run", "-f", "f3.mha", "-m", "m3.mha", "-p", "weighted.txt", "-out", tmp_path / "r") == 0
    tp = ["-tp", tmp_path / "r" / "TransformParameters.0.txt"]
    labels = np.zeros(SHAPES["3"], np.uint16)
    labels[3:9, 4:10, 5:12] = 40000
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(sitk.ReadImage("m3.mha"))
    sitk.WriteImage(image, str(tmp_path / "labels.nii.gz"))
    assert command.call("transform", *tp, "-in", tmp_path / "labels.nii.gz", "--label", "-out", tmp_path / "l") == 0
    found = sitk.ReadImage(str(tmp_path / "l" / "result.mhd"))
    assert found.GetPixelID() == sitk.sitkUInt16
    assert np.unique(sitk.GetArrayFromImage(found)).tolist() == [0, 40000]
    more = ["--order", "1", "--default", "-77"]
    assert command.call("transform", *tp, "-in", "m3.mha", "-in", "f3.mha", *more, "-out", tmp_path / "o") == 0
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "o" / "result.m3.mhd"))) == -77).any()
    assert (tmp_path / "o" / "result.f3.mhd").is_file()


def test_what_transformix_cannot_do_is_told(here, tmp_path, capsys):
    assert command.call("run", "-f", "f3.mha", "-m", "m3.mha", "-p", "weighted.txt", "-out", tmp_path / "r") == 0
    tp = tmp_path / "r" / "TransformParameters.0.txt"
    capsys.readouterr()
    for words, message in {
        (
            "-jac",
            "all",
        ): "transformix cannot make the spatialJacobian: Not implemented for WeightedCombinationTransform",
        ("-in", "f2.mha"): "'f2.mha' has 2 dimensions, and the transform is of 3",
        ("-in", "m3.mha", "--like", "f3.mha"): "which only transformix can evaluate; it has no --like",
        ("-in", "m3.mha", "--label", "linear"): "it has no --label linear",
    }.items():
        assert command.call("transform", "-tp", tp, *words, "-out", tmp_path / "none") == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


# What is refused, and what is only told


def test_networks_need_three_dimensions(here, tmp_path, capsys):
    words = ["-f", "f2.mha", "-m", "m2.mha", "-p", "flat.txt", "-p", "regnet_multistage", "-out", tmp_path / "out"]
    assert command.call("run", *words) == 1
    assert "the images have 2 dimensions, and RegNet regnet_multistage (" in (told := capsys.readouterr().err)
    assert "needs 3D images; only elastix's stages take others" in told


def test_what_elastixs_library_cannot_register(here):
    with pytest.raises(ParameterError, match="'FixedImageDimension' is 3, and the images have 2 dimensions"):
        register("f2.mha", "m2.mha", FLAT.with_(FixedImageDimension=3))
    with pytest.raises(ParameterError, match="'FixedImageDimension' is 2, and the images are 3D"):
        register("f3.mha", "m3.mha", FLAT)
    with pytest.raises(ParameterError, match="needs the flag -labels, which elastix's library does not have"):
        register("f3.mha", "m3.mha", QUICK.with_(Transform="MultiBSplineTransformWithNormal"))
    with pytest.raises(ImageError, match="the moving image has 3 dimensions and the fixed image 2"):
        register("f2.mha", "m3.mha", FLAT)
    with pytest.raises(ImageError, match="the fixed mask is empty"):
        register("f2.mha", "m2.mha", FLAT, fixed_mask=sitk.ReadImage("k2.mha") * 0)
    with pytest.raises(ImageError, match="the moving image is constant"):
        register("f2.mha", sitk.ReadImage("m2.mha") * 0, FLAT)
    with pytest.raises(TransformError, match=r"x1\.txt: the transform is of 3 dimensions, and 2 are needed"):
        register("f2.mha", "m2.mha", FLAT, initial="x1.txt")
    with pytest.raises(TransformError, match="give `initial` as an elastix transform file"):
        register("f3.mha", "m3.mha", WEIGHTED, initial=register("f3.mha", "m3.mha", QUICK).chain)
    method = RegNetRegistrationMethod.New(itk.imread("f2.mha", itk.F), itk.imread("m2.mha", itk.F))
    method.SetParameterObject(parameter_object(FLAT))
    method.Update()
    with pytest.raises(RegistrationError, match="only elastix can evaluate this transform"):
        method.GetCombinationTransform()


def test_what_needs_three_dimensions_is_left_out_and_told(here, tmp_path, capsys):
    (tmp_path / "p.txt").write_text(FLAT.with_(RegNetUndo=True).to_text())
    words = ["-f", "f2.mha", "-m", "m2.mha", "-p", tmp_path / "p.txt", "-fp", "p2.txt", "-mp", "q2.txt", "--both-ways"]
    assert command.call("run", *words, "-out", tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "displacement field, det J, picture, landmark error, way back" in told
    assert "p.txt: left out, as elastix computes it as a whole: RegNetUndo" in told
    assert not (tmp_path / "out" / "backward").exists()
    assert command.call("report", tmp_path / "out") == 1
    assert "elastix as a whole computed this registration" in capsys.readouterr().err
