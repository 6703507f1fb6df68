"""Chains of transforms, judged by others: itk-elastix, the program transformix, ITK's and SimpleITK's resampling.

Fixed and moving image lie on different grids, both rotated, anisotropic and away from the origin, so that a
transposed direction, a swapped axis or a wrong order of composition shows.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.parameters import ParameterMap, parse_parameter_text
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.elastix_reading import chain_from_maps, read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

ROTATED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
FIXED = Grid((26, 22, 18), (2.0, 2.5, 3.5), (-40.0, 15.0, 130.0), ROTATED)
MOVING = Grid(
    (34, 30, 24), (1.9, 2.2, 3.1), (-52.0, 8.0, 112.0), Rotation.from_euler("x", 35, degrees=True).as_matrix()
)
OUTSIDE = -1000.0
SETTINGS = make_resampling_parameters(FIXED, order=3, default=OUTSIDE, pixel_type="float")


def _text(values):
    return ParameterMap({key: tuple(map(str, value)) for key, value in values.items()}).to_text()


def _smooth(shape, seed, amplitude):
    noise = np.random.default_rng(seed).normal(size=(*shape, 3))
    smooth = gaussian_filter(noise, (3, 3, 3, 0), mode="nearest")
    return smooth * (amplitude / np.abs(smooth).max())


def _field(seed=0, grid=None, amplitude=5.0):
    grid = grid or Grid((15, 13, 12), (4.0, 5.0, 6.0), tuple(FIXED.index_to_point([-2, -2, -2])), ROTATED)
    return DisplacementField(_smooth(grid.shape, seed, amplitude).astype(np.float32), grid)


def _affine():
    matrix = np.eye(3) + np.random.default_rng(5).normal(size=(3, 3)) * 0.06
    return MatrixTransform(matrix, FIXED.centre() + np.array([3, -2, 1]), [2.5, -3.5, 1.5])


def _bspline(order=3):
    # the valid region ends inside the fixed image, so that its border is compared as well
    grid = Grid((9, 8, 8), (8.0, 9.0, 11.0), tuple(FIXED.index_to_point([-2.2, -2.1, -1.7])), ROTATED)
    return BSplineTransform(np.random.default_rng(order).normal(size=(*grid.shape, 3)) * 2, grid, order)


def _wide_bspline():
    grid = Grid((14, 13, 13), (9.0, 9.0, 11.0), tuple(FIXED.index_to_point([-16, -12, -9])), ROTATED)
    return BSplineTransform(np.random.default_rng(8).normal(size=(*grid.shape, 3)) * 2, grid)


def _plain(transform, combine="compose"):
    return Link(transform, combine, ParameterMap(SETTINGS))


def _regnet(seed=0):
    return link_field(_field(seed), SETTINGS)


CHAINS = {
    "affine": (_plain(_affine()),),
    "affine, field": (_plain(_affine()), _regnet()),
    "affine, field, bspline": (_plain(_affine()), _regnet(), _plain(_wide_bspline())),
    "affine, field, field": (_plain(_affine()), _regnet(), _regnet(1)),
    "bspline, field": (_plain(_wide_bspline()), _regnet()),
    "field": (_regnet(),),
    "field, affine": (_regnet(), _plain(_affine())),
    "affine, added bspline": (_plain(_affine()), _plain(_bspline(), "add")),
    "affine, innermost affine": (_plain(_affine()), _plain(_affine(), "innermost")),
    **{f"bspline of order {order}": (_plain(_bspline(order)),) for order in (1, 2, 3)},
}

CENTRE = tuple(np.round(FIXED.centre() + np.array([5, 5, -5]), 3))
FILES = {
    "TranslationTransform": {"TransformParameters": (1.5, -2.5, 3.5)},
    "EulerTransform": {"TransformParameters": (0.1, -0.2, 0.15, 1, 2, -3), "CenterOfRotationPoint": CENTRE},
    "EulerTransform ZYX": {
        "TransformParameters": (0.1, -0.2, 0.15, 1, 2, -3),
        "CenterOfRotationPoint": CENTRE,
        "ComputeZYX": ("true",),
    },
    "SimilarityTransform": {
        "TransformParameters": (0.05, -0.12, 0.08, 2, -1, 3, 1.1),
        "CenterOfRotationPoint": CENTRE,
    },
    "AffineTransform": {
        "TransformParameters": (1.05, 0.1, -0.05, 0.02, 0.95, 0.08, -0.04, 0.03, 1.02, 2, -3, 1),
        "CenterOfRotationPoint": CENTRE,
    },
    "AffineLogTransform": {
        "TransformParameters": (0.05, 0.1, -0.05, 0.02, -0.05, 0.08, -0.04, 0.03, 0.02, 2, -3, 1),
        "CenterOfRotationPoint": CENTRE,
    },
}


def _bspline_file():
    """A B-spline file, with numbers in elastix's order: all x, all y, all z.

    No voxel lies exactly on the border of the valid region, which belongs to it for ITK and not for elastix.
    """
    size = (8, 9, 7)
    numbers = (4 * np.random.default_rng(2).normal(size=3 * 8 * 9 * 7)).round(3)
    return {
        "TransformParameters": tuple(numbers),
        "GridSize": size,
        "GridIndex": (0, 0, 0),
        "GridSpacing": (9, 9, 12),
        "GridOrigin": tuple(FIXED.index_to_point([-4.3, -3.2, -2.1])),
        "GridDirection": tuple(ROTATED.T.ravel()),
        "BSplineTransformSplineOrder": (3,),
    }


FILES |= {"BSplineTransform": _bspline_file(), "RecursiveBSplineTransform": _bspline_file()}


def _write_file(folder, name):
    """Write one elastix file by hand, without this package's knowledge of how."""
    values = {"Transform": (name.split()[0],), "NumberOfParameters": (len(FILES[name]["TransformParameters"]),)}
    none = {"InitialTransformParametersFileName": ("NoInitialTransform",), "HowToCombineTransforms": ("Compose",)}
    path = folder / "TransformParameters.0.txt"
    path.write_text(_text({**values, **FILES[name], **none, **SETTINGS}))
    return path


