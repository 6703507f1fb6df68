"""A network over a whole image: patches at every voxel, tiles, regions, axes, precision, and the fading of a field."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from network_cases import noise, patch_by_patch, random_regnet, randomised
from scipy.spatial.transform import Rotation
from torch import nn

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.devices import find_device, find_precision
from regnet_itk.networks.inference import InferenceOptions, Predictor
from regnet_itk.networks.model import Model, ModelDescription
from regnet_itk.networks.regions import covering, fade
from regnet_itk.networks.regnet import RegNet
from regnet_itk.networks.world import CHEST_CT

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (20, -35, 130), degrees=True).as_matrix()))


def model_of(network: nn.Module, voxel_size: float = 1.0) -> Model:
    architecture = "regnet" if isinstance(network, RegNet) else "coarse_to_fine"
    return Model(network, ModelDescription("random", architecture, voxel_size, CHEST_CT, 8.0), "")


@pytest.fixture(scope="module")
def regnet() -> Model:
    return model_of(random_regnet())


@pytest.fixture(scope="module")
def coarse_to_fine() -> Model:
    network = CoarseToFineRegNet()
    randomised(network)
    return model_of(network, 2.0)


def constant_regnet() -> Model:
    network = RegNet().eval().requires_grad_(False)
    network.displacement.weight.zero_()
    network.displacement.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    return model_of(network)


def hounsfield(grid: Grid, seed: int) -> Image:
    return Image((noise(*grid.shape, seed=seed).numpy() * 600 - 400).astype(np.float32), grid)


def pair(grid: Grid) -> tuple[Image, Image]:
    return hounsfield(grid, 1), hounsfield(grid, 2)


def everywhere(grid: Grid) -> Image:
    return Image(np.ones(grid.shape, dtype=bool), grid)


def box(grid: Grid, *spans: slice) -> Image:
    mask = np.zeros(grid.shape, dtype=bool)
    mask[spans] = True
    return Image(mask, grid)


def predictor(model: Model, tile: int = 80, **options) -> Predictor:
    """With a budget that allows one slice of a tile of `tile` x `tile` outputs, but not of (`tile` + 1)^2."""
    memory = 54 * ((52 + 2 * tile + 0.5) ** 2) * 340 / 1e9
    return Predictor(model, InferenceOptions(**({"device": "cpu", "precision": "float32", "memory": memory} | options)))


def count_calls(made_ready: Predictor) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    made_ready.network.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape[2:])))
    return shapes


def count_voxels_at_once(made_ready: Predictor) -> list[int]:
    """Of the moving image; the low resolution's first layer is given an eighth of them."""
    voxels: list[int] = []
    first = made_ready.network.network.coarse_moving
    first.register_forward_hook(lambda module, inputs, output: voxels.append(8 * inputs[0].numel()))
    return voxels


def test_every_voxel_is_the_displacement_of_its_patch(regnet: Model) -> None:
    grid = Grid((4, 3, 2))
    fixed, moving = pair(grid)
    found = predictor(regnet, output_step=1).predict(fixed, moving, everywhere(grid))
    assert found.grid == grid
    # normalised by hand, with air around the image
    padded = [np.pad(np.clip((i.array + 1000) / 600 - 1, -1, 1), 27, constant_values=-1.0) for i in (fixed, moving)]
    assert found.vectors.std() > 0.05
    for z, y, x in itertools.product(range(2), range(3), range(4)):
        expected = patch_by_patch(regnet.network, *padded, (z + 27, y + 27, x + 27))
        np.testing.assert_allclose(found.vectors[z, y, x], expected, atol=1e-5)


@pytest.fixture(scope="module")
def odd() -> tuple[Grid, Image, Image, DisplacementField]:
    grid = Grid((9, 8, 7))
    fixed, moving = pair(grid)
    return (
        grid,
        fixed,
        moving,
        predictor(model_of(random_regnet()), output_step=2).predict(fixed, moving, everywhere(grid)),
    )


@pytest.mark.parametrize("tile", [1, 3])
def test_tiles_leave_no_seams(regnet: Model, odd: tuple, tile: int) -> None:
    grid, fixed, moving, whole = odd
    region = everywhere(grid) if tile > 1 else box(grid, slice(2, 5), slice(0, 3), slice(6, 9))
    made_ready = predictor(regnet, tile)
    shapes, at_once = count_calls(made_ready), count_voxels_at_once(made_ready)
    found = made_ready.predict(fixed, moving, region)
    assert len(shapes) > 3
    assert max(shape[1] * shape[2] for shape in shapes) <= (52 + 2 * tile + 0.5) ** 2
    assert max(at_once) <= 54 * (52 + 2 * tile + 0.5) ** 2
    if tile > 1:
        np.testing.assert_allclose(found.vectors, whole.vectors, atol=1e-4)
    inside = region.array
    points = grid.points()[inside]
    np.testing.assert_allclose(found.at(points), whole.at(points), atol=1e-4)


