"""Training: its configuration, synthetic pairs judged by numpy and scipy, and a loop that can be interrupted."""

from __future__ import annotations

import csv
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listening import HeardTraining
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from training_cases import write_chests

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ModelError, OutputError, ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import load_model, shipped_models
from regnet_itk.networks.regnet import RegNet
from regnet_itk.training.blocks import Block, BlockMaker
from regnet_itk.training.config import (
    AppearanceRecipe,
    FieldRecipe,
    Phase,
    TrainingConfig,
    find_recipe,
    read_training_config,
    shipped_recipes,
)
from regnet_itk.training.fields import FieldMaker
from regnet_itk.training.filters import jacobian_determinant
from regnet_itk.training.log import TrainingLog
from regnet_itk.training.loop import Trainer, TrainingOptions
from regnet_itk.training.paper_pairs import (
    FREQUENCIES,
    Frequency,
    breathing_displacement,
    deform_pair,
    draw_displacement,
)
from regnet_itk.training.processes import Processes
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Source, find_images, load_source

PLAIN = AppearanceRecipe(noise=(0.0, 0.0))

# The configuration

GOOD = """
network = "regnet"
train = ["a", "b"]
validation = ["c"]
test = ["d"]
[[phases]]
steps = 10
learning_rate = [1e-3, 1]
fields = { sigma = [4.0, 9.0], terms = 2 }
[[phases]]
steps = 5
appearance = { noise = [0.0, 3.5] }
"""


def read(tmp_path: Path, text: str) -> TrainingConfig:
    (tmp_path / "c.toml").write_text(text)
    return read_training_config(tmp_path / "c.toml")


def test_a_configuration_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert config.network == "regnet"
    assert config.train == ("a", "b")
    assert [phase.steps for phase in config.phases] == [10, 5]
    assert config.phases[0].learning_rate == (1e-3, 1.0)
    assert config.phases[0].fields == FieldRecipe(sigma=(4.0, 9.0), terms=2)
    assert config.phases[1].appearance == AppearanceRecipe(noise=(0.0, 3.5))
    assert config.phases[1].fields == FieldRecipe()


def test_the_configurations_of_the_project_are_read() -> None:
    files = sorted((Path(__file__).resolve().parents[2] / "pipelines" / "recipes").glob("*.toml"))
    assert {read_training_config(file).network for file in files} == {"regnet", "coarse_to_fine", "general"}
    read = [read_training_config(file) for file in files]
    assert all(config.test for config in read if config.network != "general")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("test =", "tests =", r"c.toml: unknown key 'tests'; did you mean 'test'\?"),
        ("sigma =", "sgima =", r"phases\[0\]: fields: unknown key 'sgima'; did you mean 'sigma'\?"),
        ("terms = 2", "terms = 2.5", r"phases\[0\]: fields: terms = 2.5 is not of the kind int"),
        ("terms = 2", "terms = true", "terms = True is not of the kind int"),
        ("[4.0, 9.0]", "[4.0]", "sigma = .4.0. is not of the kind"),
        ("[4.0, 9.0]", "4.0", "sigma = 4.0 is not of the kind"),
        ("[4.0, 9.0]", '["4", 9.0]', "sigma = '4' is not of the kind float"),
        ('"regnet"', '"regnett"', r"c.toml: network: unknown network architecture 'regnett'; did you mean 'regnet'\?"),
        ('["a", "b"]', '"a"', "train = 'a' is not of the kind"),
        ('["a", "b"]', '["a", 3]', r"train\[1\] = 3 is not of the kind str"),
        ("[[phases]]\nsteps = 10", "[[phases]]", r"phases\[0\]: .*either 'steps' or 'epochs'"),
        ('network = "regnet"', "", "key 'network' is missing"),
        ('["d"]', '["b", "d"]', r"c.toml: .*disjoint; given twice: \['b'\]"),
        ('["c"]', '["a"]', r"given twice: \['a'\]"),
        ('["a", "b"]', '["a", "a"]', r"given twice: \['a'\]"),
        ('["c"]', "[]", "in 'train' and in 'validation', or in neither"),
        ("steps = 10", "steps = 0", r"phases\[0\]: .*either 'steps' or 'epochs'"),
        ('network = "regnet"', 'network = "regnet"\ncheckpoint_every = 0', "at least 1"),
        ('network = "regnet"', 'network = "regnet"\naveraging = 1.0', "below 1, as 0.999: not 1"),
        (
            'network = "regnet"',
            'network = "regnet"\nvoxel_size = -1.5',
            "size in mm, or 0 for that of the network: not -1.5",
        ),
        (
            'network = "regnet"',
            'network = "regnet"\ncapture_range = nan',
            "capture_range is no number that can be computed with",
        ),
        ('network = "regnet"', 'network = "regnet"\ncapture_range = -1.0', "a length in mm, or 0: not -1"),
        ("steps = 10", "steps = 10\nblock_size = 1", "two outputs or more in a step"),
        ("steps = 10", "steps = 10\nblock_size = 1\nblocks = 2", None),
        ("steps = 10", "steps = 10 10", "not TOML"),
        ('network = "regnet"\n', 'network = "coarse_to_fine"\n', None),  # 96 is a multiple of 8
        ("steps = 10", "steps = 10\nblock_size = 20", None),
    ],
)
def test_errors_of_a_configuration(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    assert old in GOOD
    changed = GOOD.replace(old, new, 1)
    if words is None:
        read(tmp_path, changed)
        return
    with pytest.raises(ParameterError, match=words) as caught:
        read(tmp_path, changed)
    assert "\n" not in str(caught.value)


def test_more_errors_of_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="does not exist"):
        read_training_config(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="not TOML"):
        read_training_config(tmp_path / "binary.toml")
    with pytest.raises(ParameterError, match=r"\[\[phases\]\]"):
        read(tmp_path, GOOD.partition("[[phases]]")[0])
    with pytest.raises(ParameterError, match="multiple of 8, not 20"):
        read(tmp_path, GOOD.replace('"regnet"', '"coarse_to_fine"').replace("steps = 5", "steps = 5\nblock_size = 20"))


