"""A RegNet stage that landmarks and labels guide: with a network that finds nothing, they show what the guides do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from listening import Heard
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk import Guides, register
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.landmarks import Landmarks
from regnet_itk.errors import ParameterError
from regnet_itk.networks.coarse_to_fine import CoarseToFineRegNet
from regnet_itk.networks.model import ModelDescription, save_model
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.parameters import ParameterMap
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform


def direction(*degrees):
    return tuple(map(tuple, Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()))


FIXED = Grid((48, 54, 36), (2.6, 2.1, 3.1), (30.0, -80.0, 25.0), direction(-12, 15, 25))
AFFINE = MatrixTransform(
    [[1.05, 0.12, -0.05], [-0.1, 0.94, 0.08], [0.06, -0.03, 1.08]], FIXED.centre(), [9.0, -14.0, 20.0]
)
_CONTROL = Grid((9, 9, 9), (40.0, 40.0, 40.0), tuple(FIXED.centre() - 160.0))
BSPLINE = BSplineTransform(np.random.default_rng(4).normal(size=(9, 9, 9, 3)) * 5.0, _CONTROL)
STARTS = {"affine": TransformChain((Link(AFFINE),)), "B-spline": TransformChain((Link(BSPLINE),))}


@pytest.fixture(params=STARTS)
def start(request):
    return STARTS[request.param]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that finds no displacement, whatever it sees."""
    network = CoarseToFineRegNet()
    with torch.no_grad():
        for decoder in network.decoder:
            decoder.head.weight.zero_()
            decoder.head.bias.zero_()
    path = tmp_path_factory.mktemp("model") / "blind.safetensors"
    save_model(network, ModelDescription("blind", "coarse_to_fine", 2.0, CHEST_CT, 40.0), path)
    return path


def stage(model, **keys):
    values = {
        "Registration": "RegNetRegistration", "RegNetRegion": "all", "RegNetModel": model, "WriteResultImage": "false",
    } | keys  # fmt: skip
    return RegNetStage(ParameterMap({key: tuple(str(value).split()) for key, value in values.items()}))


def u(points):
    """What is to be found: some mm everywhere, and a hill."""
    hill = np.exp(-0.5 * (((points - FIXED.centre()) / 30.0) ** 2).sum(axis=-1, keepdims=True))
    return hill * [7.0, -6.0, 5.0] + [1.0, -2.0, 1.5]


def texture(grid, seed=0):
    rng = np.random.default_rng(seed)
    values = sum(ndimage.gaussian_filter(rng.normal(size=grid.shape), s) * s**1.5 for s in (1.0, 1.8, 3.0))
    return Image((-600 + 160 * values / values.std()).clip(-1000, 400).astype(np.float32), grid)


def true_map(start):
    """Return T(x) = T0(x + u(x)) by SimpleITK, for points (n, 3)."""
    both = sitk.CompositeTransform(3)  # applies what was added last first
    both.AddTransform(start.to_sitk(FIXED))
    wide = FIXED.pad((6, 6, 6), (6, 6, 6))
    both.AddTransform(DisplacementField(u(wide.points()), wide).to_sitk_transform())
    return both, lambda points: np.array([both.TransformPoint(point) for point in points.tolist()])


@dataclasses.dataclass(frozen=True)
class Case:
    pair: ImagePair
    judges: np.ndarray
    judged: np.ndarray

    def error(self, chain):
        return float(np.linalg.norm(chain.map_points(self.judges) - self.judged, axis=1).mean())


def case(start, count=40, names=()):
    """A pair with F = M(T), with landmarks and others that judge."""
    by_sitk, mapping = true_map(start)
    centre = mapping(FIXED.centre()[None])[0]
    turned = Grid((80, 80, 80), (2.5, 2.5, 2.5), direction=direction(20, -30, 10))
    moving = texture(dataclasses.replace(turned, origin=tuple(centre - turned.centre())))
    fixed = moving.resampled(FIXED, by_sitk, order=3, default=-600.0)
    points, judges = (FIXED.random_points(n, np.random.default_rng(n), margin=9) for n in (count, 60))
    pair = ImagePair(
        fixed, moving, fixed_landmarks=Landmarks(points, names), moving_landmarks=Landmarks(mapping(points))
    )
    return Case(pair, judges, mapping(judges))