def test_every_second_voxel_is_every_second_of_all(regnet: Model, odd: tuple) -> None:
    grid, fixed, moving, whole = odd
    every = predictor(regnet, output_step=1).predict(fixed, moving, everywhere(grid))
    assert every.vectors.shape == (7, 8, 9, 3)
    np.testing.assert_allclose(whole.vectors[:, :4], every.vectors[::2, ::2, ::2], atol=1e-4)
    np.testing.assert_allclose(whole.at(grid.points()[::2, ::2, ::2]), every.vectors[::2, ::2, ::2], atol=1e-4)


def test_tiles_are_cut_where_their_borders_cost_least() -> None:
    grid = Grid((40, 8, 4))
    made_ready = predictor(constant_regnet(), 10)
    shapes = count_calls(made_ready)
    made_ready.predict(*pair(grid), everywhere(grid))
    assert [shape[1] for shape in shapes] == [52 + 2 * 5] * 2  # whole along y, two along x


def test_tiles_without_a_voxel_of_the_region_are_left_out(regnet: Model) -> None:
    grid = Grid((40, 8, 8))
    fixed, moving = pair(grid)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3, 3, 1] = mask[4, 4, 38] = True
    region = Image(mask, grid)
    made_ready = predictor(regnet, 5)
    shapes = count_calls(made_ready)
    found = made_ready.predict(fixed, moving, region)
    assert 2 <= len(shapes) <= 4  # of five
    assert max(map(max, shapes)) <= 52 + 2 * 2  # each no larger than its voxel needs
    whole = predictor(regnet).predict(fixed, moving, everywhere(grid))
    for point in grid.points()[mask]:
        np.testing.assert_allclose(found.at(point), whole.at(point), atol=1e-4)
    assert (found.vectors[:, :, 8:12] == 0).all()
    wider = predictor(regnet, 5)
    more = count_calls(wider)
    np.testing.assert_allclose(wider.predict(fixed, moving, region, margin=40.0).vectors, whole.vectors, atol=1e-4)
    assert len(more) > len(shapes)


def test_the_margin_is_predicted_as_well() -> None:
    grid = Grid((60, 6, 6))
    region = box(grid, slice(None), slice(None), slice(20, 22))
    found = predictor(constant_regnet(), 4).predict(*pair(grid), region, margin=9.0)
    points = grid.points()
    near = (points[..., 0] >= 20 - 9) & (points[..., 0] <= 21 + 9)
    np.testing.assert_allclose(found.at(points[near]), np.broadcast_to([1.0, -2.0, 3.0], (near.sum(), 3)), atol=1e-5)
    assert (found.at(points[..., 50:, :]) == 0).all()


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("size", [(4, 7, 6), (5, 4, 1)])
def test_the_field_reaches_to_the_border_of_the_image(step: int, size: tuple[int, int, int]) -> None:
    grid = Grid(size, direction=TURNED, origin=(4.0, 5.0, 6.0))
    found = predictor(constant_regnet(), output_step=step).predict(*pair(grid), everywhere(grid))
    ends = grid.index_to_point([[-0.49] * 3, [n - 0.51 for n in size], [0, 0, 0]])
    np.testing.assert_allclose(found.at(ends), [np.array(TURNED) @ [1.0, -2.0, 3.0]] * 3, atol=1e-5)


