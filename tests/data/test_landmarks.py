"""Landmark files: what is read is where the points are, and what is broken is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regnet_itk.data.grid import Grid
from regnet_itk.data.landmarks import Landmarks, check_landmarks, read_landmarks, write_landmarks
from regnet_itk.errors import OutputError, PointsError

POINTS = np.array([[-10.5, 20.25, 3.0], [1 / 3, -7.0, 1e-3], [100.0, 0.0, -250.125]])
GRID = Grid((40, 50, 60), (1.5, 1.0, 2.0), (-5.0, 10.0, 20.0), ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


@pytest.mark.parametrize("name", ["a.txt", "a.pts", "a.vtk", "a.csv", "a.fcsv", "a.mrk.json"])
def test_read_after_write_gives_the_same_points_to_the_last_bit(tmp_path, name):
    write_landmarks(Landmarks(POINTS), tmp_path / name)
    np.testing.assert_array_equal(read_landmarks(tmp_path / name).points, POINTS)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.txt", "a.vtk", "a.fcsv", "a.mrk.json", "a.csv"])
def test_radii_of_trust_are_not_lost_without_a_word(name, tmp_path, caplog):
    write_landmarks(Landmarks(POINTS, trust_radii=np.ones(len(POINTS))), tmp_path / name)
    lost = read_landmarks(tmp_path / name).trust_radii is None
    assert lost == (name != "a.csv") == ("cannot hold the landmarks' radii of trust" in caplog.text)


def test_radii_of_trust_survive_csv_and_must_fit(tmp_path):
    points = np.arange(9.0).reshape(3, 3)
    given = Landmarks(points, ("a", "b", "c"), trust_radii=[0.5, np.nan, 4.0])
    write_landmarks(given, tmp_path / "a.csv")
    found = read_landmarks(tmp_path / "a.csv")
    assert found.names == given.names
    np.testing.assert_array_equal(found.trust_radii, [0.5, np.nan, 4.0])
    commas = read_landmarks(_write(tmp_path, "b.csv", "trust_radius_mm;x;y;z\n1,5;1;2;3,5\n;4;5;6\n"))
    np.testing.assert_array_equal(commas.trust_radii, [1.5, np.nan])
    np.testing.assert_array_equal(commas.points, [[1, 2, 3.5], [4, 5, 6]])
    write_landmarks(Landmarks(points), tmp_path / "c.csv")
    assert read_landmarks(tmp_path / "c.csv").trust_radii is None
    for wrong, message in (([1.0], r"shape \(3,\)"), ([1.0, -2.0, 1.0], "point 1: its radius of trust is -2 mm")):
        with pytest.raises(PointsError, match=message):
            Landmarks(points, trust_radii=wrong)


@pytest.mark.parametrize("name", ["a.csv", "a.fcsv", "a.mrk.json"])
def test_names_survive_even_with_commas_and_quotes(tmp_path, name):
    names = ("carina", 'left, "upper"', "Ärmchen")
    write_landmarks(Landmarks(POINTS, names), tmp_path / name)
    assert read_landmarks(tmp_path / name).names == names


def _write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_elastix_indices_become_points_of_the_grid(tmp_path):
    for head in ("index\n", ""):
        found = read_landmarks(_write(tmp_path, "a.txt", f"{head}2\n0 0 0\n3 2 1\n"), GRID)
        # column i of the direction is where index i goes: 3 voxels of 1.5 mm along +y, 2 of 1 mm along -x
        np.testing.assert_allclose(found.points, [[-5, 10, 20], [-7, 14.5, 22]])


def test_elastix_text_survives_windows_line_ends_and_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"point\r\n2\r\n\r\n1 2 3\r\n4 5 6\r\n\r\n")
    np.testing.assert_array_equal(read_landmarks(path).points, [[1, 2, 3], [4, 5, 6]])


def test_slicer_files_are_turned_into_lps(tmp_path):
    line = "vtkMRMLMarkupsFiducialNode_0,-1,2,3,0,0,0,1,1,1,0,F-1,,\n"
    for head in ("# CoordinateSystem = RAS\n", "# CoordinateSystem = 0\n", ""):
        found = read_landmarks(_write(tmp_path, "a.fcsv", head + line))
        np.testing.assert_array_equal(found.points, [[1, -2, 3]])
        assert found.names == ("F-1",)
    for system in ("LPS", "1"):
        found = read_landmarks(_write(tmp_path, "a.fcsv", f"# CoordinateSystem = {system}\n{line}"))
        np.testing.assert_array_equal(found.points, [[-1, 2, 3]])
    with pytest.raises(PointsError, match="voxel indices"):
        read_landmarks(_write(tmp_path, "a.fcsv", f"# CoordinateSystem = IJK\n{line}"))
    found = read_landmarks(_write(tmp_path, "a.fcsv", f"# CoordinateSystem = 2\n{line}"), GRID)
    np.testing.assert_allclose(found.points, GRID.index_to_point([[-1, 2, 3]]))


@pytest.mark.parametrize(("system", "expected"), [("RAS", [1, -2, 3]), ("LPS", [-1, 2, 3]), (None, [-1, 2, 3])])
def test_slicer_json_respects_its_coordinate_system(tmp_path, system, expected):
    markup = {"type": "Fiducial", "controlPoints": [{"label": "F-1", "position": [-1, 2, 3]}]}
    if system:
        markup["coordinateSystem"] = system
    path = _write(tmp_path, "a.mrk.json", json.dumps({"markups": [markup]}))
    np.testing.assert_array_equal(read_landmarks(path).points, [expected])


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\n1,2,3\n4,5,6\n",
        "1,2,3\n4,5,6\n",
        "1, 2, 3\n\n4 ,5, 6",
        "name,z,y,x\na,3,2,1\nb,6,5,4\n",
        "X;Y;Z\n1;2;3\n4;5;6\n",
        "x_mm,y_mm,z_mm,who\n1,2,3,me\n4,5,6,me\n",
    ],
)
def test_csv_with_and_without_a_header(tmp_path, text):
    np.testing.assert_array_equal(read_landmarks(_write(tmp_path, "a.csv", text)).points, [[1, 2, 3], [4, 5, 6]])


def test_vtk_points_may_be_broken_over_lines(tmp_path):
    head = "# vtk DataFile Version 2.0\nx\nASCII\nDATASET POLYDATA\n"
    path = _write(tmp_path, "a.vtk", f"{head}POINTS 2 float\n1 2 3 4\n5 6\nVERTICES 2 4\n1 0\n1 1\n")
    np.testing.assert_array_equal(read_landmarks(path).points, [[1, 2, 3], [4, 5, 6]])


VTK = "# vtk DataFile Version 2.0\nx\nASCII\nDATASET POLYDATA\n"
BROKEN = [
    ("a.txt", "", "is empty"),
    ("a.txt", "point\n", "count of points is missing"),
    ("a.txt", "point\n0\n", "holds no points"),
    ("a.txt", "points\n1\n1 2 3\n", "line 1: expected 'point', 'index' or the count, not 'points'"),
    ("a.txt", "point\n3\n1 2 3\n4 5 6\n", "line 2: 3 points are announced and 2 follow"),
    ("a.txt", "point\n1\n1 2 3\n4 5 6\n", "line 2: 1 points are announced and 2 follow"),
    ("a.txt", "point\n2\n1 2 3\n4 5\n", "line 4: a point needs 3 coordinates, not 2"),
    ("a.txt", "point\n2\n1 2 3\n4 five 6\n", "line 4: expected 3 numbers, not '4 five 6'"),
    ("a.txt", "point\n1\n1 nan 3\n", "line 3: the point 1.0 nan 3.0 is not finite"),
    ("a.txt", "1\n1 2 3\n", "holds voxel indices; give the image"),
    ("a.csv", "x,y,z\n", "holds no points"),
    ("a.csv", "a,b,c\n1,2,3\n", "line 1: expected the columns x, y and z"),
    ("a.csv", "x,y,z\n1,2,3\n4,5\n", "line 3: a point needs 3 coordinates, not 2"),
    ("a.csv", "1,2,3\n4,inf,6\n", "line 2: the point 4.0 inf 6.0 is not finite"),
    ("a.csv", "1,2,3,4\n", "line 1: a point needs 3 coordinates, not 4"),
    ("a.csv", "x,y,z\n1,b,3\n", "line 2: expected 3 numbers"),
    (
        "a.csv",
        "x,y,z,trust_radius\n1,2,3,wide\n",
        "line 2: the radius of trust must be a length above 0 in mm, not 'wide'",
    ),
    ("a.csv", "x,y,z,trust_radius\n1,2,3,0\n", "line 2: the radius of trust must be"),
    ("a.vtk", "hello\n", "legacy VTK"),
    ("a.vtk", VTK.replace("ASCII", "BINARY"), "in ASCII"),
    ("a.vtk", VTK.replace("POLYDATA", "STRUCTURED_GRID"), "expected DATASET POLYDATA"),
    ("a.vtk", VTK, "'POINTS count type' is missing"),
    ("a.vtk", f"{VTK}POINTS 2 float\n1 2 3\nVERTICES 1 2\n1 0\n", "line 5: 2 points are announced and 1 follow"),
    ("a.vtk", f"{VTK}POINTS 1 float\n1 nan 3\n", "line 6: the point 1.0 nan 3.0 is not finite"),
    ("a.fcsv", "# CoordinateSystem = ABC\n1,1,2,3,0,0,0,1,1,1,0,F\n", "must be RAS, LPS or IJK, not 'ABC'"),
    ("a.fcsv", "# CoordinateSystem = LPS\n1,1,2\n", "line 2: a point needs 3 coordinates, not 2"),
    ("a.mrk.json", "{", "line 1: not valid JSON"),
    ("a.mrk.json", "{}", "'markups' is missing"),
    ("a.mrk.json", '{"markups": [{}, {}]}', "holds 2 markups"),
    ("a.mrk.json", '{"markups": [{"type": "Fiducial"}]}', "'controlPoints' is missing"),
    ("a.mrk.json", '{"markups": [{"controlPoints": []}]}', "holds no points"),
    ("a.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, null, 2]}]}]}', "point 0: expected 3 numbers"),
    ("a.mrk.json", '{"markups": [{"controlPoints": [{}]}]}', "point 0: a point needs 3 coordinates"),
    ("a.dat", "1 2 3\n", "needs the suffix"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN, ids=[m for _, _, m in BROKEN])
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, name, text, message):
    path = _write(tmp_path, name, text)
    with pytest.raises(PointsError) as error:
        read_landmarks(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_a_binary_and_an_unwritable_file(tmp_path):
    with pytest.raises(PointsError, match="does not exist"):
        read_landmarks(tmp_path / "none.txt")
    (tmp_path / "b.vtk").write_bytes(b"# vtk\xff\xfe\x00")
    with pytest.raises(PointsError, match="not a text file"):
        read_landmarks(tmp_path / "b.vtk")
    with pytest.raises(PointsError, match="use the suffix"):
        write_landmarks(Landmarks(POINTS), tmp_path / "a.xls")
    with pytest.raises(OutputError):
        write_landmarks(Landmarks(POINTS), tmp_path / "no" / "a.txt")


def test_landmarks_refuse_what_is_no_list_of_points():
    with pytest.raises(PointsError, match="shape"):
        Landmarks(np.zeros((2, 2)))
    with pytest.raises(PointsError, match="point 1 is not finite"):
        Landmarks([[0, 0, 0], [0, np.nan, 0]])
    with pytest.raises(PointsError, match="1 names were given for 3"):
        Landmarks(POINTS, ("a",))


def test_landmarks_must_correspond_and_lie_in_their_images():
    inside = GRID.index_to_point([[1, 1, 1], [20, 20, 20], [39.4, 49.4, 59.4]])
    good = Landmarks(inside)
    check_landmarks(good, good, GRID, GRID)
    check_landmarks(good, good)
    with pytest.raises(PointsError, match="3 fixed and 2 moving"):
        check_landmarks(good, Landmarks(inside[:2]))
    with pytest.raises(PointsError, match=r"1 of 3 moving landmarks lie outside the moving image \(point 1\)"):
        check_landmarks(good, Landmarks(inside + np.array([[0, 0, 0], [500, 0, 0], [0, 0, 0]])), GRID, GRID)
    with pytest.raises(PointsError, match="look like RAS"):
        check_landmarks(Landmarks(inside * [-1, -1, 1]), good, GRID, GRID)


# What other programs leave in their files


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("x;y;z\n1,5;2,5;3,5\n", [[1.5, 2.5, 3.5]]),
        ("1,5;2;-3,25\n", [[1.5, 2.0, -3.25]]),
        ("x\ty\tz\n1.5\t2\t3\n", [[1.5, 2.0, 3.0]]),
        ("name;x;y;z\na, b;1,5;2,5;3,5\n", [[1.5, 2.5, 3.5]]),
        ("x,y,z\n1,2,3,,\n", [[1.0, 2.0, 3.0]]),
    ],
)
def test_spreadsheets_of_other_countries(text, points, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    assert read_landmarks(tmp_path / "a.csv").points.tolist() == points


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y,z\n1,5,2,5,3,5\n", "line 2: 6 cells under a header of 3; are the decimals commas"),
        ("a.csv", "x,y,z\n1,2,3,5\n", "line 2: 4 cells under a header of 3"),
        ("a.csv", "1,5,2,5,3,5\n", "decimal commas need columns separated by semicolons"),
        ("a.csv", "x;y;z\n1,5;2.5;3\n", "some numbers have a comma and some a point"),
        ("a.csv", 'x,y,z,name\n1,2,3,"p0\n4,5,6,p1\n', "is a quote not closed"),
        ("a.csv", 'x,y,z,name\n1,2,3,"p0\n4,5,6,"p1\n7,8,9,p2\n', "is a quote not closed"),
        ("a.fcsv", '1,1,2,3,0,0,0,1,1,1,0,"F-1\n2,4,5,6,0,0,0,1,1,1,0,F-2\n', "is a quote not closed"),
        ("a.csv", "x,y,z\n1_0,2,3\n", "expected 3 numbers, not '1_0 2 3'"),
        ("a.txt", "point\n\N{SUPERSCRIPT TWO}\n1 2 3\n4 5 6\n", "expected 'point', 'index' or the count"),
        ("a.txt", "point\n1\n1 2 \N{FULLWIDTH DIGIT THREE}\n", "expected 3 numbers"),
        ("a.vtk", "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 3 double\n1 2 3\n4 4 5 6\n7 8 9\n",
         "3 points are announced and 3 follow, with 1 numbers more"),
        ("a.mrk.json", "[" * 200_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PointsError) as refused:
        read_landmarks(tmp_path / name)
    assert message in str(refused.value)


def test_points_that_slicer_never_placed_are_left_out_by_name_and_not_mispaired(tmp_path, caplog):
    def write(name, undefined):
        points = [
            {"label": f"p{i}", "position": [i, 2, 3] if i != undefined else [0, 0, 0],
             "positionStatus": "defined" if i != undefined else "undefined"} for i in range(4)
        ]  # fmt: skip
        markups = {"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}
        (tmp_path / name).write_text(json.dumps(markups))
        return read_landmarks(tmp_path / name)

    one, other = write("one.mrk.json", 1), write("other.mrk.json", 2)
    assert one.names == ("p0", "p2", "p3")
    assert one.points[:, 0].tolist() == [0, 2, 3]
    assert "'p1', was never placed" in caplog.text
    check_landmarks(one, write("again.mrk.json", 1))
    with pytest.raises(PointsError, match="never placed: 1 of the fixed file and 2 of the moving file"):
        check_landmarks(one, other)