def run(made, pair, start, **options):
    heard = Heard()
    found = made.run(pair, start, RunOptions(threads=1, device="cpu", events=heard, **options))
    return found, heard


# Landmarks


def test_landmarks_bring_the_field_to_where_they_lead(model, start):
    """Within the transform so far, whatever it is: judged at other points, mapped by SimpleITK."""
    known = case(start)
    found, heard = run(stage(model, RegNetLandmarkWeight=1), known.pair, start)
    assert known.error(start) > 5.0
    assert known.error(found.chain) < 0.2 * known.error(start)
    assert heard.warnings == []
    assert found.details["guiding_landmarks"] == 40
    told = [now.fraction for now in heard.progresses]
    assert told == sorted(told)


def test_images_and_landmarks_agree_in_instance_optimisation(model, start):
    """Landmarks that are off by 1.5 mm: the images bring what lies between them closer to the truth."""
    known = case(start)
    assert known.pair.moving_landmarks is not None
    noise = np.random.default_rng(6).normal(size=(40, 3)) * 1.5 / np.sqrt(3)
    pair = dataclasses.replace(known.pair, moving_landmarks=Landmarks(known.pair.moving_landmarks.points + noise))
    alone, both = (
        run(stage(model, RegNetLandmarkWeight=1, RegNetInstanceIterations=n), pair, start)[0] for n in ("0", "30")
    )
    assert known.error(both.chain) < 0.8 * known.error(alone.chain)


def test_inexact_landmarks_do_no_harm_where_the_field_is_right(model):
    """The transform so far is the truth, and 20 points say that it is 3 mm off: judged at other points."""
    start = STARTS["affine"]
    moving = texture(Grid((90, 90, 90), (2.5, 2.5, 2.5), tuple(start.map_points(FIXED.centre()) - 111.0)))
    fixed = moving.resampled(FIXED, start.to_sitk(FIXED), order=3, default=-600.0)
    points, judges = (FIXED.random_points(n, np.random.default_rng(n), margin=9) for n in (20, 60))
    told = start.map_points(points) + np.random.default_rng(2).normal(size=points.shape) * 3 / np.sqrt(3)
    pair = ImagePair(fixed, moving, fixed_landmarks=Landmarks(points), moving_landmarks=Landmarks(told))
    found, heard = run(stage(model, RegNetLandmarkWeight=1), pair, start)
    assert Case(pair, judges, start.map_points(judges)).error(found.chain) < 0.05
    assert found.details["guiding_landmarks"] == 20
    assert found.details["landmarks_outvoted"] > 10
    assert heard.warnings == []


def test_landmarks_are_followed_as_far_as_they_are_trusted(model, start):
    """Half of them are off by 4 mm, and say so: judged by SimpleITK's map at other points."""
    known = case(start, 60)
    assert known.pair.moving_landmarks is not None
    inexact = np.arange(60) % 2 == 1
    noise = np.random.default_rng(6).normal(size=(60, 3)) * inexact[:, None] * 4 / np.sqrt(3)
    told = known.pair.moving_landmarks.points + noise
    errors = []
    for radii in (None, np.where(inexact, 4.0, 0.5)):
        pair = dataclasses.replace(known.pair, moving_landmarks=Landmarks(told, trust_radii=radii))
        errors.append(known.error(run(stage(model, RegNetLandmarkWeight=1), pair, start)[0].chain))
    assert errors[1] < 0.75 * errors[0]


