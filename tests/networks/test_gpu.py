"""What is computed on a graphics card, judged by the same on the processor: ``pytest -m gpu``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regnet_itk.anatomy.pair_kinds import make_whole_pair
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.networks.model import shipped_models
from regnet_itk.parameters import read_parameter_map
from regnet_itk.refinement.agreement import InstancePair
from regnet_itk.refinement.instance_optimisation import InstanceOptions, optimise_field
from regnet_itk.registration import register
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.chain import TransformChain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card here"),
]


@pytest.fixture(scope="module")
def whole():
    return make_whole_pair(spacing=5.0, oblique=True)


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_networks_find_what_they_find_on_the_processor(name, whole):
    points = whole.fixed.grid.points()
    ball = np.linalg.norm(points - whole.fixed_landmarks[0], axis=-1) < 30
    pair = ImagePair(whole.fixed, whole.moving, Image(ball, whole.fixed.grid))
    given = read_parameter_map("regnet_multistage_oneshot").with_(
        RegNetModel=name, RegNetRegion="mask", WriteResultImage=False
    )
    exact, fast = RegNetStage(given.with_(RegNetPrecision="float32")), RegNetStage(given)
    here, there = (
        one.run(pair, TransformChain(), RunOptions(device=device)).chain.map_points(points[ball])
        for one, device in ((exact, "cpu"), (fast, "cuda"))
    )
    moved = np.linalg.norm(here - points[ball], axis=1).mean()
    assert np.linalg.norm(here - there, axis=1).mean() < max(0.1, 0.05 * moved)


def test_instance_optimisation_finds_what_it_finds_on_the_processor(whole):
    grid = whole.fixed.grid.isotropic(4.0)
    fixed, moving = (image.resampled(grid, default=-1000.0) for image in (whole.fixed, whole.moving))
    everywhere = Image(np.ones(grid.shape, dtype=bool), grid)
    pair = InstancePair(fixed, moving, Image(fixed.array > -300, grid), everywhere)
    start = DisplacementField(np.zeros((*grid.shape, 3), dtype=np.float32), grid)
    here, there = (optimise_field(pair, start, InstanceOptions((20,), device=d)).vectors for d in ("cpu", "cuda"))
    assert np.abs(here).max() > 0.5
    assert np.abs(here - there).mean() < 0.05 * np.abs(here).mean()


def test_a_chain_runs_on_the_card(whole):
    result = register(whole.fixed, whole.moving, ["affine", "regnet_multistage"], device="cuda")
    assert result.stages[-1].details["device"].startswith("cuda")
    before = np.linalg.norm(whole.fixed_landmarks - whole.moving_landmarks, axis=1).mean()
    error = np.linalg.norm(result.chain.map_points(whole.fixed_landmarks) - whole.moving_landmarks, axis=1).mean()
    assert error < 0.3 * before
    assert result.verdict is not None
