"""The RegNet stage end to end: grids of all kinds, an affine before it, its keys, its regions and its errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from listening import Heard
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid, Triple
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ModelError, ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import ModelDescription, load_model, save_model
from regnet_itk.networks.regnet import RegNet
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.parameters import ParameterMap, parse_parameter_text
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetSettings, RegNetStage
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

OPTIONS = RunOptions(threads=1, device="cpu")
SHIFT = np.array([1.5, -2.5, 3.0])


def direction(*degrees: float) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()))


MOVING_GRID = Grid((70, 64, 56), (2.0, 2.2, 2.4), (-300.0, 40.0, 7.0), direction(10, -20, 40))
MATRIX = MatrixTransform([[1.05, 0.12, -0.05], [-0.1, 0.94, 0.08], [0.06, -0.03, 1.08]], translation=[9.0, -14.0, 20.0])


def stage(source: str = "<memory>", **keys: object) -> RegNetStage:
    values = {"Registration": "RegNetRegistration", "RegNetRegion": "all"} | keys
    return RegNetStage(ParameterMap({key: (str(value),) for key, value in values.items()}, source))


def texture(grid: Grid) -> Image:
    rng = np.random.default_rng(0)
    values = np.zeros(grid.shape)
    for sigma in (1.0, 1.8, 3.0):
        term = ndimage.gaussian_filter(rng.normal(size=grid.shape), sigma, mode="wrap")
        values += term / term.std()
    return Image((-600 + 150 * values).clip(-1000, 400).astype(np.float32), grid)


@dataclasses.dataclass(frozen=True)
class Known:
    """A pair with F(x) = M(A(x + u(x))), resampled by SimpleITK."""

    pair: ImagePair
    initial: TransformChain
    truth: np.ndarray

    def error(self, chain: TransformChain) -> float:
        assert self.pair.fixed_mask is not None
        grid = self.pair.fixed.grid
        points = grid.points()
        differences = chain.displacement_on(grid).vectors + points - self.truth
        return float(np.linalg.norm(differences, axis=-1)[self.pair.fixed_mask.array > 0].mean())


def known(matrix: MatrixTransform | None) -> Known:
    moving = texture(MOVING_GRID)
    before = matrix or MatrixTransform(np.eye(3))
    centre = np.linalg.solve(before.matrix, MOVING_GRID.centre() - before.offset)
    turned = direction(-12, 15, 25)
    fixed = Grid((48, 54, 36), (2.6, 2.1, 3.1), direction=turned)
    fixed = Grid(fixed.size, fixed.spacing, tuple(centre - fixed.centre()), turned)

    def u(points: np.ndarray) -> np.ndarray:
        hill = np.exp(-0.5 * (((points - centre) / [28.0, 26.0, 30.0]) ** 2).sum(axis=-1, keepdims=True))
        return hill * [5.0, -4.0, 6.0] + [2.0, -1.5, 2.0]

    wide = fixed.pad((4, 4, 4), (4, 4, 4))
    both = sitk.CompositeTransform(3)  # applies what was added last first
    both.AddTransform(before.to_sitk_transform())
    both.AddTransform(DisplacementField(u(wide.points()), wide).to_sitk_transform())
    warped = moving.resampled(fixed, both, order=3, default=-1000.0)
    mask = np.zeros(fixed.shape, dtype=np.uint8)
    mask[6:-6, 8:-8, 8:-8] = 1
    points = fixed.points()
    initial = TransformChain((Link(before),)) if matrix else TransformChain()
    return Known(ImagePair(warped, moving, Image(mask, fixed)), initial, before.map_points(points + u(points)))


@pytest.mark.parametrize("matrix", [None, MATRIX], ids=["no initial transform", "affine before"])
def test_a_known_displacement_is_found_on_turned_grids(matrix: MatrixTransform | None) -> None:
    case = known(matrix)
    found = stage(RegNetModel="regnet_multistage", RegNetRegion="auto").run(case.pair, case.initial, OPTIONS)
    before, after = case.error(case.initial), case.error(found.chain)
    assert before > 4.0
    assert after < 0.5 * before
    # in each direction, not only in the mean
    inside = case.pair.fixed_mask.array > 0  # type: ignore[union-attr]
    points = case.pair.fixed.grid.points()[inside]
    start = case.initial.map_points(points)
    wanted, got = case.truth[inside] - start, found.chain.map_points(points) - start
    for axis in range(3):
        assert np.abs(got - wanted)[:, axis].mean() < 0.7 * np.abs(wanted[:, axis]).mean()
    assert found.warped is not None
    fixed, moved = case.pair.fixed.array[inside], found.warped.array[inside]
    unmoved = case.pair.moving.resampled(case.pair.fixed.grid, case.initial.to_sitk()).array[inside]
    assert np.corrcoef(fixed, moved)[0, 1] > np.corrcoef(fixed, unmoved)[0, 1] + 0.2


def test_both_directions_together_undo_each_other() -> None:
    """With a weight that counts nothing, each is found by itself; without one there is no way back."""
    phantom = make_phantom(3, spacing=(4.0, 3.5, 3.0))
    pair, inside = ImagePair(phantom.fixed, phantom.moving, phantom.fixed_mask), phantom.fixed_mask.array > 0
    residuals, errors = [], []
    for weight in (1e-9, 0.02):
        keys = {"RegNetInstanceIterations": 20, "RegNetInverseConsistency": weight, "WriteResultImage": "false"}
        heard = Heard()
        options = dataclasses.replace(OPTIONS, events=heard)
        found = stage(RegNetRegion="auto", **keys).run(pair, TransformChain(), options)
        told = [now.fraction for now in heard.progresses]
        assert told == sorted(told)
        residuals.append(float(found.details["inverse_residual_mm"]))
        difference = found.chain.displacement_on(phantom.fixed.grid).vectors - phantom.displacement.vectors
        errors.append(np.linalg.norm(difference[inside], axis=1).mean())
    assert residuals[1] < 0.7 * residuals[0]
    assert errors[1] < 1.02 * errors[0]


def test_both_directions_together_need_instance_optimisation() -> None:
    with pytest.raises(ParameterError, match=r"'RegNetInverseConsistency' is for the steps.*RegNetInstanceIterations"):
        _ = stage(RegNetInverseConsistency=0.02).settings


def test_a_breath_of_the_phantom() -> None:
    phantom = make_phantom(3, spacing=(4.0, 3.5, 3.0))
    pair = ImagePair(phantom.fixed, phantom.moving, phantom.fixed_mask)
    found = stage(RegNetRegion="auto", WriteResultImage="false").run(pair, TransformChain(), OPTIONS)
    inside = phantom.fixed_mask.array > 0
    truth = phantom.displacement.vectors[inside]
    error = found.chain.displacement_on(phantom.fixed.grid).vectors[inside] - truth
    assert "inverse_residual_mm" not in found.details
    assert np.linalg.norm(error, axis=1).mean() < 0.4 * np.linalg.norm(truth, axis=1).mean()


# What follows needs no trained network: one that says the same displacement everywhere shows what the stage does.


def constant(network: RegNet | CoarseToFineRegNet) -> RegNet | CoarseToFineRegNet:
    with torch.no_grad():
        if isinstance(network, RegNet):
            network.displacement.weight.zero_()
            network.displacement.bias.copy_(torch.from_numpy(SHIFT))
        else:
            for decoder in network.decoder:
                decoder.head.weight.zero_()
                decoder.head.bias.zero_()
            network.decoder[0].head.bias.copy_(torch.from_numpy(SHIFT / network.voxel_size))
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold a parameter file's place and, beside it, models that always say SHIFT mm along the fixed image's axes."""
    path = tmp_path_factory.mktemp("stage")
    for name, network, voxel_size in (("fine", RegNet(), 1.0), ("wide", CoarseToFineRegNet(), 2.0)):
        architecture = "regnet" if name == "fine" else "coarse_to_fine"
        description = ModelDescription(name, architecture, voxel_size, CHEST_CT, 4.0)
        save_model(constant(network), description, path / f"{name}.safetensors")
    yield path


