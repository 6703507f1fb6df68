"""Points and labels that guide a field: the correction, the search for wrong points, both terms, on turned grids."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.refinement.agreement import InstancePair
from regnet_itk.refinement.instance_optimisation import InstanceOptions, optimise_field
from regnet_itk.refinement.label_term import UNKNOWN, LabelTerm, label_surfaces
from regnet_itk.refinement.landmark_correction import Correction, Spread, correct_field, fit_spread
from regnet_itk.refinement.landmark_term import LandmarkTerm
from regnet_itk.refinement.wrong_points import PointViews, doubt_points

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (25, -15, 50), degrees=True).as_matrix()))
GRID = Grid((40, 36, 30), (2.0, 2.0, 2.0), (-60.0, 110.0, 40.0), TURNED)
ANISOTROPIC = Grid((70, 50, 40), (3.0, 4.5, 5.5), (-120.0, 80.0, 10.0), TURNED)
OPTIONS = InstanceOptions((40,), device="cpu", threads=1)


def inner_points(grid, count, seed=0, margin=5):
    return grid.random_points(count, np.random.default_rng(seed), margin=margin)


# The correction


def test_a_correction_meets_the_points_is_smooth_between_them_and_ends_far_away():
    """Judged by SimpleITK's transform of the field, at the points and far from all of them."""
    near = ANISOTROPIC.index_to_point(np.random.default_rng(1).uniform((8, 8, 8), (22, 18, 16), (40, 3)))
    residuals = np.array([6.0, -9.0, 4.0]) + 0.05 * (near - near.mean(axis=0))
    u = DisplacementField(np.full((*ANISOTROPIC.shape, 3), (1.0, 2.0, -3.0), np.float32), ANISOTROPIC)
    radii = np.full(len(near), 0.5)
    corrected = correct_field(u, Correction(near, residuals, radii, fit_spread(near, residuals, radii)))
    by_sitk = corrected.to_sitk_transform()
    moved = np.array([by_sitk.TransformPoint(point) for point in near.tolist()]) - near
    np.testing.assert_allclose(moved, residuals + np.array([1.0, 2.0, -3.0]), atol=0.5)
    far = ANISOTROPIC.index_to_point([[66.0, 46.0, 36.0]])
    assert np.linalg.norm(far - near, axis=1).min() > 150.0
    np.testing.assert_allclose(corrected.at(far), [[1.0, 2.0, -3.0]], atol=0.1)
    assert corrected.jacobian_determinant().min() > 0.3


def test_points_whose_errors_follow_no_neighbour_tell_little():
    points = inner_points(ANISOTROPIC, 150)
    noise = np.random.default_rng(2).normal(size=points.shape) * 3.0
    radii = np.full(len(points), 1.0)
    scattered, together = (fit_spread(points, r, radii) for r in (noise, np.full(points.shape, 5.0)))
    assert scattered.looseness > 2.0
    assert scattered.errors < 1.0
    assert together.looseness == 1.0
    assert together.errors > 2.0
    u = DisplacementField(np.zeros((*ANISOTROPIC.shape, 3), np.float32), ANISOTROPIC)
    left = correct_field(u, Correction(points, noise, radii, scattered)).at(points)
    assert np.linalg.norm(left, axis=1).mean() < 0.25 * np.linalg.norm(noise, axis=1).mean()


def test_of_two_points_at_one_place_the_more_exact_one_is_followed():
    point = ANISOTROPIC.centre()[None].repeat(2, axis=0)
    u = DisplacementField(np.zeros((*ANISOTROPIC.shape, 3), np.float32), ANISOTROPIC)
    residuals = np.array([[4.0, 4.0, 4.0], [8.0, 8.0, 8.0]])
    found = Correction(point, residuals, np.array([0.5, 5.0]), Spread(5.0, 1.0))
    np.testing.assert_allclose(correct_field(u, found).at(point)[0], 4.0, atol=0.3)


