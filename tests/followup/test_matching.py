"""Lesions are found again through the transform: rightly, and with what is doubtful about it."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from lesion_cases import OBLIQUE, lesions, phantoms_with_nodules
from scipy import ndimage

from regnet_itk import DisplacementField, ErrorMap, TransformChain, chain_from_sitk, follow_up, invert_chain, register
from regnet_itk.anatomy.nodules import add_nodules
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.errors import ParameterError
from regnet_itk.followup.lesions import lesions_of_labels
from regnet_itk.transforms.chain import Link

MIDDLE = OBLIQUE.centre()
SAME = TransformChain()


def at(x, y, z):
    """A place so many mm away from the middle."""
    return MIDDLE + np.array([x, y, z])


def matched(fixed, moving, chain=SAME, error=2.0, grids=(OBLIQUE, OBLIQUE), baseline="fixed", **more):
    return follow_up(
        fixed, moving, chain, fixed_grid=grids[0], moving_grid=grids[1], expected_error=error, baseline=baseline, **more
    ).findings


def names(finding):
    return tuple(tuple(lesion.name for lesion in side) for side in (finding.baseline, finding.follow_up))


def told(findings):
    return {names(finding): finding.status for finding in findings}


def true_transform_with_an_error(nodules, deviation, seed):
    """The motion itself, and a smooth random error of some mm along each axis."""
    grid = nodules.phantom.fixed.grid
    rng = np.random.default_rng(seed)
    error = ndimage.gaussian_filter(rng.normal(size=(*grid.shape, 3)), (5, 5, 5, 0), mode="nearest")
    vectors = nodules.phantom.displacement.vectors + error * (deviation / error.std())
    return TransformChain((Link(DisplacementField(vectors.astype(np.float32), grid)),))


def test_thirty_nodules_are_matched_and_their_growth_is_measured():
    """Grown, shrunk, new, gone, two close together, split, merged; under the true motion, 1 mm off along each axis."""
    count, off = 0, []
    for number, nodules in enumerate(phantoms_with_nodules()):
        chain = true_transform_with_an_error(nodules, 1.0, number)
        fine = {role: getattr(nodules.phantom, role).grid.isotropic(1.0) for role in ("fixed", "moving")}
        found = matched(
            lesions_of_labels(nodules.labels("fixed", fine["fixed"])),
            lesions_of_labels(nodules.labels("moving", fine["moving"])),
            chain, error=2.5, grids=(fine["fixed"], fine["moving"]),
        )  # fmt: skip
        statuses = {tuple(tuple(sorted(side)) for side in names(finding)): finding for finding in found}
        assert len(found) == len(nodules.known)
        for lesion, before, after in zip(nodules.known, nodules.fixed_numbers, nodules.moving_numbers, strict=True):
            count += 1
            finding = statuses[tuple(tuple(sorted(map(str, numbers))) for numbers in (before, after))]
            if lesion.fate in ("new", "gone", "split", "merged", "stable"):
                assert finding.status == lesion.fate
            if lesion.fixed and lesion.moving:
                ratio = sum(n.volume for n in lesion.moving) / sum(n.volume for n in lesion.fixed)
                off.append((1 + finding.volume_change) / ratio - 1)
                assert finding.status in ("split", "merged", "stable", "grown" if ratio > 1 else "shrunk")
    assert count == 30
    assert np.abs(off).max() < 0.05


def test_it_does_not_matter_which_image_is_fixed():
    nodules = next(phantoms_with_nodules((5,)))
    grids = {role: getattr(nodules.phantom, role).grid for role in ("fixed", "moving")}
    marked = {role: lesions_of_labels(nodules.labels(role)) for role in ("fixed", "moving")}
    chain = TransformChain((Link(nodules.phantom.displacement),))
    one = matched(marked["fixed"], marked["moving"], chain, grids=(grids["fixed"], grids["moving"]))
    back = invert_chain(chain, grids["fixed"], grids["moving"].isotropic(5.0))
    other = matched(marked["moving"], marked["fixed"], back, grids=(grids["moving"], grids["fixed"]), baseline="moving")
    assert told(one) == told(other)


def test_a_transform_leads_from_the_fixed_to_the_moving_image():
    away = np.array([12.0, -5.0, 3.0])
    chain = chain_from_sitk(sitk.TranslationTransform(3, away.tolist()))
    fixed = lesions(OBLIQUE, (MIDDLE, 5.0))
    wide = OBLIQUE.pad((10, 10, 10), (10, 10, 10))
    moving = lesions(wide, (MIDDLE + away, 6.0), (MIDDLE - away, 5.0))
    found = matched(fixed, moving, chain, grids=(OBLIQUE, wide))
    assert told(found) == {(("1",), ("1",)): "grown", ((), ("2",)): "new"}
    assert found[0].group.distance == pytest.approx(0.0, abs=0.3)
    np.testing.assert_allclose(found[1].group.elsewhere, MIDDLE - 2 * away, atol=0.3)


@pytest.mark.parametrize("swapped", [False, True])
def test_two_close_together_are_told_apart_by_all_distances_at_once(swapped):
    """Both are 5 mm further left than the transform says: the left one now lies where the right one was expected."""
    places = [(MIDDLE, 3.5), (at(8, 0, 0), 3.5)]
    moved = [(at(5, 0, 0), 3.5), (at(13, 0, 0), 3.5)]
    found = matched(lesions(OBLIQUE, *places), lesions(OBLIQUE, *(moved[::-1] if swapped else moved)), error=6.0)
    wanted = {"1": "2", "2": "1"} if swapped else {"1": "1", "2": "2"}
    assert {names(finding) for finding in found} == {((a,), (b,)) for a, b in wanted.items()}


def test_what_might_be_otherwise_is_said():
    """A small lesion half-way between two places: either of them may have come."""
    fixed = lesions(OBLIQUE, (at(-5, 0, 0), 3.0), (at(5, 0, 0), 3.0))
    moving = lesions(OBLIQUE, (at(-0.5, 0, 0), 3.0))
    found = matched(fixed, moving, error=5.0)
    assert told(found) == {(("1",), ("1",)): "stable", (("2",), ()): "gone"}
    assert any("fixed 2 may be moving 1" in note for note in found[0].notes)
    assert any("fixed 2 may be moving 1" in note for note in found[1].notes)
    sure = matched(fixed, lesions(OBLIQUE, (at(-4.8, 0, 0), 3.0)), error=1.0)
    assert not any("may" in note for finding in sure for note in finding.notes)


def test_the_gate_is_as_wide_as_the_error_at_the_place():
    """The same 9 mm: within the gate where the transform may be off by 8 mm, and beyond where by 1 mm."""
    fixed = lesions(OBLIQUE, (at(-15, 0, 0), 3.0), (at(15, 0, 0), 3.0))
    moving = lesions(OBLIQUE, (at(-15, -9, 0), 3.0), (at(15, -9, 0), 3.0))
    grid = OBLIQUE.isotropic(4.0)
    wide = (grid.points()[..., 0] < MIDDLE[0])[..., None]
    errors = ErrorMap(np.where(wide, (4.0, 8.0), (0.5, 1.0)).astype(np.float32), grid)
    found = matched(fixed, moving, error=errors)
    assert told(found) == {(("1",), ("1",)): "stable", (("2",), ()): "gone", ((), ("2",)): "new"}
    assert [finding.group.error.radius for finding in found] == pytest.approx([8.0, 1.0, 1.0])


def test_where_no_error_is_known_the_worst_is_taken_and_said():
    grid = OBLIQUE.isotropic(4.0)
    values = np.full((*grid.shape, 2), np.nan, dtype=np.float32)
    values[grid.points()[..., 0] < MIDDLE[0] - 15] = (1.0, 3.0)
    (finding,) = matched(lesions(OBLIQUE, (at(10, 0, 0), 4.0)), (), error=ErrorMap(values, grid))
    assert finding.group.error.radius == pytest.approx(3.0)
    assert any("error is not known" in note for note in finding.notes)


@pytest.mark.parametrize("splits", [True, False])
def test_split_and_merged(splits):
    whole, parts = [(MIDDLE, 9.0)], [(at(-5, 0, 0), 4.0), (at(5, 0, 0), 4.5)]
    fixed, moving = (whole, parts) if splits else (parts, whole)
    (finding,) = matched(lesions(OBLIQUE, *fixed), lesions(OBLIQUE, *moving))
    assert finding.status == ("split" if splits else "merged")
    assert finding.volume_change == pytest.approx(
        (4**3 + 4.5**3) / 9**3 - 1 if splits else 9**3 / (4**3 + 4.5**3) - 1, rel=0.03
    )
    assert finding.diameters[1 if splits else 0] == pytest.approx(
        8.0 + 9.0, abs=2.0
    )  # the sum; each a voxel long at most


def test_a_new_one_beside_an_old_one_is_no_part_of_it():
    fixed = lesions(OBLIQUE, (MIDDLE, 6.0))
    moving = lesions(OBLIQUE, (MIDDLE, 6.0), (at(11.0, 0, 0), 3.5))
    assert told(matched(fixed, moving, error=1.5)) == {(("1",), ("1",)): "stable", ((), ("2",)): "new"}


def test_what_lies_beyond_the_other_image_is_out_of_view():
    upper = OBLIQUE.crop((0, 0, 18), (70, 60, 22))
    down = OBLIQUE.direction_matrix[:, 2] * 22
    fixed = lesions(OBLIQUE, (MIDDLE - down, 4.0), (MIDDLE + down / 2, 4.0))
    found = matched(fixed, lesions(upper, (MIDDLE + down / 2, 4.0)), grids=(OBLIQUE, upper))
    assert told(found) == {(("1",), ()): "out of view", (("2",), ("1",)): "stable"}
    back = matched(lesions(upper, (MIDDLE + down / 2, 4.0)), fixed, grids=(upper, OBLIQUE))
    assert told(back) == {(("1",), ("2",)): "stable", ((), ("1",)): "out of view"}


def test_one_that_grew_to_one_side_is_the_same():
    """Its far side lies still, so its centre moves by the difference of both radii, for which the gate is wider."""
    assert told(matched(lesions(OBLIQUE, (MIDDLE, 5.0)), lesions(OBLIQUE, (at(0, 5, 0), 10.0)), error=0.5)) == {
        (("1",), ("1",)): "grown"
    }
    aside = matched(lesions(OBLIQUE, (MIDDLE, 3.0)), lesions(OBLIQUE, (at(0, 7.5, 0), 3.0)), error=0.5)
    assert {finding.status for finding in aside} == {"gone", "new"}


def test_rates_of_growth():
    fixed, moving = lesions(OBLIQUE, (MIDDLE, 6.0)), lesions(OBLIQUE, (MIDDLE, 6.0 * 2 ** (1 / 3)))
    days = {"fixed_date": "2025-01-01", "moving_date": "20260101"}
    (grown,) = matched(fixed, moving, **days)
    assert grown.volume_change == pytest.approx(1.0, rel=0.03)
    assert grown.doubling_time == pytest.approx(365, rel=0.03)
    assert grown.growth_per_year == pytest.approx(1.0, rel=0.03)
    (shrunk,) = matched(moving, fixed, **days)
    assert shrunk.doubling_time is None
    assert shrunk.growth_per_year == pytest.approx(-0.5, rel=0.03)
    (same_day,) = matched(fixed, moving, fixed_date="2026-01-01", moving_date="2026-01-01")
    assert (same_day.status, same_day.doubling_time, same_day.growth_per_year) == ("grown", None, None)
    (reverse,) = matched(fixed, moving, baseline=None, fixed_date="2026-01-01", moving_date="2025-01-01")
    assert reverse.status == "shrunk"  # the moving image is the earlier one


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        ({"baseline": None}, "which image is the earlier one"),
        ({"baseline": None, "fixed_date": "2026-01-01"}, "date of the moving image is not known"),
        ({"fixed_date": "2026-01-01", "moving_date": "2025-12-31"}, "its date is the later one"),
        ({"baseline": None, "fixed_date": "2026-01-01", "moving_date": "2026-01-01"}, "both images are of 2026-01-01"),
        ({"fixed_date": "1.2.2026", "moving_date": "2026-01-01"}, "'1.2.2026' is no date"),
        ({"baseline": "later"}, "not 'later'"),
        ({"error": None}, "says nothing of how far"),
        ({"error": -1.0}, "a length in mm"),
        ({"fixed": (), "moving": ()}, "neither the fixed nor the moving image has a lesion"),
    ],
)  # fmt: skip
def test_what_is_refused(dates, message):
    given = {"fixed": lesions(OBLIQUE, (MIDDLE, 4.0)), "moving": ()} | dates
    with pytest.raises(ParameterError, match=message):
        matched(**given)


@pytest.mark.slow
def test_a_real_chain_on_a_phantom_with_nodules():
    """Registered by the default chain, with what it says of its own errors."""
    nodules = add_nodules(make_phantom(6, spacing=(2.0, 2.0, 2.0)), 6)
    phantom = nodules.phantom
    result = register(phantom.fixed, phantom.moving, stages=["affine", "regnet_multistage"],
                      fixed_mask=phantom.fixed_mask)  # fmt: skip
    found = matched(
        lesions_of_labels(nodules.labels("fixed")), lesions_of_labels(nodules.labels("moving")), result.chain,
        error=result.expected_error, grids=(phantom.fixed.grid, phantom.moving.grid),
    )  # fmt: skip
    wanted = {
        tuple(tuple(sorted(map(str, numbers))) for numbers in pair)
        for pair in zip(nodules.fixed_numbers, nodules.moving_numbers, strict=True)
    }
    assert {tuple(tuple(sorted(side)) for side in names(finding)) for finding in found} == wanted
