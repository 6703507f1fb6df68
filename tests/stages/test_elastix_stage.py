"""The elastix stage against elastix's own library and program, on two small textures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from listening import Heard
from scipy import ndimage

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.elastix import jobs as module
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.events import Events
from regnet_itk.parameters import (
    parse_parameter_text,
    read_parameter_map,
    shipped_parameter_files,
)
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.registry import check_parameter_map
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.matrix import MatrixTransform

AFFINE = parse_parameter_text(
    """
    (Registration "MultiResolutionRegistration")
    (FixedImagePyramid "FixedRecursiveImagePyramid")
    (MovingImagePyramid "MovingRecursiveImagePyramid")
    (Interpolator "BSplineInterpolator")
    (ResampleInterpolator "FinalBSplineInterpolator")
    (Resampler "DefaultResampler")
    (Metric "AdvancedNormalizedCorrelation")
    (Optimizer "AdaptiveStochasticGradientDescent")
    (Transform "AffineTransform")
    (ImageSampler "RandomCoordinate")
    (NumberOfSpatialSamples 1500)
    (NewSamplesEveryIteration "true")
    (NumberOfResolutions 2)
    (MaximumNumberOfIterations 40)
    (AutomaticScalesEstimation "true")
    (RandomSeed 121212)
    (ResultImageFormat "mha")
    (ResultImagePixelType "float")
    """,
    "affine.txt",
)
BSPLINE = replace(
    AFFINE.with_(Transform="BSplineTransform", FinalGridSpacingInPhysicalUnits=15).without("AutomaticScalesEstimation"),
    source="bspline.txt",
)
FROM_NOTHING = ("affine", "affine_paper", "affine_mi", "rigid")
SHIPPED = (*FROM_NOTHING, "bspline_1r", "bspline_3r", "bspline_refine", "bspline_mi")
START = TransformChain()


def smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return values / values.std()


def turned_grid(size: tuple[int, int, int], spacing: tuple[float, float, float], angles: tuple[float, ...]) -> Grid:
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*angles)
    matrix = np.reshape(turn.GetMatrix(), (3, 3))
    origin = -matrix @ (np.array(spacing) * (np.array(size) - 1) / 2)
    return Grid(size, spacing, tuple(origin), tuple(map(tuple, matrix)))


@pytest.fixture(scope="module")
def pair() -> ImagePair:
    """Two textures on rotated anisotropic grids, a few mm apart."""
    rng = np.random.default_rng(0)
    space = Grid((60, 60, 60), (2, 2, 2), (-59, -59, -59))
    texture = 200 * (smooth(rng, space.shape, 3) + smooth(rng, space.shape, 6))
    source = Image(texture.astype(np.float32), space)
    fixed = turned_grid((36, 38, 28), (2.0, 1.9, 2.5), (0.1, 0.2, 0.05))
    moving = turned_grid((38, 36, 34), (1.9, 2.1, 2.2), (-0.1, 0.05, 0.15))
    field = DisplacementField(np.stack([1.2 * smooth(rng, space.shape, 8) for _ in range(3)], axis=-1), space)
    matrix = MatrixTransform(np.eye(3) + 0.03 * rng.standard_normal((3, 3)), translation=np.array([1.5, -2.0, 1.0]))
    truth = sitk.CompositeTransform([field.to_sitk_transform(), matrix.to_sitk_transform()])
    return ImagePair(source.resampled(fixed, order=3), source.resampled(moving, truth, order=3))


@pytest.fixture(scope="module")
def affine(pair: ImagePair):
    return ElastixStage(AFFINE).run(pair, START, RunOptions())


def correlation(a: Image, b: Image, margin: int = 4) -> float:
    inner = (slice(margin, -margin),) * 3
    return float(np.corrcoef(a.array[inner].ravel(), b.array[inner].ravel())[0, 1])


def assert_warped_by_its_chain(result, pair: ImagePair) -> None:
    """elastix's own result image is the moving image under the chain that we return."""
    grid = pair.fixed.grid
    ours = pair.moving.resampled(grid, result.chain.to_sitk(grid), order=3)
    inner = ndimage.binary_erosion((ours.array != 0) & (result.warped.array != 0), iterations=2)
    assert inner.mean() > 0.3
    assert np.abs(ours.array - result.warped.array)[inner].max() < 0.5  # of a texture that reaches from -1000 to 1000


# The same result as elastix alone


