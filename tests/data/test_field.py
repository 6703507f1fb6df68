"""Displacement fields against ITK's and SimpleITK's DisplacementFieldTransform, and against calculus."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import OutputError, TransformError

TURNED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
GRID = Grid((9, 8, 7), (2.0, 2.5, 3.5), (-40.0, 15.0, 130.0), TURNED)


@pytest.fixture(scope="module")
def field():
    return DisplacementField(np.random.default_rng(0).normal(0, 4, (*GRID.shape, 3)), GRID)


@pytest.fixture(scope="module")
def judges(field):
    image = itk.image_from_array(field.vectors, ttype=itk.VectorImage[itk.D, 3])
    image.SetOrigin(GRID.origin)
    image.SetSpacing(GRID.spacing)
    image.SetDirection(itk.matrix_from_array(GRID.direction_matrix))
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(image)
    return transform, field.to_sitk_transform()


@settings(deadline=None)
@given(shares=st.lists(st.tuples(*[st.floats(-0.4, 1.4)] * 3), min_size=1, max_size=10))
def test_it_is_linear_inside_and_zero_outside_as_in_itk(shares, field, judges):
    index = np.array(shares) * GRID.size - 0.5
    on_border = np.isclose(index, -0.5, atol=1e-6) | np.isclose(index, np.asarray(GRID.size) - 0.5, atol=1e-6)
    points = GRID.index_to_point(index[~on_border.any(axis=1)])
    for judge in judges:
        theirs = [judge.TransformPoint(point) for point in points.tolist()]
        np.testing.assert_allclose(field.map_points(points), np.array(theirs).reshape(-1, 3), atol=1e-9)
    outside = ~GRID.contains(points)
    assert (field.at(points)[outside] == 0).all()


def test_at_voxels_it_has_its_own_vectors_and_keeps_the_shape(field):
    points = GRID.points()
    np.testing.assert_allclose(field.at(points), field.vectors, atol=1e-9)
    assert field.at(points[0, 0, 0]).shape == (3,)
    np.testing.assert_allclose(field.map_points(points[1, 2, 3]), points[1, 2, 3] + field.vectors[1, 2, 3])


def test_the_jacobian_of_an_analytic_field():
    grid = Grid((40, 36, 30), (1.0, 1.3, 1.7), (5.0, -3.0, 2.0), TURNED)
    p = grid.points() - grid.centre()
    a, b = 0.06, np.array([0.31, -0.22, 0.17])
    phase = p @ b
    u = np.stack([3 * a * np.sin(phase), 2 * a * np.cos(phase), a * np.sin(2 * phase)], axis=-1) * 10
    gradient = np.stack([3 * a * np.cos(phase), -2 * a * np.sin(phase), 2 * a * np.cos(2 * phase)], axis=-1) * 10
    expected = 1 + gradient @ b  # det(I + g b^T) = 1 + g.b
    found = DisplacementField(u, grid).jacobian_determinant()
    inner = (slice(1, -1),) * 3
    assert expected.min() < 0.6
    assert expected.max() > 1.4
    assert np.abs(found - expected)[inner].max() < 0.03
    assert found.shape == grid.shape


@given(st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9))
def test_the_jacobian_of_a_matrix_is_its_determinant_everywhere(entries):
    matrix = np.eye(3) + np.reshape(entries, (3, 3))
    vectors = (GRID.points() - GRID.centre()) @ (matrix - np.eye(3)).T
    found = DisplacementField(vectors, GRID).jacobian_determinant()
    np.testing.assert_allclose(found, np.linalg.det(matrix), atol=1e-4)


def test_along_an_axis_of_one_voxel_the_field_is_constant():
    flat = Grid((6, 5, 1), (1, 1, 1))
    vectors = 0.5 * flat.points() * (1, 0, 0)
    np.testing.assert_allclose(DisplacementField(vectors, flat).jacobian_determinant(), 1.5, atol=1e-6)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz"])
def test_written_fields_are_read_back(suffix, field, tmp_path):
    path = tmp_path / f"field{suffix}"
    field.write(path)
    again = read_displacement_field(path)
    np.testing.assert_allclose(again.vectors, field.vectors, atol=1e-5)
    assert again.grid.is_close(GRID, 1e-4)
    assert again.vectors.dtype == np.float32


def test_simpleitk_reads_the_file_as_the_same_transform(field, judges, tmp_path):
    field.write(tmp_path / "field.mha")
    image = sitk.ReadImage(str(tmp_path / "field.mha"), sitk.sitkVectorFloat64)
    theirs = sitk.DisplacementFieldTransform(image)
    for point in GRID.index_to_point(np.random.default_rng(1).uniform(0, 6, (20, 3))).tolist():
        np.testing.assert_allclose(theirs.TransformPoint(point), judges[1].TransformPoint(point), atol=1e-5)


def test_bad_fields(field, tmp_path):
    with pytest.raises(TransformError, match="do not fit a grid"):
        DisplacementField(field.vectors[1:], GRID)
    with pytest.raises(TransformError, match="does not exist"):
        read_displacement_field(tmp_path / "none.mha")
    (tmp_path / "text.mha").write_text("no image")
    with pytest.raises(TransformError, match="cannot be read"):
        read_displacement_field(tmp_path / "text.mha")
    write_image(Image(np.zeros(GRID.shape, np.float32), GRID), tmp_path / "scalar.mha")
    with pytest.raises(TransformError, match="3 components a voxel, not 3 and 1"):
        read_displacement_field(tmp_path / "scalar.mha")
    spoilt = field.vectors.copy()
    spoilt[0, 0, 0, 0] = np.nan
    DisplacementField(spoilt, GRID).write(tmp_path / "nan.mha")
    with pytest.raises(TransformError, match="not finite"):
        read_displacement_field(tmp_path / "nan.mha")
    for suffix in (".mha", ".nii", ".nrrd"):
        field.write(tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) // 2])
        with pytest.raises(TransformError, match=r"is cut off|cannot be read"):
            read_displacement_field(tmp_path / f"cut{suffix}")
    with pytest.raises(OutputError, match="cannot write"):
        field.write(tmp_path / "no folder" / "field.mha")