@pytest.fixture(scope="module")
def points():
    """Points in, around and beyond the fixed image."""
    size = np.asarray(FIXED.size)
    index = np.random.default_rng(1).uniform(-0.3 * size, 1.3 * size, (300, 3))
    return FIXED.index_to_point(index).round(4)


@pytest.fixture(scope="module")
def moving():
    noise = np.random.default_rng(3).normal(size=MOVING.shape)
    smooth = gaussian_filter(noise, 2.5)
    return Image((smooth * (400 / np.abs(smooth).max())).astype(np.float32), MOVING)


@pytest.fixture(scope="module")
def moving_itk(moving):
    pytest.importorskip("itk")
    return moving.to_itk()


def _point_file(folder, points):
    path = folder / "points.txt"
    path.write_text("point\n" + f"{len(points)}\n" + "\n".join(" ".join(map(str, p)) for p in points.tolist()))
    return path


def _output_points(folder):
    found = re.findall(r"OutputPoint = \[ ([^]]*) \]", (folder / "outputpoints.txt").read_text(encoding="utf-8"))
    return np.array([line.split() for line in found], dtype=float)


def _library(path, points, moving_itk, folder):
    """Return the points and the image of itk-elastix."""
    import itk

    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(str(path))
    judge = itk.TransformixFilter.New(moving_itk, transform_parameter_object=parameters)
    judge.SetFixedPointSetFileName(str(_point_file(folder, points)))
    judge.SetOutputDirectory(str(folder))
    judge.LogToConsoleOff()
    judge.UpdateLargestPossibleRegion()
    return _output_points(folder), itk.array_from_image(judge.GetOutput())


def _program(path, points, moving, folder):
    """Return the points and the image of the program transformix."""
    import SimpleITK as sitk

    sitk.WriteImage(moving.to_sitk(), str(folder / "moving.mha"))
    command = ["transformix", "-in", folder / "moving.mha", "-def", _point_file(folder, points), "-tp", path]
    subprocess.run([*map(str, command), "-out", str(folder)], check=True, capture_output=True, timeout=60)
    return _output_points(folder), sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "result.mha")))


def _assert_same_points(ours, theirs, points):
    assert np.abs(ours - points).max() > 1
    assert np.abs(ours - theirs).max() < 1e-3


def _assert_same_image(chain, theirs, moving):
    ours = moving.resampled(FIXED, chain.to_sitk(FIXED), order=3, default=OUTSIDE).array
    target = MOVING.point_to_index(chain.map_points(FIXED.points()))
    inside = ((target > 1) & (target < np.asarray(MOVING.size) - 2)).all(axis=-1)
    assert inside.mean() > 0.3
    assert np.abs(ours - theirs)[inside].max() < 1e-2


@pytest.mark.parametrize("name", CHAINS)
def test_a_written_chain_means_the_same_to_itk_elastix(name, tmp_path, points, moving, moving_itk):
    chain = TransformChain(CHAINS[name])
    path = write_elastix(chain, tmp_path)[-1]
    theirs, image = _library(path, points, moving_itk, tmp_path)
    _assert_same_points(chain.map_points(points), theirs, points)
    _assert_same_image(chain, image, moving)


