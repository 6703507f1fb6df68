"""What `regnet-itk run` writes, judged by others: itk-elastix, the program transformix, ITK and SimpleITK.

The images lie on oblique, anisotropic grids that differ from each other.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import itk
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.cli.main import main
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.parameters import read_parameter_map
from regnet_itk.transforms.elastix_reading import read_chain

POINT_TOLERANCE = 1e-3  # mm
GREY_TOLERANCE = 1e-2
OUTSIDE = -1000.0
FLOAT = {"ResultImagePixelType": "float"}
MAPS = {
    "affine": read_parameter_map("affine").with_(
        FLOAT, NumberOfResolutions=2, ImagePyramidSchedule=[4, 4, 4, 2, 2, 2], MaximumNumberOfIterations=60
    ),
    "refine": read_parameter_map("bspline_refine").with_(
        FLOAT, FinalGridSpacingInPhysicalUnits=[30, 30, 30], MaximumNumberOfIterations=40
    ),
    "regnet": read_parameter_map("regnet").with_(FLOAT, RegNetRegion="body"),
    "multistage": read_parameter_map("regnet_multistage").with_(FLOAT),
}
CHAINS = {
    "affine, multistage": ("affine", "multistage"),
    "affine, multistage, refine": ("affine", "multistage", "refine"),
    "affine, multistage twice": ("affine", "multistage", "multistage"),
    "regnet": ("regnet",),
    "from an elastix file": ("multistage",),
    "from an ITK file, refine": ("refine",),
    "from a chain with a field": ("multistage", "multistage"),
}
START = {
    "from an elastix file": ("affine, multistage", "TransformParameters.0.txt"),
    "from an ITK file, refine": ("affine, multistage", "TransformParameters.1-Composite.h5"),
    "from a chain with a field": ("affine, multistage", "TransformParameters.1.txt"),
}


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(1, spacing=(3.7, 3.4, 4.2), extent=(160.0, 140.0, 130.0))


@pytest.fixture(scope="module")
def registered(phantom, tmp_path_factory):
    """Return the folder that a chain's run has written; each chain is run once."""
    base = tmp_path_factory.mktemp("runs")
    write_phantom(phantom, base / "images")
    for name, parameters in MAPS.items():
        (base / f"{name}.txt").write_text(parameters.to_text())
    done = {}

    def run(name):
        if name in done:
            return done[name]
        out = base / name.replace(", ", "-").replace(" ", "_")
        arguments = ["run", "-f", base / "images" / "fixed.mha", "-m", base / "images" / "moving.mha", "-out", out]
        arguments += [word for stage in CHAINS[name] for word in ("-p", base / f"{stage}.txt")]
        if name in START:
            first, file = START[name]
            arguments += ["-t0", run(first) / file]
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "-loglevel", "off"])
        assert ended.value.code == 0
        done[name] = out
        return out

    return run


@pytest.fixture(scope="module")
def points(phantom):
    """Points in the fixed image and a little beyond it."""
    size = np.asarray(phantom.fixed.grid.size)
    index = np.random.default_rng(1).uniform(-0.1 * size, 1.1 * size, (400, 3))
    return phantom.fixed.grid.index_to_point(index).round(4)


def last_of(folder, chain):
    return folder / f"TransformParameters.{len(CHAINS[chain]) - 1}.txt"


def composite_of(folder, chain):
    return folder / f"TransformParameters.{len(CHAINS[chain]) - 1}-Composite.h5"


def point_file(folder, points):
    path = folder / "points.txt"
    path.write_text(f"point\n{len(points)}\n" + "\n".join(" ".join(map(str, p)) for p in points.tolist()))
    return path


def output_points(folder):
    found = re.findall(r"OutputPoint = \[ ([^]]*) \]", (folder / "outputpoints.txt").read_text(encoding="utf-8"))
    return np.array([line.split() for line in found], dtype=float)


def assert_same_points(folder, chain, points, theirs):
    ours = read_chain(last_of(folder, chain)).map_points(points)
    assert np.abs(ours - points).max() > 1
    assert np.abs(ours - theirs).max() < POINT_TOLERANCE


def assert_same_image(folder, chain, phantom, theirs):
    """Their image is ours, and the one in the folder, away from the border of the moving image."""
    whole = read_chain(last_of(folder, chain))
    fixed, moving = phantom.fixed.grid, phantom.moving
    ours = moving.resampled(fixed, whole.to_sitk(fixed), order=3, default=OUTSIDE).array
    written = read_image(folder / f"result.{len(CHAINS[chain]) - 1}.mha").array
    target = moving.grid.point_to_index(whole.map_points(fixed.points()))
    inside = ((target > 1.5) & (target < np.asarray(moving.grid.size) - 2.5)).all(axis=-1)
    assert inside.mean() > 0.1
    assert np.ptp(ours[inside]) > 500
    for other in (theirs, written):
        assert np.abs(ours - other)[inside].max() < GREY_TOLERANCE


