"""What `regnet-itk info` says of every kind of file, judged by how the file was made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import command
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.inspection import inspect_file
from regnet_itk.networks.model import shipped_models
from regnet_itk.parameters import read_parameter_map
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.conversion import convert
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", [0.3, -0.2, 0.5]).as_matrix()))
GRID = Grid((20, 18, 16), (2.0, 3.0, 4.0), (-60.0, 30.0, 10.0), TURNED)
KEYS = make_resampling_parameters(GRID)
AFFINE = MatrixTransform([[1.1, 0.1, 0], [-0.05, 0.95, 0.1], [0, 0.02, 1.05]], GRID.centre(), [3, -4, 5])


def field(peak=5.0, grid=GRID):
    vectors = gaussian_filter(np.random.default_rng(0).normal(size=(*grid.shape, 3)), (2, 2, 2, 0))
    return DisplacementField((vectors * peak / np.abs(vectors).max()).astype(np.float32), grid)


def bspline():
    control = Grid((14, 14, 14), (12.0, 12.0, 12.0), tuple(GRID.index_to_point([-20, -14, -12])), TURNED)
    return BSplineTransform(np.random.default_rng(1).uniform(-1, 1, (*control.shape, 3)), control)


def keyed(transform, combine="compose"):
    return Link(transform, combine, Link(transform).parameters.with_(KEYS))


CHAIN = TransformChain((keyed(AFFINE), link_field(field(), KEYS), keyed(bspline())))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    return command.call("info", *arguments)


def told(capsys, *arguments):
    """Return what is printed, and the same as JSON."""
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert call(*arguments, "--json") == 0
    return text, json.loads(capsys.readouterr().out)


def fails(capsys, message, *arguments, status=1):
    assert call(*arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"regnet-itk: error: .*{message}.*\n", printed.err), printed.err


def is_grid(facts, grid):
    assert facts["size"] == list(grid.size)
    assert facts["spacing"] == pytest.approx(list(grid.spacing))
    assert facts["origin"] == pytest.approx(list(grid.origin), abs=1e-4)
    np.testing.assert_allclose(facts["direction"], grid.direction, atol=1e-6)


def test_an_image(capsys):
    array = np.arange(np.prod(GRID.shape), dtype=np.float32).reshape(GRID.shape)
    write_image(Image(array.astype(np.int16), GRID), "image.nii.gz")
    text, found = told(capsys, "image.nii.gz")
    assert text.startswith("image.nii.gz: image\n")
    assert "20 x 18 x 16 voxels" in text
    assert "2 x 3 x 4 mm" in text
    assert found["kind"] == "image"
    assert found["warnings"] == []
    is_grid(found["facts"], GRID)
    assert found["facts"]["values"] == {"min": 0.0, "max": 5759.0, "mean": pytest.approx(2879.5)}
    array[0, 0, 0] = np.nan
    write_image(Image(array, GRID), "nan.mha")
    assert told(capsys, "nan.mha")[1]["warnings"] == ["1 voxels are NaN or infinite"]


def test_a_field(capsys):
    u = field()
    u.write("field.mha")
    text, found = told(capsys, "field.mha")
    length = np.linalg.norm(u.vectors, axis=-1)
    assert found["kind"] == "displacement field"
    assert found["warnings"] == []
    is_grid(found["facts"], GRID)
    assert found["facts"]["displacement"] == {"mean": pytest.approx(length.mean()), "max": pytest.approx(length.max())}
    assert "fixed to moving" in found["facts"]["maps"]
    assert found["facts"]["frame"] == "mm, LPS"
    assert f"mean {length.mean():.3g} mm, max {length.max():.3g} mm" in text


def test_folding_is_counted(capsys):
    u = field(peak=30.0, grid=Grid(GRID.size, GRID.spacing, GRID.origin))  # SimpleITK's leaves the direction out
    u.write("folded.mha")
    determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(u.to_sitk()))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(u.jacobian_determinant()[inner], determinant[inner], atol=1e-3)
    text, found = told(capsys, "folded.mha")
    share = found["facts"]["det_jacobian"]["share_not_positive"]
    assert share == pytest.approx((determinant <= 0).mean(), abs=0.02)
    assert share > 0.01
    assert found["facts"]["det_jacobian"]["min"] < 0
    assert f"folds (<= 0) at {share:.3%} of the voxels" in text


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("look like points T", lambda u: u.vectors + u.grid.points()),
        ("look like points in RAS T", lambda u: (u.vectors + u.grid.points()) * [-1, -1, 1]),
        ("look like voxel indices T", lambda u: u.grid.point_to_index(u.vectors + u.grid.points())),
        ("look like displacements in voxels", lambda u: np.round(u.vectors)),
        ("points move by .* more than the fixed image is large", lambda u: u.vectors + 500),
    ],
)
def test_vectors_that_are_no_displacements(what, make, capsys):
    DisplacementField(make(field()).astype(np.float32), GRID).write("odd.mha")
    text, found = told(capsys, "odd.mha")
    assert len(found["warnings"]) == 1
    assert re.search(f"warning: .*{what}", text)


def test_a_shift_by_whole_mm_is_no_reason_to_warn(capsys):
    vectors = np.broadcast_to(np.float32([2, 0, -3]), (*GRID.shape, 3))
    DisplacementField(vectors, GRID).write("shift.mha")
    assert told(capsys, "shift.mha")[1]["warnings"] == []


def test_a_nifti_field_says_how_it_was_read(capsys):
    field().write("in.mha")
    convert("in.mha", "lps.nii.gz")
    convert("in.mha", "ras.nii.gz", vectors="ras")
    text, found = told(capsys, "lps.nii.gz")
    assert "read as LPS, as ITK and ANTs do (intent code 1007)" in text
    assert "NIfTI does not say" in found["warnings"][0]
    text, found = told(capsys, "ras.nii.gz")
    assert "read as RAS (intent code 1006)" in text
    assert found["warnings"] == []


def test_an_elastix_chain(capsys):
    write_elastix(CHAIN, ".")
    text, found = told(capsys, "TransformParameters.2.txt")
    assert found["kind"] == "elastix transform"
    assert found["warnings"] == []
    is_grid(found["facts"], GRID)
    assert [part["type"] for part in found["parts"]] == [
        "AffineTransform", "DeformationFieldTransform", "BSplineTransform",
    ]  # fmt: skip
    assert [part["combine"] for part in found["parts"]] == ["compose", "add", "compose"]
    assert [Path(part["file"]).name for part in found["parts"]] == [f"TransformParameters.{n}.txt" for n in range(3)]
    np.testing.assert_allclose(found["parts"][0]["matrix"], AFFINE.matrix)
    length = np.linalg.norm(CHAIN.displacement_on(GRID).vectors, axis=-1)
    assert found["facts"]["displacement"]["mean"] == pytest.approx(length.mean(), rel=0.02)
    assert found["facts"]["displacement"]["max"] == pytest.approx(length.max(), rel=0.05)
    assert "part 1: TransformParameters.1.txt, displacement field, 20 x 18 x 16 voxels of 2 x 3 x 4 mm, added" in text
    assert "part 2: TransformParameters.2.txt, BSplineTransform of order 3, 14 x 14 x 14 control points" in text


def test_a_chain_whose_files_are_missing(capsys):
    write_elastix(CHAIN, ".")
    Path("deformationField.1.mha").unlink()
    text, found = told(capsys, "TransformParameters.2.txt")
    assert [Path(name).name for name in found["facts"]["missing_files"]] == ["deformationField.1.mha"]
    assert [part["type"] for part in found["parts"]] == [
        "AffineTransform", "DeformationFieldTransform", "BSplineTransform",
    ]  # fmt: skip
    assert re.search(r"warning: .*DeformationFieldFileName '.*' does not exist; try: regnet-itk repair", text)
    Path("TransformParameters.0.txt").unlink()
    assert len(told(capsys, "TransformParameters.2.txt")[1]["facts"]["missing_files"]) == 2


def test_paths_that_elastix_would_not_find(capsys, here):
    (here / "made").mkdir()
    file = write_elastix(TransformChain(CHAIN.links[:2]), "made")[-1]
    (here / "made").rename("moved")
    text, found = told(capsys, "moved/TransformParameters.1.txt")
    assert text.count("does not exist, but lies beside it; try: regnet-itk repair moved") == 2
    assert "displacement" in found["facts"]
    file = here / "moved" / file.name
    file.write_text(re.sub(r"(?m)^\(InitialTransformParametersFileName.*\n", "", file.read_text(encoding="utf-8")))
    file.write_text(file.read_text(encoding="utf-8").replace(f"{here}/made/", ""))
    text, _ = told(capsys, file)
    assert "elastix up to 5.1 does not know InitialTransformParameterFileName" in text
    assert text.count("is a relative path") == 2


def test_transforms_of_itk(capsys):
    write_itk(CHAIN, "chain.h5")
    _, found = told(capsys, "chain.h5")
    assert found["kind"] == "ITK transform"
    assert [part["is"].split(",")[0] for part in found["parts"]] == [
        "displacement field", "AffineTransform", "BSplineTransform of order 3",
    ]  # fmt: skip
    length = np.linalg.norm(CHAIN.displacement_on(GRID).vectors, axis=-1)
    assert found["facts"]["displacement"]["mean"] == pytest.approx(length.mean(), rel=0.02)
    write_itk(TransformChain((Link(AFFINE),)), "affine.tfm")
    text, found = told(capsys, "affine.tfm")
    assert "give the fixed image with --like" in text
    write_image(Image(np.zeros(GRID.shape, np.int16), GRID), "fixed.mha")
    _, found = told(capsys, "affine.tfm", "--like", "fixed.mha")
    is_grid(found["facts"], GRID)
    expected = np.linalg.norm(AFFINE.map_points(GRID.points()) - GRID.points(), axis=-1).mean()
    assert found["facts"]["displacement"]["mean"] == pytest.approx(expected, rel=0.02)
    assert found["facts"]["det_jacobian"]["max"] == pytest.approx(np.linalg.det(AFFINE.matrix), abs=1e-3)


def test_matrices_that_mix_frames(capsys):
    for matrix, message in ((np.diag([-1.0, -1.0, 1.0]), "RAS and LPS"), (np.diag([-1.0, 1.0, 1.0]), "mirrors")):
        write_itk(TransformChain((Link(MatrixTransform(matrix)),)), "odd.h5")
        _, found = told(capsys, "odd.h5")
        assert len(found["warnings"]) == 1
        assert message in found["warnings"][0]
    turned = MatrixTransform(Rotation.from_euler("z", 20, degrees=True).as_matrix())
    write_itk(TransformChain((Link(turned),)), "turned.h5")
    assert told(capsys, "turned.h5")[1]["warnings"] == []


def test_landmarks(capsys):
    points = GRID.index_to_point(np.random.default_rng(2).uniform(0, 15, (12, 3)))
    write_image(Image(np.zeros(GRID.shape, np.int16), GRID), "fixed.mha")
    for name in ("p.txt", "p.csv", "p.vtk", "p.fcsv", "p.mrk.json"):
        write_landmarks(Landmarks(points), name)
        text, found = told(capsys, name, "--like", "fixed.mha")
        assert found["kind"] == "landmarks"
        assert found["facts"]["count"] == found["facts"]["inside_image"] == 12
        np.testing.assert_allclose(found["facts"]["lowest"], points.min(axis=0), atol=1e-3)
        assert found["warnings"] == []
    write_landmarks(Landmarks(points * [-1, -1, 1]), "ras.txt")
    text, found = told(capsys, "ras.txt", "--like", "fixed.mha")
    assert "they look like RAS: change the sign of x and y" in text
    Path("voxels.txt").write_text("point\n2\n10 20 30\n1 2 3\n", encoding="utf-8")
    assert "they look like voxel indices" in told(capsys, "voxels.txt")[0]
    Path("index.txt").write_text("index\n1\n3 4 5\n", encoding="utf-8")
    assert "give their image with --like" in told(capsys, "index.txt")[0]
    _, found = told(capsys, "index.txt", "--like", "fixed.mha")
    assert found["facts"]["lowest"] == pytest.approx(GRID.index_to_point([3, 4, 5]).tolist())


def test_parameter_files_and_models(capsys):
    Path("affine.txt").write_text(read_parameter_map("affine").to_text(), encoding="utf-8")
    Path("regnet.toml").write_text(read_parameter_map("regnet_multistage").to_toml(), encoding="utf-8")
    _, found = told(capsys, "affine.txt")
    assert (found["kind"], found["facts"]["Transform"]) == ("elastix parameter file", "AffineTransform")
    _, found = told(capsys, "regnet.toml")
    assert (found["kind"], found["facts"]["RegNetModel"]) == ("RegNet parameter file", "regnet_multistage")
    Path("odd.txt").write_text(
        read_parameter_map("regnet").with_(RegNetRegion="lung", MyOwn=3).to_text(), encoding="utf-8"
    )
    assert "it would be refused: odd.txt: 'RegNetRegion' must be" in told(capsys, "odd.txt")[1]["warnings"][0]
    text, found = told(capsys, shipped_models()["regnet_multistage"])
    assert found["kind"] == "RegNet model"
    assert found["facts"]["architecture"] == "coarse_to_fine"
    assert re.fullmatch("[0-9a-f]{64}", found["facts"]["sha256"])
    assert "  training\n" in text


def test_other_images(capsys):
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorFloat32, 2), "two.mha")
    sitk.WriteImage(sitk.Image([9, 9, 9], sitk.sitkVectorUInt8, 3), "rgb.mha")
    for name, components in (("two.mha", 2), ("rgb.mha", 3)):
        text, found = told(capsys, name)
        assert found["kind"] == f"image of {components} components"
        assert "it is no displacement field" in text


def test_what_is_refused(capfd):
    chain = TransformChain(CHAIN.links[:1])
    text = write_elastix(chain, ".")[0].read_text(encoding="utf-8")
    for name, initial in (("a", "b"), ("b", "a")):
        Path(f"{name}.txt").write_text(text.replace('"NoInitialTransform"', f'"{initial}.txt"'), encoding="utf-8")
    write_itk(CHAIN, "whole.h5")
    Path("cut.h5").write_bytes(Path("whole.h5").read_bytes()[:3000])
    broken = field().vectors.copy()
    broken[0, 0, 0] = np.nan
    DisplacementField(broken, GRID).write("nan.mha")
    write_image(Image(np.random.default_rng(0).integers(0, 99, GRID.shape).astype(np.int16), GRID), "whole.mha")
    Path("cut.mha").write_bytes(Path("whole.mha").read_bytes()[:2000])
    Path("words.txt").write_text("hello\n", encoding="utf-8")
    Path("cut.txt").write_text(text[: text.index("CenterOf") + 12], encoding="utf-8")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("file.mhx").write_text("", encoding="utf-8")
    Path("cut.safetensors").write_bytes(shipped_models()["regnet"].read_bytes()[:5000])
    Path("folder").mkdir()
    for name, message in {
        "none.mha": "'none.mha' does not exist",
        "a.txt": "has itself as initial transform",
        "cut.h5": "'cut.h5' cannot be read: it is cut off",
        "nan.mha": "holds vectors that are not finite",
        "cut.mha": "'cut.mha' is cut off",
        "words.txt": "neither an elastix transform, nor a parameter file, nor a list of points",
        "cut.txt": r"cut.txt, line \d+: expected",
        "binary.txt": "is not a text file",
        "file.mhx": "nothing is known about '.mhx'; did you mean '.mh",
        "cut.safetensors": "is damaged",
        "folder": "without a DICOM series",
    }.items():
        fails(capfd, message, name)
    fails(capfd, "no option '--jsn'; did you mean '--json'", "whole.mha", "--jsn", status=2)
    fails(capfd, "'none.mha' does not exist", "whole.h5", "--like", "none.mha")


def test_a_transform_that_is_not_supported_is_still_described(capsys):
    Path("odd.txt").write_text(
        '(Transform "SplineKernelTransform")\n(NumberOfParameters 3)\n(TransformParameters 1 2 3)\n', encoding="utf-8"
    )
    text, found = told(capsys, "odd.txt")
    assert found["parts"][0]["type"] == "SplineKernelTransform"
    assert "only transformix can evaluate a SplineKernelTransform" in text


def test_the_function_gives_what_the_command_prints():
    field().write("field.mha")
    found = inspect_file("field.mha")
    assert found.kind == "displacement field"
    assert json.loads(json.dumps(found.to_dict()))["facts"]["frame"] == "mm, LPS"
