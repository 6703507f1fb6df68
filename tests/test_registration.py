"""`regnet_itk.register`: what it takes, what it returns, and what it refuses before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from listening import Heard

import regnet_itk
from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import ImageError, ModelError, OutputError, ParameterError, PointsError, TransformError
from regnet_itk.networks.model import shipped_models
from regnet_itk.parameters import read_parameter_map
from regnet_itk.registration import register
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling import resample_through

AFFINE = read_parameter_map("affine").with_(
    NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=60
)
REGNET = read_parameter_map("regnet_multistage")
SHIFT = TransformChain((Link(MatrixTransform(np.eye(3), translation=np.array([1.0, -2.0, 3.0]))),))


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing=(3.9, 3.6, 4.4), extent=(180.0, 150.0, 140.0))


@pytest.fixture(scope="module")
def files(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(phantom, folder)
    return folder


@pytest.fixture(scope="module")
def result(phantom):
    return register(
        phantom.fixed, phantom.moving, [AFFINE, REGNET], fixed_mask=phantom.fixed_mask,
        fixed_landmarks=phantom.fixed_landmarks, moving_landmarks=phantom.moving_landmarks,
    )  # fmt: skip


@pytest.fixture
def elastix_forbidden(monkeypatch):
    """Whatever is refused must be refused before elastix starts."""

    def run(*_):
        raise AssertionError("elastix was started")

    monkeypatch.setattr(ElastixStage, "run", run)


# What it returns


def test_the_default_chain_registers_a_breath(result, phantom):
    before, after_affine, after = result.initial_tre.mean, result.stages[0].tre.mean, result.stages[1].tre.mean
    assert before > after_affine > after
    assert after < 0.4 * before


def test_the_result_holds_together(result, phantom):
    grid = phantom.fixed.grid
    points = grid.points()
    assert [report.name for report in result.stages] == ["AffineTransform", "RegNet regnet_multistage"]
    assert [report.links for report in result.stages] == [1, 2]
    assert result.displacement.grid == grid
    np.testing.assert_allclose(result.displacement.vectors, result.chain.map_points(points) - points, atol=1e-4)
    assert result.warped.grid == grid
    assert result.warped.array.dtype == np.int16
    ours = phantom.moving.resampled(grid, result.chain.to_sitk(grid), order=3, default=-1000.0)
    assert np.abs(result.warped.array - ours.array).max() <= 1.0
    inside = phantom.fixed_mask.array > 0
    correlations = [
        np.corrcoef(phantom.fixed.array[inside], image.array[inside])[0, 1]
        for image in (phantom.moving.resampled(grid), result.stages[0].warped, result.warped)
    ]
    assert correlations == sorted(correlations)
    errors = result.chain.map_points(phantom.fixed_landmarks) - phantom.moving_landmarks
    assert result.stages[1].tre.mean == pytest.approx(np.linalg.norm(errors, axis=1).mean(), abs=1e-9)
    first = TransformChain(result.chain.links[:1])
    errors = first.map_points(phantom.fixed_landmarks) - phantom.moving_landmarks
    assert result.stages[0].tre.mean == pytest.approx(np.linalg.norm(errors, axis=1).mean(), abs=1e-9)


def test_folding_is_the_share_of_voxels_that_fold(result, phantom):
    assert result.folding < 0.01
    size = phantom.fixed.grid.size
    vectors = np.zeros((*phantom.fixed.grid.shape, 3), np.float32)
    folded = np.zeros(phantom.fixed.grid.shape, bool)
    folded[:, :, : size[0] // 4] = True
    along_x = phantom.fixed.grid.direction_matrix[:, 0]
    slope = -1.5 * phantom.fixed.grid.spacing[0] * np.minimum(np.arange(size[0]), size[0] // 4)
    vectors += (slope[:, None] * along_x).astype(np.float32)
    chain = TransformChain((Link(regnet_itk.DisplacementField(vectors, phantom.fixed.grid), "innermost"),))
    whole = replace(result, pair=replace(result.pair, fixed_mask=None), chain=chain)
    assert whole.folding == pytest.approx(folded.mean(), abs=0.03)
    masked = replace(whole, pair=replace(whole.pair, fixed_mask=Image(~folded, phantom.fixed.grid)))
    assert masked.folding < 0.03


def test_without_a_result_image_the_warped_image_is_made_when_asked_for(phantom):
    silent = REGNET.with_(WriteResultImage=False, DefaultPixelValue=-77)
    result = register(phantom.fixed, phantom.moving, silent)
    assert result.stages[0].warped is None
    assert result.warped.array.min() <= -77
    assert result.warped.grid == phantom.fixed.grid


def test_the_affine_stages_image_is_made_once_and_when_it_is_asked_for(phantom, monkeypatch):
    made = []

    def resample(*given, **named):
        made.append(resample_through(*given, **named))
        return made[-1]

    monkeypatch.setattr("regnet_itk.stages.guarded_run.resample_through", resample)
    result = register(phantom.fixed, phantom.moving, "affine")
    assert not made
    assert result.stages[0].warped is result.stages[0].warped
    assert len(made) == 1


def test_progress_and_log(phantom):
    heard = Heard()
    register(phantom.fixed, phantom.moving, [AFFINE, REGNET], events=heard)
    assert heard.reports == [(0, "AffineTransform"), (1, "RegNet regnet_multistage")]
    whole = [now.number + now.fraction for now in heard.progresses]
    assert whole == sorted(whole)
    assert {0.0, 1.0, 2.0} <= set(whole)
    assert {now.name for now in heard.progresses} == {"AffineTransform", "RegNet regnet_multistage"}
    assert any(line.startswith("stage 1: RegNet") for line in heard.lines)


# What it takes


def test_images_of_all_kinds_give_the_same_result(phantom, files, result):
    casts = {
        "itk": lambda image: image.to_itk(),
        "SimpleITK": lambda image: image.to_sitk(),
        "numpy with a grid": lambda image: Image(np.asarray(image.array), image.grid),
    }
    fields = [
        register(cast(phantom.fixed), cast(phantom.moving), [REGNET], fixed_mask=cast(phantom.fixed_mask))
        for cast in casts.values()
    ]
    paths = [files / f"{name}.mha" for name in ("fixed", "moving", "fixed_mask")]
    fields.append(register(*paths[:2], "regnet_multistage", fixed_mask=str(paths[2])))
    for other in fields[1:]:
        assert other.pair.fixed.grid.is_close(fields[0].pair.fixed.grid, 1e-6)
        np.testing.assert_allclose(other.displacement.vectors, fields[0].displacement.vectors, atol=1e-3)
        np.testing.assert_allclose(other.warped.array, fields[0].warped.array, atol=1.0)


@pytest.mark.parametrize("pixel_type", [np.uint8, np.uint16, np.float32, np.float64, np.dtype(">i2"), np.int64])
def test_any_pixel_type_is_registered(pixel_type, phantom):
    brighter = 100 if np.dtype(pixel_type).kind == "u" else 0
    images = [
        Image(np.clip(image.array / 16 + brighter, 0 if brighter else -1e4, 255).astype(pixel_type), image.grid)
        for image in (phantom.fixed, phantom.moving)
    ]
    result = register(*images, [AFFINE.with_(MaximumNumberOfIterations=30)], fixed_landmarks=phantom.fixed_landmarks,
        moving_landmarks=phantom.moving_landmarks)  # fmt: skip
    assert result.stages[0].tre.mean < 0.8 * result.initial_tre.mean


def test_where_to_start(phantom, tmp_path):
    chain = register(phantom.fixed, phantom.moving, REGNET, initial=SHIFT).chain
    assert chain.links[0] is SHIFT.links[0]
    (tmp_path / "elastix").mkdir()
    paths = [*write_elastix(SHIFT, tmp_path / "elastix"), tmp_path / "shift.h5"]
    write_itk(SHIFT, paths[1])
    points = phantom.fixed_landmarks
    for path in paths:
        other = register(phantom.fixed, phantom.moving, REGNET, initial=path)
        assert other.initial_links == 1
        np.testing.assert_allclose(other.chain.map_points(points), chain.map_points(points), atol=1e-2)


def test_landmarks_from_files_arrays_and_lists(phantom, files, result):
    for given in (
        (files / "fixed_points.txt", str(files / "moving_points.txt")),
        (phantom.fixed_landmarks.tolist(), regnet_itk.Landmarks(phantom.moving_landmarks)),
    ):
        other = register(
            phantom.fixed, phantom.moving, REGNET.with_(WriteResultImage=False), fixed_landmarks=given[0],
            moving_landmarks=given[1],
        )  # fmt: skip
        assert other.initial_tre.mean == pytest.approx(result.initial_tre.mean)


def test_the_seed_and_the_settings_are_recorded(phantom):
    short = AFFINE.with_(MaximumNumberOfIterations=5)
    first, again, other = (register(phantom.fixed, phantom.moving, short, seed=s, threads=1) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.warped.array, again.warped.array)
    assert np.abs(first.displacement.vectors - other.displacement.vectors).max() > 0
    summary = first.summary()
    assert summary["settings"] == {"threads": 1, "seed": 3, "device": "auto", "priority": None}
    assert summary["stages"][0]["random_seed"] == 3
    json.dumps(summary)


# What it writes


def test_what_is_written(result, tmp_path):
    result.write(tmp_path / "out", ["a line", "another"])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "TransformParameters.0.txt", "TransformParameters.1.txt", "TransformParameters.1-Composite.h5",
        "deformationField.1.mha", "result.0.mha", "result.1.mha", "IterationInfo.0.R0.txt", "IterationInfo.0.R1.txt",
        "registration.json", "registration.png", "regnet-itk.log", "errorMap.1.mha",
    }  # fmt: skip
    summary = json.loads((tmp_path / "out" / "registration.json").read_text(encoding="utf-8"))
    assert summary["stages"][1]["model_sha256"] == result.stages[1].details["model_sha256"]
    assert summary["stages"][1]["landmarks"]["mean"] == result.stages[1].tre.mean
    assert summary["folding"]["share_det_jacobian_not_positive"] == result.folding
    assert {"python", "itk-elastix", "torch", "regnet-itk"} <= set(summary["versions"])
    assert (tmp_path / "out" / "regnet-itk.log").read_text(encoding="utf-8") == "a line\nanother\n"
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "result.1.mha").array, result.warped.array)
    points = result.landmarks
    for number in (0, 1):
        chain = read_chain(tmp_path / "out" / f"TransformParameters.{number}.txt")
        expected = TransformChain(result.chain.links[: number + 1]).map_points(points)
        np.testing.assert_allclose(chain.map_points(points), expected, atol=1e-4)


def test_a_disk_that_fills_up_leaves_nothing(result, tmp_path, monkeypatch):
    written = []

    def write(image, path, **_):
        written.append(path)
        raise RuntimeError("sitk::ERROR: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", write)
    with pytest.raises(OutputError, match=r"cannot write '.*/out/deformationField\.1\.mha': .*No space left") as caught:
        result.write(tmp_path / "new" / "out")
    assert ".part-" not in str(caught.value)
    assert written
    assert list(tmp_path.iterdir()) == []


# What it refuses, before elastix runs


def refuse(error, message, phantom, stages=(AFFINE,), fixed=None, moving=None, **more):
    with pytest.raises(error, match=message) as caught:
        register(
            phantom.fixed if fixed is None else fixed, phantom.moving if moving is None else moving, stages, **more
        )
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("elastix_forbidden")
class TestRefusals:
    def test_images(self, phantom, tmp_path):
        grid = phantom.fixed.grid
        changed = phantom.fixed.array.astype(np.float32)
        changed[3, 4, 5] = np.nan
        for array, message in (
            (changed, "fixed image has 1 voxels that are NaN"),
            (np.full(grid.shape, 7), r"fixed image is constant \(every voxel is 7\)"),
            (phantom.fixed.array.astype(complex), "values of the type complex128"),
        ):
            refuse(ImageError, message, phantom, fixed=Image(array, grid))
        thin = Image(phantom.fixed.array[:2], Grid((*grid.size[:2], 2), grid.spacing, grid.origin, grid.direction))
        refuse(ImageError, r"fixed image has too few voxels \(2 along z\)", phantom, fixed=thin)
        refuse(ImageError, "moving image: .*needs its grid", phantom, moving=phantom.moving.array)
        refuse(ImageError, "moving image: .*not dict", phantom, moving={})
        refuse(ImageError, "2 dimensions", phantom, moving=sitk.Image([8, 8], sitk.sitkInt16))
        refuse(ImageError, "3 components", phantom, moving=sitk.Image([8, 8, 8], sitk.sitkVectorFloat32, 3))
        refuse(ImageError, "does not exist", phantom, moving=tmp_path / "none.mha")

    def test_masks(self, phantom):
        empty = Image(np.zeros(phantom.fixed.grid.shape, np.uint8), phantom.fixed.grid)
        refuse(ImageError, "fixed mask is empty", phantom, fixed_mask=empty)
        refuse(ImageError, "moving mask lies on another grid", phantom, moving_mask=phantom.fixed_mask)

    def test_stages(self, phantom):
        refuse(ParameterError, "no stage was given", phantom, [])
        refuse(ParameterError, "'afine' does not exist; did you mean 'affine'", phantom, ["afine"])
        refuse(ParameterError, "did you mean 'RegNetModel'", phantom, [AFFINE, REGNET.with_(RegNetModle="x")])
        refuse(ParameterError, "did you mean 'RegNetRegistration'", phantom, [AFFINE.with_(Registration="RegNetReg")])
        refuse(ModelError, "did you mean 'regnet'", phantom, [AFFINE, REGNET.with_(RegNetModel="regne")])
        refuse(
            ParameterError, "needs `fixed_mask` or `moving_mask`", phantom, [AFFINE, REGNET.with_(RegNetRegion="mask")]
        )
        refuse(
            ParameterError, "bending energy", phantom,
            [REGNET, read_parameter_map("bspline_1r").with_(
                Registration="MultiMetricMultiResolutionRegistration",
                Metric=["AdvancedNormalizedCorrelation", "TransformBendingEnergyPenalty"])],
        )  # fmt: skip

    @pytest.mark.parametrize("stage", [AFFINE, REGNET], ids=["elastix", "RegNet"])
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("ResultImageFormat", "nifti", "no ResultImageFormat 'nifti'"),
            ("ResultImageFormat", "mhaa", "did you mean 'mha'"),
            ("ResultImagePixelType", "shrt", "did you mean 'short'"),
            ("FinalBSplineInterpolationOrder", 7, "between 0 and 5, not 7"),
            ("FinalBSplineInterpolationOrder", 2.5, "must be a whole number"),
            ("DefaultPixelValue", "air", "must be a number"),
            ("WriteResultImage", "yes", 'must be "true" or "false"'),
        ],
    )
    def test_settings_that_would_fail_at_the_end(self, stage, key, value, message, phantom):
        refuse(ParameterError, message, phantom, [AFFINE, stage.with_({key: value})])

    def test_devices(self, phantom):
        for stages in ([AFFINE], [AFFINE, REGNET]):
            refuse(ParameterError, "unknown device 'gpu'; use auto, cpu", phantom, stages, device="gpu")
        refuse(ParameterError, "no CUDA device 'cuda:99' here", phantom, [AFFINE, REGNET], device="cuda:99")

    def test_where_to_start(self, phantom, tmp_path):
        refuse(TransformError, "does not exist", phantom, initial=tmp_path / "none.txt")
        (tmp_path / "cut.txt").write_text('(Transform "AffineTransform")\n(NumberOfParameters 12)\n(TransformPara')
        refuse(TransformError, "may be cut off", phantom, initial=tmp_path / "cut.txt")
        (tmp_path / "bad.h5").write_bytes(b"no HDF5")
        refuse(TransformError, "cannot be read", phantom, initial=tmp_path / "bad.h5")

    def test_landmarks(self, phantom):
        fixed, moving = phantom.fixed_landmarks, phantom.moving_landmarks
        refuse(ParameterError, "both images", phantom, fixed_landmarks=fixed)
        refuse(ParameterError, "both images", phantom, moving_landmarks=moving)
        refuse(PointsError, "one to one", phantom, fixed_landmarks=fixed, moving_landmarks=moving[1:])
        refuse(PointsError, "lie outside", phantom, fixed_landmarks=fixed + 500, moving_landmarks=moving)
        refuse(PointsError, r"shape \(n, 3\)", phantom, fixed_landmarks=fixed[:, :2], moving_landmarks=moving)

    def test_model_files(self, phantom, tmp_path):
        weights = shipped_models()["regnet_multistage"].read_bytes()
        for name, content in (("cut", weights[: len(weights) // 2]), ("text", b"not a model at all")):
            (tmp_path / f"{name}.safetensors").write_bytes(content)
            stage = REGNET.with_(RegNetModel=str(tmp_path / f"{name}.safetensors"))
            refuse(ModelError, "is damaged or not a safetensors file", phantom, [AFFINE, stage])
        (tmp_path / "bit.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        stage = REGNET.with_(RegNetModel=str(tmp_path / "bit.safetensors"))
        refuse(ModelError, "was altered: its weights do not match", phantom, [AFFINE, stage])


def test_what_only_loading_shows_ends_the_stage_before_it(phantom, monkeypatch):
    def load(*_):
        raise ModelError("of another network")

    monkeypatch.setattr(RegNetStage, "load", load)
    heard = Heard()
    with pytest.raises(ModelError, match="of another network"):
        register(phantom.fixed, phantom.moving, [AFFINE, REGNET], events=heard)
    assert not heard.reports


def test_images_that_do_not_overlap(phantom):
    far = Image(phantom.moving.array, replace(phantom.moving.grid, origin=(2000.0, 0.0, 0.0)))
    refuse(ImageError, "do not overlap.*affine stage", phantom, REGNET, moving=far)
