"""Conversion of transforms, judged by SimpleITK, transformix and elastix."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import TransformError
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.fitting import fit_bspline
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.reading import read_transform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()))
GRID = Grid((26, 24, 22), (3.0, 4.0, 5.0), (-20.0, 30.0, 10.0), TURNED)
COARSE = GRID.with_spacing((6.0, 8.0, 10.0))
KEYS = make_resampling_parameters(GRID)
AFFINE = MatrixTransform([[1.1, 0.1, 0], [-0.05, 0.95, 0.1], [0, 0.02, 1.05]], GRID.centre(), [3, -4, 5])
POINTS = GRID.index_to_point(np.random.default_rng(0).uniform(2, 20, (200, 3)))


def field(seed=0, grid=COARSE):
    vectors = gaussian_filter(np.random.default_rng(seed).normal(size=(*grid.shape, 3)), (2, 2, 2, 0))
    return DisplacementField((vectors * 6 / np.abs(vectors).max()).astype(np.float32), grid)


def bspline(seed=1):
    control = Grid((14, 14, 14), (12.0, 12.0, 12.0), tuple(GRID.index_to_point([-8, -6, -5])), TURNED)
    return BSplineTransform(np.random.default_rng(seed).uniform(-3, 3, (*control.shape, 3)), control)


def keyed(transform, combine="compose"):
    return Link(transform, combine, Link(transform).parameters.with_(KEYS))


CHAINS = {
    "affine": TransformChain((keyed(AFFINE),)),
    "field": TransformChain((keyed(field()),)),
    "bspline": TransformChain((keyed(AFFINE), keyed(bspline()))),
    "affine, field": TransformChain((keyed(AFFINE), link_field(field(), KEYS))),
    "affine, field, bspline": TransformChain((keyed(AFFINE), link_field(field(), KEYS), keyed(bspline()))),
}
REGNET = CHAINS["affine, field"]


@pytest.fixture(params=CHAINS)
def name(request):
    return request.param


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(chain, folder="source"):
    Path(folder).mkdir()
    return write_elastix(chain, folder)[-1]


def mapped(transform, points=POINTS):
    return np.array([transform.TransformPoint(p) for p in points.tolist()])


def transformix(file, *arguments):
    Path("tx").mkdir(exist_ok=True)
    done = subprocess.run(
        ["transformix", "-tp", file, "-out", "tx", "-threads", "1", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return Path("tx")


def transformix_points(file, points=POINTS):
    Path("points.txt").write_text(
        f"point\n{len(points)}\n" + "\n".join(" ".join(map(repr, p)) for p in points.tolist()), encoding="utf-8"
    )
    lines = (transformix(file, "-def", "points.txt") / "outputpoints.txt").read_text(encoding="utf-8").splitlines()
    return np.array([[float(v) for v in line.split("OutputPoint = [")[1].split("]")[0].split()] for line in lines])


program = pytest.mark.skipif(shutil.which("transformix") is None, reason="the program transformix is not installed")


# Exact conversions


@pytest.mark.parametrize("suffix", ["h5", "tfm"])
def test_elastix_to_itk_is_exact_for_simpleitk(name, suffix, here):
    chain = CHAINS[name]
    done = convert(write(chain), f"out.{suffix}")
    assert done.exact
    assert done.deviation.max < 1e-5
    judge = sitk.ReadTransform(f"out.{suffix}")
    np.testing.assert_allclose(mapped(judge), chain.map_points(POINTS), atol=1e-4)


def test_itk_to_elastix_and_back_is_exact(name, here):
    chain = CHAINS[name]
    write_itk(chain, "in.h5")
    done = convert("in.h5", "new/some.name.txt", like=GRID)
    assert done.exact
    assert done.files[0] == Path("new/some.name.txt")
    assert {file.name for file in done.files} == {file.name for file in Path("new").iterdir()}
    assert all(file.name.startswith("some.name.") for file in done.files)
    np.testing.assert_allclose(read_chain(done.files[0]).map_points(POINTS), chain.map_points(POINTS), atol=1e-4)
    if shutil.which("transformix"):
        np.testing.assert_allclose(transformix_points(done.files[0]), chain.map_points(POINTS), atol=1e-3)
    convert("new/some.name.txt", "back.h5")
    np.testing.assert_allclose(mapped(sitk.ReadTransform("back.h5")), chain.map_points(POINTS), atol=1e-4)


def test_a_stale_file_of_the_same_name_is_not_taken_for_the_new_one(here):
    write_itk(CHAINS["affine, field"], "a.h5")
    write_itk(TransformChain((Link(field(3)), Link(AFFINE))), "b.h5")
    for name in ("a", "b"):
        assert convert(f"{name}.h5", "out.txt", like=GRID).exact
    assert np.abs(read_chain("out.txt").map_points(POINTS) - read_chain("b.h5").map_points(POINTS)).max() < 1e-4


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "nii", "nii.gz"])
def test_a_field_keeps_its_vectors_in_every_format(suffix, here):
    only = field()
    write_itk(TransformChain((Link(only),)), "in.h5")
    done = convert("in.h5", f"out.{suffix}")
    assert done.exact
    image = sitk.ReadImage(f"out.{suffix}", sitk.sitkVectorFloat64)
    np.testing.assert_allclose(mapped(sitk.DisplacementFieldTransform(image)), only.map_points(POINTS), atol=1e-4)
    back = convert(f"out.{suffix}", "back.h5")
    assert back.exact
    np.testing.assert_allclose(mapped(sitk.ReadTransform("back.h5")), only.map_points(POINTS), atol=1e-4)


# Approximations are measured


def test_a_sampled_field_says_how_far_off_it_is(here):
    chain = REGNET
    source = write(chain)
    fine, coarse = convert(source, "fine.mha"), convert(source, "coarse.mha", spacing=(7.0,))
    assert DisplacementField.from_sitk(sitk.ReadImage("fine.mha")).grid.is_close(GRID)
    assert sitk.ReadImage("coarse.mha").GetSpacing() == (7.0, 7.0, 7.0)
    for name, done in (("fine", fine), ("coarse", coarse)):
        assert not done.exact
        assert any("outside its grid" in note for note in done.notes)
        judge = sitk.DisplacementFieldTransform(sitk.ReadImage(f"{name}.mha", sitk.sitkVectorFloat64))
        anywhere = GRID.index_to_point(np.random.default_rng(1).uniform(0, np.array(GRID.size) - 1, (2000, 3)))
        length = np.linalg.norm(mapped(judge, anywhere) - chain.map_points(anywhere), axis=1)
        assert done.deviation.mean == pytest.approx(length.mean(), rel=0.1)
        assert done.deviation.p95 == pytest.approx(np.percentile(length, 95), rel=0.2)
        assert done.deviation.mean <= done.deviation.p95 <= done.deviation.max
    assert fine.deviation.mean < coarse.deviation.mean


def test_a_limit_on_the_error_leaves_nothing(here, capsys):
    source = write(REGNET)
    assert call("convert", source, "out/coarse.mha", "--spacing", "15", "--max-error", "0.01") == 1
    assert "would be off by up to" in capsys.readouterr().err
    assert not Path("out").exists()
    assert call("convert", source, "out/coarse.mha", "--spacing", "15", "--max-error", "10") == 0


def test_a_sum_that_itk_cannot_express_is_sampled_and_said(here, capsys):
    chain = TransformChain((keyed(bspline()), keyed(field(), "add")))
    source = write(chain)
    done = convert(source, "out.h5")
    assert not done.exact
    length = np.linalg.norm(mapped(sitk.ReadTransform("out.h5")) - chain.map_points(POINTS), axis=1)
    assert done.deviation.mean == pytest.approx(length.mean(), rel=0.3)
    assert convert(source, "again.txt").exact
    assert call("convert", source, "out.tfm") == 0
    assert "approximation: off by" in capsys.readouterr().out


# B-splines


def test_a_bspline_on_the_same_control_points_is_found_again():
    truth = fit_bspline(CHAINS["affine, field, bspline"], GRID, 11.0)
    again = fit_bspline(truth, GRID, 11.0)
    inner = (slice(2, -2),) * 3
    found, expected = (chain.links[-1].transform.coefficients[inner] for chain in (again, truth))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(again.map_points(POINTS), truth.map_points(POINTS), atol=1e-4)


def test_the_fit_is_the_least_squares_one():
    """Judged by scipy's solver for the whole problem at once, all axes together."""
    small = Grid((9, 8, 7), (3.0, 4.0, 5.0), (-20.0, 30.0, 10.0), TURNED)
    truth = field(5, small)
    fitted = fit_bspline(TransformChain((Link(truth),)), small, 10.0)
    spline = fitted.links[0].transform
    shape, points = spline.coefficients.shape[:3], small.points().reshape(-1, 3)
    columns = []
    for number in range(int(np.prod(shape))):
        unit = np.zeros((*shape, 3))
        unit.reshape(-1, 3)[number, 0] = 1.0
        columns.append(BSplineTransform(unit, spline.grid).at(points)[:, 0])
    best, *_ = np.linalg.lstsq(np.stack(columns, axis=1), truth.vectors.reshape(-1, 3), rcond=None)
    expected = np.stack(columns, axis=1) @ best
    np.testing.assert_allclose(spline.at(points), expected, atol=2e-3)
    assert np.abs(truth.vectors.reshape(-1, 3) - expected).max() > 0.02


