"""The networks: RegNet as a block equals RegNet patch by patch; the parts of the coarse-to-fine network, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from network_cases import noise, patch_by_patch, random_regnet, randomised
from scipy import ndimage
from torch import Tensor, nn

from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.correlation import correlate
from regnet_itk.networks.layers import demons_force, warp, warp_by_operations
from regnet_itk.networks.regnet import RegNet


@pytest.fixture(scope="module")
def regnet() -> RegNet:
    return random_regnet()


def test_the_paper_s_network_has_its_size() -> None:
    assert sum(p.numel() for p in RegNet().parameters()) == 904_878


def test_a_block_is_its_patches(regnet: RegNet) -> None:
    counts = (2, 3, 1)
    fixed, moving = (noise(*(52 + 2 * g for g in counts), seed=s) for s in (1, 2))
    block = regnet(fixed[None, None], moving[None, None])
    assert block.shape == (1, 3, *counts)
    assert block.std() > 0.05  # so that a tolerance in mm means something
    assert (block - regnet(moving[None, None], fixed[None, None])).abs().max() > 0.05
    for g in itertools.product(*(range(n) for n in counts)):
        patch = tuple(slice(2 * i, 2 * i + 54) for i in g)
        single = regnet(fixed[patch][None, None], moving[patch][None, None])
        np.testing.assert_allclose(single[0, :, 0, 0, 0], block[(0, slice(None), *g)], atol=1e-5)
        voxel = tuple(27 + 2 * i for i in g)
        by_hand = patch_by_patch(regnet, fixed.numpy(), moving.numpy(), voxel)
        np.testing.assert_allclose(by_hand, block[(0, slice(None), *g)], atol=1e-5)


def test_an_output_sees_the_54_voxels_around_it_and_no_more(regnet: RegNet) -> None:
    fixed = noise(1, 1, 58, 58, 58).requires_grad_()
    regnet(fixed, noise(1, 1, 58, 58, 58, seed=3))[0, :, 1, 1, 1].square().sum().backward()  # voxel 29
    assert fixed.grad is not None
    seen = fixed.grad[0, 0].abs() > 0
    for axes in ((1, 2), (0, 2), (0, 1)):
        touched = torch.nonzero(seen.any(dim=axes[1]).any(dim=axes[0])).ravel()
        assert (int(touched[0]), int(touched[-1])) == (29 - 27, 29 + 26)


@pytest.mark.parametrize(("design", "reach"), [({"early_fusion": True}, (27, 26)), ({"scales": 1}, (14, 13))])
def test_the_designs_that_the_paper_compares_with(design: dict[str, Any], reach: tuple[int, int]) -> None:
    """A block is its patches for them too; one scale sees the small patch only; early fusion mixes from the start."""
    network = RegNet(**design)
    randomised(network)
    fixed, moving = (noise(1, 1, 58, 58, 58, seed=s) for s in (1, 2))
    block = network(fixed, moving)
    assert block.shape == (1, 3, 3, 3, 3)
    for g in ((0, 0, 0), (2, 0, 1)):
        patch = (..., *(slice(2 * i, 2 * i + 54) for i in g))
        single = network(fixed[patch], moving[patch])[0, :, 0, 0, 0]
        scale = float(block.abs().max())
        np.testing.assert_allclose(single / scale, block[(0, slice(None), *g)] / scale, atol=1e-5)
    for image in (fixed.requires_grad_(), moving.requires_grad_()):
        image.grad = None
        network(fixed, moving)[0, :, 1, 1, 1].square().sum().backward()  # voxel 29
        assert image.grad is not None
        touched = torch.nonzero(image.grad[0, 0].abs().amax(dim=(0, 1))).ravel()
        assert (29 - int(touched[0]), int(touched[-1]) - 29) == reach
    first = next(m for m in network.modules() if isinstance(m, nn.Conv3d))
    assert first.in_channels == (2 if design.get("early_fusion") else 1)


@pytest.mark.parametrize("shape", [(53, 54, 54), (52, 52, 52), (54, 54, 57)])
def test_a_block_of_another_size_is_refused(regnet: RegNet, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="54, 56"):
        regnet(noise(1, 1, *shape), noise(1, 1, *shape))


def naive_correlation(fixed: Tensor, moving: Tensor, offsets: list[tuple[int, int, int]]) -> Tensor:
    batch, _, *shape = fixed.shape
    found = []
    for offset in offsets:
        part = torch.zeros(batch, *shape, dtype=fixed.dtype)
        for voxel in itertools.product(*(range(n) for n in shape)):
            there = [v + o for v, o in zip(voxel, offset, strict=True)]
            if all(0 <= t < n for t, n in zip(there, shape, strict=True)):
                product = fixed[(slice(None), slice(None), *voxel)] * moving[(slice(None), slice(None), *there)]
                part[(slice(None), *voxel)] = product.sum(dim=1)
        found.append(part)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("compiled", [True, False])
def test_correlation_and_its_gradient_are_those_of_the_plain_sum(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("regnet_itk.networks.correlation._kernels", lambda: None)
    offsets = [(0, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, 2), (-1, 1, -2)]
    leaves = [noise(2, 3, 3, 4, 5, seed=s).requires_grad_() for s in (0, 1, 2, 3)]
    weight = noise(2, len(offsets), 3, 4, 5, seed=9)
    quick, plain = correlate(leaves[0], leaves[1], offsets), naive_correlation(leaves[0], leaves[1], offsets)
    torch.testing.assert_close(quick, plain, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((found * weight).sum(), leaves[:2]) for found in (quick, plain)]
    for mine, autograd in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, autograd, atol=1e-6, rtol=1e-5)


def test_warp_samples_as_scipy_does() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 7, 8)).astype(np.float32)
    u = rng.uniform(-3, 3, (3, 6, 7, 8)).astype(np.float32)
    where = np.indices((6, 7, 8)) + u[::-1]
    expected = [ndimage.map_coordinates(channel, where, order=1, mode="nearest") for channel in image]
    found = warp(torch.from_numpy(image)[None], torch.from_numpy(u)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_the_demons_force_points_from_the_fixed_to_the_moving_voxel(axis: int, shift: float) -> None:
    smooth: Callable[[np.ndarray], np.ndarray] = lambda p: 0.4 * np.sin(p / 2.0).sum(axis=0)  # noqa: E731
    points = np.indices((20, 20, 20)).astype(float)
    u = np.zeros((3, 1, 1, 1))
    u[axis] = shift
    fixed, moving = smooth(points + u[::-1]), smooth(points)  # F(x) = M(x + u)
    tensors = [torch.from_numpy(i.astype(np.float32))[None, None] for i in (fixed, moving)]
    force = demons_force(*tensors)[0].numpy()
    # along the gradient only: project the truth, too, where the gradient of the image is not small
    gradient = np.stack(np.gradient(0.5 * (fixed + moving))[::-1])
    length = np.linalg.norm(gradient, axis=0)
    inner = np.zeros(length.shape, dtype=bool)
    inner[2:-2, 2:-2, 2:-2] = True
    clear = inner & (length > 0.1) & (np.abs(gradient[axis]) > 0.5 * length)
    assert clear.sum() > 500
    along = (force * gradient).sum(axis=0)[clear] / length[clear]
    expected = shift * gradient[axis][clear] / length[clear]
    np.testing.assert_allclose(along.mean() / expected.mean(), 1.0, atol=0.25)
    assert np.corrcoef(along, expected)[0, 1] > 0.9
    assert np.sign(force[axis][clear]).mean() == pytest.approx(np.sign(shift), abs=0.05)
    assert np.linalg.norm(force, axis=0).max() <= 0.5


def test_coarse_to_fine_outputs() -> None:
    network = randomised(CoarseToFineRegNet())
    fixed, moving = noise(2, 1, 16, 24, 40), noise(2, 1, 16, 24, 40, seed=1)
    found = network(fixed, moving)
    assert [tuple(f.shape) for f in found] == [(2, 3, 16 // k, 24 // k, 40 // k) for k in (8, 4, 2, 1)]
    one = network(fixed[1:], moving[1:])[-1]
    torch.testing.assert_close(found[-1][1:], one, atol=1e-4, rtol=1e-4)  # pairs of a batch do not mix
    assert found[-1].dtype == torch.float32
    with pytest.raises(ValueError, match="multiple of 8"):
        network(fixed[..., :20], moving[..., :20])


def test_coarse_to_fine_starts_from_zero_and_adds_up_levels() -> None:
    """An untrained decoder that says (1, 0, 0) voxels at every level gives the sum of the levels' sizes in mm."""
    network = randomised(CoarseToFineRegNet(voxel_size=1.5))
    for decoder in network.decoder:
        decoder.head.weight.zero_()
        decoder.head.bias.copy_(torch.tensor([1.0, 0.0, -0.5]))
    found = network(noise(1, 1, 16, 16, 16), noise(1, 1, 16, 16, 16, seed=1))
    for level, field in zip((3, 2, 1, 0), found, strict=True):
        total = 1.5 * sum(2**k for k in range(level, 4))
        for component, size in enumerate((total, 0.0, -0.5 * total)):
            np.testing.assert_allclose(field[0, component], size, rtol=1e-5, atol=1e-5)