@pytest.mark.parametrize("which", ["regnet", "coarse_to_fine"])
def test_vectors_turn_with_the_grid(which: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(which)
    spacing = (model.description.voxel_size,) * 3
    straight, turned = Grid((13, 9, 11), spacing), Grid((13, 9, 11), spacing, (-5.0, 60.0, 7.0), TURNED)
    first, second = (predictor(model).predict(*pair(grid), everywhere(grid)) for grid in (straight, turned))
    assert np.abs(first.vectors).max() > 0.1
    np.testing.assert_allclose(second.vectors, first.vectors @ np.array(TURNED).T, atol=1e-4)
    assert second.grid.direction == turned.direction
    apart = 2 if which == "regnet" else 1
    np.testing.assert_allclose(
        second.grid.index_to_point([1, 2, 3]), turned.index_to_point([apart, 2 * apart, 3 * apart])
    )


def test_fusing_the_normalisation_changes_nothing_and_leaves_the_model_alone(regnet: Model) -> None:
    made_ready = predictor(regnet)
    assert any(isinstance(m, nn.BatchNorm3d) for m in regnet.network.modules())
    assert not any(isinstance(m, nn.BatchNorm3d) for m in made_ready.network.modules())
    block = noise(1, 1, 56, 54, 54), noise(1, 1, 56, 54, 54, seed=1)
    torch.testing.assert_close(made_ready.network(*block), regnet.network(*block), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ["regnet", "coarse_to_fine"])
def test_bfloat16_differs_little(which: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(which)
    grid = Grid((16, 16, 16), (model.description.voxel_size,) * 3)
    exact, rough = (
        predictor(model, precision=precision).predict(*pair(grid), everywhere(grid)).vectors
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32
    difference = np.abs(exact - rough)
    assert difference.max() > 0
    assert difference.mean() < 0.1 * np.abs(exact - exact.mean(axis=(0, 1, 2))).mean()


@pytest.mark.parametrize("size", [(17, 9, 12), (8, 8, 8), (3, 5, 40)])
def test_coarse_to_fine_pads_with_air_to_a_multiple(coarse_to_fine: Model, size: tuple[int, int, int]) -> None:
    grid = Grid(size, (2.0, 2.0, 2.0))
    fixed, moving = pair(grid)
    found = predictor(coarse_to_fine).predict(fixed, moving, everywhere(grid))
    assert found.grid == grid
    padding = [(0, -n % 8) for n in grid.shape]
    parts = [np.pad(np.clip((i.array + 1000) / 600 - 1, -1, 1), padding, constant_values=-1) for i in (fixed, moving)]
    expected = coarse_to_fine.network(*(torch.from_numpy(p)[None, None] for p in parts))[-1][0]
    cut = expected[:, : grid.shape[0], : grid.shape[1], : grid.shape[2]].permute(1, 2, 3, 0)
    np.testing.assert_allclose(found.vectors, cut, atol=1e-4)


def test_coarse_to_fine_sees_32_mm_around_the_region_or_the_margin(coarse_to_fine: Model) -> None:
    grid = Grid((96, 8, 8), (2.0, 2.0, 2.0))
    region = box(grid, slice(None), slice(None), slice(40, 44))
    for margin, reach in ((0.0, 16), (20.0, 16), (50.0, 25)):
        made_ready = predictor(coarse_to_fine)
        shapes = count_calls(made_ready)
        found = made_ready.predict(*pair(grid), region, margin)
        width = 4 + 2 * reach
        assert shapes == [(8, 8, width + -width % 8)]
        there = np.flatnonzero(np.abs(found.vectors).max(axis=(0, 1, 3)))
        assert (there[0], there[-1]) == (40 - reach, 43 + reach)


def test_repetitions_start_from_the_image_warped_so_far() -> None:
    network = CoarseToFineRegNet()
    randomised(network)
    for decoder in network.decoder:
        decoder.head.weight.zero_()
        decoder.head.bias.zero_()
    network.decoder[0].head.bias.copy_(torch.tensor([0.5, 0.0, -0.25]))  # voxels of 2 mm
    grid = Grid((16, 16, 16), (2.0, 2.0, 2.0))
    made_ready = predictor(model_of(network, 2.0), repetitions=3)
    seen = []
    made_ready.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    found = made_ready.predict(*pair(grid), everywhere(grid))
    np.testing.assert_allclose(found.vectors, np.broadcast_to([3.0, 0.0, -1.5], found.vectors.shape), atol=1e-5)
    assert len(seen) == 3
    moved = seen[2][1][0, 0]  # by one voxel along x, and half a voxel back along z
    original = seen[0][1][0, 0]
    expected = 0.5 * (original[1:-1, :, 2:] + original[:-2, :, 2:])
    np.testing.assert_allclose(moved[1:-1, :, 1:-1], expected, atol=1e-5)


def test_budgets_that_are_too_small_are_refused(regnet: Model, coarse_to_fine: Model) -> None:
    for model, words in ((regnet, "too small for a single patch"), (coarse_to_fine, "over the budget")):
        grid = Grid((16, 16, 16), (model.description.voxel_size,) * 3)
        with pytest.raises(ParameterError, match=words) as caught:
            predictor(model, memory=0.001).predict(*pair(grid), everywhere(grid))
        assert "RegNetMemoryBudget" in str(caught.value)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ParameterError, match="output step of 3"):
        InferenceOptions(output_step=3)
    with pytest.raises(ParameterError, match="0 times"):
        InferenceOptions(repetitions=0)


def test_devices_and_precisions() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "meta", "cuda:x"):
        with pytest.raises(ParameterError, match=f"unknown device '{name}'"):
            find_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match="no CUDA device"):
            find_device("cuda")
    cpu = torch.device("cpu")
    assert find_precision("float32", cpu) == torch.float32
    assert find_precision("bfloat16", cpu) == torch.bfloat16
    assert find_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    assert find_precision("auto", torch.device("mps")) == torch.float32