@pytest.mark.parametrize("chain", CHAINS)
def test_itk_elastix_agrees(chain, registered, phantom, points, tmp_path):
    folder = registered(chain)
    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(str(last_of(folder, chain)))
    moving = Image(phantom.moving.array.astype(np.float32), phantom.moving.grid).to_itk()
    judge = itk.TransformixFilter.New(moving, transform_parameter_object=parameters)
    judge.SetFixedPointSetFileName(str(point_file(tmp_path, points)))
    judge.SetOutputDirectory(str(tmp_path))
    judge.LogToConsoleOff()
    judge.UpdateLargestPossibleRegion()
    assert_same_points(folder, chain, points, output_points(tmp_path))
    assert_same_image(folder, chain, phantom, itk.array_from_image(judge.GetOutput()))


@pytest.mark.skipif(shutil.which("transformix") is None, reason="the program transformix is not installed")
@pytest.mark.parametrize("chain", CHAINS)
def test_the_program_transformix_agrees(chain, registered, phantom, points, tmp_path):
    folder = registered(chain)
    sitk.WriteImage(phantom.moving.to_sitk(), str(tmp_path / "moving.mha"))
    command = ["transformix", "-in", tmp_path / "moving.mha", "-def", point_file(tmp_path, points)]
    command += ["-tp", last_of(folder, chain), "-out", tmp_path]
    subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=120)
    assert_same_points(folder, chain, points, output_points(tmp_path))
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "result.mha")))
    assert theirs.dtype == np.float32
    assert_same_image(folder, chain, phantom, theirs)


@pytest.mark.parametrize("chain", CHAINS)
def test_itk_agrees(chain, registered, phantom, points):
    folder = registered(chain)
    transform = itk.transformread(str(composite_of(folder, chain)))[0]
    theirs = np.array([transform.TransformPoint(point) for point in points.tolist()])
    assert_same_points(folder, chain, points, theirs)
    moving, fixed = (Image(i.array.astype(float), i.grid).to_itk() for i in (phantom.moving, phantom.fixed))
    spline = itk.BSplineInterpolateImageFunction[type(moving), itk.D, itk.D].New(spline_order=3)
    warped = itk.resample_image_filter(
        moving, transform=transform, interpolator=spline, use_reference_image=True, reference_image=fixed,
        default_pixel_value=OUTSIDE,
    )  # fmt: skip
    assert_same_image(folder, chain, phantom, itk.array_from_image(warped))


@pytest.mark.parametrize("chain", CHAINS)
def test_simpleitk_agrees(chain, registered, phantom, points):
    folder = registered(chain)
    transform = sitk.ReadTransform(str(composite_of(folder, chain)))
    theirs = np.array([transform.TransformPoint(point) for point in points.tolist()])
    assert_same_points(folder, chain, points, theirs)
    moving, fixed = phantom.moving.to_sitk(), phantom.fixed.to_sitk()
    warped = sitk.Resample(moving, fixed, transform, sitk.sitkBSpline3, OUTSIDE, sitk.sitkFloat32)
    assert_same_image(folder, chain, phantom, sitk.GetArrayFromImage(warped))


@pytest.mark.parametrize("chain", CHAINS)
def test_all_transform_files_lie_in_the_folder_and_the_stages_count_from_0(chain, registered):
    folder = registered(chain)
    numbered = {file.name for file in folder.glob("TransformParameters.*.txt") if "-" not in file.name}
    assert numbered == {f"TransformParameters.{number}.txt" for number in range(len(CHAINS[chain]))}
    assert sorted(file.name for file in folder.glob("*-Composite.h5")) == [composite_of(folder, chain).name]
    mentioned = set()
    for file in folder.glob("*.txt"):
        if not file.name.startswith("IterationInfo"):
            mentioned |= set(re.findall(r'FileName "([^"]*)"', file.read_text(encoding="utf-8"))) - {
                "NoInitialTransform"
            }
    assert all(name.startswith(f"{folder}/") for name in mentioned)
    assert all((folder / name).is_file() for name in mentioned)
    assert bool(list(folder.glob("InitialTransform.*.txt"))) == (chain in START)


def test_a_folder_with_its_initial_transforms_can_be_moved(registered, points, tmp_path):
    chain = "from a chain with a field"
    wanted = read_chain(last_of(registered(chain), chain)).map_points(points)
    for file in registered(chain).iterdir():
        text = file.read_bytes()
        (tmp_path / file.name).write_bytes(text.replace(str(registered(chain)).encode(), b"/gone"))
    np.testing.assert_allclose(read_chain(last_of(tmp_path, chain)).map_points(points), wanted, atol=1e-9)


def test_the_initial_transform_of_an_itk_file_serves_transformix_too(registered, phantom, tmp_path):
    folder = registered("from an ITK file, refine")
    parameters = itk.ParameterObject.New()
    first = sorted(folder.glob("InitialTransform.*.txt"))[-1]
    parameters.AddParameterFile(str(first))
    moving = Image(phantom.moving.array.astype(np.float32), phantom.moving.grid).to_itk()
    warped = itk.transformix_filter(moving, parameters, output_directory=str(tmp_path), log_to_console=False)
    grid = phantom.fixed.grid
    ours = phantom.moving.resampled(grid, read_chain(first).to_sitk(grid), order=3, default=OUTSIDE).array
    assert warped.shape == ours.shape
    assert np.median(np.abs(np.asarray(warped) - ours)) < GREY_TOLERANCE
