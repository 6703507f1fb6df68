"""Instance optimisation and its features, judged by a plain loop, SimpleITK's resampling and known displacements."""

from __future__ import annotations

import dataclasses
from itertools import combinations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError
from regnet_itk.networks.self_similarity import mind_features
from regnet_itk.refinement.added_splines import AddedSplines
from regnet_itk.refinement.agreement import InstancePair
from regnet_itk.refinement.instance_optimisation import InstanceOptions, optimise_field

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (15, -25, 40), degrees=True).as_matrix()))
GRID = Grid((52, 46, 40), (1.5, 1.5, 1.5), (-40.0, 120.0, 33.0), TURNED)
FIELD_GRID = Grid((38, 34, 31), (2.1, 2.1, 2.1), tuple(GRID.index_to_point((-1.3, -0.7, -1.1))), TURNED)
OPTIONS = InstanceOptions(iterations=(30,), device="cpu", threads=1)


# Features


def test_features_are_those_of_the_paper():
    image = np.random.default_rng(0).random((9, 11, 10))
    found = mind_features(torch.from_numpy(image).float()).numpy()
    padded = np.pad(image, 3, mode="edge")
    neighbours = [2 * sign * np.eye(3, dtype=int)[axis] for axis in range(3) for sign in (1, -1)]
    pairs = [(a, b) for a, b in combinations(neighbours, 2) if a @ b == 0]

    def patch(at):
        return padded[tuple(slice(i + 2, i + 5) for i in at)]

    for voxel in ((4, 5, 5), (0, 0, 0), (8, 10, 9), (2, 9, 0)):
        unlike = np.array([((patch(voxel + a) - patch(voxel + b)) ** 2).mean() for a, b in pairs])
        unlike -= unlike.min()
        wanted = np.exp(-unlike / unlike.mean())
        np.testing.assert_allclose(np.sort(found[voxel]), np.sort(wanted), atol=1e-5)


def test_each_feature_compares_the_same_pair_everywhere():
    """A shifted image has shifted features, channel by channel, and a brighter or stretched one has the same."""
    image = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(24, 25, 26)), 1.0)).float()
    features = mind_features(image)
    assert features.shape == (24, 25, 26, 12)
    moved = mind_features(image.roll((1, 2, -3), (0, 1, 2)))
    inner = (slice(8, -8),) * 3
    torch.testing.assert_close(moved.roll((-1, -2, 3), (0, 1, 2))[inner], features[inner])
    torch.testing.assert_close(mind_features(2 * image + 5)[inner], features[inner], atol=1e-4, rtol=1e-4)
    assert features.std(dim=(0, 1, 2)).min() > 0.05


def test_features_do_not_depend_on_the_slabs(monkeypatch):
    image = torch.rand(20, 12, 14)
    whole = mind_features(image)
    monkeypatch.setattr("regnet_itk.networks.self_similarity._SLAB_VOXELS", 300)
    torch.testing.assert_close(mind_features(image), whole)


# Improving a field


def texture(grid):
    rng = np.random.default_rng(3)
    values = sum(ndimage.gaussian_filter(rng.normal(size=grid.shape), s) * s**1.5 for s in (1.2, 2.0, 3.5))
    return Image((-600 + 180 * values / values.std()).clip(-1000, 200).astype(np.float32), grid)


def hill(height, width, shift=0.0):
    height, centre = np.asarray(height, dtype=float), GRID.centre() + shift
    return lambda points: np.exp(-0.5 * ((points - centre) ** 2).sum(-1, keepdims=True) / width**2) * height


truth = hill([3.0, -4.0, 5.0], 18.0)
mistake = hill([-1.2, 1.0, 1.4], 14.0, 4.0)


def field(function):
    return DisplacementField(function(FIELD_GRID.points()).astype(np.float32), FIELD_GRID)


