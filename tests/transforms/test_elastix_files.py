"""Chains as elastix's files: what is written and read again, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from chain_cases import AFFINE, CHAINS, GRID, POINTS, TURNED, U, W, bspline, chain_of, field

from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.errors import OutputError, TransformError
from regnet_itk.parameters import ParameterMap, parse_parameter_text
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import chain_from_maps, read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters, read_resampling_grid


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "identity"])
def test_read_after_write_gives_the_same_chain_at_every_link(tmp_path, name):
    chain = CHAINS[name]
    files = write_elastix(chain, tmp_path)
    assert [f.name for f in files] == [f"TransformParameters.{i}.txt" for i in range(len(chain.links))]
    for count, file in enumerate(files, start=1):
        expected = TransformChain(chain.links[:count]).map_points(POINTS)
        np.testing.assert_allclose(read_chain(file).map_points(POINTS), expected, atol=1e-5)


def test_a_chain_that_was_read_can_be_continued_and_written_again(tmp_path):
    first = tmp_path / "a"
    first.mkdir()
    read = read_chain(write_elastix(CHAINS["affine, field"], first)[-1])
    second = tmp_path / "b"
    second.mkdir()
    longer = read.then(W)
    again = read_chain(write_elastix(longer, second, first=5)[-1])
    assert (second / "TransformParameters.7.txt").is_file()
    expected = CHAINS["affine, field, field"].map_points(POINTS)
    np.testing.assert_allclose(longer.map_points(POINTS), expected, atol=1e-5)
    np.testing.assert_allclose(again.map_points(POINTS), expected, atol=1e-5)


def test_a_field_inside_a_sum_is_sampled_finely_enough(tmp_path):
    chain = chain_of(bspline(), Link(field(1), "add"), U)
    with pytest.raises(TransformError, match="give the grid"):
        chain.to_sitk()
    inner = GRID.index_to_point(np.random.default_rng(2).uniform(0.2, 0.8, (200, 3)) * (np.asarray(GRID.size) - 1))
    expected = chain.map_points(inner)
    read = read_chain(write_elastix(chain, tmp_path)[-1])
    assert np.abs(read.map_points(inner) - expected).max() < 0.05
    fine = Grid((96, 84, 72), (0.5, 2 / 3, 5 / 6), GRID.origin, TURNED)
    composite = chain.to_sitk(fine)
    # the field's kinks are not at the nodes of the grid that the sum is sampled on
    assert np.abs(np.array([composite.TransformPoint(p) for p in inner.tolist()]) - expected).max() < 0.05


def test_a_regnet_link_is_written_as_elastix_needs_it(tmp_path):
    settings = make_resampling_parameters(GRID, order=1, default=-1024, pixel_type="float", format="nii.gz")
    chain = chain_of(AFFINE, link_field(field(), settings))
    final = tmp_path / "final"
    stage = tmp_path / "stage"
    stage.mkdir()
    write_elastix(chain, stage, final)
    values = parse_parameter_text((stage / "TransformParameters.1.txt").read_text(encoding="utf-8"))
    assert values["Transform"] == ("DeformationFieldTransform",)
    assert values["HowToCombineTransforms"] == ("Add",)
    assert values["DeformationFieldInterpolationOrder"] == ("1",)
    assert values["DeformationFieldFileName"] == (str(final / "deformationField.1.mha"),)
    for key in ("InitialTransformParameterFileName", "InitialTransformParametersFileName"):
        assert values[key] == (str(final / "TransformParameters.0.txt"),)
    assert values["Direction"] == tuple(repr(float(v)) for v in np.array(TURNED).T.ravel())
    assert (values["DefaultPixelValue"], values["ResultImageFormat"]) == (("-1024",), ("nii.gz",))
    v = read_displacement_field(stage / "deformationField.1.mha")
    np.testing.assert_allclose(v.vectors, field().vectors @ AFFINE.matrix.T, atol=1e-5)
    first = parse_parameter_text((stage / "TransformParameters.0.txt").read_text(encoding="utf-8"))
    assert first["InitialTransformParameterFileName"] == ("NoInitialTransform",)
    stage.rename(final)
    expected = chain.map_points(POINTS)
    np.testing.assert_allclose(read_chain(final / "TransformParameters.1.txt").map_points(POINTS), expected, atol=1e-5)
    final.rename(tmp_path / "moved")  # the absolute paths are wrong now, but the files lie beside each other
    moved = read_chain(tmp_path / "moved" / "TransformParameters.1.txt")
    np.testing.assert_allclose(moved.map_points(POINTS), expected, atol=1e-5)


def test_all_files_of_a_chain_name_each_other_where_they_will_lie(tmp_path):
    stage = tmp_path / "stage"
    stage.mkdir()
    write_elastix(CHAINS["affine, field, field"], stage, tmp_path / "final")
    texts = [file.read_text(encoding="utf-8") for file in stage.glob("*.txt")]
    assert len(texts) == 5  # the last link takes three
    assert not any(str(stage) in text for text in texts)
    assert sum(f"{tmp_path}/final/TransformParameters" in text for text in texts) == 3


def test_resampling_settings_survive_reading_and_writing(tmp_path):
    settings = make_resampling_parameters(GRID, order=0, default=7, pixel_type="unsigned char", format="nrrd")
    path = write_elastix(chain_of(Link(AFFINE, parameters=ParameterMap(settings))), tmp_path)[0]
    link = read_chain(path).links[0]
    assert {key: link.parameters[key] for key in settings} == settings
    assert "TransformParameters" not in link.parameters


def test_initial_transforms_are_found_relative_to_the_working_directory_and_to_their_file(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    path = write_elastix(CHAINS["affine, field"], tmp_path / "there")[-1]
    expected = CHAINS["affine, field"].map_points(POINTS)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"{(tmp_path / 'there').resolve()}/", ""))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(read_chain("there/TransformParameters.1.txt").map_points(POINTS), expected, atol=1e-5)
    path.write_text(text.replace(str(tmp_path.resolve()), "."))
    np.testing.assert_allclose(read_chain(path).map_points(POINTS), expected, atol=1e-5)


def test_both_spellings_of_the_initial_transform_are_read_and_the_newer_one_wins(tmp_path):
    path = write_elastix(chain_of(AFFINE, AFFINE), tmp_path)[-1]
    text = path.read_text(encoding="utf-8")
    expected = chain_of(AFFINE, AFFINE).map_points(POINTS)
    new, old = (next(li for li in text.splitlines() if li.startswith(f"(InitialTransformParameter{s}")) for s in "Fs")
    for removed in (new, old):
        path.write_text(text.replace(removed, ""))
        np.testing.assert_allclose(read_chain(path).map_points(POINTS), expected)
    path.write_text(text.replace(old, '(InitialTransformParametersFileName "NoInitialTransform")'))
    np.testing.assert_allclose(read_chain(path).map_points(POINTS), expected)


def test_maps_of_one_parameter_object_are_chained_in_order(tmp_path):
    files = write_elastix(CHAINS["affine, field"], tmp_path)
    maps = [parse_parameter_text(file.read_text(encoding="utf-8"), str(file)) for file in files]
    expected = CHAINS["affine, field"].map_points(POINTS)
    np.testing.assert_allclose(chain_from_maps(maps).map_points(POINTS), expected, atol=1e-5)
    np.testing.assert_allclose(chain_from_maps(maps[1:]).map_points(POINTS), expected, atol=1e-5)


AFFINE_TEXT = """(Transform "AffineTransform")
(NumberOfParameters 12)
(TransformParameters 1 0 0 0 1 0 0 0 1 2 3 4)
(CenterOfRotationPoint 0 0 0)
(InitialTransformParameterFileName "NoInitialTransform")
(HowToCombineTransforms "Compose")
(FixedImageDimension 3)
(MovingImageDimension 3)
"""
BSPLINE_TEXT = """(Transform "BSplineTransform")
(NumberOfParameters 192)
(TransformParameters @)
(GridSize 4 4 4)
(GridSpacing 1 1 1)
(GridOrigin 0 0 0)
(GridDirection 1 0 0 0 1 0 0 0 1)
""".replace("@", " ".join(["1"] * 192))
FIELD_TEXT = """(Transform "DeformationFieldTransform")
(DeformationFieldFileName "none.mha")
(DeformationFieldInterpolationOrder 1)
"""
BROKEN = {
    "cut off within a line": (AFFINE_TEXT, "0 1 2 3 4)", "0 1 2", "may be cut off"),
    "too few numbers": (AFFINE_TEXT, "0 1 2 3 4)", "0 1 2)", "declares 12 and holds 10"),
    "another count": (AFFINE_TEXT, "Parameters 12", "Parameters 13", "declares 13 and holds 12"),
    "parameters missing": (AFFINE_TEXT, "(TransformParameters", "(Nothing", "'TransformParameters' is missing"),
    "not a number": (AFFINE_TEXT, "2 3 4)", "2 x 4)", "'TransformParameters' must be a number, not 'x'"),
    "not finite": (AFFINE_TEXT, "2 3 4)", "2 nan 4)", "not finite"),
    "no centre": (AFFINE_TEXT, "(Center", "(Centre", "'CenterOfRotationPoint' is missing"),
    "2D": (AFFINE_TEXT, "ImageDimension 3", "ImageDimension 2", "only transformix can evaluate others than 3D"),
    "unknown type": (AFFINE_TEXT, '"AffineTransform"', '"AfineTransform"', "did you mean 'AffineTransform'? known are"),
    "foreign type": (
        AFFINE_TEXT,
        '"AffineTransform"',
        '"SplineKernelTransform"',
        "only transformix can evaluate a Spline",
    ),
    "no transform": (AFFINE_TEXT, '(Transform "', '(Metric "', "is not a transform file"),
    "combination": (AFFINE_TEXT, '"Compose"', '"Concatenate"', "must be Compose or Add, not 'Concatenate'"),
    "initial missing": (AFFINE_TEXT, '"NoInitialTransform"', '"gone.txt"', "its initial transform 'gone.txt' does not"),
    "itself": (AFFINE_TEXT, '"NoInitialTransform"', '"t.txt"', "has itself as initial transform"),
    "no directions": (
        AFFINE_TEXT,
        "(Fixed",
        '(UseDirectionCosines "false")\n(Direction 0 1 0 -1 0 0 0 0 1)\n(Fixed',
        "again",
    ),
    "control points": (BSPLINE_TEXT, "GridSize 4", "GridSize 5", "has 240 parameters here"),
    "control spacing": (BSPLINE_TEXT, "GridSpacing 1", "GridSpacing 0", "not positive"),
    "spline order": (
        BSPLINE_TEXT,
        "(GridSize",
        "(BSplineTransformSplineOrder 5)\n(GridSize",
        "order 5 is not supported",
    ),
    "few control points": (BSPLINE_TEXT.replace("192", "144"), "GridSize 4", "GridSize 3", "may be cut off"),
    "cyclic": (BSPLINE_TEXT, "(GridSize", '(UseCyclicTransform "true")\n(GridSize', "cyclic"),
    "field missing": (FIELD_TEXT, "@", "@", "its deformation field 'none.mha' does not exist"),
    "field unnamed": (FIELD_TEXT, "(DeformationFieldFileName", "(Other", "'DeformationFieldFileName' is missing"),
    "nearest vector": (FIELD_TEXT, "Order 1", "Order 0", "(DeformationFieldInterpolationOrder 1)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_transform_file_is_named_with_what_is_wrong(tmp_path, case):
    text, old, new, message = BROKEN[case]
    path = tmp_path / "t.txt"
    path.write_text(text.replace(old, new))
    with pytest.raises(TransformError) as error:
        read_chain(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loop_over_two_files_is_found(tmp_path):
    for a, b in (("a", "b"), ("b", "a")):
        (tmp_path / f"{a}.txt").write_text(AFFINE_TEXT.replace("NoInitialTransform", f"{b}.txt"))
    with pytest.raises(TransformError, match="has itself as initial transform"):
        read_chain(tmp_path / "a.txt")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(TransformError, match="does not exist"):
        read_chain(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TransformError, match="not text"):
        read_chain(tmp_path / "b.txt")
    (tmp_path / "t.txt").write_text(FIELD_TEXT)
    (tmp_path / "none.mha").write_text("no image")
    with pytest.raises(TransformError, match="cannot be read"):
        read_chain(tmp_path / "t.txt")


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(TransformError, match=r"ends in \.h5"):
        write_itk(chain_of(AFFINE), tmp_path / "t.txt")
    with pytest.raises(OutputError):
        write_itk(chain_of(AFFINE), tmp_path / "no" / "t.h5")
    with pytest.raises(OutputError):
        write_elastix(chain_of(AFFINE, U), tmp_path / "no")
    summed = chain_of(bspline(), Link(field(1), "add"), Link(AFFINE, "innermost"))
    with pytest.raises(TransformError, match="write it for ITK"):
        write_elastix(summed, tmp_path)
    with pytest.raises(TransformError, match="cannot be inverted"):
        chain_of(MatrixTransform(np.zeros((3, 3))), Link(field(), "add")).to_sitk()
    assert not list(tmp_path.glob("*.h5"))


def test_a_transform_that_elastix_left_in_a_file_of_itk(tmp_path):
    """elastix 5.2 does so with (ITKTransformOutputFileNameExtension "h5"), 3D Slicer with what it starts from."""
    text = '(Transform "File")\n(TransformFileName "{}")\n(HowToCombineTransforms "Add")\n'
    initial = write_elastix(chain_of(AFFINE), tmp_path)[0]
    for name, chain in (("field", chain_of(field())), ("matrices", chain_of(AFFINE, AFFINE))):
        write_itk(chain, tmp_path / f"{name}.h5")
        file = tmp_path / f"{name}.txt"
        file.write_text(f'{text.format(f"{name}.h5")}(InitialTransformParameterFileName "{initial}")\n')
        expected = AFFINE.map_points(POINTS) + chain.map_points(POINTS) - POINTS
        np.testing.assert_allclose(read_chain(file).map_points(POINTS), expected, atol=1e-5)
    write_itk(chain_of(AFFINE, U), tmp_path / "two.h5")
    (tmp_path / "two.txt").write_text(text.format("two.h5"))
    with pytest.raises(TransformError, match=r"'two.h5' holds 2 transforms.*give the file itself"):
        read_chain(tmp_path / "two.txt")
    (tmp_path / "gone.txt").write_text(text.format("gone.h5"))
    with pytest.raises(TransformError, match=r"its transform 'gone.h5' does not exist"):
        read_chain(tmp_path / "gone.txt")


def test_the_grid_of_a_transform_file_is_found_again():
    keys = ParameterMap(make_resampling_parameters(GRID))
    assert read_resampling_grid(keys).is_close(GRID, 1e-9)
    assert read_resampling_grid(keys.with_(Index=[2, 0, 1])).is_close(GRID.crop((2, 0, 1), GRID.size), 1e-9)
    assert read_resampling_grid(keys.without("Size")) is None