# Blocks


def smooth_source() -> Source:
    """A smooth image, so that linear interpolation, done by two programs, is nearly exact."""
    rng = np.random.default_rng(0)
    values = ndimage.gaussian_filter(rng.normal(size=(80, 84, 88)), 4.0, mode="wrap")
    values = (values * 300 / values.std() - 200).clip(-999, 1500).astype(np.float32)
    grid = Grid((88, 84, 80), (1.5, 1.6, 1.7))
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[34:46, 36:48, 38:50] = 1
    return Source.from_image(Image(values, grid), Image(mask, grid))


SOURCE = smooth_source()
SHAPE = (20, 24, 28)
WAVES = FieldRecipe(
    sigma=(10.0, 20.0), theta=(3.0, 5.0), strain=0.4, terms=3, breathing=8.0, breathing_share=1.0, translation=2.0,
    linear=0.03,
)  # fmt: skip


def maker(seed: int = 0, sources: list[Source] | None = None, size: float = 1.5) -> BlockMaker:
    return BlockMaker(sources or [SOURCE], SHAPE, size, Random(seed))


@pytest.mark.parametrize("seed", range(4))
def test_the_fixed_block_shows_what_the_moving_one_shows_at_x_plus_u(seed: int) -> None:
    block = maker(seed).make(WAVES, PLAIN)
    fixed, moving = block.fixed[0, 0].numpy(), block.moving[0, 0].numpy()
    u = block.displacement[0].numpy() / 1.5

    def residual(sign: float) -> float:
        where = np.indices(SHAPE) + sign * u[::-1]
        inside = np.all([(w >= 1) & (w <= n - 2) for w, n in zip(where, SHAPE, strict=True)], axis=0)
        assert inside.sum() > 500
        found = ndimage.map_coordinates(moving, where, order=3)
        return float(np.abs(found - fixed)[inside].mean())

    assert np.abs(u).mean() > 0.5
    assert residual(1.0) < 6.0  # HU; linear interpolation of the source
    assert residual(1.0) < 0.1 * residual(0.0)
    assert residual(1.0) < 0.1 * residual(-1.0)


def test_a_block_is_cut_at_the_voxels_of_the_network() -> None:
    """The moving block has the block's spacing in mm: its distances are those of the source, but for 0.85 to 1.2."""
    grid = Grid((64, 64, 64), (2.0, 2.0, 2.0))
    radius = np.linalg.norm(grid.points() - grid.centre(), axis=-1)
    ball = Image(np.where(radius < 20, 0.0, -1000.0).astype(np.float32), grid)
    mask = Image((radius < 1.8).astype(np.uint8), grid)
    still = FieldRecipe(theta=(0.0, 0.0))
    volume = []
    for seed in range(6):
        block = BlockMaker([Source.from_image(ball, mask)], (64, 64, 64), 1.0, Random(seed)).make(still, PLAIN)
        assert float(block.displacement.abs().max()) == 0
        torch.testing.assert_close(block.fixed, block.moving, atol=0.1, rtol=0)
        volume.append(float((block.moving > -500).sum()))
    ratio = np.array(volume) / (4 / 3 * np.pi * 20**3)
    assert ratio.min() > 1 / 1.2**3 * 0.85
    assert ratio.max() < 1 / 0.85**3 * 1.15
    assert ratio.std() > 0.02  # poses differ


def test_a_seed_makes_the_same_blocks_and_another_seed_others() -> None:
    recipe = AppearanceRecipe(noise=(5.0, 9.0), blur=0.7, density=0.2, mass_conservation=1.0, contrast=0.1)
    first, same, other = (maker(seed).make(WAVES, recipe) for seed in (1, 1, 2))
    for name in (f.name for f in dataclasses.fields(Block)):
        assert torch.equal(getattr(first, name), getattr(same, name))
        assert not torch.equal(getattr(first, name), getattr(other, name)) or name == "weight"
    again = maker(1)
    torch.rand(100)  # the global generator does not matter
    assert torch.equal(again.make(WAVES, recipe).fixed, first.fixed)
    assert not torch.equal(again.make(WAVES, recipe).fixed, first.fixed)