def test_stage_by_stage_equals_one_call_of_the_library_to_the_bit(pair, affine, tmp_path):
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        sitk.WriteImage(image.to_sitk(), str(tmp_path / f"{name}.mha"))
    (tmp_path / "a.txt").write_text(AFFINE.to_text())
    (tmp_path / "b.txt").write_text(BSPLINE.to_text())
    script = """
        import itk
        parameters = itk.ParameterObject.New()
        for file in ("a.txt", "b.txt"):
            parameters.AddParameterFile(file)
        fixed, moving = itk.imread("fixed.mha", itk.F), itk.imread("moving.mha", itk.F)
        image, _ = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, output_directory=".")
        itk.imwrite(image, "both.mha")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, check=True, capture_output=True)
    expected = read_chain(tmp_path / "TransformParameters.1.txt")
    second = ElastixStage(BSPLINE).run(pair, affine.chain, RunOptions())
    assert len(second.chain.links) == 2
    (tmp_path / "ours").mkdir()
    write_elastix(second.chain, tmp_path / "ours")
    for name in ("TransformParameters.0.txt", "TransformParameters.1.txt"):
        ours, theirs = (read_parameter_map(folder / name) for folder in (tmp_path / "ours", tmp_path))
        assert ours.get_floats("TransformParameters") == theirs.get_floats("TransformParameters")
    assert second.chain.links[0] is affine.chain.links[0]
    np.testing.assert_array_equal(second.chain.links[0].transform.matrix, expected.links[0].transform.matrix)
    np.testing.assert_array_equal(
        second.chain.links[1].transform.coefficients, expected.links[1].transform.coefficients
    )
    np.testing.assert_array_equal(second.warped.array, read_image(tmp_path / "both.mha").array)
    assert correlation(second.warped, pair.fixed) > correlation(affine.warped, pair.fixed) > 0.98
    assert_warped_by_its_chain(second, pair)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_run_without_complaint(name, pair, affine):
    parameters = read_parameter_map(name)
    assert check_parameter_map(parameters) == []
    everywhere = Image(np.ones(pair.fixed.grid.shape, np.uint8), pair.fixed.grid)
    heard = Heard()
    ElastixStage(parameters.with_(MaximumNumberOfIterations=2)).run(
        replace(pair, fixed_mask=everywhere), START if name in FROM_NOTHING else affine.chain, RunOptions(events=heard)
    )
    assert [line for line in heard.lines if "unused parameter" in line.lower()] == []
    assert shipped_parameter_files()[name].read_text(encoding="utf-8").startswith("//")


@pytest.mark.skipif(shutil.which("elastix") is None, reason="the program elastix is not installed")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_run_in_the_program(name, pair, tmp_path):
    for file, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        sitk.WriteImage(image.to_sitk(), str(tmp_path / f"{file}.mha"))
    sitk.WriteImage(Image(np.ones(pair.fixed.grid.shape, np.uint8), pair.fixed.grid).to_sitk(), f"{tmp_path}/mask.mha")
    text = shipped_parameter_files()[name].read_text(encoding="utf-8")
    iterations, types = (read_parameter_map(name)[key] for key in ("MaximumNumberOfIterations", "ResultImagePixelType"))
    (tmp_path / "p.txt").write_text(
        text.replace(f"(MaximumNumberOfIterations {iterations[0]})", "(MaximumNumberOfIterations 2)")
    )
    command = ["elastix", "-f", "fixed.mha", "-m", "moving.mha", "-fMask", "mask.mha", "-p", "p.txt", "-out", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "unused parameter" not in done.stdout.lower()
    assert read_image(tmp_path / "result.0.mha").array.dtype == (np.float32 if "float" in types else np.int16)


# Chains


def test_starts_from_a_displacement_field_and_keeps_it_as_it_is(pair, affine):
    rng = np.random.default_rng(1)
    coarse = pair.fixed.grid.every(2)
    field = DisplacementField(np.stack([0.8 * smooth(rng, coarse.shape, 3) for _ in range(3)], -1), coarse)
    initial = affine.chain.then(link_field(field))
    result = ElastixStage(BSPLINE).run(pair, initial, RunOptions())
    assert [link.combine for link in result.chain.links] == ["compose", "innermost", "compose"]
    assert result.chain.links[1] is initial.links[1]
    before = pair.moving.resampled(pair.fixed.grid, initial.to_sitk(), order=3)
    assert correlation(result.warped, pair.fixed) > max(0.97, correlation(before, pair.fixed))
    assert_warped_by_its_chain(result, pair)


def test_the_map_says_how_the_transform_is_combined(pair, affine):
    adding = BSPLINE.with_(HowToCombineTransforms="Add", MaximumNumberOfIterations=10)
    result = ElastixStage(adding).run(pair, affine.chain, RunOptions())
    assert result.chain.links[1].combine == "add"
    assert_warped_by_its_chain(result, pair)


def test_the_link_says_how_to_resample(pair):
    wanted = AFFINE.with_(
        MaximumNumberOfIterations=1, NumberOfResolutions=1, DefaultPixelValue=-77.5, ResultImageFormat="nii.gz",
        ResultImagePixelType="short", CompressResultImage=True,
    )  # fmt: skip
    result = ElastixStage(wanted).run(pair, START, RunOptions())
    kept = result.chain.links[0].parameters
    assert kept.get_float("DefaultPixelValue") == -77.5
    assert (kept.get_str("ResultImageFormat"), kept.get_str("ResultImagePixelType")) == ("nii.gz", "short")
    assert kept.get_bool("CompressResultImage")
    assert kept.get_ints("Size") == list(pair.fixed.grid.size)
    assert result.warped.array.dtype == np.int16
    assert (result.warped.array == -77).any()


# Masks, seeds, threads


def test_masks_keep_out_what_they_exclude(pair, affine):
    spoilt = pair.fixed.array.copy()
    spoilt[:, :, 20:] = np.random.default_rng(2).normal(0, 800, spoilt[:, :, 20:].shape)
    mask = np.zeros(pair.fixed.grid.shape, bool)
    mask[:, :, :20] = True
    spoilt_pair = replace(pair, fixed=Image(spoilt, pair.fixed.grid))
    everywhere = Image(np.ones(pair.moving.grid.shape, np.uint8), pair.moving.grid)
    masked = replace(spoilt_pair, fixed_mask=Image(mask, pair.fixed.grid), moving_mask=everywhere)
    points = pair.fixed.grid.points()[4:-4, 4:-4, 4:16].reshape(-1, 3)
    wanted = affine.chain.map_points(points)

    def error(case: ImagePair) -> float:
        chain = ElastixStage(AFFINE).run(case, START, RunOptions()).chain
        return float(np.linalg.norm(chain.map_points(points) - wanted, axis=1).mean())

    assert error(masked) < 0.5 * error(spoilt_pair)
    assert error(masked) < 0.8


def test_the_seed_takes_the_place_of_the_maps(pair, affine):
    again, other = (ElastixStage(AFFINE).run(pair, START, RunOptions(seed=seed)) for seed in (121212, 7))
    np.testing.assert_array_equal(again.warped.array, affine.warped.array)
    assert np.abs(other.warped.array - affine.warped.array).max() > 0
    assert other.details["random_seed"] == 7
    assert AFFINE.get_int("RandomSeed") == 121212


def test_threads_and_priority_leave_the_result_alone(pair, affine):
    result = ElastixStage(AFFINE).run(pair, START, RunOptions(threads=1, priority="belownormal"))
    np.testing.assert_allclose(result.warped.array, affine.warped.array, atol=1.0)


# Progress and other reports


def test_progress_rises_from_0_to_1(pair):
    heard = Heard()
    parameters = BSPLINE.with_(MaximumNumberOfIterations=[100, 900], WriteIterationInfo=False)
    result = ElastixStage(parameters).run(pair, START, RunOptions(events=heard))
    shares = [now.fraction for now in heard.progresses]
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert shares == sorted(shares)
    assert sum(0 < share < 0.97 for share in shares) >= 3
    assert any("resolution 2 of 2" in text for text in (now.text for now in heard.progresses))
    assert sum(line.split("\t")[0].isdigit() for line in heard.lines) == 1000
    assert result.iteration_info == {}
    assert result.details["elastix"].startswith("5.")


def test_iteration_tables_and_details(affine):
    assert sorted(affine.iteration_info) == ["R0", "R1"]
    assert affine.iteration_info["R1"].count("\n") >= 40
    assert -1 <= affine.details["final_metric"] < -0.8
    assert affine.details["resolutions"] == 2
    assert affine.seconds > 0


def test_nothing_is_left_behind(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stage = ElastixStage(AFFINE.with_(MaximumNumberOfIterations=1, WriteResultImage=False))
    assert stage.run(pair, START, RunOptions()).warped is None
    assert list(tmp_path.iterdir()) == []


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"Metric": "AdvancedNormalisedCorrelation"},
            "affine.txt: .*'AdvancedNormalisedCorrelation'; did you mean 'Adv",
        ),
        ({"Transform": "AffinTransform"}, "no component 'AffinTransform'; did you mean 'AffineTransform'"),
        (
            {"Transform": "SplineKernelTransform"},
            "SplineKernelTransform only among elastix.s stages alone; use one of .*BSpline",
        ),
        ({"ResultImagePixelType": "shorts"}, "no ResultImagePixelType 'shorts'; did you mean 'short'"),
        ({"NumberOfResolutions": "two"}, "'NumberOfResolutions' must be a whole number, not 'two'"),
    ],
)
def test_maps_that_ask_for_what_does_not_exist(change, message, pair):
    with pytest.raises(ParameterError, match=message):
        ElastixStage(AFFINE.with_(change)).run(pair, START, RunOptions())


@pytest.mark.parametrize("key", ["Transform", "Metric"])
def test_a_missing_component_is_named(key, pair):
    with pytest.raises(ParameterError, match=f"the key '{key}' is missing"):
        ElastixStage(AFFINE.without(key)).run(pair, START, RunOptions())


def test_a_value_of_the_wrong_kind(pair):
    with pytest.raises(
        RegistrationError, match=r"affine\.txt: elastix failed: .*NumberOfSpatialSamples.*abc"
    ) as caught:
        ElastixStage(AFFINE.with_(NumberOfSpatialSamples="abc")).run(pair, START, RunOptions())
    assert "\n" not in str(caught.value)


def test_images_that_do_not_overlap(pair):
    far = Image(pair.moving.array, replace(pair.moving.grid, origin=(1000.0, 0.0, 0.0)))
    with pytest.raises(RegistrationError, match=r"do not overlap.*AutomaticTransformInitialization") as caught:
        ElastixStage(AFFINE).run(replace(pair, moving=far), START, RunOptions())
    assert "\n" not in str(caught.value)


def test_the_bending_energy_cannot_start_from_a_field(pair):
    field = DisplacementField(np.zeros((*pair.fixed.grid.shape, 3)), pair.fixed.grid)
    bending = BSPLINE.with_(
        Registration="MultiMetricMultiResolutionRegistration",
        Metric=["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"],
        MaximumNumberOfIterations=2,
    )
    with pytest.raises(ParameterError, match=r"remove the metric .* or put the stage before RegNet"):
        ElastixStage(bending).run(pair, START.then(Link(field, "innermost")), RunOptions())
    assert len(ElastixStage(bending).run(pair, START, RunOptions()).chain.links) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "affine.txt: elastix was ended by the signal SIGSEGV",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL; probably memory ran out"),
        ("raise ImportError('no itk here')", "elastix failed: ImportError: no itk here"),
        ("", "without writing a transform"),
    ],
)
def test_a_crash_does_not_take_the_caller_down(script, message, pair, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    monkeypatch.setattr(module, "_WORKER", worker)
    with pytest.raises(RegistrationError, match=message):
        ElastixStage(AFFINE).run(pair, START, RunOptions())


def test_a_temporary_folder_that_does_not_exist(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RegistrationError, match=r"the temporary folder '.*gone' is full or not writable \(No such"):
        ElastixStage(AFFINE).run(pair, START, RunOptions())


def test_an_interrupt_ends_the_child_at_once(pair, monkeypatch):
    children = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            children.append(self)

    class Interrupts(Events):
        def progress(self, now):
            if now.fraction > 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(KeyboardInterrupt):
        endless = ElastixStage(BSPLINE.with_(MaximumNumberOfIterations=100_000))
        endless.run(pair, START, RunOptions(events=Interrupts()))
    assert [child.returncode for child in children] == [-signal.SIGKILL]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_child_ends_with_a_caller_that_is_killed(pair, tmp_path):
    for name, image in (("fixed", pair.fixed), ("moving", pair.moving)):
        sitk.WriteImage(image.to_sitk(), str(tmp_path / f"{name}.mha"))
    (tmp_path / "p.txt").write_text(BSPLINE.with_(MaximumNumberOfIterations=100_000).to_text())
    script = """
        from regnet_itk.data.image_files import read_image
        from regnet_itk.events import Events
        from regnet_itk.parameters import read_parameter_map
        from regnet_itk.stages.base import ImagePair, RunOptions
        from regnet_itk.stages.elastix import ElastixStage
        from regnet_itk.transforms.chain import TransformChain
        pair = ImagePair(read_image("fixed.mha"), read_image("moving.mha"))

        class Printed(Events):
            def progress(self, now):
                if now.fraction > 0:
                    print(now.fraction, flush=True)

        ElastixStage(read_parameter_map("p.txt")).run(pair, TransformChain(), RunOptions(events=Printed()))
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert caller.stdout.readline()
        (child,) = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text(encoding="utf-8").split()
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(child)


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_all_of_itk_is_loaded_where_the_short_way_fails(pair, affine, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    source = module._WORKER.read_text(encoding="utf-8")
    worker.write_text(source.replace('"itk.support.helpers"', '"itk.no_such_module"'))
    assert worker.read_text(encoding="utf-8") != source
    monkeypatch.setattr(module, "_WORKER", worker)
    np.testing.assert_array_equal(ElastixStage(AFFINE).run(pair, START, RunOptions()).warped.array, affine.warped.array)