@pytest.mark.skipif(shutil.which("transformix") is None, reason="the program transformix is not installed")
@pytest.mark.parametrize("name", CHAINS)
def test_a_written_chain_means_the_same_to_the_program_transformix(name, tmp_path, points, moving):
    chain = TransformChain(CHAINS[name])
    path = write_elastix(chain, tmp_path)[-1]
    theirs, image = _program(path, points, moving, tmp_path)
    _assert_same_points(chain.map_points(points), theirs, points)
    _assert_same_image(chain, image, moving)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_elastix_is_understood_as_itk_elastix_does(name, tmp_path, points, moving, moving_itk):
    path = _write_file(tmp_path, name)
    chain = read_chain(path)
    theirs, image = _library(path, points, moving_itk, tmp_path)
    _assert_same_points(chain.map_points(points), theirs, points)
    _assert_same_image(chain, image, moving)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_elastix_is_written_back_as_the_same_transform(name, tmp_path, points):
    chain = read_chain(_write_file(tmp_path, name))
    (tmp_path / "again").mkdir()
    path = write_elastix(chain, tmp_path / "again")[-1]
    assert f'(Transform "{name.split()[0]}")' in path.read_text(encoding="utf-8")
    np.testing.assert_allclose(read_chain(path).map_points(points), chain.map_points(points), atol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_the_composite_file_means_the_same_to_itk_and_simpleitk(name, tmp_path, points, moving, moving_itk):
    import itk
    import SimpleITK as sitk

    chain = TransformChain(CHAINS[name])
    write_itk(chain, tmp_path / "all.h5")
    ours = chain.map_points(points)
    read = sitk.ReadTransform(str(tmp_path / "all.h5"))
    assert np.abs(ours - [read.TransformPoint(p) for p in points.tolist()]).max() < 1e-6
    (composite,) = itk.transformread(str(tmp_path / "all.h5"))
    grid = Image(np.zeros(FIXED.shape, np.float32), FIXED).to_itk()
    judge = itk.resample_image_filter(
        moving_itk,
        transform=composite,
        interpolator=itk.BSplineInterpolateImageFunction.New(moving_itk, spline_order=3),
        reference_image=grid,
        use_reference_image=True,
        default_pixel_value=OUTSIDE,
    )
    _assert_same_image(chain, itk.array_from_image(judge), moving)


def test_the_chain_of_a_real_registration_is_understood(tmp_path, points, moving, moving_itk):
    """elastix itself registers (Euler, affine, B-spline), and its maps are read from memory and from its files."""
    import itk

    truth = TransformChain((_plain(_affine()), _plain(_wide_bspline())))
    fixed = moving.resampled(FIXED, truth.to_sitk(), default=0.0).to_itk()
    parameters = itk.ParameterObject.New()
    for kind in ("rigid", "affine", "bspline"):
        values = parameters.GetDefaultParameterMap(kind, 1)
        values["MaximumNumberOfIterations"] = ["20"]
        values["FinalGridSpacingInPhysicalUnits"] = ["16"]
        values["NumberOfSpatialSamples"] = ["1000"]
        values["DefaultPixelValue"] = [str(OUTSIDE)]
        values["ResultImagePixelType"] = ["float"]
        if kind == "bspline":
            values["Metric"] = ["AdvancedMattesMutualInformation"]
            values["Registration"] = ["MultiResolutionRegistration"]
        parameters.AddParameterMap(values)
    image, result = itk.elastix_registration_method(
        fixed, moving_itk, parameter_object=parameters, output_directory=str(tmp_path), number_of_threads=2
    )
    from_files = read_chain(tmp_path / "TransformParameters.2.txt")
    maps = [ParameterMap(dict(result.GetParameterMap(i))) for i in range(3)]
    from_memory = chain_from_maps(maps)
    theirs, _ = _library(tmp_path / "TransformParameters.2.txt", points, moving_itk, tmp_path)
    for chain in (from_files, from_memory):
        assert [link.combine for link in chain.links] == ["compose"] * 3
        _assert_same_points(chain.map_points(points), theirs, points)
        _assert_same_image(chain, itk.array_from_image(image), moving)


def test_a_control_grid_may_start_at_another_index(tmp_path, points, moving, moving_itk):
    """Not the recursive one: for it elastix, which itself always writes index 0, gives other numbers at every run."""
    path = _write_file(tmp_path, "BSplineTransform")
    path.write_text(path.read_text(encoding="utf-8").replace("(GridIndex 0 0 0)", "(GridIndex 1 -1 2)"))
    theirs, image = _library(path, points, moving_itk, tmp_path)
    _assert_same_points(read_chain(path).map_points(points), theirs, points)
    _assert_same_image(read_chain(path), image, moving)


def test_outside_the_field_the_initial_transform_still_applies(tmp_path, moving_itk):
    small = Grid((6, 6, 6), (4.0, 4.0, 4.0), tuple(FIXED.centre()), ROTATED)
    chain = TransformChain((_plain(_affine()), link_field(_field(0, small), SETTINGS)))
    far = FIXED.corners().round(4)
    theirs, _ = _library(write_elastix(chain, tmp_path)[-1], far, moving_itk, tmp_path)
    assert np.abs(theirs - _affine().map_points(far)).max() < 1e-3
    assert np.abs(theirs - chain.map_points(far)).max() < 1e-3
    assert parse_parameter_text((tmp_path / "TransformParameters.1.txt").read_text(encoding="utf-8"))[
        "HowToCombineTransforms"
    ] == ("Add",)