def test_the_displacement_is_as_large_as_asked() -> None:
    for theta in (2.0, 8.0):
        recipe = FieldRecipe(theta=(theta, theta))
        for seed in range(3):
            u = maker(seed).make(recipe, PLAIN).displacement
            assert float(u.abs().max()) == pytest.approx(theta, rel=1e-4)
    limited = FieldRecipe(sigma=(5.0, 5.0), theta=(8.0, 8.0), strain=0.4)
    assert float(maker().make(limited, PLAIN).displacement.abs().max()) == pytest.approx(2.0, rel=1e-4)
    breath = FieldRecipe(theta=(0.0, 0.0), breathing=10.0, breathing_share=1.0)
    largest = [float(maker(seed).make(breath, PLAIN).displacement.norm(dim=1).max()) for seed in range(12)]
    assert 3.0 < max(largest) < 10.0 * 1.5 / 1.2 + 1e-3


def test_displacements_of_even_length_are_as_often_long_as_short() -> None:
    recipe = dataclasses.replace(WAVES, breathing_share=0.0, even=9.0, even_share=1.0)
    z, y, x = (n // 2 for n in SHAPE)
    makers = [FieldMaker(SHAPE, 1.5, Random(seed)) for seed in range(150)]
    axis = torch.tensor([[0.0, 0.0, 1.0]])
    centres = np.stack([maker.field(recipe, axis)[0, :, z, y, x].numpy() for maker in makers])
    lengths = np.linalg.norm(centres, axis=1)
    assert stats.kstest(lengths, stats.uniform(0.0, 9.0).cdf).pvalue > 0.01
    directions = centres / lengths[:, None]
    for axis_values in directions.T:  # a direction's components are uniform if all directions are alike
        assert stats.kstest(axis_values, stats.uniform(-1.0, 2.0).cdf).pvalue > 0.01
    half = dataclasses.replace(recipe, even_share=0.5)
    shifted = [
        not torch.equal(
            FieldMaker(SHAPE, 1.5, Random(seed)).field(half, axis),
            FieldMaker(SHAPE, 1.5, Random(seed)).field(dataclasses.replace(half, even_share=0.0), axis),
        )
        for seed in range(60)
    ]
    assert 15 < sum(shifted) < 45


def test_a_shift_to_even_length_changes_no_strain() -> None:
    recipe = dataclasses.replace(WAVES, breathing_share=0.0)
    axis = torch.tensor([[0.0, 0.0, 1.0]])
    plain = FieldMaker(SHAPE, 1.5, Random(4)).field(recipe, axis)
    shifted = FieldMaker(SHAPE, 1.5, Random(4)).field(dataclasses.replace(recipe, even=9.0, even_share=1.0), axis)
    difference = (shifted - plain)[0].flatten(1)
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-5, rtol=0)
    assert float(difference.norm(dim=0)[0]) > 0.1


def test_noise_is_as_strong_as_asked_and_independent() -> None:
    still = FieldRecipe(theta=(0.0, 0.0))
    quiet = maker(3).make(still, PLAIN)
    loud = maker(3).make(still, AppearanceRecipe(noise=(20.0, 20.0)))
    noise = [(getattr(loud, n) - getattr(quiet, n)).ravel().numpy() for n in ("fixed", "moving")]
    for values in noise:
        assert np.std(values) == pytest.approx(20.0, rel=0.03)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05


def test_density_follows_the_volume() -> None:
    """Where the moving lung is larger (det > 1), the fixed one is denser; soft tissue keeps its value."""
    lung, tissue = (
        Source(
            torch.full((60, 60, 60), v, dtype=torch.int16),
            torch.ones(60, 60, 60, dtype=torch.uint8),
            torch.full((3,), 3.0),
            torch.full((1, 3), 88.0),
        )
        for v in (150, 1050)
    )
    stretch = FieldRecipe(theta=(0.0, 0.0), linear=0.2)
    for seed in range(5):
        growth = dataclasses.replace(PLAIN, mass_conservation=1.0)
        made = maker(seed, [lung], 1.0).make(stretch, growth)
        u = DisplacementField(np.moveaxis(made.displacement[0].numpy(), 0, -1), Grid((28, 24, 20)))
        det = float(u.jacobian_determinant().mean())
        ratio = float((made.fixed + 1000).mean() / (made.moving + 1000).mean())
        assert (ratio - 1) * (det - 1) > 0
        assert abs(ratio - 1) <= abs(det - 1) * 1.05 + 0.01
        firm = maker(seed, [tissue], 1.0).make(stretch, growth)
        np.testing.assert_allclose(firm.fixed, firm.moving, atol=1.0)