def pair(change=lambda values: values, known=None, region=None):
    """Return a pair with F(x) = M(x + truth(x)), resampled by SimpleITK, its region well inside."""
    moving = texture(GRID)
    wide = GRID.pad((8, 8, 8), (8, 8, 8))
    vectors = sitk.GetImageFromArray(truth(wide.points()), isVector=True)
    vectors.SetOrigin(wide.origin)
    vectors.SetSpacing(wide.spacing)
    vectors.SetDirection(wide.direction_matrix.ravel().tolist())
    fixed = moving.resampled(GRID, sitk.DisplacementFieldTransform(vectors), order=3, default=-1000.0)
    if region is None:
        region = np.zeros(GRID.shape, dtype=bool)
        region[7:-7, 7:-7, 7:-7] = True
    known = np.ones(GRID.shape, dtype=bool) if known is None else known
    fixed = Image(change(fixed.array).astype(np.float32), GRID)
    return InstancePair(fixed, moving, Image(region, GRID), Image(known, GRID))


def error(u, inside):
    points = GRID.points()[inside]
    return float(np.linalg.norm(u.at(points) - truth(points), axis=-1).mean())


@pytest.mark.parametrize(
    "change",
    [lambda values: values, lambda values: 0.6 * values - 150.0, lambda values: -values - 1000.0],
    ids=["alike", "less contrast", "inverted"],
)
def test_a_mistake_is_mended_on_a_turned_grid(change):
    given = pair(change)
    start = field(lambda points: truth(points) + mistake(points))
    found = optimise_field(given, start, OPTIONS)
    inside = given.region.array
    assert error(start, inside) > 0.5
    assert error(found, inside) < 0.35 * error(start, inside)
    assert found.grid == start.grid


def test_what_is_right_stays_right():
    given = pair()
    found = optimise_field(given, field(truth), OPTIONS)
    assert error(found, given.region.array) < 0.12  # mm, on voxels of 1.5 mm


def test_far_from_the_region_little_changes():
    region = np.zeros(GRID.shape, dtype=bool)
    region[:12, :12, :12] = True
    start = field(lambda points: truth(points) + np.array([0.6, -0.6, 0.6]))
    found = optimise_field(pair(region=region), start, OPTIONS)
    changed = np.linalg.norm(found.vectors - start.vectors, axis=-1)
    assert changed[:6, :6, :6].max() > 0.1
    far = FIELD_GRID.shape[0] // 2 + 5
    assert changed[far:].mean() < 0.1 * changed[:6, :6, :6].mean()


def test_an_unknown_part_of_the_moving_image_pulls_at_nothing():
    """Air stands where the scan of the moving image ends: left out, not matched."""
    known = np.ones(GRID.shape, dtype=bool)
    known[22:] = False
    start = field(truth)

    def cut(given):
        return InstancePair(
            given.fixed, Image(np.where(known, given.moving.array, -1000.0), GRID), given.region, given.known
        )

    ignored, matched = (optimise_field(cut(pair(known=k)), start, OPTIONS) for k in (known, np.ones_like(known)))
    inside = pair().region.array
    assert error(ignored, inside) < 0.4
    assert error(matched, inside) > 2.5 * error(ignored, inside)


def test_the_same_seed_gives_the_same_field_and_no_step_none():
    start = field(mistake)
    few = InstanceOptions(iterations=(3,), device="cpu", threads=1, seed=5)
    first, again = (optimise_field(pair(), start, few) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    assert optimise_field(pair(), start, InstanceOptions(iterations=(0,))) is start
    nowhere = np.zeros(GRID.shape, dtype=bool)
    assert optimise_field(pair(region=nowhere), start, few) is start
    unknown = optimise_field(pair(known=nowhere), start, few)
    np.testing.assert_array_equal(unknown.vectors, start.vectors)


def test_smoothness_and_progress():
    start, told = field(lambda points: truth(points) + mistake(points)), []
    stiff = optimise_field(pair(), start, InstanceOptions((30,), smoothness=100.0, device="cpu"), told.append)
    soft = optimise_field(pair(), start, InstanceOptions((30,), smoothness=0.02, device="cpu"))
    bent, free = (np.abs(np.diff(u.vectors - start.vectors, n=2, axis=0)).mean() for u in (stiff, soft))
    assert bent < 0.7 * free
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "words"), [(((5, -1),), "0 steps or more, not -1"), (((5,), -0.1), "0 or more, not -0.1")]
)
def test_options_that_make_no_sense(values, words):
    with pytest.raises(ParameterError, match=words):
        InstanceOptions(*values)