def test_one_point_and_two_at_the_same_place_are_enough():
    point = ANISOTROPIC.centre()[None]
    u = DisplacementField(np.zeros((*ANISOTROPIC.shape, 3), np.float32), ANISOTROPIC)
    residuals = np.array([[4.0, 4.0, 4.0], [6.0, 6.0, 6.0]])
    for count in (1, 2):
        found = Correction(point.repeat(count, axis=0), residuals[:count], np.full(count, 1.0), Spread(5.0, 1.0))
        assert np.abs(correct_field(u, found).at(point)[0] - residuals[:count].mean()).max() < 0.5


# Wrong points


def texture(grid, seed=3):
    rng = np.random.default_rng(seed)
    values = sum(ndimage.gaussian_filter(rng.normal(size=grid.shape), s) * s**1.5 for s in (1.2, 2.0, 3.5))
    return Image((-600 + 180 * values / values.std()).clip(-1000, 200).astype(np.float32), grid)


@pytest.fixture(scope="module")
def moved():
    """A pair with F(x) = M(x + 4 mm along each axis of space), on one turned grid."""
    moving = texture(GRID)
    shift = sitk.TranslationTransform(3, (4.0, 4.0, 4.0))
    return moving.resampled(GRID, shift, order=3, default=-600.0), moving


def wrong_numbers(images, u, wanted, points):
    views = PointViews(*images, (-1000.0, 400.0), points)
    return [wrong.number for wrong in doubt_points(points, u, wanted, np.full(len(points), 1.0), views).wrong]


def test_a_point_is_wrong_if_field_and_images_agree_that_it_is(moved):
    points = inner_points(GRID, 12, margin=9)
    u = np.full(points.shape, 4.0)
    wanted = u + np.random.default_rng(5).normal(size=points.shape) * 0.5
    assert wrong_numbers(moved, u, wanted, points) == []
    wanted[[2, 7]] += [[0.0, 12.0, 0.0], [9.0, 0.0, -9.0]]
    assert wrong_numbers(moved, u, wanted, points) == [2, 7]


def test_points_that_the_images_agree_with_are_right_however_far_the_field_is(moved):
    """The field failed by 9 mm near some points and is right elsewhere: neighbours contradict, the images do not."""
    points = inner_points(GRID, 20, margin=9)
    wanted = np.full(points.shape, 4.0)
    u = wanted.copy()
    u[:3] -= (9.0, 0.0, 0.0)
    assert wrong_numbers(moved, u, wanted, points) == []


def test_where_the_images_show_nothing_alike_near_neighbours_tell():
    """Images of two textures; among points that tell of one motion, which the field has missed, one does not."""
    images = texture(GRID), texture(GRID, 9)
    points = inner_points(GRID, 40, margin=6)
    u = np.zeros(points.shape)
    wanted = u + np.array([0.0, 8.0, 0.0])
    assert wrong_numbers(images, u, wanted, points) == []
    wanted[5] += (0.0, 0.0, 25.0)
    assert wrong_numbers(images, u, wanted, points) == [5]


def test_of_hundreds_of_points_those_near_by_tell_and_some_may_lie_at_one_place():
    images = texture(GRID), texture(GRID, 9)
    points = inner_points(GRID, 260, margin=6)
    points[100:220] = points[100]  # more than tell of one point
    wanted = np.tile([0.0, 8.0, 0.0], (len(points), 1))
    wrong = [3, 50, 101, 240, 259]
    wanted[wrong] += (0.0, 0.0, 25.0)
    assert wrong_numbers(images, np.zeros(points.shape), wanted, points) == wrong


WIDE = Grid((56, 50, 40), (4.0, 4.0, 4.0), (-60.0, 110.0, 40.0), TURNED)