def test_the_weight_is_the_mask_at_the_fixed_voxel() -> None:
    """Values inside the mask are bright, others dark: the fixed block and its weight say the same."""
    grid = Grid((60, 60, 60), (2.0, 2.0, 2.0))
    ball = np.linalg.norm(grid.points() - grid.centre(), axis=-1) < 15
    source = Source.from_image(
        Image(np.where(ball, 1000.0, -1000.0).astype(np.float32), grid), Image(ball.astype(np.uint8), grid)
    )
    block = maker(0, [source]).make(WAVES, PLAIN)
    torch.testing.assert_close(block.fixed, block.weight * 2000 - 1000, atol=0.5, rtol=0)
    assert 0.05 < float(block.weight.mean()) < 0.95


def test_a_source_keeps_80_mm_around_the_lungs_along_every_axis() -> None:
    grid = Grid((120, 60, 40), (2.0, 4.0, 8.0))
    lungs = np.zeros(grid.shape, dtype=np.uint8)
    lungs[20, 30, 60] = 1
    source = Source.from_image(Image(np.zeros(grid.shape, dtype=np.float32), grid), Image(lungs, grid))
    extents = [(n - 1) / 2 * s for n, s in zip(source.values.shape, (8.0, 4.0, 2.0), strict=True)]
    assert extents == [80.0, 80.0, 80.0]
    assert source.region[10, 20, 40] == 1


def test_jacobian_determinant_is_numpy_s() -> None:
    u = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, 12, 13, 14)), (0, 2, 2, 2)) * 30
    matrix = np.stack([np.stack(np.gradient(c, 1.5)[::-1], axis=-1) for c in u], axis=-2) + np.eye(3)
    found = jacobian_determinant(torch.from_numpy(u.astype(np.float32))[None], 1.5)[0, 0]
    np.testing.assert_allclose(found, np.linalg.det(matrix), atol=1e-3)
    assert np.abs(found.numpy() - 1).max() > 0.3


def test_texture_tells_every_voxel_apart() -> None:
    source = Source.texture(48, Random(0))
    values = source.values.numpy().astype(np.float32)
    assert 0 <= values.min() < values.max() <= 1400
    local = ndimage.uniform_filter(values**2, 9) - ndimage.uniform_filter(values, 9) ** 2
    assert np.sqrt(local.clip(0)).min() > 60  # texture everywhere
    smooth = ndimage.gaussian_filter(values, 0.5)
    assert np.abs(smooth - values).mean() < 0.5 * values.std()  # band-limited: not white noise
    assert (source.region == 1).all()
    assert (source.centres >= 12).all()
    assert (source.centres <= 36).all()


# Whole pairs


@cache
def random_field(name: str, seed: int) -> DisplacementField:
    grid = Grid((64, 64, 64), (4.0, 4.0, 4.0))
    return draw_displacement(grid, FREQUENCIES[name], np.random.default_rng(seed))


@pytest.mark.parametrize("name", FREQUENCIES)
def test_the_paper_s_fields(name: str) -> None:
    peaks, border, middle = [], [], []
    for seed in range(4):
        field = random_field(name, seed)
        assert np.abs(field.vectors).max() == pytest.approx(8.0, rel=1e-5)
        assert field.jacobian_determinant().min() > 0.4
        length = np.linalg.norm(field.vectors, axis=-1)
        peaks.append(field.vectors.min(axis=(0, 1, 2)).max())
        inner = (slice(16, -16),) * 3
        middle.append(length[inner].mean())
        rim = np.ones(length.shape, dtype=bool)
        rim[3:-3, 3:-3, 3:-3] = False
        border.append(length[rim].mean())
        assert (np.abs(field.vectors.mean(axis=(0, 1, 2))) < 2.0).all()
    assert max(peaks) < 0  # each component has both signs
    assert np.mean(border) < np.mean(middle)  # impulses are not mirrored at the border


def test_frequencies_differ_as_their_names_say() -> None:
    def roughness(name: str) -> float:
        fields = [random_field(name, seed).vectors for seed in range(4)]
        return float(np.mean([np.abs(np.diff(f, axis=0)).mean() / np.abs(f).mean() for f in fields]))

    assert roughness("low") < roughness("medium") < roughness("high")


def test_a_field_lies_on_the_axes_of_its_image_and_covers_it() -> None:
    turned = tuple(map(tuple, Rotation.from_euler("xyz", (20, 30, 40), degrees=True).as_matrix()))
    straight = Grid((40, 30, 20), (2.0, 3.0, 5.0))
    oblique = dataclasses.replace(straight, direction=turned, origin=(5.0, 6.0, 7.0))
    first, second = (
        draw_displacement(grid, Frequency(20.0, 50, 6.0), np.random.default_rng(3)) for grid in (straight, oblique)
    )
    np.testing.assert_allclose(second.vectors, first.vectors @ np.array(turned).T, atol=1e-4)
    index = np.array([[0, 0, 0], [39, 29, 19], [10, 20, 5]])
    assert second.grid.contains(oblique.index_to_point(index)).all()
    along = first.at(straight.index_to_point(index)) @ np.array(turned).T
    np.testing.assert_allclose(second.at(oblique.index_to_point(index)), along, atol=1e-4)