def test_coarse_to_fine_composes_what_is_left_with_what_was_found() -> None:
    """The finer level's part comes first: u(x) = v(x) + w(x + v(x))."""
    network = randomised(CoarseToFineRegNet(voxel_size=1.0), seed=4)
    for decoder in network.decoder[:-1]:
        decoder.head.weight.zero_()
        decoder.head.bias.zero_()
    last = network.decoder[0].head.bias
    pair = noise(1, 1, 32, 32, 32), noise(1, 1, 32, 32, 32, seed=1)
    before = network(*pair)[-1]  # only the coarsest level says something
    assert before.std() > 0.3
    last.copy_(torch.tensor([2.0, 0.0, -1.0]))
    after = network(*pair)[-1]
    shifted = before[0, :, :-1, :, 2:] + torch.tensor([2.0, 0.0, -1.0]).view(3, 1, 1, 1)
    np.testing.assert_allclose(after[0, :, 1:, :, :-2], shifted, atol=1e-3)


@pytest.mark.parametrize("voxels", [16 * 24 * 2, 16 * 24 * 6, 16 * 24 * 38])
def test_slabs_of_the_finest_level_leave_no_seams(monkeypatch: pytest.MonkeyPatch, voxels: int) -> None:
    network = randomised(CoarseToFineRegNet(), seed=2)
    pair = noise(1, 1, 40, 24, 16), noise(1, 1, 40, 24, 16, seed=1)
    whole = network(*pair)[-1]
    assert whole.std() > 0.3
    monkeypatch.setattr("regnet_itk.networks.coarse_to_fine.SLAB_VOXELS", voxels)
    calls = []
    network.decoder[0].register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[2]))
    slabs = network(*pair)[-1]
    assert len(calls) == -(-40 // max(2, voxels // 384 // 2 * 2))
    torch.testing.assert_close(slabs, whole, atol=2e-4, rtol=1e-4)
    calls.clear()
    trained = network.train()(*pair)[-1]  # in training, all at once
    assert calls == [40]
    torch.testing.assert_close(trained, whole, atol=2e-4, rtol=1e-4)


def test_gradients_on_very_small_blocks_are_the_same_every_time() -> None:
    """The coarsest level of a block of 16 voxels has 2x2x2, where bfloat16 gradients were left to chance."""
    torch.manual_seed(0)
    network = CoarseToFineRegNet().to(memory_format=torch.channels_last_3d).train()
    pair = [noise(1, 1, 16, 16, 16, seed=seed) for seed in (1, 2)]

    def gradients() -> list[Tensor]:
        network.zero_grad(set_to_none=True)
        litter = [torch.full((n,), float("nan")) for n in range(1000, 60_000, 1000)]
        del litter
        with torch.autocast("cpu", torch.bfloat16):
            levels = network(*pair)
        sum(level.float().square().mean() for level in levels).backward()
        return [p.grad.clone() for p in network.parameters()]

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 3])
def test_warping_without_gradients_is_that_of_torchs_operations(first, dtype):
    random = torch.Generator().manual_seed(0)
    image = torch.randn(2, 5, 11, 9, 12, generator=random).to(dtype)
    u = 4 * torch.randn(2, 3, 6, 9, 12, generator=random)
    with torch.inference_mode():
        found = warp(image, u, first)
    torch.testing.assert_close(found, warp_by_operations(image, u, first), rtol=0, atol=2e-5)
