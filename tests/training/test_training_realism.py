"""What real pairs have and the paper's lack: each part of the recipe, judged by what it must do to an image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from training_cases import chests

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import ImageError
from regnet_itk.training.appearance import in_slices, remap_brightness
from regnet_itk.training.blocks import BlockMaker
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe
from regnet_itk.training.fields import slide_lungs
from regnet_itk.training.filters import slice_matrix, smooth
from regnet_itk.training.random_numbers import Random
from regnet_itk.training.sources import Places, Preparation, Source, load_source, sample_sources

STILL = FieldRecipe(theta=(0.0, 0.0))
PLAIN = AppearanceRecipe(noise=(0.0, 0.0))


def chest(spacing: tuple[float, float, float] = (2.0, 2.2, 2.5)) -> tuple[Image, Image]:
    """Soft tissue with one round lung in it, and the lung's mask."""
    grid = Grid((64, 60, 56), spacing, (7.0, -3.0, 11.0))
    radius = np.linalg.norm(grid.points() - grid.centre(), axis=-1)
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 2.0)
    values = np.where(radius < 35, -800.0, 50.0) + 100 * texture / texture.std()
    return Image(values.astype(np.float32), grid), Image((radius < 35).astype(np.uint8), grid)


SOURCE = Source.from_image(*chest())


def made(seed: int, fields: FieldRecipe = STILL, appearance: AppearanceRecipe = PLAIN):
    return BlockMaker([SOURCE], (40, 40, 40), 2.0, Random(seed)).make(fields, appearance)


# Sliding


