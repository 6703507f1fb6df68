"""``regnet-itk invert``: judged by going there with the transform and back with what was written."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from transform_cases import (
    CHAINS,
    FIXED,
    MOVING,
    SETTINGS,
    affine,
    fixed_points,
    moving_image,
    read,
    read_output,
    smooth_field,
    transformix,
    write_points,
)

from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.transforms.chain import TransformChain, link_field
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.itk_files import write_itk

NONRIGID = [name for name in CHAINS if name != "affine"]


@pytest.fixture(scope="module")
def moving_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "moving.mha"
    write_image(moving_image(), path)
    return path


def write(chain, folder):
    folder.mkdir()
    return write_elastix(chain, folder)[-1]


def test_an_affine_is_inverted_exactly(tmp_path, capfd):
    path = write(CHAINS["affine"], tmp_path / "t")
    assert call("invert", "-tp", path, "-out", tmp_path / "i") == 0
    names = {file.name for file in (tmp_path / "i").iterdir()}
    assert names == {"TransformParameters.0.txt", "TransformParameters.0-Composite.h5", "inverse.json"}
    report = json.loads((tmp_path / "i" / "inverse.json").read_text(encoding="utf-8"))
    assert report["exact"]
    assert report["residual_mm"]["max"] < 1e-10
    x = fixed_points()
    for name in names - {"inverse.json"}:
        back = read_chain(tmp_path / "i" / name).map_points(affine().map_points(x))
        np.testing.assert_allclose(back, x, atol=1e-10)
    assert re.search(r"residual .* mean \S+ mm, 95 % \S+ mm, max \S+ mm at \(", capfd.readouterr().err)


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("name", NONRIGID)
def test_every_chain_goes_there_and_back(name, like, tmp_path, moving_file, capfd):
    path = write(CHAINS[name], tmp_path / "t")
    more = ("--like", moving_file) if like else ()
    assert call("invert", "-tp", path, "-out", tmp_path / "i", *more, "-threads", "1") == 0
    x = fixed_points(200)
    y = CHAINS[name].map_points(x)
    if like:
        inside = MOVING.crop((1, 1, 1), [n - 2 for n in MOVING.size]).contains(y)
        x, y = x[inside], y[inside]
    report = json.loads((tmp_path / "i" / "inverse.json").read_text(encoding="utf-8"))
    assert not report["failed"]
    last = "TransformParameters.1" if "affine" in name else "TransformParameters.0"
    judge = sitk.ReadTransform(str(tmp_path / "i" / f"{last}-Composite.h5"))
    back = np.array([judge.TransformPoint(point) for point in y.tolist()])
    error = np.linalg.norm(back - x, axis=1)
    assert error.mean() < 0.08  # the field has kinks at its voxels, and the inverse has its own
    assert 0.3 * error.mean() < report["residual_mm"]["mean"] < 3 * error.mean()
    np.testing.assert_allclose(read_chain(tmp_path / "i" / f"{last}.txt").map_points(y), back, atol=1e-4)
    grid = MOVING if like else None
    said = sitk.ReadImage(str(tmp_path / "i" / f"deformationField.{last[-1]}.mha"))
    if grid is not None:
        assert said.GetSize() == grid.size
        np.testing.assert_allclose(said.GetOrigin(), grid.origin)


def test_the_voxels_of_the_inverse_are_exact(tmp_path, moving_file):
    path = write(CHAINS["affine, field"], tmp_path / "t")
    assert call("invert", "-tp", path, "-out", tmp_path / "i", "--like", moving_file) == 0
    y = MOVING.points()[4:-4, 4:-4, 4:-4].reshape(-1, 3)
    x = read_chain(tmp_path / "i" / "TransformParameters.1.txt").map_points(y)
    assert np.abs(CHAINS["affine, field"].map_points(x) - y).max() < 1e-3


@pytest.mark.skipif(shutil.which("transformix") is None, reason="transformix is not installed")
def test_transformix_takes_the_fixed_image_onto_the_moving_grid_with_it(tmp_path, moving_file):
    path = write(CHAINS["affine, field"], tmp_path / "t")
    assert call("invert", "-tp", path, "-out", tmp_path / "i", "--like", moving_file) == 0
    z, y, x = np.indices(FIXED.shape)
    fixed = Image((100 * np.sin(x / 4) + 80 * np.cos(y / 5) + 60 * np.sin(z / 3)).astype(np.float32), FIXED)
    write_image(fixed, tmp_path / "fixed.mha")
    inverse = tmp_path / "i" / "TransformParameters.1.txt"
    (tmp_path / "o").mkdir()
    transformix("-tp", inverse, "-in", tmp_path / "fixed.mha", "-out", tmp_path / "o",
                "-def", write_points(tmp_path / "p.txt", MOVING.index_to_point([[12.0, 12, 11]])))  # fmt: skip
    result = read(tmp_path / "o" / "result.mha")
    assert result.shape == MOVING.shape
    there = CHAINS["affine, field"].map_points(read_output(tmp_path / "o"))
    np.testing.assert_allclose(there, MOVING.index_to_point([[12, 12, 11]]), atol=1e-3)
    voxels = np.random.default_rng(0).integers((10, 10, 9), (20, 16, 14), (20, 3))
    landed = FIXED.point_to_index(read_chain(inverse).map_points(MOVING.index_to_point(voxels)))
    inside = ((landed > 2) & (landed < np.array(FIXED.size) - 3)).all(axis=1)
    assert inside.sum() > 5
    x, y, z = landed[inside].T
    expected = 100 * np.sin(x / 4) + 80 * np.cos(y / 5) + 60 * np.sin(z / 3)
    np.testing.assert_allclose(result[tuple(voxels[inside].T[::-1])], expected, atol=3)


def test_itk_files_say_their_domain_by_their_field_or_need_the_fixed_image(tmp_path, capfd):
    write_itk(CHAINS["affine, field"], tmp_path / "field.h5")
    assert call("invert", "-tp", tmp_path / "field.h5", "-out", tmp_path / "a") == 0
    x = fixed_points()
    back = read_chain(tmp_path / "a" / "TransformParameters.1-Composite.h5")
    assert np.abs(back.map_points(CHAINS["affine, field"].map_points(x)) - x).mean() < 0.1
    write_itk(CHAINS["affine, bspline"], tmp_path / "bspline.h5")
    arguments = ("invert", "-tp", tmp_path / "bspline.h5", "-out", tmp_path / "b")
    assert call(*arguments) == 1
    assert "--fixed IMAGE" in capfd.readouterr().err
    write_image(Image(np.zeros(FIXED.shape, np.float32), FIXED), tmp_path / "fixed.mha")
    assert call(*arguments, "--fixed", tmp_path / "fixed.mha") == 0


def test_a_folding_field_is_told_by_words_and_status(tmp_path, capfd):
    folded = smooth_field(peak=40.0)
    assert folded.jacobian_determinant().min() < -0.5
    path = write(TransformChain((link_field(folded, SETTINGS),)), tmp_path / "t")
    assert call("invert", "-tp", path, "-out", tmp_path / "i") == 3
    printed = capfd.readouterr().err
    assert re.search(r"warning: the transform folds \(det J <= 0\) at \d+\.\d+% of them", printed)
    assert re.search(r"warning: \d+\.\d+% of the points have no inverse to within half a voxel", printed)
    report = json.loads((tmp_path / "i" / "inverse.json").read_text(encoding="utf-8"))
    assert report["failed"]
    assert report["residual_mm"]["folding"] > 0.01
    where = np.array(report["residual_mm"]["where"])
    chain, inverse = (read_chain(p) for p in (path, tmp_path / "i" / "TransformParameters.0.txt"))
    residual = np.linalg.norm(chain.map_points(inverse.map_points(where)) - where)
    assert residual == pytest.approx(report["residual_mm"]["max"], rel=1e-3)
    assert residual > 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-out", "o"), 2, "Missing option '-tp'"),
        (("-tp", "t/TransformParameters.0.txt"), 2, "Missing option '-out'"),
        (("-tp", "t/TransformParameters.0.txt", "-out", "o", "--lik", "m"), 2, "did you mean '--like'?"),
        (("-tp", "none.txt", "-out", "o"), 1, "'none.txt' does not exist"),
        (("-tp", "t/TransformParameters.0.txt", "-out", "t"), 1, "give another folder"),
        (("-tp", "t/TransformParameters.0.txt", "-out", "singular.txt"), 1, "is a file"),
        (("-tp", "t/TransformParameters.0.txt", "-out", "o", "--like", "none.mha"), 1, "'none.mha' does not exist"),
        (("-tp", "f/TransformParameters.0.txt", "-out", "o", "--like", "far.mha"), 1, "outside of what the transform"),
        (("-tp", "singular.txt", "-out", "o"), 1, "matrix that cannot be inverted"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, status, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    text = write(CHAINS["affine"], tmp_path / "t").read_text(encoding="utf-8")
    write(TransformChain((link_field(smooth_field(), SETTINGS),)), tmp_path / "f")
    zeros = "(TransformParameters " + " ".join(["0"] * 12) + ")"
    (tmp_path / "singular.txt").write_text(re.sub(r"\(TransformParameters .*\)", zeros, text))
    far = np.zeros((8, 8, 8), np.float32)
    write_image(Image(far, MOVING.crop((500, 0, 0), (8, 8, 8))), tmp_path / "far.mha")
    assert call("invert", *arguments) == status
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
