"""Features between voxels and their gradients, judged by scipy and by differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from regnet_itk.networks.interpolation import interpolate

SHAPES = [(9, 11, 10, 12), (1, 5, 7, 3), (2, 1, 1, 1)]


@pytest.fixture(params=["compiled", "operations"], autouse=True)
def either_way(request, monkeypatch):
    if request.param == "operations":
        monkeypatch.setattr("regnet_itk.networks.interpolation._kernels", lambda: None)


def places(shape, seed=0):
    """Return indices within an image, beyond its borders, on its voxels and on its last ones."""
    size = np.array(shape[:3])
    inside = np.random.default_rng(seed).uniform(-0.3, 1.2, (60, 3)) * size
    return np.concatenate([inside, [[0, 0, 0]], [size - 1], [size // 2]])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_scipys(shape):
    features, index = np.random.default_rng(1).random(shape), places(shape)
    found = interpolate(torch.from_numpy(features).float(), torch.from_numpy(index).float())
    for channel in range(shape[3]):
        wanted = ndimage.map_coordinates(features[..., channel], index.T, order=1, mode="nearest")
        np.testing.assert_allclose(found[:, channel], wanted, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_differences(shape):
    features, rng = np.random.default_rng(2).random(shape), np.random.default_rng(3)
    index = rng.uniform(0.2, 0.8, (40, 3)) + rng.integers(-1, np.array(shape[:3]) + 1, (40, 3))
    weights = rng.random((40, shape[3]))

    def total(at):
        values = [ndimage.map_coordinates(features[..., c], at.T, order=1, mode="nearest") for c in range(shape[3])]
        return (np.stack(values, axis=1) * weights).sum(1)

    places = torch.from_numpy(index).float().requires_grad_()
    cost = (interpolate(torch.from_numpy(features).float(), places) * torch.from_numpy(weights).float()).sum()
    (found,) = torch.autograd.grad(cost, places)
    for axis in range(3):
        step = 0.05 * np.eye(3)[axis]
        np.testing.assert_allclose(found[:, axis], (total(index + step) - total(index - step)) / 0.1, atol=1e-3)
