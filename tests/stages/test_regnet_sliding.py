"""A RegNet stage lets sides slide: a texture that shears along an oblique plane, on a turned grid, after a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from listening import Heard
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import ModelDescription, save_model
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.parameters import ParameterMap
from regnet_itk.registration import register
from regnet_itk.stages.base import ImagePair, RunOptions, StageResult
from regnet_itk.stages.guides import Guides
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

OPTIONS = RunOptions(threads=1, device="cpu")
TURNED = Rotation.from_euler("xyz", [20, 10, -30], degrees=True).as_matrix()
FIXED = Grid((44, 40, 36), (1.6, 1.8, 2.0), (5.0, -7.0, 11.0), TURNED)
MOVING = Grid((64, 60, 60), (1.5, 1.7, 1.8), tuple(FIXED.centre() - [47.0, 50.0, 53.0]))
NORMAL = np.array([0.6, 0.64, 0.48])
ALONG = 5.0 * np.cross(NORMAL, [0.0, 0.0, 1.0]) / np.linalg.norm(np.cross(NORMAL, [0.0, 0.0, 1.0]))
BEFORE = MatrixTransform([[1.03, 0.05, 0.0], [-0.04, 0.97, 0.03], [0.02, 0.0, 1.02]], FIXED.centre(), [2.0, -1.0, 3.0])


def inside(points: np.ndarray) -> np.ndarray:
    return np.asarray((points - FIXED.centre()) @ NORMAL > 0)


def slide(points: np.ndarray) -> np.ndarray:
    return np.asarray(points + np.where(inside(points)[..., None], ALONG, -ALONG))


@dataclass(frozen=True)
class Sheared:
    """F(x) = M(A(x +- a)), each side resampled by SimpleITK."""

    pair: ImagePair
    initial: TransformChain
    near: np.ndarray

    def error(self, found: StageResult) -> float:
        """Return the mean error within 10 mm of the plane, in mm."""
        points = FIXED.points()[self.near]
        return float(np.linalg.norm(found.chain.map_points(points) - BEFORE.map_points(slide(points)), axis=1).mean())


@pytest.fixture(scope="module")
def sheared() -> Sheared:
    rng = np.random.default_rng(0)
    values = np.zeros(MOVING.shape)
    for sigma in (1.2, 2.0, 3.5):
        term = ndimage.gaussian_filter(rng.normal(size=MOVING.shape), sigma, mode="wrap")
        values += term / term.std()
    moving = Image((-600 + 150 * values).clip(-1000, 400).astype(np.float32), MOVING)
    sides = []
    for along in (ALONG, -ALONG):
        both = sitk.CompositeTransform(3)
        both.AddTransform(BEFORE.to_sitk_transform())
        both.AddTransform(sitk.TranslationTransform(3, along.tolist()))
        sides.append(moving.resampled(FIXED, both, order=3, default=-1000.0).array)
    mask = inside(FIXED.points())
    pair = ImagePair(Image(np.where(mask, *sides), FIXED), moving)
    pair = replace(pair, fixed_guides=Guides(sliding=Image(mask.astype(np.uint8), FIXED)))
    depth = np.abs((FIXED.points() - FIXED.centre()) @ NORMAL)
    inner = np.zeros(FIXED.shape, dtype=bool)
    inner[5:-5, 6:-6, 7:-7] = True
    return Sheared(pair, TransformChain((Link(BEFORE),)), inner & (depth > 2.0) & (depth < 10.0))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegNetStage]:
    """Return a stage whose network finds nothing, so that all comes from the steps after it."""
    folder: Path = tmp_path_factory.mktemp("sliding")
    network = CoarseToFineRegNet()
    with torch.no_grad():
        for decoder in network.decoder:
            decoder.head.weight.zero_()
            decoder.head.bias.zero_()
    save_model(network, ModelDescription("still", "coarse_to_fine", 2.0, CHEST_CT, 40.0), folder / "still.safetensors")
    values = {"Registration": "RegNetRegistration", "RegNetModel": "still.safetensors", "RegNetRegion": "all"}
    values |= {"RegNetInstanceIterations": "20", "WriteResultImage": "false"}
    yield RegNetStage(ParameterMap({name: (value,) for name, value in values.items()}, str(folder / "p.txt")))


def test_both_sides_are_found(sheared: Sheared, stage: RegNetStage) -> None:
    heard = Heard()
    found = stage.run(sheared.pair, sheared.initial, replace(OPTIONS, events=heard))
    joined = stage.run(replace(sheared.pair, fixed_guides=Guides()), sheared.initial, OPTIONS)
    assert sheared.error(found) < 0.5 * sheared.error(joined)
    assert sheared.error(found) < 1.2
    told = [now.fraction for now in heard.progresses]
    assert told == sorted(told)
    assert float(found.details["largest_slip_mm"]) == pytest.approx(10.0, abs=1.5)
    assert 0.01 < float(found.details["sliding_gap_mm"]) < 0.5  # a third of a voxel; never none at all
    assert "largest_slip_mm" not in joined.details
    # as ITK sees it, and it folds nowhere
    field = found.chain.displacement_on(FIXED)
    points = FIXED.points()[sheared.near][::50]
    transform = found.chain.to_sitk(FIXED)
    mapped = np.array([transform.TransformPoint(point) for point in points.tolist()])
    np.testing.assert_allclose(mapped, found.chain.map_points(points), atol=1e-3)
    assert (field.jacobian_determinant()[1:-1, 1:-1, 1:-1] > 0).all()


def test_a_mask_can_be_left_aside(sheared: Sheared, stage: RegNetStage) -> None:
    aside = replace(stage, parameters=stage.parameters.with_(RegNetSliding="none"))
    found = aside.run(sheared.pair, sheared.initial, OPTIONS)
    joined = stage.run(replace(sheared.pair, fixed_guides=Guides()), sheared.initial, OPTIONS)
    points = FIXED.points()
    np.testing.assert_array_equal(found.chain.map_points(points), joined.chain.map_points(points))
    assert "sliding" not in aside.follows


def test_a_mask_without_a_border_is_told(sheared: Sheared, stage: RegNetStage) -> None:
    heard = Heard()
    everything = Guides(sliding=Image(np.ones(FIXED.shape, np.uint8), FIXED))
    pair = replace(sheared.pair, fixed_guides=everything)
    stage.run(pair, sheared.initial, replace(OPTIONS, events=heard))
    assert any("nothing slides" in line for line in heard.warnings)


def test_lungs_are_looked_for_where_they_are_asked_for(sheared: Sheared, stage: RegNetStage) -> None:
    lungs = replace(stage, parameters=stage.parameters.with_(RegNetSliding="lungs"))
    with pytest.raises(ImageError, match="lungs"):
        lungs.run(replace(sheared.pair, fixed_guides=Guides()), sheared.initial, OPTIONS)


def test_who_slides_is_asked_before_anything_runs(sheared: Sheared, stage: RegNetStage) -> None:
    pair = sheared.pair
    sliding, of_moving = pair.fixed_guides.sliding, Guides(sliding=Image(np.ones(MOVING.shape, np.uint8), MOVING))
    with pytest.raises(ParameterError, match="no stage of this chain follows it"):
        register(pair.fixed, pair.moving, "affine", fixed_guides=Guides(sliding=sliding))
    with pytest.raises(ParameterError, match="give `fixed_sliding`"):
        register(pair.fixed, pair.moving, stage, moving_guides=of_moving)
    with pytest.raises(ParameterError, match="the way back needs `moving_sliding`"):
        register(pair.fixed, pair.moving, stage, fixed_guides=Guides(sliding=sliding), both_ways=True)
    with pytest.raises(ImageError, match="fixed sliding mask lies on another grid"):
        register(pair.fixed, pair.moving, stage, fixed_guides=of_moving)