def test_a_wrong_pair_is_named_and_not_used(model):
    start = STARTS["affine"]
    known = case(start, 20, [f"fork {n}" for n in range(20)])
    assert known.pair.moving_landmarks is not None
    points = known.pair.moving_landmarks.points.copy()
    points[3] += (0.0, 20.0, 0.0)
    pair = dataclasses.replace(known.pair, moving_landmarks=Landmarks(points))
    guided = stage(model, RegNetLandmarkWeight=1)
    found, heard = run(guided, pair, start)
    (warning,) = heard.warnings
    assert "landmark 3 'fork 3' is not used" in warning
    assert " mm from where its neighbours and the images put it" in warning
    assert found.details["landmarks_left_out"] == "3 'fork 3'"
    assert found.details["guiding_landmarks"] == 19
    assert known.error(found.chain) < 1.1 * known.error(run(guided, known.pair, start)[0].chain)


def test_without_a_weight_or_without_landmarks_nothing_changes(model):
    start = STARTS["affine"]
    pair = case(start).pair
    bare = dataclasses.replace(pair, fixed_landmarks=None, moving_landmarks=None)
    plain = stage(model, RegNetInstanceIterations=3)
    fields = [
        run(made, given, start)[0].chain.links[-1].transform.vectors
        for made, given in (
            (plain, bare), (plain, pair), (stage(model, RegNetInstanceIterations=3, RegNetLandmarkWeight=1), bare),
        )
    ]  # fmt: skip
    np.testing.assert_array_equal(fields[1], fields[0])
    np.testing.assert_array_equal(fields[2], fields[0])


def test_a_point_that_the_start_does_not_reach_is_named(model):
    """A field so far that folds the space leaves points of the moving image without a place in the fixed one."""
    ramp = FIXED.points()[..., :1] - FIXED.centre()[0]
    vectors = np.concatenate([-0.999999 * ramp, *[np.zeros_like(ramp)] * 2], axis=-1)
    flattened = TransformChain((Link(DisplacementField(vectors, FIXED)),))
    pair = case(STARTS["affine"], 3).pair
    inner = FIXED.random_points(3, np.random.default_rng(1), margin=12) + np.array([15.0, 0.0, 0.0])
    pair = dataclasses.replace(pair, fixed_landmarks=Landmarks(inner), moving_landmarks=Landmarks(inner))
    _, heard = run(stage(model, RegNetLandmarkWeight=1), pair, flattened)
    assert any("leads nowhere to it" in warning for warning in heard.warnings)


def test_errors_are_told_of_judges_or_said_to_be_of_guides(model):
    """Both ways: the same points guide the way back, and its errors are those of the judges' partners."""
    known = case(TransformChain(), 12)
    given = known.pair
    assert given.fixed_landmarks is not None
    made, heard = stage(model, RegNetLandmarkWeight=1), Heard()

    def registered(**judges):
        return register(
            given.fixed, given.moving, made.parameters, fixed_landmarks=given.fixed_landmarks,
            moving_landmarks=given.moving_landmarks, both_ways=True, threads=1, device="cpu", events=heard, **judges,
        )  # fmt: skip

    guided = registered()
    assert guided.stages[0].tre.guided
    assert guided.initial_tre.guided
    assert any("12 landmarks, which guided the registration" in line for line in heard.lines)
    assert guided.backward.stages[0].tre.guided
    assert guided.backward.stages[0].tre.mean < 0.3 * guided.backward.initial_tre.mean
    judged = registered(fixed_judge_landmarks=known.judges, moving_judge_landmarks=known.judged)
    assert judged.stages[0].tre.count == 60
    assert not judged.stages[0].tre.guided
    assert judged.stages[0].tre.mean == pytest.approx(known.error(judged.chain))
    assert judged.backward.stages[0].tre.count == 60
    with pytest.raises(ParameterError, match=r"fixed_judge_landmarks. and .moving_judge_landmarks"):
        registered(fixed_judge_landmarks=known.judges)


# Labels


def slabs(grid, mapping, numbers=(2, 5)):
    """Return two labels in the space of the fixed image: thick slabs, as seen through a map."""
    places = mapping(grid.points().reshape(-1, 3)).reshape(*grid.shape, 3) - FIXED.centre()
    inside = np.abs(places @ FIXED.direction_matrix[:, :2] / (12.0, 34.0)).max(axis=-1) < 1
    high = places @ FIXED.direction_matrix[:, 2]
    first = inside & (high > 6.0) & (high < 30.0)
    second = inside & (high < -6.0) & (high > -30.0)
    return Image((first * numbers[0] + second * numbers[1]).astype(np.int16), grid)