def sphere(radius: float, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    axes = torch.arange(size) - (size - 1) / 2
    z, y, x = torch.meshgrid(axes, axes, axes, indexing="ij")
    positions = torch.stack([x, y, z])[None]
    return positions, (positions.norm(dim=1, keepdim=True) < radius).float()


def test_lungs_keep_their_motion_and_the_wall_keeps_what_is_normal_to_it() -> None:
    positions, lungs = sphere(12.0)
    u = torch.zeros_like(positions)
    u[:, 2] = 6.0  # along z
    found = slide_lungs(u, lungs, 1.0, 1.0)
    torch.testing.assert_close(torch.where(lungs > 0, found, 0.0), torch.where(lungs > 0, u, 0.0))
    middle = 24
    pole, side = found[0, :, 37, middle, middle], found[0, :, middle, middle, 37]  # just outside of the sphere
    assert float(pole[2]) > 5.0  # normal to the wall: it moves along
    assert abs(float(side[2])) < 0.5  # tangential: it stays
    half = slide_lungs(u, lungs, 0.5, 1.0)[0, :, middle, middle, 37]
    assert float(half[2]) == pytest.approx(3.0, abs=0.4)


def test_a_sliding_pair_is_consistent_inside_the_lung_and_jumps_at_the_wall() -> None:
    recipe = FieldRecipe(
        theta=(0.0, 0.0), breathing=12.0, breathing_share=1.0, sliding=1.0, sliding_share=1.0
    )  # fmt: skip
    jumps = []
    for seed in range(8, 20):
        block = made(seed, recipe)
        u, lungs = block.displacement[0].numpy(), block.weight[0, 0].numpy() > 0.99
        inner = ndimage.binary_erosion(lungs, iterations=2)
        where = np.indices(lungs.shape) + u[::-1] / 2.0
        inner &= np.all([(w >= 1) & (w <= 38) for w in where], axis=0)
        if inner.sum() < 500:
            continue
        moved = ndimage.map_coordinates(block.moving[0, 0].numpy(), where, order=1)
        still = block.moving[0, 0].numpy()
        fixed = block.fixed[0, 0].numpy()
        assert np.abs(moved - fixed)[inner].mean() < 15  # HU
        if np.abs(u[:, inner]).mean() > 2:
            assert np.abs(moved - fixed)[inner].mean() < 0.5 * np.abs(still - fixed)[inner].mean()
        step = np.linalg.norm(np.diff(u, axis=2), axis=0)
        jumps.append(step.max())
        seems_lung = (fixed > -950) & (fixed < -500)  # below lies what is outside of the source
        assert (seems_lung & (block.weight[0, 0].numpy() == 0)).mean() < 0.01
    assert len(jumps) >= 3
    assert max(jumps) > 1.0  # mm from one voxel to the next: no smooth field


# Many at once


def test_pairs_of_one_block_each_show_their_own_displacement_slide_and_look() -> None:
    """Inside the lungs the fixed image is the moving one at x + u, for every pair, although all differ."""
    recipe = FieldRecipe(
        sigma=(10.0, 30.0), theta=(1.0, 6.0), strain=0.3, terms=3, breathing=12.0, breathing_share=0.5, translation=2.0,
        linear=0.03, small_share=0.3, even=8.0, even_share=0.5, sliding=0.9, sliding_share=0.5,
    )  # fmt: skip
    block = BlockMaker([SOURCE, Source.from_image(*chest((2.6, 1.9, 2.1)))], (40, 40, 40), 2.0, Random(4)).make(
        recipe, PLAIN, 7
    )
    assert block.fixed.shape == (7, 1, 40, 40, 40)
    assert block.displacement.shape == (7, 3, 40, 40, 40)
    judged = 0
    for fixed, moving, u, weight in zip(
        block.fixed[:, 0], block.moving[:, 0], block.displacement.numpy(), block.weight[:, 0], strict=True
    ):
        where = np.indices(fixed.shape) + u[::-1] / 2.0
        inner = ndimage.binary_erosion(weight.numpy() > 0.99, iterations=2)
        inner &= np.all([(w >= 1) & (w <= 38) for w in where], axis=0)
        if inner.sum() > 500:
            judged += 1
            left = np.abs(ndimage.map_coordinates(moving.numpy(), where, order=1) - fixed.numpy())[inner].mean()
            assert left < 15  # HU
            assert left < 0.5 * (moving - fixed).abs().numpy()[inner].mean() + 3
    assert judged >= 4
    lengths = block.displacement.norm(dim=1).amax(dim=(1, 2, 3))
    assert len(set(lengths.tolist())) == 7


def test_filters_of_many_blocks_are_those_of_each() -> None:
    images = Random(1).normal(3, 1, 12, 14, 16)
    sigmas = [torch.tensor([0.5, 1.0, 2.5]), torch.tensor([0.0, 0.7, 1.2]), torch.tensor([1.0, 1.0, 0.2])]
    together = smooth(images, sigmas)
    for k, image in enumerate(images):
        alone = smooth(image[None], [float(s[k]) for s in sigmas])
        torch.testing.assert_close(together[k : k + 1], alone)
        expected = ndimage.gaussian_filter(image[0].numpy(), [float(s[k]) for s in sigmas], truncate=6.0)
        inner = (slice(5, -5),) * 3
        np.testing.assert_allclose(together[k, 0].numpy()[inner], expected[inner], atol=0.08)
    thickness, phase, axes = torch.tensor([3.0, 0.5, 2.2]), torch.tensor([0.2, 0.4, 0.9]), torch.tensor([0, 1, 2])
    sliced = in_slices(images, thickness, phase, axes)
    torch.testing.assert_close(sliced[1], images[1])  # thinner than a voxel
    along_z = torch.einsum("uz,zyx->uyx", slice_matrix(12, 3.0, 0.2), images[0, 0])
    torch.testing.assert_close(sliced[0, 0], along_z)
    along_x = torch.einsum("ux,zyx->zyu", slice_matrix(16, 2.2, 0.9), images[2, 0])
    torch.testing.assert_close(sliced[2, 0], along_x)


# Appearance


def test_noise_may_be_correlated_and_keeps_its_strength() -> None:
    def noise(seed: int, correlation: float) -> torch.Tensor:
        recipe = AppearanceRecipe(noise=(30.0, 30.0), noise_correlation=correlation)
        return made(seed, appearance=recipe).fixed - made(seed).fixed

    def neighbours(noise: torch.Tensor) -> float:
        values = noise[0, 0].numpy()
        return float(np.corrcoef(values[:, :, 1:].ravel(), values[:, :, :-1].ravel())[0, 1])

    white, correlated = ([noise(seed, sigma) for seed in range(5)] for sigma in (0.0, 2.0))
    assert [float(n.std()) for n in (*white, *correlated)] == pytest.approx([30.0] * 10, rel=0.03)
    assert max(abs(neighbours(n)) for n in white) < 0.05
    assert max(neighbours(n) for n in correlated) > 0.5


def test_thick_slices_are_averages_along_one_axis_only() -> None:
    size, thickness = 40, 3.0
    matrix = slice_matrix(size, thickness, 0.5).numpy()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-5)
    ramp = matrix @ np.arange(size)
    np.testing.assert_allclose(ramp[6:-6], np.arange(size)[6:-6], atol=0.35)  # it moves nothing
    fast = matrix @ (np.arange(size) % 2)
    assert np.abs(fast[6:-6] - 0.5).max() < 0.2  # and shows nothing finer than a slice
    thick = AppearanceRecipe(noise=(0.0, 0.0), slice_thickness=8.0)
    changes = []
    for seed in range(8):
        change = (made(seed, appearance=thick).moving - made(seed).moving)[0, 0].numpy()
        changes.append(np.abs(change).mean())
    assert max(changes) > 3.0  # HU


