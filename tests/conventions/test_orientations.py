"""Every way in which an image can lie in space: all 48 orders and signs of the axes, and oblique ones.

The fixed and the moving image differ in orientation, spacing, origin and size, so that an axis that is swapped, or
turned twice, shows. The judges are SimpleITK, itk-elastix's transformix, and the program transformix.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.inverse import invert_chain, invert_points, measure_inverse_residual
from regnet_itk.transforms.jacobian import jacobian_determinant_on, jacobian_matrices_on
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters
from regnet_itk.transforms.warping import warp_image

OUTSIDE = -1000.0
AXES = [
    np.eye(3)[:, order] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
OBLIQUE = [Rotation.from_euler("zyx", (25, -15, 40), degrees=True).as_matrix() @ AXES[i] for i in (0, 13, 29, 46)]
DIRECTIONS = AXES + OBLIQUE


def _name(direction):
    letters = [("R", "L"), ("A", "P"), ("I", "S")]
    towards = [letters[axis][int(direction[axis, i] > 0)] for i, axis in enumerate(np.abs(direction).argmax(axis=0))]
    return "".join(towards) + ("" if np.isin(np.abs(direction), (0, 1)).all() else " oblique")


def _around(size, spacing, direction, centre):
    """Return a grid whose middle is `centre`, however it is turned."""
    first = np.asarray(centre) - direction @ (np.asarray(spacing) * (np.asarray(size) - 1) / 2)
    return Grid(size, spacing, tuple(first), direction)


def _smooth(shape, seed, peak):
    u = gaussian_filter(np.random.default_rng(seed).normal(size=(*shape, 3)), (2, 2, 2, 0), mode="nearest")
    return (u * (peak / np.abs(u).max())).astype(np.float32)


class Case:
    """A pair of images with an affine and a nonrigid transform between them."""

    def __init__(self, number):
        direction = DIRECTIONS[number]
        other = DIRECTIONS[(7 * number + 5) % len(DIRECTIONS)]
        self.fixed = _around((11, 9, 8), (2.0, 2.5, 3.5), direction, (40, -55, 130))
        self.moving = _around((16, 17, 15), (2.6, 2.1, 2.4), other, (42, -57, 128))
        self.matrix = MatrixTransform(
            np.eye(3) + 0.05 * np.random.default_rng(1).normal(size=(3, 3)), self.fixed.centre(), (2.5, -3.5, 1.5)
        )
        self.field = DisplacementField(_smooth(self.fixed.shape, 2, 2.0), self.fixed)
        control = _around((8, 8, 8), (6.0, 7.0, 8.0), direction, self.fixed.centre() + direction @ [0.3, -0.4, 0.2])
        self.bspline = BSplineTransform(np.random.default_rng(3).normal(size=(*control.shape, 3)), control)
        values = gaussian_filter(np.random.default_rng(4).normal(size=self.moving.shape), 1.5)
        self.image = Image((values * (400 / np.abs(values).max())).astype(np.float32), self.moving)
        self.settings = make_resampling_parameters(self.fixed, order=3, default=OUTSIDE, pixel_type="float")
        plain = ParameterMap(self.settings)
        self.regnet = TransformChain((Link(self.matrix, parameters=plain), link_field(self.field, self.settings)))
        self.elastix = TransformChain((Link(self.matrix, parameters=plain), Link(self.bspline, parameters=plain)))
        index = np.random.default_rng(5).uniform(1, np.asarray(self.fixed.size) - 2, (12, 3))
        self.points = self.fixed.index_to_point(index).round(4)

    def as_sitk(self):
        """Return the chain of affine and field, made of SimpleITK's parts alone."""
        u = sitk.GetImageFromArray(self.field.vectors.astype(float), isVector=True)
        u.SetOrigin(self.fixed.origin)
        u.SetSpacing(self.fixed.spacing)
        u.SetDirection(np.ravel(self.fixed.direction).tolist())
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(self.matrix.matrix.ravel().tolist())
        affine.SetCenter(self.matrix.centre.tolist())
        affine.SetTranslation(self.matrix.translation.tolist())
        return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(u)])  # the last is applied first


@pytest.fixture(params=range(len(DIRECTIONS)), ids=[f"{i} {_name(d)}" for i, d in enumerate(DIRECTIONS)])
def case(request):
    return Case(request.param)


def test_the_names_tell_48_orientations():
    assert len({_name(direction) for direction in AXES}) == 48


