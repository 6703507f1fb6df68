"""Structures of known size and place, warped by known transforms: formulas, SimpleITK and pydicom are the judges."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_cases import empty_image, write_series
from dicom_cases import write_structures as write_given
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.dicom.series import read_series
from regnet_itk.errors import DicomError
from regnet_itk.radiotherapy.shapes import make_shape, stack_planes
from regnet_itk.radiotherapy.structure_mapping import StructureMapper
from regnet_itk.radiotherapy.structures import Contour, Structure, read_structures, write_structures
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

CENTRE, RADIUS = np.array([12.0, -30.0, 55.0]), 20.0
TURN = Rotation.from_euler("zyx", [20, -10, 30], degrees=True).as_matrix()
ANGLES = np.linspace(0, 2 * np.pi, 60, endpoint=False)


def ring(radius, centre, axes):
    x, y = (radius * part for part in (np.cos(ANGLES), np.sin(ANGLES)))
    return Contour(centre + np.outer(x, axes[:, 0]) + np.outer(y, axes[:, 1]))


def ball(distance=3.0, radius=RADIUS, axes=TURN, centre=CENTRE, name="ball"):
    heights = np.arange(-radius + distance / 2, radius, distance)
    rings = [ring(np.sqrt(radius**2 - h**2), centre + h * axes[:, 2], axes) for h in heights]
    return Structure(3, name, (255, 0, 10), tuple(rings))


def ball_volume(radius=RADIUS):
    return 4 / 3 * np.pi * radius**3


def still():
    return TransformChain((Link(MatrixTransform(np.eye(3))),))


GRID = Grid((45, 40, 30), (2.0, 2.5, 3.5), tuple(CENTRE - [45.0, 50.0, 50.0]))
OBLIQUE = Grid((45, 40, 30), (2.0, 2.5, 3.5), tuple(CENTRE - TURN.T @ [45.0, 50.0, 50.0]), TURN.T)


@pytest.mark.parametrize("distance", [1.0, 3.0, 5.0])
def test_the_volume_of_contours(distance):
    assert stack_planes(ball(distance)).volume() == pytest.approx(ball_volume(), rel=0.02)


def test_the_shape_is_negative_just_where_the_solid_is():
    points = CENTRE + np.random.default_rng(0).uniform(-30, 30, (20_000, 3))
    away = np.linalg.norm(points - CENTRE, axis=1) - RADIUS
    found = make_shape(stack_planes(ball(2.0))).at(points)
    clear = np.abs(away) > 1.0
    np.testing.assert_array_equal(found[clear] < 0, away[clear] < 0)


def test_holes_and_seams():
    heights = np.arange(0, 30, 3.0)
    square = np.array([[-20, -20], [20, -20], [20, 20], [-20, 20]], dtype=float)
    hole = square / 2

    def at(points, h):
        return Contour(np.column_stack([points, np.full(len(points), h)]))

    nested = Structure(1, "tube", None, tuple(at(p, h) for h in heights for p in (square, hole)))
    # one contour that goes in to the hole and out again
    seam = np.concatenate([square, square[:1], hole[:1], hole[::-1], square[:1]])
    seamed = Structure(1, "tube", None, tuple(at(seam, h) for h in heights))
    volume = (40**2 - 20**2) * 30
    inside, empty, outside = ([[15.0, 3.0, 12.0], [-15.0, -15.0, 12.0]], [[0.0, 0.0, 12.0]], [[25.0, 0.0, 12.0]])
    for structure in (nested, seamed):
        stack = stack_planes(structure)
        assert stack.volume() == pytest.approx(volume, rel=1e-6)
        shape = make_shape(stack)
        assert (shape.at(np.array(inside)) < 0).all()
        assert (shape.at(np.array([*empty, *outside])) > 0).all()
    mapped = StructureMapper(still(), Grid((60, 60, 20), (1.0, 1.0, 2.0), (-30.0, -30.0, -4.0))).map(nested)
    assert mapped.volume_after == pytest.approx(volume / 1000, rel=0.02)
    assert int(mapped.mask.array.sum()) * 2 == pytest.approx(volume, rel=0.03)
    assert mapped.mask.array[8, 30, 30] == 0


def test_a_missing_plane_is_bridged_and_a_gap_is_none_of_the_solid(caplog):
    whole = ball(2.0)
    some = [contour for i, contour in enumerate(whole.contours) if i != 9]
    bridged = stack_planes(Structure(1, "one lacks", None, tuple(some)))
    assert bridged.volume() == pytest.approx(ball_volume(), rel=0.02)
    assert bridged.gaps() == []
    parted = Structure(1, "two", None, tuple(c for i, c in enumerate(whole.contours) if not 8 <= i <= 11))
    stack = stack_planes(parted)
    assert len(stack.gaps()) == 1
    middle = make_shape(stack).at(CENTRE[None])
    assert middle > 0
    left_out = np.pi * (RADIUS**2 * 8 - 2 * 4**3 / 3)  # from -4 to 4 mm
    assert stack.volume() == pytest.approx(ball_volume() - left_out, rel=0.02)
    StructureMapper(still(), GRID).map(parted)
    assert "has no contours between" in caplog.text


def test_islands_in_oblique_planes_with_rounded_coordinates():
    """Two balls of 6 mm, 80 mm apart in the same planes, with two digits after the point."""
    both = [ball(2.0, 6.0, centre=CENTRE + side * 40 * TURN[:, 0]) for side in (-1, 1)]
    rounded = [Contour(contour.points.round(2)) for one in both for contour in one.contours]
    stack = stack_planes(Structure(1, "islands", None, tuple(rounded)))
    assert [len(plane) for plane in stack.outlines] == [2] * 6
    assert stack.distance == pytest.approx(2.0, abs=0.02)
    assert stack.volume() == pytest.approx(2 * ball_volume(6.0), rel=0.02)


@pytest.mark.parametrize("grid", [GRID, OBLIQUE], ids=["straight", "oblique"])
def test_a_ball_becomes_the_ellipsoid_that_the_inverse_says(grid):
    """T(x) = A x + b: x is inside if T(x) is, so the centre goes by the inverse and the volume by 1 / det A."""
    matrix = np.array([[1.1, 0.05, 0.0], [0.0, 0.9, 0.08], [-0.04, 0.0, 1.15]])
    transform = MatrixTransform(matrix, CENTRE, [3.0, -4.0, 2.0])
    mapped = StructureMapper(TransformChain((Link(transform),)), grid).map(ball(2.0))
    volume = ball_volume() / np.linalg.det(matrix)
    assert mapped.volume_before == pytest.approx(ball_volume() / 1000, rel=0.01)
    assert mapped.volume_after == pytest.approx(volume / 1000, rel=0.02)
    points = grid.points()
    wanted = np.linalg.norm(transform.map_points(points) - CENTRE, axis=-1)
    clear = np.abs(wanted - RADIUS) > 1
    np.testing.assert_array_equal(mapped.mask.array[clear] > 0, wanted[clear] < RADIUS)
    for contour in mapped.structure.contours:
        off = np.linalg.norm(transform.map_points(contour.points) - CENTRE, axis=1) - RADIUS
        assert np.abs(off).mean() < 0.5
        planes = grid.point_to_index(contour.points)[:, 2]
        np.testing.assert_allclose(planes, round(planes.mean()), atol=1e-6)
    assert (mapped.structure.name, mapped.structure.colour) == ("ball", (255, 0, 10))


def test_an_outline_of_many_points_is_written_whole(tmp_path):
    """Explicit VR cannot say how long the text of its numbers is."""
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    circle = np.stack([30 * np.cos(angles), 30 * np.sin(angles), np.full(4000, 3.0)], axis=1)
    write_series(empty_image(GRID), tmp_path / "fixed", "fixed")
    given = write_given([("round", [1, 2, 3], [("CLOSED_PLANAR", circle)])], tmp_path / "given.dcm", GRID)
    found = read_structures(given)
    write_structures(
        {1: found.structures[0].contours}, tmp_path / "a.dcm", found, read_series(tmp_path / "fixed", "x"), 1
    )
    again = read_structures(tmp_path / "a.dcm").structures[0].contours[0].points
    np.testing.assert_allclose(again, circle, atol=1e-3)


def test_points_go_by_the_inverse():
    transform = MatrixTransform(TURN, CENTRE, [3.0, -4.0, 2.0])
    given = np.array([CENTRE, CENTRE + np.array([5.0, 1.0, -9.0])])
    marks = Structure(1, "marks", None, tuple(Contour(p[None], "POINT") for p in given))
    line = Structure(2, "line", None, (Contour(given, "OPEN_PLANAR"),))
    mapper = StructureMapper(TransformChain((Link(transform),)), GRID)
    wanted = (given - CENTRE - [3.0, -4.0, 2.0]) @ TURN + CENTRE  # a rotation's inverse is its transpose
    found = np.concatenate([contour.points for contour in mapper.map(marks).structure.contours])
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    (contour,) = mapper.map(line).structure.contours
    assert contour.kind == "OPEN_NONPLANAR"
    np.testing.assert_allclose(contour.points, wanted, atol=1e-3)


def test_what_is_cut_or_outside_is_told(caplog):
    near = StructureMapper(still(), Grid((20, 40, 30), GRID.spacing, GRID.origin)).map(ball(2.0))
    assert 0 < near.volume_after < 0.6 * near.volume_before
    assert "reaches the border of the fixed image" in caplog.text
    away = StructureMapper(still(), Grid((5, 5, 5), GRID.spacing, (500.0, 0.0, 0.0))).map(ball(2.0))
    assert (away.volume_after, away.structure.contours, away.mask.array.max()) == (0.0, (), 0)
    assert "lies outside of the fixed image" in caplog.text


def test_contours_that_make_no_solid():
    flat = Structure(1, "flat", None, (ring(20.0, CENTRE, TURN),))
    with pytest.raises(DicomError, match="'flat' has contours in one plane"):
        stack_planes(flat)
    assert stack_planes(flat, 2.5).volume() == pytest.approx(np.pi * RADIUS**2 * 2.5, rel=0.01)
    bent = ring(20.0, CENTRE, TURN).points.copy()
    bent[3] += 2 * TURN[:, 2]
    with pytest.raises(DicomError, match=r"'bent' has contours .* that are not planar"):
        stack_planes(Structure(1, "bent", None, (Contour(bent),)), 2.0)
    with pytest.raises(DicomError, match="not parallel"):
        stack_planes(Structure(1, "both", None, (*ball(3.0).contours, ring(5.0, CENTRE, TURN[:, [1, 2, 0]]))))
    with pytest.raises(DicomError, match="enclose nothing"):
        stack_planes(Structure(1, "line", None, (Contour(np.array([[0, 0, 0], [1, 0, 0], [2.0, 0, 0]])),)))