FIXED_GRID = Grid((24, 20, 16), (1.3, 1.7, 2.0), (5.0, -7.0, 11.0), direction(20, 10, -30))
WIDE_GRID = Grid((40, 40, 40), (2.5, 2.5, 2.5), tuple(FIXED_GRID.centre() - 48.75))
TURNED_SHIFT = FIXED_GRID.direction_matrix @ SHIFT
MATRIX_AROUND = MatrixTransform(MATRIX.matrix, FIXED_GRID.centre(), [2.0, -1.0, 3.0])


def plain_pair(fixed_mask: Image | None = None, moving_mask: Image | None = None) -> ImagePair:
    return ImagePair(texture(FIXED_GRID), texture(WIDE_GRID), fixed_mask, moving_mask)


def mask_on(grid: Grid, *spans: slice) -> Image:
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[spans] = 7  # any value but 0 counts
    return Image(mask, grid)


@pytest.mark.parametrize("model", ["fine", "wide"])
def test_the_model_lies_beside_the_parameter_file(folder: Path, model: str) -> None:
    made = stage(str(folder / "p.txt"), RegNetModel=f"{model}.safetensors", RegNetOutputStep=2)
    made.check(TransformChain(), None, OPTIONS)
    heard = Heard()
    options = dataclasses.replace(OPTIONS, events=heard)
    found = made.run(plain_pair(), TransformChain((Link(MATRIX_AROUND),)), options)
    points = FIXED_GRID.points()
    expected = MATRIX_AROUND.map_points(points + TURNED_SHIFT)  # T0(x + u(x))
    np.testing.assert_allclose(found.chain.map_points(points), expected, atol=1e-3)
    told = [now.fraction for now in heard.progresses]
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert found.seconds > 0
    assert made.name == f"RegNet {model}"
    length = float(np.linalg.norm(SHIFT))
    assert found.details["mean_displacement_mm"] == pytest.approx(length, abs=1e-3)
    assert found.details["max_displacement_mm"] == pytest.approx(length, abs=1e-3)
    assert found.details["model"] == model
    assert len(str(found.details["model_sha256"])) == 64
    assert any("past the 4.0 mm" in line for line in heard.warnings)
    # the warped image is what SimpleITK makes of the whole transform
    assert found.warped is not None
    by_sitk = sitk.CompositeTransform(3)
    by_sitk.AddTransform(MATRIX_AROUND.to_sitk_transform())
    by_sitk.AddTransform(sitk.TranslationTransform(3, TURNED_SHIFT.tolist()))
    warped = plain_pair().moving.resampled(FIXED_GRID, by_sitk, order=3, default=-1000.0).array
    assert np.abs(found.warped.array - np.trunc(warped)).mean() < 0.6
    assert found.warped.grid == FIXED_GRID