@pytest.fixture(scope="module")
def half_blind():
    """A pair that moves smoothly; one side of the fixed image shows nothing, and there a field stays behind."""
    moving = texture(WIDE)
    fixed = moving.resampled(WIDE, sitk.TranslationTransform(3, (3.0, 9.0, -6.0)), order=3, default=-600.0)
    shown = np.arange(WIDE.size[0]) < 28
    points = inner_points(WIDE, 40, seed=8, margin=8)
    blind = WIDE.point_to_index(points)[:, 0] > 28 + 3
    wanted = np.tile([3.0, 9.0, -6.0], (40, 1)) + np.random.default_rng(1).normal(size=(40, 3)) * 0.6
    u = np.where(blind[:, None], 0.2, 1.0) * [3.0, 9.0, -6.0]
    return (Image(np.where(shown, fixed.array, -600.0).astype(np.float32), WIDE), moving), points, u, wanted, blind


def test_at_the_border_of_what_is_missing_points_are_right_although_the_field_fails_there(half_blind):
    images, points, u, wanted, _ = half_blind
    assert wrong_numbers(images, u, wanted, points) == []


def test_wrong_points_are_found_in_what_is_missing(half_blind):
    """Two of them: where the field's error begins, their distance is not larger than that error may be."""
    images, points, u, wanted, blind = half_blind
    wrong = np.flatnonzero(blind)[[2, 9]]
    bad = wanted.copy()
    bad[wrong] += [[0.0, 12.0, 16.0], [-20.0, 0.0, 0.0]]
    assert wrong_numbers(images, u, bad, points) == wrong.tolist()


def test_points_that_the_images_contradict_are_outvoted_and_others_are_not(moved):
    """3 mm off where the field is right; exact where the field is 3 mm off; and where the images tell nothing."""
    points = inner_points(GRID, 12, margin=9)
    right = np.full(points.shape, 4.0)
    off = right + np.random.default_rng(5).normal(size=points.shape) * 3 / np.sqrt(3)
    views = PointViews(*moved, (-1000.0, 400.0), points)
    far = np.linalg.norm(off - right, axis=1) > 1.5
    radii = np.full(len(points), 1.0)
    assert doubt_points(points, right, off, radii, views).outvoted[far].all()
    assert not doubt_points(points, off, right, radii, views).outvoted.any()
    flat = Image(np.full(GRID.shape, -600.0, np.float32), GRID)
    blind = PointViews(flat, flat, (-1000.0, 400.0), points)
    assert not doubt_points(points, right, off, radii, blind).outvoted.any()


def test_two_points_cannot_tell_which_is_wrong():
    images = texture(GRID), texture(GRID, 9)
    points = inner_points(GRID, 2, margin=6)
    assert wrong_numbers(images, np.zeros((2, 3)), np.array([[0.0, 0.0, 0.0], [0.0, 25.0, 0.0]]), points) == []


# Terms


def blind_pair(grid):
    """Return a pair whose images say nothing, compared everywhere."""
    flat, everywhere = Image(np.full(grid.shape, -600.0, np.float32), grid), Image(np.ones(grid.shape, bool), grid)
    return InstancePair(flat, flat, everywhere, everywhere)


def test_landmarks_pull_up_to_the_radius_of_trust():
    points = inner_points(GRID, 30, margin=8)
    wanted = np.full(points.shape, (1.5, -2.0, 1.0))
    zero = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    term = LandmarkTerm(GRID, points, wanted, radii=np.full(len(points), 1.5), weight=1.0, volume=1e5)
    along = torch.from_numpy(wanted @ GRID.direction_matrix).float()
    costs = [float(term.cost(lambda _, away=away: along + torch.tensor([0.0, away, 0.0]))) for away in (1.4, 2.5, 4.5)]
    assert costs[0] == 0.0
    apart = np.where(np.arange(len(points)) < 10, 2.0, 9.0)  # only the first ten pull at 3 mm
    some = LandmarkTerm(GRID, points, wanted, radii=apart, weight=1.0, volume=1e5)
    assert float(some.cost(lambda _: along + torch.tensor([0.0, 3.0, 0.0]))) == pytest.approx(costs[1] / 3)
    assert costs[2] - costs[1] == pytest.approx(4 * costs[1])  # half a mm squared, then mm by mm
    found = optimise_field(blind_pair(GRID), zero, OPTIONS, terms=[term])
    assert np.linalg.norm(found.at(points) - wanted, axis=1).max() < 1.7


