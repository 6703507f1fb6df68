"""DIR-Lab's format, on files made in it: voxels and landmarks agree whichever way the slices go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call

from regnet_itk.comparison import dirlab
from regnet_itk.comparison.dirlab import (
    CASES,
    find_cases,
    import_case,
    placed,
    read_indices,
    read_raw,
    slices_from_feet,
)
from regnet_itk.data.grid import Grid
from regnet_itk.data.landmarks import read_landmarks
from regnet_itk.errors import ImageError, ParameterError, PointsError
from regnet_itk.pairs import check_pairs, read_pairs

SMALL = Grid((14, 12, 10), (0.97, 0.97, 2.5))
BRIGHT = 3000  # raw: 1976 HU
#: x, y, z of the voxels, counted from 1; breathing out moves them by a slice
INHALE = [(3, 4, 2), (10, 4, 5), (7, 11, 8), (14, 12, 9)]


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    """All cases as small as the files here; the table itself is tested on its own."""
    monkeypatch.setattr(dirlab, "CASES", dict.fromkeys(CASES, SMALL))


def write_phase(folder, image_name, points_name, points, fill=24):
    """Write one breathing state, with a bright voxel at each landmark."""
    raw = np.full(SMALL.shape, fill, dtype="<i2")
    raw[0, 0, 0] = -2000  # outside the scanner's field
    for number, (x, y, z) in enumerate(points):
        raw[z - 1, y - 1, x - 1] = BRIGHT + number
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    (folder / "Images" / image_name).write_bytes(raw.tobytes())
    text = "".join(f"{x}\t{y}\t{z}\n" for x, y, z in points)
    (folder / points_name).write_text(text)


def write_case(folder: Path, head_at_end: bool = True, names=("case1_T00_s.img", "Case1_300_T00_xyz.txt")) -> Path:
    exhale = [(x, y, z + (1 if head_at_end else -1)) for x, y, z in INHALE]
    write_phase(folder, names[0], names[1], INHALE)
    other = [name.replace("T00", "T50").replace("iBH", "eBH") for name in names]
    write_phase(folder, *other, exhale)
    return folder


@pytest.mark.parametrize("head_at_end", [True, False])
@pytest.mark.parametrize("fixed", ["inhale", "exhale"])
def test_each_landmark_lies_on_its_voxel(tmp_path, head_at_end, fixed):
    folder = write_case(tmp_path / "Case1Pack", head_at_end)
    assert call("import", "dirlab", folder, "-out", tmp_path / "out", "--fixed", fixed) == 0
    (pair,) = read_pairs(tmp_path / "out" / "PAIRS.csv")
    check_pairs([pair])
    assert (pair.name, pair.group) == ("case1", "DIR-Lab 4DCT")
    assert pair.fixed.name == f"{fixed}.mha"
    for path, points in ((pair.fixed, pair.fixed_landmarks), (pair.moving, pair.moving_landmarks)):
        image = sitk.ReadImage(str(path))  # an independent reader
        assert image.GetSize() == SMALL.size
        assert image.GetSpacing() == pytest.approx(SMALL.spacing)
        assert image[0, 0, 0] == -1024
        assert image[1, 0, 0] == 24 - 1024
        for number, point in enumerate(read_landmarks(points).points):
            index = image.TransformPhysicalPointToIndex(point.tolist())
            assert image[index] == BRIGHT + number - 1024
        lines = points.read_text(encoding="utf-8").splitlines()
        assert lines[:2] == ["point", "4"]


@pytest.mark.parametrize("head_at_end", [True, False])
def test_breathing_out_goes_to_the_head(tmp_path, head_at_end):
    write_case(tmp_path / "a", head_at_end)
    (case,) = find_cases([tmp_path])
    pair = import_case(case, tmp_path / "out")
    fixed, moving = (read_landmarks(path).points for path in (pair.fixed_landmarks, pair.moving_landmarks))
    np.testing.assert_allclose(moving - fixed, np.tile((0, 0, 2.5), (4, 1)))  # LPS: z grows towards the head


def test_the_way_of_the_slices_can_be_given_and_must_be_where_nothing_moves(tmp_path):
    write_phase(tmp_path, "copd3_iBHCT.img", "copd3_300_iBH_xyz_r1.txt", INHALE)
    write_phase(tmp_path, "copd3_eBHCT.img", "copd3_300_eBH_xyz_r1.txt", INHALE)
    (case,) = find_cases([tmp_path])
    with pytest.raises(ParameterError, match="`slices`"):
        import_case(case, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_case(case, tmp_path / "out", slices="head-first")
    assert sitk.ReadImage(str(tmp_path / "out" / "copd3" / "inhale.mha")).GetDirection()[8] == -1
    import_case(case, tmp_path / "out", slices="feet-first")
    assert sitk.ReadImage(str(tmp_path / "out" / "copd3" / "inhale.mha")).GetDirection()[8] == 1


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("case1_T00_s.img", "Case1_300_T00_xyz.txt"), "case1"),
        (("case2_T00-ssm.img", "Case2_300_T00_xyz.txt"), "case2"),
        (("case6_T00.img", "case6_dirLab300_T00_xyz.txt"), "case6"),
        (("case10_T00.img", "case10_dirLab300_T00_xyz.txt"), "case10"),
        (("copd1_iBHCT.img", "copd1_300_iBH_xyz_r1.txt"), "copd1"),
    ],
)
def test_the_names_of_the_files(tmp_path, names, name):
    write_case(tmp_path / "pack", names=names)
    (tmp_path / "pack" / "case1_4D-75_T00.txt").write_text("1 1 1\n")  # another set of points, left alone
    (case,) = find_cases([tmp_path])
    assert case.name == name
    assert set(case.images) == set(case.landmarks) == {"inhale", "exhale"}


def test_cases_are_added_to_the_list(tmp_path):
    for number in (2, 1):
        names = (f"case{number}_T00_s.img", f"Case{number}_300_T00_xyz.txt")
        folder = write_case(tmp_path / f"Case{number}Pack", names=names)
        assert call("import", "dirlab", folder, "-out", tmp_path / "out") == 0
    assert call("import", "dirlab", tmp_path / "Case1Pack", "-out", tmp_path / "out") == 0
    assert [pair.name for pair in read_pairs(tmp_path / "out" / "PAIRS.csv")] == ["case2", "case1"]


def test_the_table_of_cases():
    assert len(CASES) == 20
    assert CASES["case1"] == Grid((256, 256, 94), (0.97, 0.97, 2.5))
    assert CASES["case5"] == Grid((256, 256, 106), (1.1, 1.1, 2.5))
    assert CASES["case8"] == Grid((512, 512, 128), (0.88, 0.88, 2.5))
    assert CASES["copd1"] == Grid((512, 512, 121), (0.625, 0.625, 2.5))
    assert CASES["copd10"] == Grid((512, 512, 135), (0.742, 0.742, 2.5))


def test_values_that_need_no_offset_are_noticed(tmp_path):
    (tmp_path / "a.img").write_bytes(np.full(SMALL.shape, -900, dtype="<i2").tobytes())
    with pytest.raises(ImageError, match="`offset` 0"):
        read_raw(tmp_path / "a.img", SMALL)
    assert read_raw(tmp_path / "a.img", SMALL, offset=0).array[0, 0, 0] == -900
    (tmp_path / "b.img").write_bytes(np.full(SMALL.shape, 1024 + 300, dtype="<i2").tobytes())
    assert read_raw(tmp_path / "b.img", SMALL).array.max() == 300


def test_what_does_not_fit_is_refused(tmp_path, capsys):
    (tmp_path / "short.img").write_bytes(b"\0" * 100)
    with pytest.raises(ImageError, match="100 bytes; 14 x 12 x 10 voxels of 16 bits are 3360"):
        read_raw(tmp_path / "short.img", SMALL)
    points = tmp_path / "p.txt"
    for text, told in (("1 2 3\n15 1 1\n", "line 2: the index 15 1 1"), ("0 1 1\n", "line 1"), ("1 2\n", "line 1"),
                       ("a b c\n", "three indices"), ("", "no points")):  # fmt: skip
        points.write_text(text)
        with pytest.raises(PointsError, match=told):
            read_indices(points, SMALL)
    write_case(tmp_path / "pack")
    (tmp_path / "pack" / "Case1_300_T50_xyz.txt").write_text("1 1 1\n")
    assert call("import", "dirlab", tmp_path / "pack", "-out", tmp_path / "out") == 1
    assert "4 inhale and 1 exhale landmarks" in capsys.readouterr().err
    (tmp_path / "pack" / "Case1_300_T50_xyz.txt").unlink()
    assert call("import", "dirlab", tmp_path / "pack", "-out", tmp_path / "out") == 1
    assert "landmarks of the exhale phase" in capsys.readouterr().err
    (tmp_path / "pack" / "case1_T00.img").write_bytes(b"")
    with pytest.raises(ParameterError, match="two files for the inhale phase"):
        find_cases([tmp_path / "pack"])
    with pytest.raises(ParameterError, match="no DIR-Lab case"):
        find_cases([tmp_path / "pack" / "none"] if (tmp_path / "pack" / "none").mkdir() is None else [])
    with pytest.raises(ParameterError, match="does not exist"):
        find_cases([tmp_path / "missing"])
    assert call("import", "dirlabs", tmp_path, "-out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_slices_are_told_by_the_mean_of_the_landmarks():
    inhale = np.array([(5.0, 5, 5), (5, 5, 8)])
    assert slices_from_feet(inhale, inhale + np.array([0, 0, 1]))
    assert not slices_from_feet(inhale, inhale - np.array([9, 0, 1]))
    assert placed(SMALL, False).index_to_point((0, 0, 2)).tolist() == [0, 0, -5]


def test_lung_masks_are_written_and_listed(tmp_path, monkeypatch):
    def everything(image):
        return type(image)(np.ones(image.grid.shape, dtype=np.uint8), image.grid)

    monkeypatch.setattr("regnet_itk.anatomy.lungs.lung_mask", everything)
    folder = write_case(tmp_path / "pack")
    assert call("import", "dirlab", folder, "-out", tmp_path / "out", "--lung-masks") == 0
    (pair,) = read_pairs(tmp_path / "out" / "PAIRS.csv")
    assert pair.fixed_mask is not None
    assert sitk.ReadImage(str(pair.moving_mask)).GetSize() == SMALL.size