def test_image_points_jacobian_and_inverse_agree_with_simpleitk(case):
    judge = case.as_sitk()
    warped = warp_image(case.image, case.regnet, case.fixed, order="linear", default=OUTSIDE).array
    reference = Image(np.zeros(case.fixed.shape, np.float32), case.fixed).to_sitk()
    theirs = sitk.GetArrayFromImage(sitk.Resample(case.image.to_sitk(), reference, judge, sitk.sitkLinear, OUTSIDE))
    assert (theirs != OUTSIDE).mean() > 0.9
    assert np.abs(warped - theirs).max() < 1e-2
    there = np.array([judge.TransformPoint(point) for point in case.points.tolist()])
    np.testing.assert_allclose(case.regnet.map_points(case.points), there, atol=1e-5)
    back, residual = invert_points(case.regnet, there)
    np.testing.assert_allclose(back, case.points, atol=1e-3)
    assert residual.max() < 1e-4
    _assert_jacobian(case, judge)
    inverse = invert_chain(case.regnet, case.fixed, case.moving)
    round_trip = sitk.CompositeTransform([judge, inverse.to_sitk()])
    y = case.moving.index_to_point([[8, 8, 7], [6, 8, 7], [9, 7, 9]])
    assert np.abs([round_trip.TransformPoint(point) for point in y.tolist()] - y).max() < 1e-3
    assert measure_inverse_residual(case.regnet, inverse, case.fixed, grid=case.moving).p95 < 0.2


def _assert_jacobian(case, judge):
    """Compare with differences of SimpleITK's points over one voxel of the field."""
    voxels = np.array([[3, 4, 2], [6, 2, 5], [5, 5, 4]])
    axes = case.fixed.index_to_point_matrix
    found = jacobian_matrices_on(case.regnet, case.fixed)
    determinant = jacobian_determinant_on(case.regnet, case.fixed).array
    for x, y, z in voxels:
        point = case.fixed.index_to_point((x, y, z))
        ends = [[judge.TransformPoint((point + s * axis).tolist()) for axis in axes.T] for s in (1, -1)]
        by_index = (np.array(ends[0]) - np.array(ends[1])).T / 2
        expected = by_index @ np.linalg.inv(axes)
        np.testing.assert_allclose(found[z, y, x], expected, atol=2e-3)  # A(x + u) is smooth, u is not
        np.testing.assert_allclose(determinant[z, y, x], np.linalg.det(expected), atol=5e-3)


def _point_file(folder, points):
    path = folder / "points.txt"
    path.write_text(f"point\n{len(points)}\n" + "\n".join(" ".join(map(repr, p)) for p in points.tolist()))
    return path


def _output_points(folder):
    found = re.findall(r"OutputPoint = \[ ([^]]*) \]", (folder / "outputpoints.txt").read_text(encoding="utf-8"))
    return np.array([line.split() for line in found], dtype=float)


def _read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _library(path, case, folder, jacobian):
    import itk

    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(str(path))
    judge = itk.TransformixFilter.New(case.image.to_itk(), transform_parameter_object=parameters)
    judge.SetFixedPointSetFileName(str(_point_file(folder, case.points)))
    judge.SetOutputDirectory(str(folder))
    judge.SetComputeSpatialJacobian(jacobian)
    judge.SetComputeDeterminantOfSpatialJacobian(jacobian)
    judge.LogToConsoleOff()
    judge.UpdateLargestPossibleRegion()
    return itk.array_from_image(judge.GetOutput())


def _program(path, case, folder, jacobian):
    sitk.WriteImage(case.image.to_sitk(), str(folder / "moving.mha"))
    command = ["transformix", "-in", folder / "moving.mha", "-def", _point_file(folder, case.points), "-tp", path]
    command += ["-out", folder, *(("-jac", "all", "-jacmat", "all") if jacobian else ())]
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=60)
    return _read(folder / "result.mha")


def _assert_as_transformix(case, judge, folder):
    for name, written, jacobian in (("regnet", case.regnet, False), ("elastix", case.elastix, True)):
        here = folder / name
        here.mkdir()
        path = write_elastix(written, here)[-1]
        theirs = judge(path, case, here, jacobian)
        chain = read_chain(path)
        ours = warp_image(case.image, chain, case.fixed, order=3, default=OUTSIDE).array
        assert np.abs(ours - theirs)[1:-1, 1:-1, 1:-1].max() < 2e-2
        np.testing.assert_allclose(chain.map_points(case.points), _output_points(here), atol=1e-4)
        if jacobian:
            determinant = jacobian_determinant_on(chain, case.fixed).array
            assert np.ptp(determinant) > 0.2
            np.testing.assert_allclose(determinant, _read(here / "spatialJacobian.mha"), atol=1e-5)
            matrices = _read(here / "fullSpatialJacobian.mha").reshape(*case.fixed.shape, 3, 3)
            np.testing.assert_allclose(jacobian_matrices_on(chain, case.fixed), matrices, atol=1e-5)


def test_agrees_with_the_transformix_of_itk_elastix(case, tmp_path):
    pytest.importorskip("itk")
    _assert_as_transformix(case, _library, tmp_path)


@pytest.mark.skipif(shutil.which("transformix") is None, reason="the program transformix is not installed")
@pytest.mark.parametrize("number", [3, 21, 38, 49, 51])
def test_agrees_with_the_program_transformix(number, tmp_path):
    _assert_as_transformix(Case(number), _program, tmp_path)