def balls(grid, shift=0.0):
    """Return labels 3 and 8: two balls of 10 mm, in physical space."""
    labels = np.zeros(grid.shape, dtype=np.int32)
    for number, side in ((3, -1), (8, 1)):
        centre = GRID.centre() + GRID.direction_matrix @ [side * 17.0, 0.0, 0.0] + shift
        labels[np.linalg.norm(grid.points() - centre, axis=-1) < 10.0] = number
    return Image(labels, grid)


def dice(fixed, moving, u):
    """Return the least Dice coefficient of the balls, warped by SimpleITK."""
    measure = sitk.LabelOverlapMeasuresImageFilter()
    warped = moving.resampled(fixed.grid, u.to_sitk_transform(), order=0)
    measure.Execute(*(sitk.Cast(image.to_sitk(), sitk.sitkUInt8) for image in (fixed, warped)))
    return min(measure.GetDiceCoefficient(number) for number in (3, 8))


def test_labels_that_do_not_overlap_any_more_come_to_lie_on_each_other():
    shift = GRID.direction_matrix @ [0.0, 12.0, -17.0]
    fixed, moving = balls(GRID), balls(GRID, shift)
    zero = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    surfaces = list(label_surfaces(fixed, moving, [3, 8], np.random.default_rng(0)))
    assert [surface.number for surface in surfaces] == [3, 8]
    for surface in surfaces:
        assert surface.off(np.zeros(surface.points.shape)) > 15.0
        assert surface.off(np.broadcast_to(shift, surface.points.shape)) < 1.5
    term = LabelTerm(GRID, surfaces, {3: 1.0, 8: 1.0}, 1e5, 0)
    wide = InstanceOptions((30, 30, 30), device="cpu", threads=1, scale=2.0)
    found = optimise_field(blind_pair(GRID), zero, wide, terms=[term])
    assert dice(fixed, moving, zero) < 0.3
    assert dice(fixed, moving, found) > 0.9


def test_a_label_without_weight_does_not_pull():
    fixed, moving = balls(GRID), balls(GRID, np.array([0.0, 4.0, 0.0]))
    zero = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    surfaces = list(label_surfaces(fixed, moving, [3, 8], np.random.default_rng(0)))
    found = optimise_field(blind_pair(GRID), zero, OPTIONS, terms=[LabelTerm(GRID, surfaces, {3: 1.0, 8: 0.0}, 1e5, 0)])
    at = {n: np.linalg.norm(found.vectors[fixed.array == n], axis=-1).mean() for n in (3, 8)}
    assert at[3] > 1.0
    assert at[8] < 0.3


def test_where_an_image_ends_a_label_has_no_surface():
    """The moving image ends in the middle of a ball, which may go on: what lies on the cut is still deep inside."""
    whole = balls(GRID)
    cut = np.where(np.arange(GRID.size[2])[:, None, None] > 14, UNKNOWN, whole.array)
    moving = Image(cut.astype(np.int32), GRID)
    (surface,) = label_surfaces(whole, moving, [3], np.random.default_rng(0))
    centre = GRID.centre() - GRID.direction_matrix @ [17.0, 0.0, 1.0]
    x, y, z = np.rint(surface.grid.point_to_index(centre)).astype(int)
    assert surface.moving[z, y, x] == pytest.approx(-9.0, abs=1.5)  # 10 mm from the ball's side, next to the cut
    assert surface.moving[z + 3, y, x] < -4.0
    (same,) = label_surfaces(whole, whole, [3], np.random.default_rng(0))
    assert same.off(np.zeros(same.points.shape)) == pytest.approx(0.0, abs=1e-5)
    everywhere = Image(np.full(GRID.shape, 3, np.int32), GRID)
    assert list(label_surfaces(everywhere, whole, [3], np.random.default_rng(0))) == []