def test_the_field_ends_at_the_last_voxel_and_not_before(folder: Path) -> None:
    """Lungs that the image cuts must not meet a field that is zero at the border."""
    for size in ((24, 20, 16), (23, 21, 15), (7, 40, 5)):
        grid = Grid(size, (0.7, 0.7, 0.8), FIXED_GRID.origin, FIXED_GRID.direction)
        pair = ImagePair(texture(grid), texture(WIDE_GRID))
        for name in ("fine", "wide"):
            made = stage(str(folder / "p.txt"), RegNetModel=f"{name}.safetensors", WriteResultImage="false")
            found = made.run(pair, TransformChain(), OPTIONS).chain.displacement_on(grid).vectors
            np.testing.assert_allclose(found, np.broadcast_to(TURNED_SHIFT, found.shape), atol=1e-3)


def test_result_images(folder: Path) -> None:
    source = str(folder / "p.txt")
    small = ImagePair(texture(WIDE_GRID), texture(FIXED_GRID))  # much of the fixed image is outside the moving one
    keys = {"RegNetModel": "wide.safetensors", "DefaultPixelValue": -1234, "FinalBSplineInterpolationOrder": 1}
    found = stage(source, **keys, ResultImagePixelType="float").run(small, TransformChain(), OPTIONS)
    assert found.warped is not None
    assert found.warped.array.dtype == np.float32
    assert (found.warped.array == -1234).mean() > 0.5
    assert float(found.chain.links[-1].parameters["DefaultPixelValue"][0]) == -1234
    short = stage(source, **keys).run(small, TransformChain(), OPTIONS).warped
    assert short is not None
    assert short.array.dtype == np.int16
    assert stage(source, **keys, WriteResultImage="false").run(small, TransformChain(), OPTIONS).warped is None


def reached(folder: Path, pair: ImagePair, region: str, initial: TransformChain | None = None, **keys: object):
    """Return the length of u at every voxel of the fixed image."""
    made = stage(
        str(folder / "p.txt"), RegNetModel="wide.safetensors", RegNetRegion=region, WriteResultImage="false", **keys
    )
    initial = initial or TransformChain()
    chain = made.run(pair, initial, OPTIONS).chain
    return np.linalg.norm(TransformChain(chain.links[-1:]).displacement_on(pair.fixed.grid).vectors, axis=-1)


