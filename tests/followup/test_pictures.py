"""Pictures of lesions: each where it is, in its own image and on the fixed one."""

from __future__ import annotations

import io

import numpy as np
import pytest
import SimpleITK as sitk
from lesion_cases import OBLIQUE, lesions
from PIL import Image as Picture

from regnet_itk import Image, Landmarks, chain_from_sitk, follow_up
from regnet_itk.followup.lesions import lesions_at_points
from regnet_itk.followup.pictures import Scans, draw_findings

MIDDLE, AWAY = OBLIQUE.centre(), np.array([13.0, -9.0, 4.0])
BLUE, ORANGE, WHITE = (86, 180, 233), (255, 176, 0), (255, 255, 255)


def picture(fixed, moving, chain=None, baseline="fixed"):
    """The three panels of the first finding, as arrays."""
    chain = chain or chain_from_sitk(sitk.TranslationTransform(3, AWAY.tolist()))
    grid = OBLIQUE.pad((20, 20, 20), (20, 20, 20))
    image = Image(np.full(grid.shape, -900.0, np.float32), grid)
    image.array[::2] = -600.0
    found = follow_up(fixed, moving, chain, fixed_grid=OBLIQUE, moving_grid=grid, expected_error=2.0, baseline=baseline)
    drawn = draw_findings(found.findings[:1], found.visits, Scans(image, image, chain))
    array = np.asarray(Picture.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
    width = array.shape[1] // 3
    return [array[30:, k * width : (k + 1) * width] for k in range(3)]


def middle_of(panel, colour):
    """Where a colour is, as shares of the panel; None if it is not there."""
    near = np.abs(panel - colour).max(axis=-1) < 40
    if not near.any():
        return None
    return np.argwhere(near).mean(axis=0) / near.shape


@pytest.mark.parametrize("as_points", [False, True])
def test_both_lesions_lie_in_the_middle_of_their_own_panel_and_of_the_common_one(as_points):
    if as_points:
        fixed, moving = (lesions_at_points(Landmarks(place[None])) for place in (MIDDLE, MIDDLE + AWAY))
    else:
        wide = OBLIQUE.pad((20, 20, 20), (20, 20, 20))
        fixed, moving = lesions(OBLIQUE, (MIDDLE, 6.0)), lesions(wide, (MIDDLE + AWAY, 8.0))
    for baseline, first, second in (("fixed", fixed, moving), ("moving", fixed, moving)):
        left, right, both = picture(first, second, baseline=baseline)
        for panel, colour, there in (
            (left, BLUE, True), (left, ORANGE, False), (right, ORANGE, True), (right, BLUE, False),
            (both, ORANGE, True), (both, BLUE, True),
        ):  # fmt: skip
            at = middle_of(panel, colour)
            assert (at is not None) == there
            if there:
                np.testing.assert_allclose(at, 0.5, atol=0.06)


def test_a_lesion_that_is_gone_has_a_cross_where_it_would_be():
    left, right, both = picture(lesions(OBLIQUE, (MIDDLE, 6.0)), ())
    np.testing.assert_allclose(middle_of(left, BLUE), 0.5, atol=0.06)
    inner = right[60:-60, 60:-60]
    assert middle_of(inner, ORANGE) is None
    np.testing.assert_allclose(middle_of(inner, WHITE), 0.5, atol=0.15)
    np.testing.assert_allclose(middle_of(both, BLUE), 0.5, atol=0.06)


def test_what_is_out_of_view_has_no_picture():
    corner = OBLIQUE.index_to_point([35, 30, 3])
    chain = chain_from_sitk(sitk.TranslationTransform(3, (500.0, 0.0, 0.0)))
    _, right, _ = picture(lesions(OBLIQUE, (corner, 4.0)), (), chain)
    assert (np.abs(right[60:-60, 10:60] - 0xDD) < 3).all()