def test_breathing_moves_the_base_of_the_lungs_most() -> None:
    grid = Grid((50, 40, 60), (5.0, 5.0, 5.0))
    mask = np.zeros(grid.shape, dtype=np.uint8)
    mask[12:50, 10:30, 8:42] = 1
    for amplitude in (20.0, -12.0):
        field = breathing_displacement(grid, Image(mask, grid), amplitude, np.random.default_rng(0))
        vectors = field.vectors * np.sign(amplitude)
        assert np.abs(vectors).max() == pytest.approx(abs(amplitude), rel=1e-5)
        assert vectors[..., 2].max() == pytest.approx(abs(amplitude), rel=1e-5)
        x, y, _ = grid.index_to_point([25, 20, 0])
        base, apex = (field.at([x, y, z])[2] * np.sign(amplitude) for z in (70.0, 235.0))
        assert base > 3 * max(apex, 0.1)
        assert field.jacobian_determinant().min() > 0.2


def test_the_undeformed_image_is_the_moving_one() -> None:
    turned = tuple(map(tuple, Rotation.from_euler("xyz", (5, -8, 12), degrees=True).as_matrix()))
    grid = Grid((40, 36, 32), (2.0, 2.2, 2.5), (-20.0, 10.0, 30.0), turned)
    values = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2.0)
    image = Image((values / values.std() * 200).astype(np.float32), grid)
    u = draw_displacement(grid, Frequency(20.0, 60, 6.0), np.random.default_rng(1))
    made = deform_pair(image, u, 0.0, np.random.default_rng(2))
    np.testing.assert_array_equal(made.moving.array, image.array)
    assert made.displacement is u
    points = grid.points() + u.at(grid.points())  # I_F(x) = I_M(x + u(x))
    where = np.moveaxis(grid.point_to_index(points)[..., ::-1], -1, 0)
    inner = np.all([(w > 3) & (w < n - 4) for w, n in zip(where, grid.shape, strict=True)], axis=0)
    expected = ndimage.map_coordinates(image.array, where, order=3)
    assert np.abs(made.fixed.array - expected)[inner].max() < 3.0
    assert np.abs(made.fixed.array - image.array)[inner].mean() > 30
    noisy = deform_pair(image, u, 5.0, np.random.default_rng(2))
    noise = [(getattr(noisy, n).array - getattr(made, n).array).ravel() for n in ("fixed", "moving")]
    assert [np.std(n) for n in noise] == pytest.approx([5.0, 5.0], rel=0.03)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.03


# The loop


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chests(tmp_path_factory.mktemp("images"), "one.mha", "two.nii.gz")


def tiny(network: str, **changes: Any) -> TrainingConfig:
    first = Phase(
        steps=2, blocks=1, block_size=16 if network == "coarse_to_fine" else 2, texture_share=0.5,
        fields=FieldRecipe(sigma=(8.0, 12.0), theta=(2.0, 3.0)), learning_rate=(1e-3, 5e-4),
    )  # fmt: skip
    second = dataclasses.replace(first, steps=2, appearance=AppearanceRecipe(noise=(1.0, 4.0), density=0.1))
    values = {
        "network": network, "train": ("one",), "validation": ("two",), "phases": (first, second), "validate_every": 2,
        "checkpoint_every": 1,
    }  # fmt: skip
    return TrainingConfig(**(values | changes))


CPU = TrainingOptions("cpu")