def chest_like() -> ImagePair:
    """A ball of tissue in air."""
    grid = Grid((40, 40, 40), (3.0, 3.0, 3.0), (-58.5, -58.5, -58.5))
    ball = np.linalg.norm(grid.points(), axis=-1) < 35
    image = Image(np.where(ball, 40.0, -1000.0).astype(np.float32), grid)
    return ImagePair(image, image)


def test_without_a_mask_a_model_for_lungs_predicts_in_the_lungs(folder: Path) -> None:
    phantom = make_phantom(spacing=(5.0, 5.0, 5.0))
    pair = ImagePair(phantom.fixed, phantom.moving)
    lungs = phantom.fixed_mask.array > 0
    far = ndimage.distance_transform_edt(~lungs, sampling=phantom.fixed.grid.spacing[::-1]) > 30
    wide = load_model(folder / "wide.safetensors")
    of_lungs = dataclasses.replace(wide.description, world=dataclasses.replace(CHEST_CT, region="lungs"))
    save_model(wide.network, of_lungs, folder / "lungs.safetensors")
    keys = {"RegNetFadeWidth": 10, "RegNetRegion": "auto"}
    made = stage(str(folder / "p.txt"), RegNetModel="lungs.safetensors", WriteResultImage="false", **keys)
    chain = made.run(pair, TransformChain(), OPTIONS).chain
    length = np.linalg.norm(chain.displacement_on(phantom.fixed.grid).vectors, axis=-1)
    assert np.median(length[lungs]) == pytest.approx(np.linalg.norm(SHIFT), abs=1e-3)
    in_body = reached(folder, pair, "auto", RegNetFadeWidth=10)
    assert (length[far] > 0).mean() < 0.02  # the windpipe above the lungs counts as lung
    assert (in_body[far] > 0).mean() > 0.2


def test_displacements_past_the_capture_range_are_warned_of(folder: Path) -> None:
    wide = load_model(folder / "wide.safetensors")
    length = float(np.linalg.norm(SHIFT))
    for capture_range, warned in ((length - 0.5, True), (length + 0.5, False)):
        description = dataclasses.replace(wide.description, capture_range=capture_range)
        save_model(wide.network, description, folder / "short.safetensors")
        heard = Heard()
        made = stage(str(folder / "p.txt"), RegNetModel="short.safetensors", WriteResultImage="false")
        made.run(chest_like(), TransformChain(), dataclasses.replace(OPTIONS, events=heard))
        assert any("that the model follows" in line for line in heard.warnings) == warned


def test_regions(folder: Path) -> None:
    full = np.linalg.norm(SHIFT)
    pair = chest_like()
    grid = pair.fixed.grid
    body = np.linalg.norm(grid.points(), axis=-1) < 30
    far = np.linalg.norm(grid.points(), axis=-1) > 35 + 10 + 6
    keys = {"RegNetFadeWidth": 10}
    for region in ("auto", "body"):
        length = reached(folder, pair, region, **keys)
        np.testing.assert_allclose(length[body], full, atol=1e-3)
        assert length[far].max() == 0
    np.testing.assert_allclose(reached(folder, pair, "all", **keys), full, atol=1e-3)
    mask = mask_on(grid, slice(10, 13), slice(20, 22), slice(8, 12))
    inside = mask.array > 0
    distance = ndimage.distance_transform_edt(~inside, sampling=3.0)
    for region in ("auto", "mask"):
        length = reached(folder, dataclasses.replace(pair, fixed_mask=mask), region, **keys)
        np.testing.assert_allclose(length[inside], full, atol=1e-3)
        assert length[distance > 10 + 6].max() == 0
        assert 0 < length[(distance > 4) & (distance < 8)].min() < full
    for region, covered in (("body", body), ("all", np.ones_like(body))):
        length = reached(folder, dataclasses.replace(pair, fixed_mask=mask), region, **keys)
        np.testing.assert_allclose(length[covered], full, atol=1e-3)


