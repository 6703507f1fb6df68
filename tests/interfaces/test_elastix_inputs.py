"""Points that guide elastix, and several images at once: as elastix's library and program have them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import command
import itk
import numpy as np
import pytest
import SimpleITK as sitk
from elastix_cases import QUICK, numbers_of, parameter_object, run_library, several_metrics, texture
from listening import Heard

from regnet_itk import register, registration_method
from regnet_itk.cli.shim import stand_in
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import as_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.errors import ParameterError
from regnet_itk.interfaces.itk_elastix import RegNetRegistrationMethod
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import Stage, StageResult
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain

POINTS_METRIC = "CorrespondingPointsEuclideanDistanceMetric"
GUIDED = several_metrics(
    "AdvancedMeanSquares", POINTS_METRIC, Metric0Weight=0.0, Metric1Weight=1.0, MaximumNumberOfIterations=60
)
TWO = several_metrics("AdvancedMeanSquares", "AdvancedNormalizedCorrelation")
SHAPE = (12, 14, 16)
MOVE = np.array([2.0, -1.0, 1.5])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Images on one turned grid; points that say another displacement than the images; points as voxel indices."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, seed, shift in (("f0", 0, 0), ("m0", 0, 1), ("f1", 1, 0), ("m1", 1, 1)):
        sitk.WriteImage(texture(SHAPE, seed, shift), str(folder / f"{name}.mha"))
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:-2, 2:-2, 2:-2] = 1
    region = sitk.GetImageFromArray(mask)
    region.CopyInformation(sitk.ReadImage(str(folder / "f0.mha")))
    sitk.WriteImage(region, str(folder / "k0.mha"))
    grid = as_image(sitk.ReadImage(str(folder / "f0.mha"))).grid
    index = np.random.default_rng(0).integers(4, 9, (12, 3))
    points = grid.index_to_point(index)
    rows = "\n".join(" ".join(map(str, row)) for row in index.tolist())
    (folder / "index.txt").write_text(f"index\n12\n{rows}\n")
    write_landmarks(Landmarks(points), folder / "fp.txt")
    write_landmarks(Landmarks(points + MOVE), folder / "mp.txt")
    write_landmarks(Landmarks(points), folder / "fp.fcsv")
    (folder / "guided.txt").write_text(GUIDED.to_text())
    (folder / "two.txt").write_text(TWO.to_text())
    return folder


@pytest.fixture
def here(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    return inputs


@pytest.mark.parametrize("fixed_points", ["fp.txt", "index.txt"])
def test_points_guide_elastix_as_they_guide_the_library(fixed_points, here, tmp_path):
    maps = [GUIDED, GUIDED.with_(Transform="AffineTransform", MaximumNumberOfIterations=10)]
    files = {"SetFixedPointSetFileName": fixed_points, "SetMovingPointSetFileName": "mp.txt"}
    expected, theirs = run_library("f0.mha", "m0.mha", maps, tmp_path / "theirs", **files)
    image, found = registration_method(
        itk.imread("f0.mha", itk.F), itk.imread("m0.mha", itk.F), parameter_object=parameter_object(*maps),
        fixed_point_set_file_name=fixed_points, moving_point_set_file_name="mp.txt",
    )  # fmt: skip
    ours, wanted = ([[float(v) for v in values] for values in numbers_of(o)] for o in (found, theirs))
    assert ours == wanted
    assert np.linalg.norm(np.array(ours[0]) - MOVE) < 0.3
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_the_command_and_the_stand_in_are_guided_as_the_program(here, tmp_path):
    words = ["-f", "f0.mha", "-m", "m0.mha", "-fp", "fp.txt", "-mp", "mp.txt", "-p", "guided.txt", "-threads", "1"]
    assert command.call("run", *words, "-out", tmp_path / "run") == 0
    assert stand_in(["elastix", *words, "-out", str(tmp_path / "standin")]) == 0
    found = {name: read_chain(tmp_path / name / "TransformParameters.0.txt") for name in ("run", "standin")}
    moved = [chain.as_matrix().translation for chain in found.values()]
    np.testing.assert_array_equal(*moved)
    assert np.linalg.norm(moved[0] - MOVE) < 0.3
    if shutil.which("elastix"):
        (tmp_path / "theirs").mkdir()
        subprocess.run(["elastix", *words, "-out", str(tmp_path / "theirs")], check=True, capture_output=True)
        theirs = read_chain(tmp_path / "theirs" / "TransformParameters.0.txt").as_matrix().translation
        np.testing.assert_allclose(moved[0], theirs, atol=1e-5)


@pytest.mark.parametrize("start", ["matrix", "field", "matrix and field", "added"])
def test_points_guide_a_stage_after_every_kind_of_transform(start, here):
    grid = as_image(sitk.ReadImage("f0.mha")).grid
    field = np.broadcast_to(np.array([0.8, 0.0, -0.5]), (*grid.shape, 3)).copy()
    chain = TransformChain()
    if "matrix" in start or start == "added":
        linear = QUICK.with_(Transform="AffineTransform", MaximumNumberOfIterations=3)
        chain = register("f0.mha", "m0.mha", linear).chain
    if "field" in start:
        chain = chain.then(link_field(DisplacementField(field, grid)))
    how = "Add" if start == "added" else "Compose"
    result = register(
        "f0.mha", "m0.mha", GUIDED.with_(HowToCombineTransforms=how), initial=chain,
        fixed_landmarks="fp.fcsv", moving_landmarks="mp.txt",
    )  # fmt: skip
    assert result.initial_tre.mean > 1
    assert result.stages[0].tre.mean < 0.35


def test_both_ways_swap_the_points(here):
    result = register(
        "f0.mha", "m0.mha", GUIDED, fixed_landmarks="fp.txt", moving_landmarks="mp.txt", both_ways=True
    )  # fmt: skip
    np.testing.assert_allclose(result.backward.chain.as_matrix().translation, -MOVE, atol=0.3)


def test_a_metric_of_points_without_points_is_told_before_anything_runs(here, capsys):
    line = ["run", "-f", "f0.mha", "-m", "m0.mha", "-p", "guided.txt", "-out", "none"]
    assert command.call(*line) == 1
    assert f"guided.txt: its metric {POINTS_METRIC} needs landmarks; give -fp and -mp" in capsys.readouterr().err
    assert not Path("none").exists()
    with pytest.raises(ParameterError, match="`fixed_landmarks` and `moving_landmarks`"):
        register("f0.mha", "m0.mha", GUIDED)


# Several images


def test_several_images_are_registered_as_the_library_does(here, tmp_path):
    maps = [TWO, TWO.with_(Transform="EulerTransform")]
    names = (["f0.mha", "f1.mha"], ["m0.mha", "m1.mha"])
    mask = itk.imread("k0.mha", itk.UC)
    expected, theirs = run_library(*names, maps, tmp_path / "theirs", AddFixedMask=mask)
    fixed, moving = ([itk.imread(name, itk.F) for name in side] for side in names)
    image, found = registration_method(fixed, moving, parameter_object=parameter_object(*maps), fixed_mask=mask)
    assert [list(map(float, v)) for v in numbers_of(found)] == [list(map(float, v)) for v in numbers_of(theirs)]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    alone = register(*[side[0] for side in names], QUICK).chain.as_matrix().translation
    assert np.abs(alone - np.array(numbers_of(found)[0], dtype=float)).max() > 1e-3  # the second pair counts


def test_numbered_flags_are_taken_in_any_order(here, tmp_path, capsys):
    images = "-f1 f1.mha -f0 f0.mha -m m0.mha -m1 m1.mha -fMask0 k0.mha -fMask1 k0.mha"
    words = [*images.split(), "-p", "two.txt"]
    assert command.call("run", *words, "-out", tmp_path / "run") == 0
    assert stand_in(["elastix", *words, "-out", str(tmp_path / "standin")]) == 0
    expected = register(
        ["f0.mha", "f1.mha"], ["m0.mha", "m1.mha"], "two.txt", fixed_mask=["k0.mha", "k0.mha"]
    )  # fmt: skip
    for name in ("run", "standin"):
        found = read_chain(tmp_path / name / "TransformParameters.0.txt").as_matrix()
        np.testing.assert_array_equal(found.translation, expected.chain.as_matrix().translation)
    assert set(expected.inputs) == {"fixed", "fixed_1", "moving", "moving_1", "fixed_mask", "fixed_mask_1"}
    capsys.readouterr()
    for wrong, message in {
        "-f f0.mha -f2 f1.mha -m m0.mha": '"-f2" is given, and "-f1" is missing',
        "-f f0.mha -f0 f1.mha -m m0.mha": '"-f" is given twice',
    }.items():
        assert command.call("run", *wrong.split(), "-out", tmp_path / "wrong") == 2
        assert message in capsys.readouterr().err
        assert stand_in(["elastix", *wrong.split(), "-p", "two.txt", "-out", str(tmp_path / "wrong")]) == 1
        assert message in capsys.readouterr().out


def test_a_stage_that_takes_one_pair_says_so(here):
    class Still(Stage):
        def run(self, pair, initial, options):
            return StageResult(initial, 0.0, None)

    for several, told in ((["m0.mha", "m1.mha"], 1), ("m0.mha", 0)):
        heard = Heard()
        register(["f0.mha"], several, [Still(ParameterMap({}))], events=heard)
        assert sum("uses the first fixed and the first moving image only" in line for line in heard.lines) == told


def test_the_setters_of_several_images(here):
    method = RegNetRegistrationMethod.New()
    for name in ("f0", "f1"):
        method.AddFixedImage(name)
        method.AddMovingMask(name)
    assert (method.GetNumberOfFixedImages(), method.GetNumberOfMovingMasks(), method.GetNumberOfFixedMasks()) == (
        2,
        2,
        0,
    )
    assert (method.GetFixedImage(), method.GetFixedImage(1), method.GetFixedImage(2)) == ("f0", "f1", None)
    method.SetFixedImage("f2")
    assert method.GetNumberOfFixedImages() == 1
    method.SetFixedPointSetFileName("fp.txt")
    assert (method.GetFixedPointSetFileName(), method.GetMovingPointSetFileName()) == ("fp.txt", "")
