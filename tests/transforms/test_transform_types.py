"""Types of transforms that others add, judged by itk-elastix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from documents import run_python
from transform_cases import (
    FIXED,
    MOVING,
    SETTINGS,
    affine,
    fixed_points,
    moving_image,
    plain,
    read_output,
    smooth_field,
    write_points,
)

from regnet_itk.errors import TransformError
from regnet_itk.inspection import inspect_file
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms import registry
from regnet_itk.transforms.base import TransformType
from regnet_itk.transforms.chain import FEW_POINTS, Link, TransformChain, link_field
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.inverse import invert_chain, measure_inverse_residual
from regnet_itk.transforms.jacobian import jacobian_matrices_on
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.repair import repair_folder
from regnet_itk.transforms.warping import warp_image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend" / "add_a_transform_type.md"


@pytest.fixture
def spline(tmp_path, monkeypatch):
    """The type of the page, known, with landmarks in the fixed image."""
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path / "page")
    monkeypatch.setattr(registry, "_registered", list(registry._registered))
    page = run_python(PAGE)
    registry.register_transform(page.SPLINE_KERNEL)
    rng = np.random.default_rng(4)
    landmarks = FIXED.random_points(9, rng)
    return page.SplineKernelTransform(landmarks, landmarks + rng.normal(0, 1.5, landmarks.shape))


KEYS = ParameterMap(SETTINGS)


def chains(spline):
    return {
        "alone": TransformChain((plain(spline),)),
        "after an affine": TransformChain((plain(affine()), plain(spline))),
        "added to an affine": TransformChain((plain(affine()), Link(spline, "add", KEYS))),
        "inside an affine": TransformChain((plain(affine()), Link(spline, "innermost", KEYS))),
        "before a field": TransformChain((plain(spline), link_field(smooth_field(), SETTINGS))),
        "inside a spline": TransformChain((plain(spline), Link(spline, "innermost", KEYS))),
    }


NAMES = tuple(chains(None))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_type_means_the_same_to_itk_elastix(name, spline, tmp_path):
    itk = pytest.importorskip("itk")
    chain = chains(spline)[name]
    path, points = write_elastix(chain, tmp_path)[-1], fixed_points(40)
    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(str(path))
    judge = itk.TransformixFilter.New(moving_image().to_itk(), transform_parameter_object=parameters)
    judge.SetFixedPointSetFileName(str(write_points(tmp_path / "points.txt", points)))
    judge.SetOutputDirectory(str(tmp_path))
    judge.LogToConsoleOff()
    judge.UpdateLargestPossibleRegion()
    np.testing.assert_allclose(chain.map_points(points), read_output(tmp_path), atol=1e-3)
    np.testing.assert_allclose(read_chain(path).map_points(points), read_output(tmp_path), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_done_with_transforms_is_done_with_it(name, spline, tmp_path):
    chain = chains(spline)[name]
    points = FIXED.random_points(FEW_POINTS + 5, np.random.default_rng(1))
    np.testing.assert_allclose(chain.map_points(points)[:99], chain.map_points(points[:99]), atol=1e-5)
    small = FIXED.crop((8, 8, 6), (5, 5, 4))
    steps = [chain.map_points(small.points() + step) - chain.map_points(small.points() - step) for step in np.eye(3)]
    tolerance = 0.05 if "field" in name else 0.01  # fields are differentiated over their voxels
    np.testing.assert_allclose(jacobian_matrices_on(chain, small), np.stack(steps, axis=-1) / 2, atol=tolerance)
    assert measure_inverse_residual(chain, invert_chain(chain, FIXED), FIXED).p95 < 0.3
    itk_transform = chain.to_sitk(FIXED)
    nodes = FIXED.points()[2:-2:5, 2:-2:5, 2:-2:5].reshape(-1, 3)
    mapped = [itk_transform.TransformPoint(point) for point in nodes.tolist()]
    np.testing.assert_allclose(mapped, chain.map_points(nodes), atol=1e-4)
    field = convert(chain, tmp_path / "u.mha", like=FIXED)
    assert field.deviation.max < 1.0
    composite = convert(chain, tmp_path / "t.h5", like=FIXED)
    assert not composite.exact
    warped = warp_image(moving_image(), chain, FIXED)
    expected = warp_image(moving_image(), read_chain(tmp_path / "t.h5"), FIXED)
    np.testing.assert_allclose(warped.array, expected.array, atol=1e-2)


def test_without_a_grid_it_is_said_that_itk_has_no_such_transform(spline):
    with pytest.raises(TransformError, match=r"ThinPlateSpline through 9 landmarks.*give the grid"):
        chains(spline)["after an affine"].to_sitk()


def test_its_files_are_inspected_and_repaired(spline, tmp_path):
    (tmp_path / "a").mkdir()
    write_elastix(chains(spline)["before a field"], tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert repair_folder(tmp_path / "b")
    found = inspect_file(tmp_path / "b" / "TransformParameters.0.txt", MOVING)
    assert found.parts[0]["landmarks"] == 9
    assert found.parts[0]["type"] == "SplineKernelTransform"
    link = read_chain(tmp_path / "b" / "TransformParameters.0.txt").links[0]
    assert "FixedImageLandmarks" not in link.parameters  # it belongs to the transform, not to how images are resampled
    assert link.parameters["Size"] == SETTINGS["Size"]


def test_its_broken_files_are_named(spline, tmp_path):
    path = write_elastix(chains(spline)["alone"], tmp_path)[0]
    text = path.read_text()
    for old, new, message in (
        ('"ThinPlateSpline"', '"OtherSpline"', "the spline 'OtherSpline' is not supported"),
        ("(FixedImageLandmarks", "(Other", "'FixedImageLandmarks' is missing"),
        ("(NumberOfParameters 27)", "(NumberOfParameters 30)", "declares 30 and holds 27"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(TransformError, match=message):
            read_chain(path)


def test_two_types_of_one_name_are_refused(spline):
    kind = TransformType(dict, ("EulerTransform",), lambda values, folder: MatrixTransform(np.eye(3)))
    with pytest.raises(TransformError, match="a transform type for EulerTransform already; give yours another name"):
        registry.register_transform(kind)
    with pytest.raises(TransformError, match="already"):
        registry.register_transform(registry.find_type(spline))


@pytest.fixture
def entry_point(install_packages):
    """Let a package be installed that names its type by an entry point."""
    return lambda value: install_packages(registry.GROUP, mine=value)


def test_a_type_of_another_package_is_found(entry_point, tmp_path, monkeypatch):
    (tmp_path / "their_types.py").write_text(
        "import numpy as np\nfrom regnet_itk.transforms.base import TransformType\n"
        "from regnet_itk.transforms.matrix import MatrixTransform\n"
        "class Mirror(MatrixTransform): pass\n"
        "def read(values, folder):\n    return Mirror(np.diag([-1.0, 1, 1]))\n"
        "MIRROR = TransformType(Mirror, ('MirrorTransform',), read)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry_point("their_types:MIRROR")
    (tmp_path / "t.txt").write_text('(Transform "MirrorTransform")\n')
    assert read_chain(tmp_path / "t.txt").map_points([1.0, 2.0, 3.0]).tolist() == [-1, 2, 3]


def test_a_broken_package_stops_only_what_needs_it(entry_point, tmp_path):
    entry_point("no_such_module:TYPE")
    path = write_elastix(TransformChain((plain(affine()),)), tmp_path)[0]
    assert read_chain(path).as_matrix() is not None
    path.write_text(path.read_text().replace('"AffineTransform"', '"MirrorTransform"'))
    with pytest.raises(
        TransformError, match=r"'mine' of 'no_such_module:TYPE' cannot be loaded: .*uninstall that package"
    ):
        read_chain(path)
    entry_point("os:sep")
    with pytest.raises(TransformError, match="is to be the transform type 'mine', and is none"):
        read_chain(path)
