"""The calls that users of itk-elastix know, against itk-elastix itself."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import itk
import numpy as np
import pytest

from regnet_itk import Guides, RegNetRegistrationMethod, registration_method
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.image import Image, grid_of
from regnet_itk.errors import ImageError, OutputError, ParameterError, RegistrationError
from regnet_itk.parameters import read_parameter_map

AFFINE = read_parameter_map("affine").with_(
    NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=40
)
REFINE = read_parameter_map("bspline_refine").with_(
    FinalGridSpacingInPhysicalUnits=[30, 30, 30], MaximumNumberOfIterations=20
)
REGNET = read_parameter_map("regnet_multistage")


def parameter_object(*maps):
    found = itk.ParameterObject.New()
    for parameters in maps:
        found.AddParameterMap(dict(parameters.values))
    return found


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(2, spacing=(3.9, 3.6, 4.4), extent=(150.0, 130.0, 120.0))


@pytest.fixture(scope="module")
def images(phantom):
    return tuple(Image(i.array.astype(np.float32), i.grid).to_itk() for i in (phantom.fixed, phantom.moving))


@pytest.fixture(scope="module")
def points(phantom):
    index = np.random.default_rng(0).uniform(0, np.asarray(phantom.fixed.grid.size) - 1, (200, 3))
    return phantom.fixed.grid.index_to_point(index)


def difference(ours, theirs):
    """Return the largest difference of two itk images away from the border, after a look at their grids."""
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(np.asarray(ours.GetDirection()), np.asarray(theirs.GetDirection()), atol=1e-6)
    inner = (slice(6, -6),) * 3
    apart = np.abs(np.asarray(ours)[inner].astype(float) - np.asarray(theirs)[inner].astype(float))
    assert np.ptp(np.asarray(theirs)[inner]) > 500
    return apart


def test_a_plain_elastix_map_gives_itk_elastixs_own_result(images):
    plain = AFFINE.with_(RegNetStart="elastix", RegNetClip="none", RegNetUndo="false")
    expected, theirs = itk.elastix_registration_method(*images, parameter_object=parameter_object(plain))
    image, found = registration_method(*images, parameter_object=parameter_object(plain))
    assert isinstance(image, type(images[0]))
    assert isinstance(found, itk.ParameterObject)
    assert found.GetNumberOfParameterMaps() == 1
    numbers, wanted = ([float(v) for v in o.GetParameterMap(0)["TransformParameters"]] for o in (found, theirs))
    np.testing.assert_array_equal(numbers, wanted)
    assert difference(image, expected).max() == 0


@pytest.mark.parametrize(
    "maps",
    [(AFFINE, REGNET), (AFFINE, REGNET, REFINE), (REGNET, REGNET)],
    ids=["affine, regnet", "affine, regnet, refine", "regnet twice"],
)
def test_transformix_takes_what_is_returned(maps, images):
    image, found = registration_method(*images, parameter_object=parameter_object(*maps))
    assert found.GetNumberOfParameterMaps() == len(maps)
    theirs = itk.transformix_filter(images[1], found, log_to_console=False)
    apart = difference(image, theirs)
    assert np.percentile(apart, 99) < 1e-2  # the border of the moving image lies within


def test_the_field_outlives_the_method(images):
    found = registration_method(*images, parameter_object=parameter_object(REGNET))[1]
    gc.collect()
    assert read_displacement_field(found.GetParameterMap(0)["DeformationFieldFileName"][0]).grid.size


@pytest.mark.slow
def test_the_field_goes_with_the_process(images, tmp_path):
    for name, image in zip(("fixed", "moving"), images, strict=True):
        itk.imwrite(image, str(tmp_path / f"{name}.mha"))
    (tmp_path / "regnet.txt").write_text(REGNET.to_text())
    script = """
        import itk, regnet_itk
        parameters = itk.ParameterObject.New()
        parameters.AddParameterFile("regnet.txt")
        fixed, moving = (itk.imread(f"{name}.mha", itk.F) for name in ("fixed", "moving"))
        _, found = regnet_itk.registration_method(fixed, moving, parameter_object=parameters)
        name = found.GetParameterMap(0)["DeformationFieldFileName"][0]
        print(name)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    name = process.stdout.splitlines()[-1]
    assert name.endswith(".mha")
    assert not Path(name).parent.exists()


def test_two_results_keep_their_own_fields(images):
    method = RegNetRegistrationMethod.New(*images, parameter_object=parameter_object(REGNET))
    method.Update()
    first = method.GetTransformParameterObject().GetParameterMap(0)["DeformationFieldFileName"][0]
    assert method.GetTransformParameterObject() is method.GetTransformParameterObject()
    method.SetNumberOfThreads(1)
    method.Update()
    second = method.GetTransformParameterObject().GetParameterMap(0)["DeformationFieldFileName"][0]
    assert first != second


def test_setters_getters_and_what_they_invalidate(images, phantom):
    fixed, moving = images
    mask = phantom.fixed_mask.to_itk()
    parameters = parameter_object(AFFINE)
    method = RegNetRegistrationMethod.New()
    method.SetFixedImage(fixed)
    method.SetMovingImage(moving)
    method.SetFixedMask(mask)
    method.SetParameterObject(parameters)
    method.SetLogToConsole(False)
    assert method.GetFixedImage() is fixed
    assert method.GetMovingImage() is moving
    assert method.GetFixedMask() is mask
    assert method.GetMovingMask() is None
    assert method.GetParameterObject() is parameters
    assert method.GetLogToConsole() is False
    with pytest.raises(RegistrationError, match=r"call Update\(\) first"):
        method.GetOutput()
    method.UpdateLargestPossibleRegion()
    result = method.GetResult()
    method.Update()
    assert method.GetResult() is result  # nothing changed, nothing done
    setters = {
        "SetNumberOfThreads": 1,
        "SetDevice": "cpu",
        "SetMovingMask": phantom.moving_mask.to_itk(),
        "SetInitialTransformParameterFileName": "",
        "SetFixedImage": fixed,
    }
    for name, value in setters.items():
        method._result = result
        getattr(method, name)(value)
        with pytest.raises(RegistrationError, match="Update"):
            method.GetResult()
    assert method.GetNumberOfThreads() == 1
    assert method.GetDevice() == "cpu"
    assert method.GetInitialTransformParameterFileName() == ""