def test_a_contrast_agent_brightens_soft_tissue_only() -> None:
    agent = AppearanceRecipe(noise=(0.0, 0.0), contrast_agent=200.0)
    brighter = []
    for seed in range(8):
        before, after = made(seed).fixed, made(seed, appearance=agent).fixed
        lung = before < -500
        np.testing.assert_allclose(after[lung], before[lung], atol=1.0)
        brighter.append(float((after - before)[before > 100].mean()))
    assert min(brighter) == pytest.approx(0.0, abs=1e-3)  # half of the images have none
    assert max(brighter) > 20.0


def test_a_sharp_kernel_raises_the_contrast_of_small_things() -> None:
    sharp = AppearanceRecipe(noise=(0.0, 0.0), sharpening=2.0)
    ratios = []
    for seed in range(8):
        before, after = (b.moving[0, 0].numpy() for b in (made(seed), made(seed, appearance=sharp)))
        ratios.append(float(np.abs(ndimage.laplace(after)).mean() / np.abs(ndimage.laplace(before)).mean()))
    assert min(ratios) == pytest.approx(1.0, abs=1e-4)
    assert max(ratios) > 1.2


def changes(**asked: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images (z, y, x) before and after what is asked for, of ten blocks' fixed and moving ones."""
    pairs = []
    for seed in range(10):
        plain, changed = made(seed), made(seed, appearance=dataclasses.replace(PLAIN, **asked))
        pairs += [(plain.fixed, changed.fixed), (plain.moving, changed.moving)]
    return [(before[0, 0].numpy(), after[0, 0].numpy()) for before, after in pairs]


def test_nodules_are_lumps_of_soft_tissue_in_some_of_the_images() -> None:
    whole, some = changes(nodules_share=1.0), changes(nodules_share=0.5)
    assert 4 < sum(np.array_equal(before, after) for before, after in some) < 16
    largest = 0.0
    for before, after in whole:
        assert (after - before).min() > -0.01  # a lung's lump: nothing gets darker, and soft tissue stays
        np.testing.assert_allclose(after[before > 110], before[before > 110], atol=0.1)
        new = (after > -100) & (before < -500)
        lumps, count = ndimage.label(new)
        assert count <= 3 + 3  # the edge of the lung may cut one in two
        if count:
            assert after[new].max() < 40 + 61  # HU
            largest = max(largest, float(ndimage.sum_labels(new, lumps, range(1, count + 1)).max()) * 8.0)
    assert 500.0 < largest < 4 / 3 * np.pi * (12.0 * 1.25) ** 3  # mm3
    assert not np.array_equal(whole[0][0] == whole[0][1], whole[1][0] == whole[1][1])  # the other image has its own


def test_consolidation_makes_lung_denser_and_leaves_the_rest() -> None:
    denser = []
    for before, after in changes(consolidation_share=1.0):
        change = after - before
        np.testing.assert_allclose(change[before > 0], 0.0, atol=1.0)
        assert change.min() > -0.01
        assert after[before < -500].max() < 60.0  # HU
        denser.append((change > 100).sum() / max(1, (before < -500).sum()))
    assert 0.02 < np.median(denser) < 0.6
    assert max(denser) < 0.95  # the lung is never gone


def test_motion_makes_contours_double_within_its_reach() -> None:
    moved = []
    for before, after in changes(motion=6.0, motion_share=1.0):
        around = [filtered(before, size=9) for filtered in (ndimage.minimum_filter, ndimage.maximum_filter)]  # 8 mm
        middle = (slice(4, -4),) * 3
        assert (after >= around[0] - 0.1)[middle].all()
        assert (after <= around[1] + 0.1)[middle].all()
        moved.append(np.abs(after - before).mean())
    assert max(moved) > 5.0  # HU
    assert all(np.array_equal(before, after) for before, after in changes(motion=6.0))  # of no image


def test_small_fields_are_as_small_as_asked() -> None:
    recipe = FieldRecipe(theta=(10.0, 10.0), small_share=1.0, smallest=0.01)
    sizes = [float(made(seed, recipe).displacement.abs().max()) for seed in range(20)]
    assert 0.1 - 1e-4 < min(sizes) < 0.4
    assert 3.0 < max(sizes) <= 10.001


# Sources


def test_a_source_loses_its_noise_and_keeps_its_structure() -> None:
    image, lungs = chest((1.0, 1.0, 1.0))
    noisy = Image(
        image.array + np.random.default_rng(1).normal(0, 30, image.array.shape).astype(np.float32), image.grid
    )
    (rough, quiet), (clean, smooth) = (
        [Source.from_image(i, lungs, Preparation(smoothing=s)).values.float() for s in (0.0, 0.8)]
        for i in (noisy, image)
    )
    inside = clean > 60  # elsewhere the noise is cut off at air
    assert float((quiet - smooth)[inside].std()) < 0.35 * float((rough - clean)[inside].std())
    assert float((smooth - clean).abs().mean()) < 0.15 * float(clean.std())


def test_a_source_is_read_where_the_block_lies(tmp_path: Path) -> None:
    """The values are those of scipy's linear interpolation, on an anisotropic grid; outside there is air."""
    image, lungs = chest()
    source = Source.from_image(image, lungs)
    points = torch.tensor([[30.0, 40.0, 50.0], [3.3, 4.4, 5.5], [-40.0, 10.0, 10.0], [124.0, 128.0, 135.0]])
    place = Places([source], torch.eye(3)[None], torch.zeros(1, 3))
    values, mask = sample_sources(place, points.T.reshape(1, 3, 1, 1, 4))
    where = (points.numpy() / np.array(image.grid.spacing)).T[::-1]
    expected = ndimage.map_coordinates(image.array.clip(-1000, 3000) + 1000, where, order=1, cval=0.0)
    np.testing.assert_allclose(values.ravel(), expected, atol=1.0)
    np.testing.assert_allclose(mask.ravel(), ndimage.map_coordinates(lungs.array, where, order=0), atol=0.6)


def test_a_prepared_image_is_used_until_the_image_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = chests()[0]
    path, cache = tmp_path / "one.mha", tmp_path / "cache"
    write_image(image, path)
    first = load_source(path, Preparation(), cache)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as nothing_is_read:
        nothing_is_read.setattr("regnet_itk.training.sources.read_image", None)
        again = load_source(path, Preparation(), cache)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.centres, again.centres)
    load_source(path, Preparation(smoothing=1.0), cache)
    assert len(list(cache.iterdir())) == 2
    write_image(dataclasses.replace(image, array=image.array + 10), path)
    changed = load_source(path, Preparation(), cache)
    assert not torch.equal(first.values, changed.values)
    for file in cache.rglob("values.npy"):
        file.unlink()  # what is in use stays; a new file takes its place
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="was damaged and has been removed; start again"):
        load_source(path, Preparation(), cache)
    assert torch.equal(load_source(path, Preparation(), cache).values, changed.values)


