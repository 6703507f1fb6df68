"""Two sides that slide along a sphere, on turned grids: the truth is a formula, and SimpleITK maps the points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.refinement.sliding import Border, carry_to_border, close_gaps, join_sides

ROTATED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
GRID = Grid((40, 40, 40), (2.0, 2.0, 2.0), (-40.0, 15.0, 130.0), ROTATED)
MASK_GRID = Grid((54, 46, 40), (1.5, 1.8, 2.1), tuple(GRID.centre() - ROTATED @ [39.75, 40.5, 40.95]), ROTATED)
CENTRE, RADIUS = GRID.centre(), 26.0
TURN = Rotation.from_rotvec([0.0, 0.0, np.radians(35.0)]).as_matrix()  # slides by up to 16 mm


def radii(points):
    return np.linalg.norm(points - CENTRE, axis=-1)


def field_of(mapping, grid=GRID):
    points = grid.points()
    return DisplacementField((mapping(points) - points).astype(np.float32), grid)


def turned(points):
    return CENTRE + (points - CENTRE) @ TURN.T


def still(points):
    return points + (1.0, -0.5, 2.0) * np.exp(-(((points - CENTRE) / 60.0) ** 2).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def border():
    mask = Image((radii(MASK_GRID.points()) < RADIUS).astype(np.uint8) * 3, MASK_GRID)
    found = Border.of(mask, GRID)
    assert found is not None
    return found


def on_sphere(count=500):
    directions = np.random.default_rng(0).normal(size=(count, 3))
    return CENTRE + RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def mapped(field, points):
    transform = field.to_sitk_transform()
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def test_the_distance_is_that_from_the_sphere(border):
    truth = RADIUS - radii(GRID.points())
    for most, tolerance in ((3.0, 0.4), (12.0, 0.7)):
        assert np.abs(border.distance - truth)[np.abs(truth) < most].mean() < tolerance
    assert abs((border.distance - truth)[border.band()].mean()) < 0.2
    inwards = CENTRE - GRID.points()
    inwards /= np.linalg.norm(inwards, axis=-1, keepdims=True)
    assert (border.normals() * inwards).sum(axis=-1)[border.band()].min() > 0.9


def test_gaps_are_closed_and_what_slides_goes_on_sliding(border):
    def too_far(points):  # the turn, and 3 mm outwards: both sides overlap
        return turned(points) + 3.0 * (points - CENTRE) / np.maximum(radii(points), 1.0)[..., None]

    inner, outer, gap = close_gaps(field_of(too_far), field_of(still), border)
    assert gap < 0.5
    points = on_sphere()
    there = mapped(inner, points)
    back = np.array(points)
    for _ in range(30):  # where of the outside it lies now
        back = back + there - mapped(outer, back)
    assert np.abs(radii(back) - RADIUS).mean() < 0.5
    along = mapped(inner, points) - turned(points)
    outwards = (points - CENTRE) / RADIUS
    sideways = along - (along * outwards).sum(axis=1, keepdims=True) * outwards
    assert np.abs(sideways).mean() < 1.0  # of a slide of 10 mm in the mean


def test_what_touches_is_left_alone(border):
    inner, outer, gap = close_gaps(field_of(turned), field_of(lambda points: points), border)
    assert gap < 0.3
    assert np.abs(inner.vectors - field_of(turned).vectors).max() < 0.6
    assert np.abs(outer.vectors).max() < 0.6


def test_both_sides_are_right_up_to_the_border(border):
    whole = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    fine = GRID.isotropic(1.5)
    joined, slips = join_sides(whole, field_of(turned), field_of(still), border, fine)
    assert joined.grid == fine
    points = fine.points()
    depth = RADIUS - radii(points)
    slides = np.linalg.norm(turned(points) - still(points), axis=-1) > 8.0  # not at the axis of the turn
    for side, truth in ((depth > 3.0, turned), (depth < -3.0, still)):
        near = side & slides & (np.abs(depth) < 8.0)
        assert near.sum() > 1000
        error = np.linalg.norm(points + joined.vectors - truth(points), axis=-1)[near]
        assert error.mean() < 0.4
    assert slips.max() == pytest.approx(2 * RADIUS * np.sin(np.radians(17.5)), rel=0.2)


def test_sides_that_move_alike_stay_one(border):
    whole = field_of(still)
    inner = DisplacementField(whole.vectors + np.float32(0.8), GRID)  # as an estimate of its own is off
    joined, slips = join_sides(whole, inner, whole, border, GRID)
    np.testing.assert_allclose(joined.vectors, whole.vectors, atol=1e-5)
    assert slips.max() == 0.0


def test_a_blurred_border_is_carried_on_from_both_sides(border):
    inside = 1.0 / (1.0 + np.exp(-(RADIUS - radii(GRID.points())) / 2.0))[..., None]
    blurred = DisplacementField((inside * (8.0, 0.0, 0.0) + (1 - inside) * (-8.0, 0.0, 0.0)).astype(np.float32), GRID)
    inner, outer = carry_to_border(blurred, border)
    band = border.band()
    np.testing.assert_allclose(inner.vectors[band], np.broadcast_to([8.0, 0, 0], (band.sum(), 3)), atol=0.3)
    np.testing.assert_allclose(outer.vectors[band], np.broadcast_to([-8.0, 0, 0], (band.sum(), 3)), atol=0.5)
    deep = border.distance > 20
    np.testing.assert_array_equal(inner.vectors[deep], blurred.vectors[deep])


def test_a_mask_of_everything_has_no_border():
    assert Border.of(Image(np.ones(GRID.shape, np.uint8), GRID), GRID) is None
    elsewhere = Grid((4, 4, 4), (1.0, 1.0, 1.0), (900.0, 0.0, 0.0))
    assert Border.of(Image(np.ones(elsewhere.shape, np.uint8), elsewhere), GRID) is None
