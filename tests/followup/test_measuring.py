"""Lesions are measured in their own image: SimpleITK, formulas and pydicom's files are the judges."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_cases import FRAMES, outlines, write_series
from dicom_cases import write_structures as write_given
from lesion_cases import OBLIQUE, ball

from regnet_itk import Grid, Image, Landmarks, read_lesions, write_image, write_landmarks
from regnet_itk.dicom.series import read_series
from regnet_itk.errors import DicomError, ImageError, ParameterError, PointsError
from regnet_itk.followup.lesions import lesions_of_labels

MIDDLE = OBLIQUE.centre()
AXIAL = Grid((60, 50, 30), (0.9, 0.9, 2.0), (-20.0, 35.0, 100.0))


def at(x, y, z):
    """A place so many mm away from the middle."""
    return MIDDLE + np.array([x, y, z])


def ellipsoid(grid, radii, centre=None):
    """A segmentation whose axes are those of the grid."""
    away = (grid.points() - (grid.centre() if centre is None else centre)) @ grid.direction_matrix
    return Image((np.linalg.norm(away / radii, axis=-1) <= 1).astype(np.uint8), grid)


def test_volumes_and_centres_are_those_of_simpleitk():
    labels = ball(OBLIQUE, (MIDDLE, 9.0), (at(18, 9, -8), 4.0), (at(-20, -14, -9), 6.0))
    labels = Image(np.where(labels.array == 2, 4000, labels.array.astype(np.int32)), OBLIQUE)
    judge = sitk.LabelShapeStatisticsImageFilter()
    judge.Execute(labels.to_sitk())
    found = lesions_of_labels(labels)
    assert [lesion.name for lesion in found] == ["1", "3", "4000"]
    for lesion in found:
        number = int(lesion.name)
        assert lesion.volume == pytest.approx(judge.GetPhysicalSize(number))
        assert lesion.voxels == judge.GetNumberOfPixels(number)
        np.testing.assert_allclose(lesion.centre, judge.GetCentroid(number), atol=1e-6)
        assert not lesion.cut


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_diameters_lie_in_the_axial_plane_whatever_the_axes_of_the_image(order):
    """Longest from head to feet, which no axial slice shows; the second longest is the diameter."""
    radii = np.array([10.0, 6.0, 15.0])  # along x, y, z of the patient
    direction = np.eye(3)[:, order]
    grid = Grid((44, 44, 44), (0.8, 0.9, 1.0), (0.0, 0.0, 0.0), direction)
    (lesion,) = lesions_of_labels(ellipsoid(grid, radii[list(order)]))
    assert lesion.longest == pytest.approx(20.0, abs=1.0)
    assert lesion.across == pytest.approx(12.0, abs=1.0)
    assert lesion.effective == pytest.approx(2 * 900 ** (1 / 3), rel=0.01)


def test_the_distance_to_a_lesion_and_places_in_it():
    (lesion,) = lesions_of_labels(ball(OBLIQUE, (MIDDLE, 8.0)))
    points = MIDDLE + np.random.default_rng(0).uniform(-12, 12, (5000, 3))
    away = np.linalg.norm(points - MIDDLE, axis=1) - 8.0
    clear = np.abs(away) > 1.6
    np.testing.assert_array_equal(lesion.solid.at(points)[clear] < 0, away[clear] < 0)
    assert 200 < len(lesion.points) <= 300
    assert np.linalg.norm(lesion.points - MIDDLE, axis=1).max() <= 8.0
    np.testing.assert_allclose(lesion.points.mean(axis=0), MIDDLE, atol=0.5)


def test_pieces_of_a_mask(tmp_path, caplog):
    two = Image((ball(OBLIQUE, (MIDDLE, 5.0), (at(0, 15, 0), 4.0)).array > 0).astype(np.uint8), OBLIQUE)
    write_image(two, tmp_path / "two.mha")
    (both,) = read_lesions(tmp_path / "two.mha", OBLIQUE)
    assert both.pieces == 2
    assert "label 1 has 2 pieces, which are taken as one lesion" in caplog.text
    caplog.clear()
    assert len(lesions_of_labels(two, connected=True)) == 2
    assert len(read_lesions(tmp_path / "two.mha", OBLIQUE, connected=True)) == 2
    assert not caplog.text


def test_lesions_at_the_border_and_small_ones_are_known_as_such():
    corner = OBLIQUE.index_to_point([0, 20, 20])
    cut, small, thin = lesions_of_labels(ball(OBLIQUE, (corner, 8.0), (MIDDLE, 2.5), (at(0, 0, 12), 3.0)))
    assert (cut.cut, small.cut) == (True, False)
    assert (cut.is_small, small.is_small, thin.is_small) == (False, True, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([-1, 1]), "negative values, down to -1"),
        (np.array([0.5, 1.0]), "no whole numbers"),
        (np.array([np.nan, 1.0]), "NaN"),
        (np.arange(5901), "fill 98% of the image"),
        (np.arange(5901).repeat(3), "5900 different values"),
    ],
)
def test_what_are_no_labels(values, message):
    array = np.zeros(6000 if len(values) < 6000 else 36_000, dtype=values.dtype)
    array[: len(values)] = values
    with pytest.raises(ImageError, match=message):
        lesions_of_labels(Image(array.reshape(10, 20, -1), Grid((len(array) // 200, 20, 10))))


# Files


def write_case(folder, frames=None, centre=None, **more):
    mask = ellipsoid(AXIAL, [9.0, 6.0, 8.0], centre)
    empty = Image(np.zeros(AXIAL.shape, np.int16), AXIAL)
    write_series(empty, folder / "series")
    structures = [
        ("GTV 1", [230, 60, 40], outlines(mask)), ("Nothing", [1, 2, 3], []),
        ("Points", [250, 220, 60], [("POINT", AXIAL.centre()[None]), ("POINT", AXIAL.centre()[None] + 5)]),
    ]  # fmt: skip
    return mask, write_given(structures, folder / "set.dcm", AXIAL, "fixed", frames=frames, **more)


def test_structures_are_measured_as_the_mask_they_were_drawn_from(tmp_path, caplog):
    mask, path = write_case(tmp_path)
    series = read_series(tmp_path / "series", "fixed series")
    found = read_lesions(path, AXIAL, series=series)
    assert [lesion.name for lesion in found] == ["GTV 1", "Points 1", "Points 2"]
    assert "'Nothing' has no contours" in caplog.text
    (wanted,) = lesions_of_labels(mask)
    assert found[0].volume == pytest.approx(4 / 3 * np.pi * 9 * 6 * 8, rel=0.03)
    assert found[0].longest == pytest.approx(wanted.longest, abs=0.01)
    assert found[0].across == pytest.approx(wanted.across, abs=0.01)
    np.testing.assert_allclose(found[0].centre, wanted.centre, atol=0.3)
    assert found[1].volume is None
    (chosen,) = read_lesions(path, AXIAL, structures=["gtv*"])
    assert chosen.name == "GTV 1"


def test_an_organ_is_a_lesion_only_if_that_is_said(tmp_path):
    wide = replace(AXIAL, spacing=(5.0, 5.0, 5.0))
    body = [("Body", [1, 2, 3], outlines(ellipsoid(wide, [90.0, 80.0, 60.0])))]
    path = write_given(body, tmp_path / "set.dcm", wide, "fixed")
    with pytest.raises(DicomError, match=r"'Body' of 18\d\d cm3 is hardly a lesion"):
        read_lesions(path, wide)
    (asked,) = read_lesions(path, wide, structures=["Body"])
    assert asked.volume == pytest.approx(4 / 3 * np.pi * 90 * 80 * 60, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": dict.fromkeys(("GTV 1", "Nothing", "Points"), FRAMES["moving"])}, "belong to another scan"),
        ({"patient": "P2"}, "patient 'P2'"),
    ],
)
def test_structures_of_another_scan(tmp_path, change, message):
    _, path = write_case(tmp_path, **change)
    with pytest.raises(DicomError, match=message):
        read_lesions(path, AXIAL, series=read_series(tmp_path / "series", "fixed series"))


def test_structures_that_lie_elsewhere(tmp_path):
    _, path = write_case(tmp_path)
    away = replace(AXIAL, origin=(200.0, 35.0, 100.0))
    with pytest.raises(DicomError, match=r"'GTV 1' lies outside of the fixed image, and so do 2 others"):
        read_lesions(path, away)
    with pytest.raises(DicomError, match=r"no region that `structures` names; there are GTV 1, Nothing, Points"):
        read_lesions(path, AXIAL, structures=["PTV"])


def test_points(tmp_path):
    write_landmarks(Landmarks(np.array([MIDDLE, MIDDLE + 3]), ("a", "b")), tmp_path / "p.fcsv")
    found = read_lesions(tmp_path / "p.fcsv", OBLIQUE, "moving")
    assert [lesion.name for lesion in found] == ["a", "b"]
    np.testing.assert_allclose(found[1].centre, MIDDLE + 3, atol=1e-3)
    assert found[0].volume is None and found[0].effective is None
    write_landmarks(Landmarks(np.array([MIDDLE + 500])), tmp_path / "far.txt")
    with pytest.raises(PointsError, match="1 of 1 moving landmarks lie outside"):
        read_lesions(tmp_path / "far.txt", OBLIQUE, "moving")
    with pytest.raises(ParameterError, match="are points, of which no piece"):
        read_lesions(tmp_path / "p.fcsv", OBLIQUE, connected=True)
    with pytest.raises(ParameterError, match="are points, which have no names to choose by"):
        read_lesions(tmp_path / "p.fcsv", OBLIQUE, structures=["a"])


def test_labels_on_another_grid_and_none_at_all(tmp_path, caplog):
    write_image(ball(OBLIQUE, (MIDDLE, 5.0)), tmp_path / "labels.mha")
    shifted = replace(OBLIQUE, origin=(0.0, 0.0, 0.0))
    with pytest.raises(ImageError, match=r"the fixed lesions '.*' lie on another grid than the fixed image"):
        read_lesions(tmp_path / "labels.mha", shifted)
    write_image(ball(OBLIQUE), tmp_path / "none.mha")
    assert read_lesions(tmp_path / "none.mha", OBLIQUE) == ()
    assert "are none: every voxel is 0" in caplog.text