def test_a_remapped_image_keeps_its_structures_and_its_range() -> None:
    """Equal values stay equal, whatever the curve; other values change, and not by one factor."""
    image = (torch.arange(1200.0).repeat_interleave(2) / 2).reshape(1, 1, 4, 20, 30)
    curves = [remap_brightness(image, 1200.0, Random(seed)).flatten() for seed in range(6)]
    for curve in curves:
        torch.testing.assert_close(curve[::2], curve[1::2])
        assert 0.0 <= curve.min() <= curve.max() <= 1200.0
        assert curve.diff().abs().max() < 20.0  # no steps
    assert sum(bool(curve[0] == 0.0) for curve in curves) >= 3
    assert min(np.corrcoef(curve, image.flatten())[0, 1] for curve in curves) < 0.3


def test_one_image_of_a_pair_is_remapped() -> None:
    source = Source.texture(48, Random(1))
    still = FieldRecipe(theta=(0.0, 0.0))
    plain, changed = (
        BlockMaker([source], (24, 24, 24), 2.0, Random(3)).make(still, AppearanceRecipe(noise=(0.0, 0.0), remap=remap))
        for remap in (0.0, 1.0)
    )
    related = [np.corrcoef(b.fixed.flatten(), b.moving.flatten())[0, 1] for b in (plain, changed)]
    assert related[0] > 0.99
    assert related[1] < 0.95