def test_the_moving_mask_counts_where_the_initial_transform_puts_it(folder: Path) -> None:
    pair = chest_like()
    grid = pair.fixed.grid
    shift = TransformChain((Link(MatrixTransform(np.eye(3), translation=[12.0, 0.0, -6.0])),))
    moving_mask = mask_on(grid, slice(20, 23), slice(20, 23), slice(20, 23))
    expected = mask_on(grid, slice(22, 25), slice(20, 23), slice(16, 19)).array > 0
    given = dataclasses.replace(pair, moving_mask=moving_mask)
    length = reached(folder, given, "mask", shift, RegNetFadeWidth=0)
    np.testing.assert_array_equal(length[expected] > 4, True)
    assert (length[ndimage.distance_transform_edt(~expected) > 1.8] == 0).all()
    fixed_mask = mask_on(grid, slice(5, 7), slice(5, 7), slice(5, 7))
    both = reached(folder, dataclasses.replace(given, fixed_mask=fixed_mask), "auto", shift, RegNetFadeWidth=0) > 4
    assert both[expected].all()
    assert both[fixed_mask.array > 0].all()


def test_the_field_goes_to_zero_without_a_step(folder: Path) -> None:
    """Around a region in the middle of an image both networks predict as far as the field fades."""
    grid = Grid((90, 24, 20), (1.0, 1.0, 1.0), FIXED_GRID.origin, FIXED_GRID.direction)
    pair = ImagePair(texture(grid), texture(grid), mask_on(grid, slice(8, 12), slice(8, 12), slice(43, 47)))
    for name, width in (("fine", 20), ("wide", 20), ("wide", 38)):
        made = stage(
            str(folder / "p.txt"), RegNetModel=f"{name}.safetensors", RegNetFadeWidth=width, RegNetRegion="mask",
            WriteResultImage="false",
        )  # fmt: skip
        u = made.run(pair, TransformChain(), OPTIONS).chain.displacement_on(grid).vectors
        length = np.linalg.norm(u, axis=-1)
        assert length[9, 9, 44] == pytest.approx(np.linalg.norm(SHIFT), abs=1e-3)
        for axis in range(3):
            assert np.abs(np.diff(length, axis=axis)).max() < 1.7 * np.linalg.norm(SHIFT) / width
        assert length[9, 9, 45 + width - 8] > 0.01


def test_a_mask_of_a_single_voxel_is_enough(folder: Path) -> None:
    grid = Grid((60, 60, 60), (0.6, 0.6, 0.6))
    mask = mask_on(grid, slice(31, 32), slice(28, 29), slice(33, 34))
    pair = ImagePair(texture(grid), texture(grid), mask)
    assert reached(folder, pair, "auto", RegNetFadeWidth=3)[31, 28, 33] == pytest.approx(
        np.linalg.norm(SHIFT), abs=1e-3
    )


def test_what_cannot_be_registered_is_refused(folder: Path) -> None:
    source = str(folder / "p.txt")
    with pytest.raises(ParameterError, match=r'p.txt.*"mask".*`fixed_mask`'):
        reached(folder, plain_pair(), "mask")
    far = ImagePair(texture(FIXED_GRID), texture(dataclasses.replace(WIDE_GRID, origin=(900.0, 0.0, 0.0))))
    with pytest.raises(ImageError, match="do not overlap"):
        reached(folder, far, "all")
    back = TransformChain((Link(MatrixTransform(np.eye(3), translation=np.array([900.0, 0, 0]) - WIDE_GRID.origin)),))
    assert reached(folder, far, "all", back).max() > 4  # the transform so far counts
    elsewhere = Image(
        np.ones(WIDE_GRID.shape, dtype=np.uint8), dataclasses.replace(WIDE_GRID, origin=(900.0, 0.0, 0.0))
    )
    with pytest.raises(ImageError, match="leave no voxel"):
        reached(folder, plain_pair(moving_mask=elsewhere), "mask")
    air = ImagePair(Image(np.full(FIXED_GRID.shape, -1000.0), FIXED_GRID), texture(WIDE_GRID))
    with pytest.raises(ImageError, match="no body"):
        reached(folder, air, "auto")
    for model in ("fine", "wide"):
        with pytest.raises(ParameterError, match="RegNetMemoryBudget"):
            stage(source, RegNetModel=f"{model}.safetensors", RegNetMemoryBudget=1e-4).run(
                plain_pair(), TransformChain(), OPTIONS
            )