def test_a_linear_map_is_fitted_exactly_up_to_the_border():
    fitted = fit_bspline(TransformChain((Link(bspline()),)), GRID, 12.0)  # no matrix is split off
    box = GRID.corners() * 0.999 + GRID.centre() * 0.001
    only = TransformChain((Link(DisplacementField(AFFINE.map_points(GRID.points()) - GRID.points(), GRID)),))
    linear = fit_bspline(only, GRID, 10.0)
    assert len(linear.links) == 1
    np.testing.assert_allclose(linear.map_points(box), AFFINE.map_points(box), atol=1e-3)
    assert np.isfinite(fitted.map_points(box)).all()


def test_a_fitted_bspline_keeps_the_affine_outside(here):
    for chain in (REGNET, TransformChain((Link(field()), Link(AFFINE)))):  # as elastix and as ITK hold it
        fitted = fit_bspline(chain, GRID, 12.0)
        far = GRID.centre() + np.array([[900.0, 0, 0], [0, -900.0, 100.0]])
        np.testing.assert_allclose(fitted.map_points(far), AFFINE.map_points(far), atol=1e-9)
        assert np.abs(fitted.map_points(POINTS) - chain.map_points(POINTS)).max() < 0.5


@program
def test_transformix_computes_the_jacobian_of_a_fitted_bspline(here, capsys):
    source = write(REGNET)
    source.write_text(source.read_text(encoding="utf-8").replace("(DefaultPixelValue -1000)", "(DefaultPixelValue 7)"))
    assert call("convert", source, "spline.txt", "--bspline-spacing", 10) == 0
    said = capsys.readouterr().out
    assert "approximation: off by" in said
    assert "BSplineTransform of order 3" in said
    assert "(DefaultPixelValue 7)" in Path("spline.txt").read_text(encoding="utf-8")
    np.testing.assert_allclose(transformix_points("spline.txt"), read_chain("spline.txt").map_points(POINTS), atol=1e-3)
    off = np.linalg.norm(read_chain("spline.txt").map_points(POINTS) - REGNET.map_points(POINTS), axis=1)
    assert 0 < off.mean() < 0.1
    theirs = sitk.GetArrayFromImage(
        sitk.ReadImage(str(transformix("spline.txt", "-jac", "all") / "spatialJacobian.mha"))
    )
    ours = REGNET.displacement_on(GRID).jacobian_determinant()
    inner = (slice(2, -2),) * 3
    assert theirs.shape == GRID.shape
    assert np.abs(theirs - ours)[inner].mean() < 0.01
    assert ours[inner].std() > 0.05