def test_the_number_of_threads_is_given_back(coarse_to_fine: Model) -> None:
    grid = Grid((8, 8, 8), (2.0, 2.0, 2.0))
    inside = []
    made_ready = predictor(coarse_to_fine, threads=2)
    made_ready.network.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
    made_ready.predict(*pair(grid), everywhere(grid))
    assert inside == [2]
    assert torch.get_num_threads() == 1


def test_progress_grows_to_one(regnet: Model) -> None:
    told: list[float] = []
    grid = Grid((12, 4, 4))
    options = predictor(regnet, 3).options
    Predictor(regnet, options, told.append).predict(*pair(grid), everywhere(grid))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 3  # more often than there are tiles along x


# Fading


def unit_field(grid: Grid) -> DisplacementField:
    return DisplacementField(np.ones((*grid.shape, 3), dtype=np.float32), grid)


@pytest.mark.parametrize("same_grid", [True, False])
def test_a_faded_field_is_unchanged_inside_smooth_outside_and_then_zero(same_grid: bool) -> None:
    grid = Grid((50, 20, 20), (2.0, 2.0, 2.0), (3.0, 4.0, 5.0), TURNED)
    of_region = (
        grid if same_grid else Grid((130, 50, 50), (0.8, 0.8, 0.8), tuple(grid.index_to_point([-1] * 3)), TURNED)
    )
    points = of_region.points()
    x = grid.point_to_index(points)[..., 0]
    region = Image((x >= 19.99) & (x <= 24.5), of_region)
    faded = fade(unit_field(grid), region, 16.0)
    along = faded.vectors[10, 10, :, 0]
    assert (np.abs(faded.vectors - along[None, None, :, None])[2:-2, 2:-2] < 1e-6).all()
    inside = points[region.array]
    inside = inside[grid.contains(inside)]
    np.testing.assert_allclose(faded.at(inside), 1.0, atol=1e-6)
    end = 24 if same_grid else 25
    assert (along[20 : end + 1] == 1).all()
    assert (np.diff(along[end:]) <= 0).all()
    assert (along[: 20 - 9] == 0).all()
    assert (along[end + 9 :] == 0).all()
    assert np.abs(np.diff(along)).max() <= 1.5 * 2.0 / 16.0 + 1e-6  # the steepest part of a smooth step
    assert along[end + 1] > 0.9  # level where it begins
    assert 0 < along[end + 7] < 0.1  # and where it ends
    assert along[end + 4] == pytest.approx(0.5, abs=1e-6)


def test_fade_of_nothing_and_everything() -> None:
    grid = Grid((6, 6, 6))
    assert (fade(unit_field(grid), box(grid), 5.0).vectors == 1).all()
    empty = Image(np.zeros(grid.shape, dtype=bool), grid)
    assert (fade(unit_field(grid), empty, 5.0).vectors == 0).all()
    one = box(grid, slice(2, 3), slice(2, 3), slice(2, 3))
    cut = fade(unit_field(grid), one, 0.0).vectors
    assert cut[2, 2, 2].tolist() == [1, 1, 1]
    assert cut.sum() == 3


@pytest.mark.parametrize("spacing", [0.7, 2.0, 3.5])
def test_no_voxel_of_a_region_gets_lost_on_another_grid(spacing: float) -> None:
    fine = Grid((21, 17, 13), (1.0, 1.1, 1.2), (1.0, 2.0, 3.0), TURNED)
    grid = fine.isotropic(spacing)
    for index in ((0, 0, 0), (10, 7, 5), (20, 16, 12), (3, 11, 8)):
        mask = np.zeros(fine.shape, dtype=bool)
        mask[index[::-1]] = True
        found = covering(Image(mask, fine), grid)
        assert found.any()
        where = grid.point_to_index(fine.index_to_point(index))
        weights = DisplacementField(found[..., None].repeat(3, axis=-1).astype(float), grid)
        np.testing.assert_allclose(weights.at(fine.index_to_point(index)), 1.0)
        away = np.abs(np.argwhere(found)[:, ::-1] - where) * spacing
        assert (away < max(spacing, 1.2) + 1e-6).all()


def test_a_region_on_other_axes_is_resampled() -> None:
    grid = Grid((20, 20, 20))
    turned = Grid((24, 24, 24), (1, 1, 1), direction=TURNED)
    turned = Grid(turned.size, turned.spacing, tuple(grid.centre() - turned.centre()), TURNED)
    ball = lambda g, r: np.linalg.norm(g.points() - grid.centre(), axis=-1) < r  # noqa: E731
    found = covering(Image(ball(turned, 6.0), turned), grid)
    assert (found | ~ball(grid, 5.5)).all()
    assert (~found | ball(grid, 8.0)).all()