def test_models_are_checked_before_anything_runs(folder: Path) -> None:
    source = str(folder / "p.txt")

    def with_stages(model: str, *sizes: int) -> RegNetStage:
        values = {"RegNetModel": (f"{model}.safetensors",), "RegNetStages": tuple(map(str, sizes))}
        return RegNetStage(ParameterMap({"Registration": ("RegNetRegistration",), **values}, source))

    with pytest.raises(ModelError, match="did you mean 'regnet_multistage'"):
        stage(source, RegNetModel="regnet_multistag").check(TransformChain(), None, OPTIONS)
    (folder / "broken.safetensors").write_bytes((folder / "wide.safetensors").read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        stage(source, RegNetModel="broken.safetensors").check(TransformChain(), None, OPTIONS)
    with pytest.raises(ParameterError, match=r"p.txt.*RegNetOutputStep.*1 or 2, not '3'"):
        stage(source, RegNetModel="fine.safetensors", RegNetOutputStep=3).check(TransformChain(), None, OPTIONS)
    with pytest.raises(ParameterError, match=r"stages of 16 8 4 2 mm.*'8 4 2', but \(RegNetStages 16 8 4\)"):
        with_stages("wide", 8, 4, 2).check(TransformChain(), None, OPTIONS)
    with pytest.raises(ParameterError, match="no stages to choose from"):
        with_stages("fine", 1).check(TransformChain(), None, OPTIONS)
    with pytest.raises(ParameterError, match="ResultImagePixelType"):
        stage(source, RegNetModel="fine.safetensors", ResultImagePixelType="flaot").check(
            TransformChain(), None, OPTIONS
        )
    with_stages("wide", 16, 8).check(TransformChain(), None, OPTIONS)
    stage().check(TransformChain(), None, OPTIONS)  # the default model is there


def test_a_model_is_read_again_when_its_file_changes(folder: Path) -> None:
    path = folder / "changing.safetensors"
    made = stage(str(folder / "p.txt"), RegNetModel=path.name, WriteResultImage="false")
    hashes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        description = ModelDescription("c", "coarse_to_fine", 2.0, CHEST_CT, 4.0)
        save_model(CoarseToFineRegNet(), description, path)
        hashes.append(made.run(plain_pair(), TransformChain(), OPTIONS).details["model_sha256"])
    assert hashes[0] != hashes[1]


def test_keys_reach_the_settings(folder: Path) -> None:
    text = """
    (Registration "RegNetRegistration")
    (RegNetModel "some.safetensors")
    (RegNetOutputStep 1)
    (RegNetPrecision "float32")
    (RegNetMemoryBudget 0.75)
    (RegNetFadeWidth 12.5)
    (RegNetRegion "body")
    (RegNetRepetitions 3)
    (RegNetStages 16 8)
    (RegNetInstanceIterations 7)
    (RegNetInstanceSmoothness 0.5)
    """
    expected = RegNetSettings(
        model="some.safetensors", output_step=1, precision="float32", memory=0.75, fade=12.5, region="body",
        repetitions=3, stages=(16.0, 8.0), instance_iterations=(7,), instance_smoothness=0.5,
    )  # fmt: skip
    assert RegNetSettings.from_parameters(parse_parameter_text(text, "x")) == expected
    assert RegNetSettings.from_parameters(ParameterMap({})) == RegNetSettings()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_and_output_step_are_used(folder: Path, precision: str) -> None:
    made = stage(
        str(folder / "p.txt"), RegNetModel="fine.safetensors", RegNetPrecision=precision, RegNetOutputStep=1,
        WriteResultImage="false",
    )  # fmt: skip
    grid = Grid((5, 6, 7), direction=FIXED_GRID.direction, origin=FIXED_GRID.origin)
    found = made.run(ImagePair(texture(grid), texture(WIDE_GRID)), TransformChain(), OPTIONS)
    assert found.details["precision"] == precision
    field = found.chain.links[-1].transform
    assert isinstance(field, DisplacementField)
    assert field.grid.is_close(grid)


def test_fewer_stages_give_a_coarser_field_of_the_same_place() -> None:
    """Without the finest stages the known displacement is still found, less exactly, on the same turned grids."""
    case = known(MATRIX)
    errors = []
    for sizes in (("16", "8", "4", "2"), ("16", "8", "4"), ("16", "8")):
        values = {"Registration": ("RegNetRegistration",), "RegNetRegion": ("all",), "RegNetStages": sizes}
        errors.append(case.error(RegNetStage(ParameterMap(values)).run(case.pair, case.initial, OPTIONS).chain))
    assert errors[0] < errors[1] < errors[2] < 2.5
    everything = stage().run(case.pair, case.initial, OPTIONS).chain
    assert case.error(everything) == pytest.approx(errors[0], abs=1e-6)


@pytest.mark.parametrize("matrix", [None, MATRIX], ids=["alone", "after an affine"])
def test_instance_optimisation_improves_a_known_displacement(matrix: MatrixTransform | None) -> None:
    case = known(matrix)
    alone, improved = (
        stage(RegNetStages="16", RegNetInstanceIterations=n).run(case.pair, case.initial, OPTIONS) for n in (0, 30)
    )
    assert case.error(improved.chain) < 0.6 * case.error(alone.chain)


def test_where_two_grids_lie_between_each_other_instance_optimisation_sees_no_difference() -> None:
    """Linear interpolation halves the noise between an image's voxels: nothing that a displacement should follow."""
    grid = Grid((60, 56, 52), (1.5,) * 3, (-40.0, 120.0, 33.0), direction(15, -25, 40))
    between = Grid((48, 44, 40), (1.5,) * 3, tuple(grid.index_to_point((6.5, 6.5, 6.5))), grid.direction)
    rng = np.random.default_rng(3)
    values = sum(ndimage.gaussian_filter(rng.normal(size=grid.shape), sigma) * sigma for sigma in (0.5, 1.5, 3.0))
    moving = Image((-700 + 150 * values / values.std()).clip(-1000, 200).astype(np.float32), grid)
    pair = ImagePair(moving.resampled(between, order=3, default=-1000.0), moving)
    points = between.points()[6:-6, 6:-6, 6:-6].reshape(-1, 3)
    lengths = []
    for iterations in (0, 30):
        chain = stage(RegNetInstanceIterations=iterations).run(pair, TransformChain(), OPTIONS).chain
        lengths.append(np.linalg.norm(chain.map_points(points) - points, axis=1).mean())
    assert lengths[1] < 0.07 < lengths[0]  # mm; nothing has moved


def test_a_memory_budget_makes_the_voxels_of_instance_optimisation_larger() -> None:
    case, heard = known(None), Heard()
    options = dataclasses.replace(OPTIONS, events=heard)
    errors = []
    for budget, iterations in ((2.5, 0), (2.5, 30), (0.22, 30)):
        keys = {"RegNetStages": 16, "RegNetInstanceIterations": iterations, "RegNetMemoryBudget": budget}
        errors.append(case.error(stage(**keys).run(case.pair, case.initial, options).chain))
    (line,) = (line for line in heard.lines if "improving on voxels of" in line)
    assert "memory budget" in line
    assert 1.6 < float(line.split("voxels of ")[1].split()[0]) < 3.0
    assert errors[2] != errors[1]
    assert errors[2] < 0.7 * errors[0]
    with pytest.raises(ParameterError, match=r"0.19 GB is too small for instance .*\(RegNetMemoryBudget 0.3"):
        stage(RegNetStages="16", RegNetInstanceIterations=1, RegNetMemoryBudget=0.19).run(
            case.pair, case.initial, options
        )


def test_without_a_mask_the_lungs_are_improved() -> None:
    phantom = make_phantom(spacing=(5.0, 5.0, 5.0))
    pair, grid = ImagePair(phantom.fixed, phantom.moving), phantom.fixed.grid
    alone, improved = (
        stage(RegNetRegion="auto", RegNetInstanceIterations=n).run(pair, TransformChain(), OPTIONS).chain
        for n in (0, 8)
    )
    changed = np.linalg.norm(improved.displacement_on(grid).vectors - alone.displacement_on(grid).vectors, axis=-1)
    lungs = phantom.fixed_mask.array > 0
    far = ndimage.distance_transform_edt(~lungs, sampling=grid.spacing[::-1]) > 30
    assert changed[lungs].mean() > 5 * changed[far].mean()


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (1.5, 1.5, 5.0)], ids=["coarse voxels", "thick slices"])
def test_on_coarse_images_instance_optimisation_does_not_follow_the_noise(spacing: Triple) -> None:
    phantom = make_phantom(seed=200, kind="followup", spacing=spacing)
    pair = ImagePair(phantom.fixed, phantom.moving, phantom.fixed_mask, phantom.moving_mask)
    errors, heard = [], Heard()
    for iterations in (0, 30):
        made = stage(RegNetRegion="mask", RegNetInstanceIterations=iterations)
        chain = made.run(pair, TransformChain(), dataclasses.replace(OPTIONS, events=heard)).chain
        errors.append(
            np.linalg.norm(chain.map_points(phantom.fixed_landmarks) - phantom.moving_landmarks, axis=1).mean()
        )
    assert errors[1] < 1.1 * errors[0]
    assert sum("64 times the smoothness" in line for line in heard.lines) == 1