@pytest.fixture(autouse=True)
def quick_loop(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    prepared = tmp_path_factory.getbasetemp() / "prepared"  # one cache for all tests
    monkeypatch.setattr("regnet_itk.training.prepared.load_source", lambda path, by, _: load_source(path, by, prepared))
    monkeypatch.setattr("regnet_itk.training.phase_blocks._TEXTURE_SIZE", 48)
    monkeypatch.setattr("regnet_itk.training.loop._VALIDATION_BLOCKS", 2)
    monkeypatch.setattr("regnet_itk.training.loop._CALIBRATION_STEPS", 2)
    monkeypatch.setattr("regnet_itk.training.loop._QUICK_CALIBRATION_STEPS", 2)
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class PowerCut(Exception):
    """Ends a run in the middle of a step."""


def interrupt_at(trainer: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = trainer.learner.learn

    def until(*arguments: Any, **named: Any) -> Any:
        if trainer.step == step:
            raise PowerCut
        return learn(*arguments, **named)

    monkeypatch.setattr(trainer.learner, "learn", until)


@pytest.mark.parametrize("network", ["regnet", "coarse_to_fine"])
def test_training_continues_to_the_bit(
    network: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = HeardTraining()
    config = tiny(network)
    start = Trainer(config, images, tmp_path / "whole", TrainingOptions("cpu", events=heard))
    before = {name: tensor.clone() for name, tensor in start.learner.network.state_dict().items()}
    whole = load_model(start.run())
    assert isinstance(whole.network, RegNet if network == "regnet" else CoarseToFineRegNet)
    assert whole.description.architecture == network
    assert whole.description.capture_range == 3.0
    assert whole.description.training["steps"] == 4
    assert whole.description.training["recipe"]["train"] == ["one"]
    judged = whole.description.accuracy["validation"]
    assert judged["images"] == ["two"]
    assert judged["inside the lungs"]["all"]["mean_displacement_mm"] > 0
    learnt = [name for name, tensor in whole.network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(learnt) >= 0.9 * len([name for name, _ in whole.network.named_parameters()])
    log = rows(tmp_path / "whole")
    assert [row["step"] for row in log] == ["2", "4"]
    assert [row["phase"] for row in log] == ["0", "1"]
    assert all(None not in row and None not in row.values() for row in log)
    assert all(float(row["displacement_mm"]) > 0.1 and float(row["error_mm"]) > 0 for row in log)
    assert all(0 < float(row["share_left"]) < 1e3 for row in log)
    assert sum(line.startswith("step") for line in heard.lines) == 2
    assert [now.step for now in heard.steps] == [1, 2, 3, 4]
    assert {now.steps for now in heard.steps} == {4}

    cut = Trainer(config, images, tmp_path / "cut", CPU)
    interrupt_at(cut, 3, monkeypatch)
    with pytest.raises(PowerCut):
        cut.run()
    assert not list((tmp_path / "cut").glob("*.safetensors"))
    torch.rand(17)  # nothing rests on the global generator
    again = Trainer(config, images, tmp_path / "cut", CPU)
    continued = load_model(again.run())
    assert again.step == 4
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, continued.network.state_dict()[name]), name
    assert continued.digest == whole.digest
    assert [row["step"] for row in rows(tmp_path / "cut")] == ["2", "4"]
    assert sorted(f.name for f in (tmp_path / "cut").iterdir()) == sorted(
        f.name for f in (tmp_path / "whole").iterdir()
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_the_average_of_the_weights_is_judged_saved_and_continued(
    frozen: bool, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decay = 0.9
    phase = dataclasses.replace(
        tiny("regnet").phases[0], steps=4, learning_rate=(0.05, 0.05), frozen_statistics=frozen, texture_share=0.0
    )
    config = tiny("regnet", phases=(phase,), averaging=decay, validate_every=4)
    trainer = Trainer(config, images, tmp_path / "whole", CPU)
    learn, seen = trainer.learner.learn, []

    def watched(*arguments: Any, **named: Any) -> Any:
        found = learn(*arguments, **named)
        seen.append({name: p.detach().clone() for name, p in trainer.learner.network.named_parameters()})
        return found

    monkeypatch.setattr(trainer.learner, "learn", watched)
    whole = load_model(trainer.run())
    for name, saved in whole.network.named_parameters():
        expected = seen[0][name]
        for weights in seen[1:]:
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(saved, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        dict(whole.network.named_parameters())["fine_fixed.0.weight"], seen[-1]["fine_fixed.0.weight"]
    )
    error = whole.description.accuracy["validation"]["inside the lungs"]["all"]["mean_error_mm"]
    assert error == pytest.approx(trainer.validate().error, abs=6e-4)  # of the network that was saved

    cut = Trainer(config, images, tmp_path / "cut", CPU)
    interrupt_at(cut, 2, monkeypatch)
    with pytest.raises(PowerCut):
        cut.run()
    assert load_model(Trainer(config, images, tmp_path / "cut", CPU).run()).digest == whole.digest


def test_a_checkpoint_from_before_the_averages_is_continued(images: Path, tmp_path: Path) -> None:
    phase = dataclasses.replace(tiny("coarse_to_fine").phases[0], steps=1, texture_share=0.0)
    Trainer(tiny("coarse_to_fine", phases=(phase,)), images, tmp_path, CPU).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state.pop("averaged") == {}
    del state["plan"]
    torch.save(state, tmp_path / "checkpoint.pt")
    more = dataclasses.replace(phase, steps=2)
    trainer = Trainer(tiny("coarse_to_fine", phases=(more,), averaging=0.9), images, tmp_path, CPU)
    trainer.run()
    assert trainer.step == 2


def test_a_checkpoint_from_before_a_key_of_recipes_is_continued(images: Path, tmp_path: Path) -> None:
    """What the plan of an older one lacks is not asked for; what is asked for makes another training of it."""
    phase = dataclasses.replace(tiny("coarse_to_fine").phases[0], steps=1, texture_share=0.0)
    Trainer(tiny("coarse_to_fine", phases=(phase,)), images, tmp_path, CPU).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    plan = json.loads(state["plan"])
    del plan["voxel_size"], plan["phases"][0]["appearance"]["nodules_share"]
    torch.save({**state, "plan": json.dumps(plan)}, tmp_path / "checkpoint.pt")
    more = dataclasses.replace(phase, steps=2)
    with pytest.raises(ModelError, match="its 'voxel_size' was null, now 3"):
        Trainer(tiny("coarse_to_fine", phases=(more,), voxel_size=3.0), images, tmp_path, CPU).run()
    trainer = Trainer(tiny("coarse_to_fine", phases=(more,)), images, tmp_path, CPU)
    trainer.run()
    assert trainer.step == 2


@pytest.mark.parametrize("network", ["regnet_early", "regnet_1scale"])
def test_the_designs_of_the_paper_s_table_are_trained_alike(network: str, images: Path, tmp_path: Path) -> None:
    phase = dataclasses.replace(tiny(network).phases[0], steps=1)
    model = load_model(Trainer(tiny(network, phases=(phase,)), images, tmp_path, CPU).run())
    assert model.description.architecture == network
    assert isinstance(model.network, RegNet)
    assert (model.network.early_fusion, model.network.scales) == ((True, 2) if "early" in network else (False, 1))


def test_steps_after_the_last_checkpoint_are_done_and_logged_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("coarse_to_fine", validate_every=1, checkpoint_every=2)
    cut = Trainer(config, images, tmp_path, CPU)
    interrupt_at(cut, 3, monkeypatch)
    with pytest.raises(PowerCut):
        cut.run()
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3"]
    Trainer(config, images, tmp_path, CPU).run()
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
    first = (tmp_path / "coarse_to_fine.safetensors").read_bytes()
    Trainer(config, images, tmp_path, CPU).run()  # all is done: nothing is trained, the model is the same
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]
    assert len(first) == (tmp_path / "coarse_to_fine.safetensors").stat().st_size
    Trainer(config, images, tmp_path, CPU).run(resume=False)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"]


def test_the_group_of_processes_is_left_however_a_run_ends(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(Processes, "leave", lambda self: left.append(self.rank))
    config = tiny("coarse_to_fine", phases=(dataclasses.replace(tiny("coarse_to_fine").phases[0], steps=1),))
    cut = Trainer(config, images, tmp_path, CPU)
    interrupt_at(cut, 0, monkeypatch)
    with pytest.raises(PowerCut):
        cut.run()
    assert left == [0]
    Trainer(config, images, tmp_path, CPU).run()
    assert left == [0, 0]


def test_leaving_closes_the_group() -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    Processes(0, 2).leave()
    assert not torch.distributed.is_initialized()
    Processes(0, 2).leave()  # nothing is left to close


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_keeps_the_same_patients_aside(name: str) -> None:
    config = read_training_config(shipped_recipes()[name])
    assert config.name in {name, *(name.removesuffix(f"_{kind}") for kind in ("realistic", "long", "wide", "disease"))}
    if config.network == "general":  # on random scenes, or on whatever images a folder has
        assert not config.train
        return
    assert set(config.test) == {"COVIDCTMD_normal002", "LIDC-IDRI-0003"}
    assert "NLST_101287_T0" in config.validation
    assert not {*config.test, *config.validation} & set(config.train)
    assert find_recipe(name).phases == config.phases


def test_the_recipe_of_disease_adds_disease_and_nothing_else() -> None:
    (realistic,) = find_recipe("regnet_multistage").phases[-1:]
    disease = {"nodules_share", "consolidation_share", "motion", "motion_share"}
    for phase in find_recipe("regnet_multistage_disease").phases:
        assert phase.fields == realistic.fields
        shown, before = (dataclasses.asdict(p.appearance) for p in (phase, realistic))
        assert {key for key in shown if shown[key] != before[key]} == disease
        assert all(shown[key] > 0 and before[key] == 0 for key in disease)


def test_the_shipped_coarse_to_fine_model_was_trained_as_its_recipe_says() -> None:
    recipe = read_training_config(shipped_recipes()["regnet_multistage_disease"])
    training = load_model(shipped_models()["regnet_multistage"]).description.training
    assert training["steps"] == recipe.phases[-1].steps
    assert training["started_from"]["steps"] == recipe.phases[0].steps
    told = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert training["recipe"]["phases"] == told["phases"][-1:]
    assert [training["recipe"][part] for part in ("train", "validation", "test")] == [
        told[part] for part in ("train", "validation", "test")
    ]


def test_the_last_step_leaves_a_checkpoint(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("coarse_to_fine", checkpoint_every=1000)
    Trainer(config, images, tmp_path, CPU).run()
    again = Trainer(config, images, tmp_path, CPU)
    interrupt_at(again, 1, monkeypatch)  # it would be cut at its first step
    again.run()
    assert again.step == 4


def test_frozen_statistics_stay_as_they_were_measured(images: Path, tmp_path: Path) -> None:
    phase = dataclasses.replace(tiny("regnet").phases[0], steps=1, texture_share=0.0, frozen_statistics=True)
    trainer = Trainer(tiny("regnet", phases=(phase,)), images, tmp_path, CPU)
    seen = []
    learn = trainer.learner.learn

    def watched(*arguments: Any, **named: Any) -> Any:
        norm = trainer.learner.network.fine_fixed[1]
        before = norm.running_mean.clone()
        found = learn(*arguments, **named)
        seen.append((before, norm.running_mean.clone()))
        return found

    trainer.learner.learn = watched  # type: ignore[method-assign]
    trainer.run()
    ((before, after),) = seen
    assert torch.equal(before, after)
    assert float(before.abs().max()) > 0


def test_a_model_that_training_begins_with_keeps_the_statistics_that_it_was_learnt_with(
    images: Path, tmp_path: Path
) -> None:
    phase = dataclasses.replace(tiny("regnet").phases[0], steps=1, texture_share=0.0, frozen_statistics=True)
    first = Trainer(tiny("regnet", phases=(phase,)), images, tmp_path / "first", CPU).run()
    options = dataclasses.replace(CPU, start_from=first)
    second = Trainer(tiny("regnet", phases=(phase, phase), seed=8), images, tmp_path / "second", options).run()
    before, after = (load_model(path).network.state_dict() for path in (first, second))
    names = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert not all(torch.equal(before[name], after[name]) for name in before)  # the weights have learnt


@pytest.mark.parametrize("network", ["regnet", "coarse_to_fine"])
def test_a_recipe_says_on_which_voxels_a_network_works(network: str, images: Path, tmp_path: Path) -> None:
    """Of a network that has learnt on others too, whose lengths in voxels then mean other lengths in mm."""
    phase = dataclasses.replace(tiny(network).phases[0], steps=1, learning_rate=(0.0, 0.0), frozen_statistics=True)
    first = Trainer(tiny(network, phases=(phase,)), images, tmp_path / "first", CPU).run()
    options = dataclasses.replace(CPU, start_from=first)
    wider = tiny(network, phases=(phase,), voxel_size=3.0, capture_range=2.5)
    trainer = Trainer(wider, images, tmp_path / "wider", options)
    learning = trainer.architecture.stages(trainer.learner.network)
    before, after = load_model(first), load_model(trainer.run())
    assert before.description.voxel_size == before.architecture.voxel_size
    assert after.description.voxel_size == 3.0
    assert (before.description.capture_range, after.description.capture_range) == (3.0, 2.5)
    weights = before.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in after.network.state_dict().items())
    if network == "coarse_to_fine":
        assert learning == after.architecture.stages(after.network) == (24.0, 12.0, 6.0, 3.0)


def test_a_checkpoint_that_does_not_fit_is_refused(images: Path, tmp_path: Path) -> None:
    short = (dataclasses.replace(tiny("coarse_to_fine").phases[0], steps=1),)
    Trainer(tiny("coarse_to_fine", phases=short), images, tmp_path, CPU).run()
    with pytest.raises(ModelError, match="is of the network 'coarse_to_fine', not 'regnet'"):
        Trainer(tiny("regnet"), images, tmp_path, CPU).run()
    with pytest.raises(ModelError, match=r"of another training .its 'seed' was \d+, now 8.; .*`new`"):
        Trainer(tiny("coarse_to_fine", phases=short, seed=8), images, tmp_path, CPU).run()
    path = tmp_path / "checkpoint.pt"
    for damage in (path.read_bytes()[:3000], b"", b"nonsense"):
        path.write_bytes(damage)
        with pytest.raises(ModelError, match=r"checkpoint.pt' is damaged"):
            Trainer(tiny("coarse_to_fine"), images, tmp_path, CPU).run()
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"coarse_to_fine.safetensors', the model of another training"):
        Trainer(tiny("regnet"), images, tmp_path, CPU).run(resume=False)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="is read, and lies in the output folder"):
        Trainer(
            tiny("coarse_to_fine"),
            images,
            tmp_path,
            TrainingOptions("cpu", start_from=tmp_path / "coarse_to_fine.safetensors"),
        )


def test_images_that_are_not_there(images: Path, tmp_path: Path) -> None:
    assert find_images(images, ("two",)) == {"two": images / "two.nii.gz"}
    with pytest.raises(ImageError, match="'three' is not in"):
        Trainer(tiny("regnet", train=("three",)), images, tmp_path, CPU)


def test_learning_reduces_the_error(images: Path, tmp_path: Path) -> None:
    """A shift that is the same for all pairs is learnt within a few steps, with its sign."""
    phase = Phase(
        steps=12, block_size=16, learning_rate=(1e-3, 1e-3), fields=FieldRecipe(theta=(0.0, 0.0), translation=4.0)
    )
    trainer = Trainer(tiny("coarse_to_fine", phases=(phase,), validate_every=100), images, tmp_path, CPU)
    block = trainer._maker(phase, trainer.random).make(phase.fields, phase.appearance)
    losses = [trainer.learner.learn([block], 1e-3, phase)[0] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