@pytest.mark.skipif(shutil.which("elastix") is None, reason="the program elastix is not installed")
def test_elastix_goes_on_from_a_fitted_bspline_with_bending_energy(here):
    moving = Image(
        gaussian_filter(np.random.default_rng(3).normal(size=GRID.shape), 1.5).astype(np.float32) * 500, GRID
    )
    write_image(moving, "moving.mha")
    write_image(moving.resampled(GRID, REGNET.to_sitk()), "fixed.mha")
    convert(write(REGNET), "spline.txt", bspline_spacing=15)
    Path("bspline.txt").write_text(
        '(Registration "MultiMetricMultiResolutionRegistration")\n(FixedInternalImagePixelType "float")\n'
        '(MovingInternalImagePixelType "float")\n(FixedImageDimension 3)\n(MovingImageDimension 3)\n'
        '(UseDirectionCosines "true")\n(FixedImagePyramid "FixedSmoothingImagePyramid")\n'
        '(MovingImagePyramid "MovingSmoothingImagePyramid")\n(Interpolator "BSplineInterpolator")\n'
        '(ResampleInterpolator "FinalBSplineInterpolator")\n(Resampler "DefaultResampler")\n'
        '(Optimizer "AdaptiveStochasticGradientDescent")\n(Transform "BSplineTransform")\n'
        '(Metric "AdvancedNormalizedCorrelation" "TransformBendingEnergyPenalty")\n(NumberOfResolutions 1)\n'
        '(MaximumNumberOfIterations 4)\n(FinalGridSpacingInPhysicalUnits 20)\n(ImageSampler "RandomCoordinate")\n'
        '(NumberOfSpatialSamples 500)\n(NewSamplesEveryIteration "true")\n(HowToCombineTransforms "Compose")\n',
        encoding="utf-8",
    )
    Path("out").mkdir()
    command = [
        "elastix",
        "-f",
        "fixed.mha",
        "-m",
        "moving.mha",
        "-p",
        "bspline.txt",
        "-t0",
        "spline.txt",
        "-out",
        "out",
    ]
    done = subprocess.run([*command, "-threads", "1"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    chain = read_chain("out/TransformParameters.0.txt")
    assert len(chain.links) == 3
    assert np.abs(chain.map_points(POINTS) - REGNET.map_points(POINTS)).mean() < 1.0


# NIfTI


def nifti_head(path):
    content = gzip.decompress(Path(path).read_bytes())
    return struct.unpack("<h", content[68:70])[0], np.frombuffer(content[352:], "<f4").reshape(3, *COARSE.shape)


def test_what_is_stored_in_a_nifti_field(here, capsys):
    truth = field()
    truth.write("in.mha")
    for vectors, intent, sign in (("lps", 1007, 1), ("ras", 1006, -1)):
        assert call("convert", "in.mha", f"{vectors}.nii.gz", "--nifti-vectors", vectors) == 0
        printed = capsys.readouterr().out
        assert f"written as {vectors.upper()}, intent code {intent}" in printed
        assert "exact" in printed
        code, stored = nifti_head(f"{vectors}.nii.gz")
        assert code == intent
        np.testing.assert_allclose(stored[0], sign * truth.vectors[..., 0], atol=1e-6)
        np.testing.assert_allclose(stored[1], sign * truth.vectors[..., 1], atol=1e-6)
        np.testing.assert_allclose(stored[2], truth.vectors[..., 2], atol=1e-6)
        read = read_transform(f"{vectors}.nii.gz")
        np.testing.assert_allclose(read.map_points(POINTS), truth.map_points(POINTS), atol=1e-3)


@pytest.mark.parametrize("header", ["lps", "ras"])
@pytest.mark.parametrize("said", ["lps", "ras"])
def test_how_a_nifti_field_is_read_can_be_said(header, said, here):
    truth = field()
    truth.write("in.mha")
    convert("in.mha", "in.nii.gz", vectors=header)
    read = read_transform("in.nii.gz", vectors=said).links[0].transform
    sign = 1 if header == said else -1
    np.testing.assert_allclose(read.vectors, truth.vectors * [sign, sign, 1], atol=1e-6)


def test_a_field_of_niftyreg_is_not_guessed_at(here):
    field().write("in.mha")
    convert("in.mha", "in.nii.gz")
    content = bytearray(gzip.decompress(Path("in.nii.gz").read_bytes()))
    content[328:338] = b"NREG_TRANS"
    Path("in.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(TransformError, match=r"written by NiftyReg.*`vectors` ras"):
        read_transform("in.nii.gz")
    read_transform("in.nii.gz", vectors="ras")


def test_a_sheared_grid_is_not_bent_into_a_nifti_file(here):
    direction = ((1.0, 0.3, 0.0), (0.0, 0.95, 0.0), (0.0, 0.0, 1.0))
    field(grid=Grid((9, 9, 9), (2.0, 2.0, 2.0), direction=direction)).write("in.mha")
    with pytest.raises(TransformError, match="cannot hold the grid"):
        convert("in.mha", "out.nii.gz")
    assert not Path("out.nii.gz").exists()


# Errors


def fails(capsys, message, *arguments, status=1):
    assert call("convert", *arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err


def test_bad_input(here, capfd):
    truth = field()
    truth.write("field.mha")
    write_itk(CHAINS["affine, field"], "whole.h5")
    write_itk(CHAINS["affine"], "affine.h5")
    Path("cut.h5").write_bytes(Path("whole.h5").read_bytes()[:3000])
    Path("parameters.txt").write_text('(Registration "MultiResolutionRegistration")\n', encoding="utf-8")
    Path("words.txt").write_text("hello\n", encoding="utf-8")
    Path("empty.tfm").write_text("", encoding="utf-8")
    Path("other.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: ThinPlateSplineKernelTransform_double_3_3\n"
        "Parameters: 0 0 0\nFixedParameters: 0 0 0\n",
        encoding="utf-8",
    )
    sitk.WriteTransform(sitk.TranslationTransform(2, (1, 2)), "flat.tfm")
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 2), "two.mha")
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkFloat32), "scalar.mha")
    broken = truth.vectors.copy()
    broken[1, 2, 3, 0] = np.nan
    DisplacementField(broken, truth.grid).write("nan.mha")
    for file, message in {
        "none.h5": "transform file 'none.h5' does not exist",
        ".": "is a folder; give a transform file",
        "cut.h5": "transform file 'cut.h5' cannot be read",
        "parameters.txt": r"'parameters.txt' is not a transform file: it has no \(Transform",
        "words.txt": "words.txt, line 1: expected",
        "empty.tfm": "transform file 'empty.tfm' cannot be read",
        "other.tfm": "transform file 'other.tfm' cannot be read|not supported",
        "flat.tfm": "'flat.tfm' is 2D",
        "two.mha": "'two.mha': a displacement field has 3 dimensions and 3 components a voxel, not 3 and 2",
        "scalar.mha": "'scalar.mha': a displacement field has .* not 3 and 1",
        "nan.mha": "'nan.mha' holds vectors that are not finite",
    }.items():
        fails(capfd, message, file, "out.h5")
        fails(capfd, message, file, "out.txt", "--like", "field.mha")
    fails(capfd, r"suffix '.mhx'; did you mean '.mh", "field.mha", "out.mhx")
    fails(capfd, "suffix 'no suffix'", "field.mha", "out")
    fails(capfd, "needs the fixed image's grid.*--like", "affine.h5", "out.mha")
    fails(capfd, "needs the fixed image's grid.*--like", "affine.h5", "out.txt")
    fails(capfd, "'none.mha' does not exist", "affine.h5", "out.mha", "--like", "none.mha")
    fails(capfd, "one number of mm, or three", "field.mha", "out.mha", "--spacing", "1,2")
    fails(capfd, "above 0", "field.mha", "out.mha", "--spacing", "-1")
    fails(capfd, "--spacing is that of a displacement field", "field.mha", "out.h5", "--spacing", "2")
    fails(capfd, "--bspline-spacing makes a B-spline", "field.mha", "out.mha", "--bspline-spacing", "20")
    fails(capfd, "give a larger spacing", "field.mha", "out.txt", "--bspline-spacing", "5")
    fails(capfd, "no option '--bspline-spacin'; did you mean '--bspline-spacing'", "a", "b", "--bspline-spacin", "1",
          status=2)  # fmt: skip
    Path("file").write_text("", encoding="utf-8")
    fails(capfd, "cannot write", "field.mha", "file/out.h5")
    (here / "taken.h5").mkdir()
    fails(capfd, "cannot write .*taken.h5", "field.mha", "taken.h5")
    assert not [file for file in here.iterdir() if file.name.startswith("out")]