def test_the_combination_transform_is_the_chain(images, points):
    method = RegNetRegistrationMethod.New(*images, parameter_object=parameter_object(AFFINE, REGNET))
    method.Update()
    transform = method.GetCombinationTransform()
    assert isinstance(transform, itk.Transform[itk.D, 3, 3])
    theirs = np.array([transform.TransformPoint(point) for point in points.tolist()])
    ours = method.GetResult().chain.map_points(points)
    assert np.abs(ours - points).max() > 1
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_observers_hear_of_progress_that_never_falls(images):
    method = RegNetRegistrationMethod.New(*images, parameter_object=parameter_object(AFFINE, REGNET))
    heard, ended = [], []
    tag = method.AddObserver(itk.ProgressEvent(), lambda: heard.append(method.GetProgress()))
    method.AddObserver(itk.StartEvent(), lambda: ended.append("start"))
    method.AddObserver(itk.EndEvent(), lambda: ended.append("end"))
    method.Update()
    assert ended == ["start", "end"]
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert len(heard) > 4
    assert any(0 < share < 0.5 for share in heard)
    assert any(0.5 < share < 1 for share in heard)
    count = len(heard)
    method.RemoveObserver(tag)
    method.SetNumberOfThreads(1)
    method.SetParameterObject(parameter_object(REGNET))
    method.Update()
    assert len(heard) == count


def test_everything_is_written_to_the_output_directory(images, tmp_path):
    first = tmp_path / "first"
    registration_method(*images, parameter_object=parameter_object(AFFINE), output_directory=str(first))
    out = tmp_path / "made" / "here"
    image, found = registration_method(
        *images, parameter_object=parameter_object(REGNET), output_directory=out, number_of_threads=1,
        initial_transform_parameter_file_name=first / "TransformParameters.0.txt",
    )  # fmt: skip
    names = {file.name for file in out.iterdir()}
    assert names == {
        "InitialTransform.0.txt", "TransformParameters.0.txt", "TransformParameters.0-Composite.h5",
        "deformationField.0.mha", "result.0.mha", "errorMap.0.mha", "registration.json", "registration.png",
        "regnet-itk.log",
    }  # fmt: skip
    last = found.GetParameterMap(found.GetNumberOfParameterMaps() - 1)
    assert last["DeformationFieldFileName"][0] == str(out / "deformationField.0.mha")
    theirs = itk.transformix_filter(images[1], found, log_to_console=False)
    assert np.percentile(difference(image, theirs), 99) < 1e-2


def test_the_default_parameter_object_is_the_default_chain():
    parameters = RegNetRegistrationMethod.New().GetParameterObject()
    assert parameters.GetNumberOfParameterMaps() == 2
    assert parameters.GetParameterMap(0)["Transform"] == ("AffineTransform",)
    assert parameters.GetParameterMap(1)["Registration"] == ("RegNetRegistration",)


def test_the_log_is_printed_if_asked_for(images, capsys):
    for on in (False, True):
        registration_method(*images, parameter_object=parameter_object(REGNET), log_to_console=on)
        assert ("stage 0" in capsys.readouterr().out) == on


def test_misuse(images, tmp_path):
    with pytest.raises(ParameterError, match="no fixed image was set: call SetFixedImage first"):
        RegNetRegistrationMethod.New().Update()
    with pytest.raises(ParameterError, match="no moving image was set"):
        RegNetRegistrationMethod.New(images[0]).Update()
    with pytest.raises(ParameterError, match="has no SetFixedMaks"):
        RegNetRegistrationMethod.New(*images, fixed_maks=1)
    with pytest.raises(ParameterError, match="no parameter map"):
        registration_method(*images, parameter_object=itk.ParameterObject.New())
    with pytest.raises(ImageError, match="fixed mask is empty"):
        registration_method(*images, fixed_mask=Image(np.zeros(images[0].shape, np.uint8), grid_of(images[0])).to_itk())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        registration_method(*images, output_directory=tmp_path / "file")


def test_guides_and_judges_reach_the_registration(images, phantom, monkeypatch):
    given = {}

    class Reached(Exception):
        pass

    def register(*_, **arguments):
        given.update(arguments)
        raise Reached

    monkeypatch.setattr("regnet_itk.interfaces.itk_elastix.register", register)
    guides = [Guides(label=mask) for mask in (phantom.fixed_mask, phantom.moving_mask)]
    method = RegNetRegistrationMethod.New(*images, fixed_guides=guides[0], moving_guides=guides[1])
    method.SetParameterObject(parameter_object(REGNET))
    method.SetFixedJudgePointSetFileName("judges.txt")
    method.SetMovingJudgePointSetFileName("moving_judges.txt")
    with pytest.raises(Reached):
        method.Update()
    assert given["fixed_guides"] is guides[0]
    assert given["moving_guides"] is guides[1]
    assert given["fixed_judge_landmarks"] == "judges.txt"
    assert given["moving_judge_landmarks"] == "moving_judges.txt"