def test_repetitions_add_up(folder: Path) -> None:
    length = reached(folder, plain_pair(), "all", RegNetRepetitions=2)
    np.testing.assert_allclose(length, 2 * np.linalg.norm(SHIFT), atol=1e-3)


def halved(image: Image, axis: int, end: int) -> Image:
    """Return an image without anything to see in one half of the array."""
    array = image.array.copy()
    half = [slice(None)] * 3
    half[axis] = slice(array.shape[axis] // 2, None) if end else slice(None, array.shape[axis] // 2)
    array[tuple(half)] = -1000.0
    return Image(array, image.grid)


def test_several_images_tell_more_than_one() -> None:
    """Each pair of images shows one half of what there is, the second one on a grid of its own."""
    case = known(MATRIX)
    one, other = (halved(case.pair.fixed, 2, end) for end in (0, 1))
    elsewhere = case.pair.moving.grid.pad((3, 2, 1), (1, 2, 3))
    moving = case.pair.moving.resampled(elsewhere, default=-1000.0)
    network = stage(RegNetModel="regnet_multistage", RegNetRegion="mask", RegNetInstanceIterations=10)
    errors = []
    for more in (
        {"fixed": one},
        {"fixed": other},
        {"fixed": one, "more_fixed": (other,), "more_moving": (moving,)},
        {"fixed": one, "more_fixed": (other,)},
    ):
        pair = dataclasses.replace(case.pair, **more)
        errors.append(case.error(network.run(pair, case.initial, OPTIONS).chain))
    assert max(errors[2:]) < 0.75 * min(errors[:2])


def test_it_must_be_clear_which_images_belong_together() -> None:
    case = known(None)
    fixed, moving = case.pair.fixed, case.pair.moving
    pair = dataclasses.replace(case.pair, more_fixed=(fixed,), more_moving=(moving, moving))
    with pytest.raises(ImageError, match="as many moving as fixed images, or one, not 3 to 2"):
        stage(RegNetModel="regnet_multistage").run(pair, case.initial, OPTIONS)


def test_a_model_that_counts_in_voxels_takes_those_that_fit(folder: Path) -> None:
    world = dataclasses.replace(CHEST_CT, region="all", improved_in="", voxel_sizes=(1.0, 4.0))
    network = CoarseToFineRegNet()
    path = folder / "any.safetensors"
    save_model(network, ModelDescription("any", "coarse_to_fine", 2.0, world, 30.0), path)
    case = known(None)
    found = stage(RegNetModel=path).run(case.pair, case.initial, OPTIONS)
    # no finer than the images: (2 x 2.2 x 2.4)^(1/3) and (2.6 x 2.1 x 3.1)^(1/3) mm
    assert found.details["voxel_size_mm"] == pytest.approx(2.57, abs=0.01)
    found = stage(RegNetModel=path, RegNetVoxelSize=3.5).run(case.pair, case.initial, OPTIONS)
    assert found.details["voxel_size_mm"] == 3.5
    with pytest.raises(ParameterError, match="1 to 4 mm, not of 5 mm"):
        stage(RegNetModel=path, RegNetVoxelSize=5).check(case.initial, case.pair, OPTIONS)
    with pytest.raises(ParameterError, match="a size in mm above 0, or auto"):
        stage(RegNetModel=path, RegNetVoxelSize=-1).check(case.initial, case.pair, OPTIONS)
    with pytest.raises(ParameterError, match=r"2 mm, not of 1\.5 mm"):
        stage(RegNetModel="regnet_multistage", RegNetVoxelSize=1.5).check(case.initial, case.pair, OPTIONS)