def test_features_of_all_pairs_are_distinct():
    """Twelve pairs, none twice: each channel differs from each other."""
    features = mind_features(torch.rand(16, 16, 16)).flatten(0, 2)
    together = np.corrcoef(features.T.numpy())
    assert all(abs(together[a, b]) < 0.9 for a, b in product(range(12), range(12)) if a != b)


def test_all_lengths_scale_together():
    """A pair of half the size, improved at half the scale, gets half the displacement."""
    given, start = pair(), field(lambda points: truth(points) + mistake(points))

    def halved(grid):
        return Grid(grid.size, [s / 2 for s in grid.spacing], [o / 2 for o in grid.origin], grid.direction)

    images = (given.fixed, given.moving, given.region, given.known)
    small = InstancePair(*(Image(image.array, halved(image.grid)) for image in images))
    settled = dataclasses.replace(OPTIONS, iterations=(60,))
    found = optimise_field(given, start, settled)
    half = optimise_field(
        small, DisplacementField(start.vectors / 2, halved(start.grid)), dataclasses.replace(settled, scale=0.5)
    )
    assert np.abs(found.vectors - start.vectors).max() > 0.5
    apart = np.abs(2 * half.vectors - found.vectors)  # Adam divides by what may be near 0, and rounding counts there
    assert apart.max() < 0.03
    assert apart.mean() < 0.003


def test_wide_splines_first_mend_what_narrow_ones_cannot():
    """A mistake of more than what the last splines can move in their steps, over all of the image."""
    given, start = pair(), field(lambda points: truth(points) + hill([4.0, -3.5, 3.0], 40.0)(points))
    one, three = (
        error(optimise_field(given, start, dataclasses.replace(OPTIONS, iterations=n)), given.region.array)
        for n in ((15,), (5, 5, 5))
    )
    assert error(start, given.region.array) > 4
    assert three < 0.4 * one


def test_mutual_information_helps_where_contrasts_differ():
    """Brightness that goes through a curve with a turn: contexts near the turn differ, what is shared does not."""
    given = pair(lambda values: np.interp(values, (-1000, -700, -500, 200), (-200, -900, -100, -600)))
    start = field(lambda points: truth(points) + mistake(points))
    without, with_it = (
        error(optimise_field(given, start, dataclasses.replace(OPTIONS, information=w)), given.region.array)
        for w in (0.0, 0.05)
    )
    assert with_it < 0.9 * without


def test_the_compiled_loops_change_nothing(monkeypatch):
    given, start = pair(), field(lambda points: truth(points) + mistake(points))
    options = dataclasses.replace(OPTIONS, iterations=(2, 3), information=0.05)
    compiled = optimise_field(given, start, options)
    monkeypatch.setattr("regnet_itk.networks.interpolation._kernels", lambda: None)
    np.testing.assert_allclose(optimise_field(given, start, options).vectors, compiled.vectors, atol=0.02)


def test_several_images_count_together():
    given, start = pair(), field(lambda points: truth(points) + mistake(points))
    flat = Image(np.full(GRID.shape, -600.0, dtype=np.float32), GRID)
    blind = dataclasses.replace(given, fixed=flat, moving=flat)
    both = dataclasses.replace(blind, further=((given.fixed, given.moving),))
    options = dataclasses.replace(OPTIONS, information=0.05)
    alone, together = (error(optimise_field(p, start, options), given.region.array) for p in (blind, both))
    assert alone > 0.9 * error(start, given.region.array)
    assert together < 0.4 * error(start, given.region.array)


def test_nothing_folds_whatever_the_images_are():
    """Images that have nothing to do with each other pull everywhere; without any smoothness B-splines would fold."""
    given = pair()
    other = Image(given.moving.array[::-1, :, ::-1].copy(), GRID)
    start = field(np.zeros_like)
    free = InstanceOptions((60, 60, 60), smoothness=0.0, information=0.05, device="cpu", threads=1)
    found = optimise_field(dataclasses.replace(given, moving=other), start, free)
    assert np.linalg.norm(found.vectors, axis=-1).max() > 6.0
    determinant = sitk.DisplacementFieldJacobianDeterminant(sitk.Cast(sitk_field(found), sitk.sitkVectorFloat64))
    inner = sitk.GetArrayFromImage(determinant)[2:-2, 2:-2, 2:-2]
    assert inner.min() > 0


