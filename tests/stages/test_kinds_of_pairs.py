"""Starts and judgements on all kinds of pairs; and that the shipped affine stage does not make one worse silently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from listening import Heard
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.pair_kinds import PAIR_KINDS, KnownPair, change_pair, make_whole_pair
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.registration import register
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.coarse_pair import CoarsePair, intensity_limits
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.judgement import judge
from regnet_itk.stages.planning import read_stages
from regnet_itk.stages.start import find_start
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.matrix import MatrixTransform

TURNED = {"prone and supine": "z", "feet first": "x"}
COMPARABLE = [kind for kind in PAIR_KINDS if kind != "no overlap"]
QUICK = {"NumberOfResolutions": 2, "ImagePyramidSchedule": [2, 2, 2, 1, 1, 1], "MaximumNumberOfIterations": 120}
AFFINE = read_parameter_map("affine").with_(QUICK)


@pytest.fixture(scope="module")
def whole() -> KnownPair:
    return make_whole_pair(spacing=7.0, oblique=True)


def coarse_of(pair: KnownPair, **masks: Image) -> CoarsePair:
    return CoarsePair.of(pair.fixed, pair.moving, **masks)


def fit_landmarks(pair: KnownPair) -> MatrixTransform:
    """Return the affine map that fits the landmarks best."""
    middle = pair.fixed_landmarks.mean(axis=0)
    points = np.c_[pair.fixed_landmarks - middle, np.ones(len(pair.fixed_landmarks))]
    fitted = np.linalg.lstsq(points, pair.moving_landmarks, rcond=None)[0]
    return MatrixTransform(fitted[:3].T, middle, fitted[3] - middle)


def worsened(transform: MatrixTransform) -> MatrixTransform:
    """Return a transform that is off by some cm, turned and stretched, as one that was thrown off."""
    matrix = transform.matrix @ Rotation.from_rotvec([12, -8, 10], degrees=True).as_matrix() * 1.1
    return MatrixTransform(matrix, transform.centre, transform.translation + np.array([18, -14, 20]))


def as_chain(transform: MatrixTransform) -> TransformChain:
    return TransformChain((Link(transform),))


# The start


@pytest.mark.parametrize("kind", COMPARABLE)
def test_the_start_is_no_worse_than_the_scanners(kind, whole):
    pair = change_pair(whole, kind)
    start = find_start(coarse_of(pair), turned=kind in TURNED)
    error = pair.landmark_error(start.transform.map_points)
    assert start.axis == TURNED.get(kind)
    assert error < max(12.0, 1.5 * pair.landmark_error()), start
    assert error < 27.0


def test_a_turned_image_is_told(whole):
    pair = change_pair(whole, "feet first")
    heard = Heard()
    stage = ElastixStage(AFFINE.with_(MaximumNumberOfIterations=20))
    result = register(pair.fixed, pair.moving, stage, events=heard)
    wanted = 'looks turned by 180 degrees about x: give (RegNetStartTurns "true")'
    assert wanted in result.stages[0].details["warnings"]
    assert any(wanted in line for line in heard.warnings)


# The judgement


@pytest.mark.parametrize("kind", COMPARABLE)
def test_what_was_thrown_off_is_told_from_what_fits(kind, whole):
    pair = change_pair(whole, kind)
    good = fit_landmarks(pair)
    coarse = coarse_of(pair)
    found = judge(coarse, as_chain(good), as_chain(worsened(good)))
    assert found.is_worse
    assert "less alike after it" in found.warnings()[0]
    other_way = judge(coarse, as_chain(worsened(good)), as_chain(good))
    assert not other_way.is_worse
    assert not other_way.warnings()
    assert other_way.after.overlap > 0.45
    np.testing.assert_allclose(other_way.scales, np.linalg.svd(good.matrix, compute_uv=False))


def test_where_nothing_is_in_common_a_warning_says_so(whole):
    pair = change_pair(whole, "far origins")
    found = judge(coarse_of(pair), TransformChain(), TransformChain())
    assert (found.before.score, found.is_worse) == (0.0, False)
    noise = np.random.default_rng(0).normal(0, 300, pair.fixed.array.shape)
    unlike = CoarsePair.of(pair.fixed, Image(noise.astype(np.float32), pair.fixed.grid))
    (warning,) = judge(unlike, TransformChain(), TransformChain()).warnings()
    assert "little in common" in warning


def test_a_mirror_and_a_stretch_are_impossible(whole):
    coarse = coarse_of(whole)
    for matrix in (np.diag([-1.0, 1, 1]), np.diag([1, 1.8, 1]), np.diag([0.5, 1, 1])):
        found = judge(coarse, TransformChain(), as_chain(MatrixTransform(matrix)))
        assert found.is_impossible
        assert any("no body does" in warning for warning in found.warnings())


def test_masks_are_where_it_is_judged(whole):
    """What differs outside of the masks does not count, inside it does."""
    spoilt = whole.fixed.array.copy()
    outside = whole.fixed.grid.points()[..., 0] > 10
    spoilt[outside] = np.random.default_rng(1).normal(0, 500, outside.sum())
    pair = replace(whole, fixed=Image(spoilt, whole.fixed.grid))
    mask = Image((~outside).astype(np.uint8), pair.fixed.grid)
    good = fit_landmarks(pair).map_points
    clean, masked, all_of_it = (
        CoarsePair.of(fixed, pair.moving, given).look(good).similarity
        for fixed, given in ((whole.fixed, mask), (pair.fixed, mask), (pair.fixed, None))
    )
    assert abs(clean - masked) < 0.1
    assert all_of_it < clean - 0.2


def test_images_of_opposite_contrast_have_a_start_too(whole):
    """All places then look worse than none; the least bad one is as good a start as any."""
    opposite = Image(-900.0 - whole.moving.array, whole.moving.grid)
    pair = CoarsePair.of(whole.fixed, opposite)
    found = find_start(pair)
    assert found.look.score >= pair.look(lambda points: points).score


def test_of_any_contrast_the_best_is_at_the_truth(whole):
    """With values turned upside down and bent, as in another modality, and in another unit."""
    odd = Image((900 - whole.moving.array / 2.0) ** 2 / 1e5, whole.moving.grid)
    pair = replace(CoarsePair.of(whole.fixed, odd), any_contrast=True)
    good = fit_landmarks(whole)
    scores = []
    for shift in (-24, -12, 0, 12, 24):
        moved = MatrixTransform(good.matrix, good.centre, good.translation + shift)
        scores.append(pair.look(moved.map_points).score)
    assert np.argmax(scores) == 2
    assert scores[2] > 0.5
    assert find_start(pair).look.score > pair.look(lambda points: points).score - 1e-6


def test_limits_are_those_of_the_anatomy():
    rng = np.random.default_rng(2)
    grid = Grid((40, 40, 40))
    ct = rng.integers(-1000, 900, grid.shape).astype(np.int16)
    ct[:5], ct[-1, -1, -1] = -3024, 32767
    assert intensity_limits(Image(ct, grid)) == (-1000.0, 1000.0)
    mr = rng.uniform(100, 200, grid.shape).astype(np.float32)
    mr[:10], mr[20, 20, :5] = 0, 60000
    low, high = intensity_limits(Image(mr, grid))
    assert 100 <= low < 103
    assert 197 < high <= 201
    assert intensity_limits(Image((ct == -3024).astype(np.uint8), grid)) == (0.0, 1.0)


# The stage


@pytest.mark.parametrize("kind", ["half of the fixed chest", "without apices and without bases", "padding of -3024"])
def test_kinds_that_threw_the_papers_stage_off(kind, whole):
    pair = change_pair(whole, kind)
    result = register(pair.fixed, pair.moving, ElastixStage(AFFINE))
    assert pair.landmark_error(result.chain.map_points) < 0.6 * pair.landmark_error()
    assert "warnings" not in result.stages[0].details
    assert result.stages[0].details["similarity_after"] > 0.85


def test_turns_are_found_and_the_files_are_elastixs(whole, tmp_path):
    pair = change_pair(whole, "feet first")
    result = register(pair.fixed, pair.moving, ElastixStage(AFFINE.with_(RegNetStartTurns=True)))
    assert pair.landmark_error(result.chain.map_points) < 5.0
    result.write(tmp_path)
    chain = read_chain(tmp_path / "TransformParameters.0.txt")
    assert [type(link.transform).__name__ for link in chain.links] == ["MatrixTransform"]
    assert "AffineTransform" in (tmp_path / "TransformParameters.0.txt").read_text()
    assert not list(tmp_path.glob("InitialTransform*"))
    np.testing.assert_allclose(
        chain.map_points(pair.fixed_landmarks), result.chain.map_points(pair.fixed_landmarks), atol=1e-6
    )
    composite = sitk.ReadTransform(str(tmp_path / "TransformParameters.0-Composite.h5"))
    ours = sitk.Resample(pair.moving.to_sitk(), pair.fixed.to_sitk(), composite, sitk.sitkBSpline3, -1000.0)
    written = sitk.ReadImage(str(tmp_path / "result.0.mha"))
    assert np.abs(sitk.GetArrayFromImage(ours) - sitk.GetArrayFromImage(written)).max() <= 1.0


def test_a_result_worse_than_the_start_is_undone(whole):
    """elastix is misled by steps that are far too large."""
    pair = change_pair(whole, "far origins")
    wild = AFFINE.with_(AutomaticParameterEstimation=False, SP_a=3000.0, SP_A=1.0, MaximumNumberOfIterations=3)
    heard = Heard()
    kept = register(pair.fixed, pair.moving, ElastixStage(wild), events=heard)
    details = kept.stages[0].details
    assert details["kept_start"] is True
    assert details["similarity_after"] > 0.75
    assert pair.landmark_error(kept.chain.map_points) < 12
    assert any("was worse than its start (middle on middle" in line for line in heard.warnings)
    assert (details["largest_scale"], details["determinant"]) == (1.0, 1.0)


def test_after_an_initial_transform_that_is_the_start(whole):
    pair = change_pair(whole, "far origins")
    shift = as_chain(MatrixTransform(np.eye(3), translation=np.array([310.0, -640.0, 1480.0])))
    result = register(pair.fixed, pair.moving, ElastixStage(AFFINE), initial=shift)
    assert result.stages[0].details["start"] == "initial transform"
    assert len(result.chain.links) == 2
    assert pair.landmark_error(result.chain.map_points) < 5


def test_a_rigid_stage_finds_a_rotation_in_another_unit(whole):
    pair = change_pair(whole, "turned by 20 degrees")
    images = [Image((image.array + 1000) / 3000.0, image.grid) for image in (pair.fixed, pair.moving)]
    rigid = ElastixStage(read_parameter_map("rigid").with_(QUICK))
    result = register(*images, rigid)
    (link,) = result.chain.links
    assert link.transform.name == "EulerTransform"
    np.testing.assert_allclose(np.linalg.svd(link.transform.matrix, compute_uv=False), 1.0)
    assert pair.landmark_error(result.chain.map_points) < 0.3 * pair.landmark_error()
    assert link.parameters.get_float("DefaultPixelValue") == pytest.approx(intensity_limits(images[1])[0])
    assert result.warped.array.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RegNetStart": "bests"}, "'RegNetStart' must be elastix or best, not 'bests'"),
        ({"RegNetStart": "elastix", "RegNetStartTurns": True}, "'RegNetStartTurns' needs"),
        ({"RegNetStrat": "best"}, "there is no key 'RegNetStrat'; did you mean 'RegNetStart'"),
        ({"Transform": "BSplineTransform"}, "not for 'BSplineTransform'"),
        (
            {"RegNetStart": "elastix", "RegNetMostVoxels": 9000, "Transform": "BSplineTransform"},
            "'RegNetMostVoxels' is for a transform that is a matrix",
        ),
        ({"RegNetModel": "x"}, 'needs \\(Registration "RegNetRegistration"\\)'),
        ({"Registration": "RegNetRegistration"}, 'needs \\(Registration "MultiResolutionRegistration"\\)'),
    ],
)
def test_keys_that_do_not_fit(change, message, whole):
    with pytest.raises(ParameterError, match=message):
        (stage,) = read_stages(read_parameter_map("affine").with_(change))
        stage.check(TransformChain(), None, RunOptions())


def test_elastix_alone_is_judged_but_left_as_it_is(whole):
    """Only its own keys make elastix's stage another one; see also test_elastix_stage.py."""
    pair = change_pair(whole, "half of the fixed chest")
    alone = ParameterMap({k: v for k, v in AFFINE.values.items() if not k.startswith("RegNet")}, "mine.txt")
    heard = Heard()
    result = register(pair.fixed, pair.moving, ElastixStage(alone), events=heard)
    direct = ElastixStage(alone).run(ImagePair(pair.fixed, pair.moving), TransformChain(), RunOptions())
    np.testing.assert_array_equal(result.warped.array, direct.warped.array)
    assert pair.landmark_error(result.chain.map_points) > 2 * pair.landmark_error()
    assert any("less alike after it" in line for line in heard.warnings)
    assert "start" not in result.stages[0].details