def test_chains_that_cannot_be_followed(here, capsys):
    text = write_elastix(CHAINS["affine"], ".")[0].read_text(encoding="utf-8")
    for name, initial in (("a", "b"), ("b", "a"), ("c", "gone")):
        changed = text.replace('FileName "NoInitialTransform"', f'FileName "{initial}.txt"')
        Path(f"{name}.txt").write_text(changed, encoding="utf-8")
    fails(capsys, "has itself as initial transform", "a.txt", "out.h5")
    fails(capsys, "its initial transform 'gone.txt' does not exist; correct the path", "c.txt", "out.h5")


def test_the_identity(here):
    write_itk(TransformChain(), "identity.h5")
    done = convert("identity.h5", "out.txt", like=GRID)
    assert done.exact
    np.testing.assert_allclose(read_chain("out.txt").map_points(POINTS), POINTS, atol=1e-9)


def test_the_grid_of_an_image_takes_the_place_of_the_files_own(here):
    other = Grid((11, 12, 13), (5.0, 6.0, 7.0), (1.0, 2.0, 3.0))
    write_image(Image(np.zeros(other.shape, np.int16), other), "other.mha")
    source = write(REGNET)
    assert call("convert", source, "out.txt", "--like", "other.mha") == 0
    assert call("convert", source, "out.mha", "--like", "other.mha") == 0
    assert "(Size 11 12 13)" in Path("out.txt").read_text(encoding="utf-8")
    assert '(ResultImagePixelType "short")' in Path("out.txt").read_text(encoding="utf-8")
    assert sitk.ReadImage("out.mha").GetSize() == other.size