def sitk_field(u):
    """Return a displacement field as ITK's image."""
    image = sitk.GetImageFromArray(u.vectors.astype(np.float64), isVector=True)
    image.SetOrigin(u.grid.origin)
    image.SetSpacing(u.grid.spacing)
    image.SetDirection(u.grid.direction_matrix.ravel().tolist())
    return image


# Terms beside the images


class Pull:
    """A term that wants one displacement at some points; keeps what it was given."""

    def __init__(self, index, wanted, weight):
        self.index, self.wanted, self.weight, self.given = index, wanted, weight, []

    def cost(self, at):
        found = at(self.index)
        self.given.append(found.detach().numpy())
        return self.weight * (found - self.wanted).square().mean()


def pull(points, wanted, weight):
    """Return a term that wants u (n, 3), mm, LPS, at points (n, 3)."""
    index = torch.from_numpy(GRID.point_to_index(points)[:, ::-1].copy()).float()
    return Pull(index, torch.from_numpy(wanted @ GRID.direction_matrix).float(), weight)


PLACES = GRID.index_to_point(np.random.default_rng(8).uniform(12, 28, (40, 3)))


def test_a_term_sees_the_displacement_between_voxels_and_moves_it():
    """Flat images say nothing; the term alone pulls, at points off the voxels, and its first look is the start."""
    given = pair()
    flat = Image(np.full(GRID.shape, -600.0, dtype=np.float32), GRID)
    blind = dataclasses.replace(given, fixed=flat, moving=flat)
    start = field(lambda points: truth(points) + np.array([0.6, -0.6, 0.6]))
    term = pull(PLACES, truth(PLACES), 1.0)
    found = optimise_field(blind, start, dataclasses.replace(OPTIONS, iterations=(10, 20)), terms=[term])
    np.testing.assert_allclose(term.given[0] @ GRID.direction_matrix.T, start.at(PLACES), atol=1e-4)
    last = term.given[10]  # the first look with the second B-splines is what the first ones have become
    assert np.linalg.norm(last - term.wanted.numpy(), axis=1).mean() < 0.7
    assert np.linalg.norm(found.at(PLACES) - truth(PLACES), axis=1).mean() < 0.15
    assert np.linalg.norm(start.at(PLACES) - truth(PLACES), axis=1).mean() > 1.0


def test_a_term_counts_where_there_is_no_region_and_one_of_no_weight_changes_nothing():
    nowhere = pair(region=np.zeros(GRID.shape, dtype=bool))
    start = field(lambda points: truth(points) + np.array([0.6, -0.6, 0.6]))
    found = optimise_field(nowhere, start, OPTIONS, terms=[pull(PLACES, truth(PLACES), 1.0)])
    assert np.linalg.norm(found.at(PLACES) - truth(PLACES), axis=1).mean() < 0.15
    plain = optimise_field(pair(), start, OPTIONS)
    with_it = optimise_field(pair(), start, OPTIONS, terms=[pull(PLACES, truth(PLACES), 0.0)])
    np.testing.assert_allclose(with_it.vectors, plain.vectors, atol=1e-5)


def test_added_splines_are_the_same_at_voxels_and_between_them():
    """At scattered indices, beyond the last voxel too, what the dense evaluation gives there."""
    splines = AddedSplines(GRID, 7.0, torch.device("cpu"))
    index = torch.from_numpy(np.random.default_rng(2).integers(-9, 40, (500, 3)))
    pulls = torch.from_numpy(np.random.default_rng(3).normal(size=(500, 3))).float()
    splines.descend((splines.at(index.float()) * pulls).sum(), 1.0)
    wide = GRID.pad((9, 9, 9), (9, 9, 9))
    dense = splines.on(wide)
    assert dense.abs().max() > 0.5
    z, y, x = (index + 9).unbind(1)
    torch.testing.assert_close(splines.at(index.float()).detach(), dense[z, y, x], atol=1e-5, rtol=0.0)
