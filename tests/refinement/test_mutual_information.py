"""Mutual information, judged by SimpleITK's metric and by what it has to be."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regnet_itk.refinement.mutual_information import BINS, mutual_information

RNG = np.random.default_rng(0)
FIXED = RNG.random(40_000).astype(np.float32)
RELATED = (np.sin(5 * FIXED) * 0.4 + 0.5 + 0.05 * RNG.normal(size=FIXED.size)).clip(0, 1).astype(np.float32)


def of(fixed, moving):
    return float(mutual_information(torch.from_numpy(fixed), torch.from_numpy(moving)))


def itks(fixed, moving):
    """Return what ITK's Mattes metric, the same in another program, finds for all voxels of two images."""
    images = [sitk.GetImageFromArray(values.reshape(20, 40, 50)) for values in (fixed, moving)]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInitialTransform(sitk.TranslationTransform(3))
    method.SetInterpolator(sitk.sitkNearestNeighbor)
    return -method.MetricEvaluate(*images)


@pytest.mark.parametrize("moving", [RELATED, 1 - FIXED, FIXED**2], ids=["by a curve", "inverted", "squared"])
def test_it_is_itks(moving):
    assert of(FIXED, moving) == pytest.approx(itks(FIXED, moving), rel=0.1)


def test_images_that_know_nothing_of_each_other_share_nothing():
    assert of(FIXED, RNG.permutation(FIXED)) < 0.02 < 0.2 * of(FIXED, RELATED)


def test_the_ends_of_brightness_count():
    black_and_white = (FIXED > 0.5).astype(np.float32)
    assert of(black_and_white, black_and_white) == pytest.approx(np.log(2), rel=1e-3)
    assert of(np.zeros_like(FIXED), FIXED) == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_is_that_of_differences():
    fixed, moving = torch.from_numpy(FIXED[:500]).double(), torch.from_numpy(RELATED[:500]).double()
    direction = torch.from_numpy(RNG.normal(size=500))
    there = moving.clamp(0.05, 0.95).requires_grad_()
    (gradient,) = torch.autograd.grad(mutual_information(fixed, there), there)
    ahead, behind = (mutual_information(fixed, there.detach() + s * 1e-5 * direction) for s in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-3)