def labelled(start, numbers=(2, 5)):
    """A pair whose images say nothing, with labels that are 8 mm apart along the first axis of the fixed grid."""
    away = FIXED.direction_matrix @ [8.0, 0.0, 0.0]
    inverse = start.to_sitk().GetInverse()
    moving = Grid((60, 60, 50), (3.0, 3.0, 3.0), direction=direction(5, 10, -20))
    moving = dataclasses.replace(moving, origin=tuple(start.map_points(FIXED.centre()) - moving.centre()))
    fixed_label = slabs(FIXED, lambda points: points)
    moving_label = slabs(moving, lambda points: np.array([inverse.TransformPoint(p) for p in points.tolist()]) - away)
    if numbers != (2, 5):
        array = np.select([moving_label.array == 2, moving_label.array == 5], numbers, 0)
        moving_label = Image(array.astype(np.int16), moving)
    flat = [Image(np.full(grid.shape, -600.0, np.float32), grid) for grid in (FIXED, moving)]
    return ImagePair(*flat, fixed_guides=Guides(label=fixed_label), moving_guides=Guides(label=moving_label))


def overlap(pair, chain):
    measure = sitk.LabelOverlapMeasuresImageFilter()
    warped = pair.moving_guides.label.resampled(FIXED, chain.to_sitk(FIXED), order=0)
    measure.Execute(*(sitk.Cast(image.to_sitk(), sitk.sitkUInt8) for image in (pair.fixed_guides.label, warped)))
    return [measure.GetDiceCoefficient(number) for number in (2, 5)]


def test_labels_come_to_lie_on_each_other_within_the_transform_so_far(model):
    start = STARTS["affine"]
    pair = labelled(start)
    made = stage(model, RegNetInstanceIterations="20 20 20")
    assert "label" in made.follows
    found, heard = run(made, pair, start)
    assert max(overlap(pair, start)) < 0.75
    assert min(overlap(pair, found.chain)) > 0.88
    assert found.details["guiding_labels"] == "2, 5"
    assert heard.warnings == []


def test_weights_choose_labels(model):
    start = STARTS["affine"]
    pair = labelled(start)
    for weights, guiding in (("5 0", "2"), ("2 0.5", "2, 5"), ("0.3", "2, 5"), ("2 0 5 0", "")):
        found, _ = run(stage(model, RegNetInstanceIterations=1, RegNetLabelWeight=weights), pair, start)
        assert found.details["guiding_labels"] == guiding
    assert "label" not in stage(model, RegNetInstanceIterations=30, RegNetLabelWeight="0").follows
    assert "label" not in stage(model).follows


def test_labels_that_only_one_image_has_are_named_once(model):
    start = STARTS["affine"]
    pair = labelled(start, (2, 9))
    _, heard = run(stage(model, RegNetInstanceIterations=2), pair, start)
    (warning,) = heard.warnings
    assert warning.endswith("are not used: 5 of the fixed image; 9 of the moving image")


def test_labels_that_cannot_guide_are_refused(model):
    start = STARTS["affine"]
    made = stage(model, RegNetInstanceIterations=2)
    with pytest.raises(ParameterError, match=r"\(2, 5\) and of the moving image \(4, 9\) have no number in common"):
        made.check(start, labelled(start, (4, 9)), RunOptions())
    pair = labelled(start)
    for weights in ("1 2 3", "1.5 2"):
        with pytest.raises(ParameterError, match="a label and its weight"):
            stage(model, RegNetInstanceIterations=2, RegNetLabelWeight=weights).check(start, pair, RunOptions())
    moving = texture(pair.moving.grid)
    with pytest.raises(ParameterError, match="no stage of this chain follows it"):
        register(texture(FIXED), moving, stage(model).parameters, fixed_guides=pair.fixed_guides,
            moving_guides=pair.moving_guides, device="cpu")  # fmt: skip
