"""Images, points, fields and folders as the tuples of which napari makes layers; needs no napari."""

from __future__ import annotations

import dataclasses
import re
import shutil
from importlib import import_module, util
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import regnet_itk.interfaces.napari as plugin
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.data.landmarks import Landmarks, read_landmarks, write_landmarks
from regnet_itk.errors import ImageError, RegistrationError
from regnet_itk.interfaces.napari.geometry import affine_of, along_world
from regnet_itk.interfaces.napari.layers import (
    FILE,
    checkerboard_layer,
    difference_layer,
    displacement_layer,
    image_layer,
    labels_layer,
    landmarks_layer,
)
from regnet_itk.interfaces.napari.reading import get_reader
from regnet_itk.interfaces.napari.samples import make_sample
from regnet_itk.report.finished_run import read_finished_run
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import MatrixTransform

MOVE = np.array([3.0, -4.0, 1.5])


def in_world(layer):
    """Return the positions of a layer's points or vectors as (x, y, z), by its affine alone."""
    data, settings, _ = layer
    return (np.asarray(data) @ settings["affine"][:3, :3].T + settings["affine"][:3, 3])[..., ::-1]


def test_every_voxel_lies_where_itk_says(oblique_images):
    for image in oblique_images:
        judge = image.to_sitk()
        data, settings, kind = image_layer(image, "it")
        assert kind == "image"
        assert np.shares_memory(data, image.array)
        to_data = np.linalg.inv(settings["affine"])
        for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
            world = np.array([*judge.TransformIndexToPhysicalPoint(index)[::-1], 1.0])
            found = (to_data @ world)[:3]
            np.testing.assert_allclose(found, found.round(), atol=1e-4)
            assert data[tuple(found.round().astype(int))] == judge.GetPixel(index)


def test_sliders_go_through_the_axes_that_they_name(oblique_images):
    for image in oblique_images:
        matrix = np.abs(affine_of(along_world(image).grid)[:3, :3])
        assert (matrix.argmax(axis=0) == [0, 1, 2]).all()  # a step along z of the array leads along z of the world


@pytest.mark.parametrize("with_grid", [True, False])
def test_points_lie_where_they_are_however_they_are_counted(oblique_images, with_grid):
    for image in oblique_images:
        points = image.grid.random_points(5, np.random.default_rng(1))
        layer = landmarks_layer(Landmarks(points, tuple("abcde")), "points", image.grid if with_grid else None)
        np.testing.assert_allclose(in_world(layer), points, atol=1e-6)
        assert layer[1]["features"]["name"] == list("abcde")


def test_arrows_begin_in_the_image_and_lead_where_the_transform_does(oblique_images):
    matrix = MatrixTransform(np.eye(3) + 0.1 * np.random.default_rng(2).normal(size=(3, 3)), translation=MOVE)
    chain = TransformChain((Link(matrix),))
    judge = chain.to_sitk()
    for image in oblique_images:
        layer = displacement_layer(chain, image.grid, "u")
        ends = in_world((layer[0].cumsum(axis=1), *layer[1:]))
        assert image.grid.contains(ends[:, 0]).all()
        expected = [judge.TransformPoint(point) for point in ends[:, 0].tolist()]
        np.testing.assert_allclose(ends[:, 1], expected, atol=1e-3)
        lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
        np.testing.assert_allclose(layer[1]["features"]["length_mm"], lengths, atol=1e-3)


def test_arrows_are_thinned():
    grid = Grid((300, 200, 40), (1.0, 1.0, 4.0))
    field = DisplacementField(np.zeros((10, 10, 10, 3), np.float32), Grid((10, 10, 10), (30.0, 20.0, 16.0)))
    assert 3000 < len(displacement_layer(TransformChain((Link(field),)), grid, "u")[0]) < 8000


def test_a_difference_is_fixed_minus_warped_and_a_checkerboard_has_both():
    grid = Grid((16, 16, 16))
    rng = np.random.default_rng(3)
    fixed, warped = (Image(rng.integers(0, 100, grid.shape).astype(np.uint8), grid) for _ in range(2))
    np.testing.assert_array_equal(difference_layer(fixed, warped, "d")[0], fixed.array.astype(float) - warped.array)
    board = checkerboard_layer(Image(np.where(fixed.array > 50, 9, 0), grid), Image(np.full(grid.shape, 50), grid), "c")
    assert 0.4 < np.mean(np.isin(board[0], (0, 1))) <= 1.0
    assert board[0][0, 0, 0] in (0.0, 1.0)
    assert board[0][0, 0, 2] == board[0][2, 0, 0] == 0.0  # the other image's, which is as dark as can be


def test_labels_are_whole_numbers():
    grid = Grid((4, 4, 4))
    data, _, kind = labels_layer(Image(np.full(grid.shape, 3.0), grid), "mask")
    assert (kind, data.dtype.kind, data.max()) == ("labels", "i", 3)
    assert labels_layer(Image(np.ones(grid.shape, np.uint8), grid), "mask")[0].dtype == np.uint8
    for odd in (0.5, np.nan):
        with pytest.raises(ImageError, match="no whole numbers"):
            labels_layer(Image(np.full(grid.shape, odd), grid), "mask")


@pytest.mark.parametrize("name", ["it.mha", "it.nii.gz", "it.nrrd"])
def test_a_file_is_read_with_its_place(oblique_images, tmp_path, name):
    path = tmp_path / name
    write_image(oblique_images[49], path)
    ((data, settings, kind),) = get_reader(str(path))(str(path))
    assert (kind, settings["name"], settings["metadata"]) == ("image", "it", {FILE: str(path)})
    judge = sitk.ReadImage(str(path))
    world = np.array([*judge.TransformIndexToPhysicalPoint((1, 2, 3))[::-1], 1.0])
    index = np.linalg.solve(settings["affine"], world)[:3].round().astype(int)
    assert data[tuple(index)] == judge.GetPixel(1, 2, 3)


def test_landmarks_of_slicer_are_read_in_lps(tmp_path):
    path = str(tmp_path / "points.fcsv")
    write_landmarks(Landmarks(np.array([[10.0, -20.0, 30.0]])), path)
    (layer,) = get_reader(path)(path)
    np.testing.assert_allclose(in_world(layer), [[10.0, -20.0, 30.0]])


def test_files_of_others_and_plain_folders_are_left_to_others(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG")
    assert get_reader(str(tmp_path / "a.tif")) is None
    assert get_reader(str(tmp_path / "photos")) is None
    assert get_reader([str(tmp_path / "a.mha"), str(tmp_path / "a.tif")]) is None
    assert get_reader([str(tmp_path / "a.mha"), str(tmp_path / "b.nii")]) is not None


def test_a_broken_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "broken.nii.gz"
    path.write_text("no image")
    with pytest.raises(ImageError, match="not what its suffix"):
        get_reader(str(path))(str(path))


def test_a_folder_with_a_dicom_series_is_an_image(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_cases import write_patient

    from regnet_itk.anatomy.phantom import make_phantom

    phantom = make_phantom(5, spacing=(8.0, 8.0, 8.0), extent=(160.0, 140.0, 130.0))
    write_patient(phantom, tmp_path)
    path = str(tmp_path / "fixed_series")
    ((data, settings, _),) = get_reader(path)(path)
    np.testing.assert_array_equal(data, along_world(phantom.fixed).array)
    np.testing.assert_allclose(settings["affine"], affine_of(along_world(phantom.fixed).grid), atol=1e-3)


@pytest.mark.parametrize("dropped", ["", "registration.json"])
def test_a_finished_run_opens_with_all_that_was_found(finished_run, dropped):
    path = str(finished_run / dropped)
    layers = {settings["name"]: (data, settings, kind) for data, settings, kind in get_reader(path)(path)}
    assert list(layers) == [
        "fixed image", "moving image", "fixed mask", "fixed landmarks", "moving landmarks", "moving on the fixed grid",
        "checkerboard", "fixed - warped", "warped", "expected error, mm", "fixed landmarks in moving",
        "moving landmarks in fixed",
    ]  # fmt: skip
    written = along_world(read_image(finished_run / "result.1.mha"))
    np.testing.assert_array_equal(layers["warped"][0], written.array)
    np.testing.assert_allclose(layers["warped"][1]["affine"], affine_of(written.grid), atol=1e-9)
    chain = sitk.ReadTransform(str(finished_run / "TransformParameters.1-Composite.h5"))
    run = read_finished_run(finished_run)
    fixed, moving = (read_landmarks(run.files[f"{role}_landmarks"]).points for role in ("fixed", "moving"))
    there = [chain.TransformPoint(point) for point in fixed.tolist()]
    np.testing.assert_allclose(in_world(layers["fixed landmarks in moving"]), there, atol=1e-3)
    back = in_world(layers["moving landmarks in fixed"])
    np.testing.assert_allclose([chain.TransformPoint(point) for point in back.tolist()], moving, atol=1e-2)


def test_a_folder_whose_images_are_gone_says_so(finished_run, tmp_path):
    folder = tmp_path / "elsewhere" / "run"
    shutil.copytree(finished_run, folder)
    record = folder / "registration.json"
    record.write_text(re.sub(r'"fixed": "[^"]*"', '"fixed": "/gone/fixed_one.mha"', record.read_text()))
    with pytest.raises(ImageError, match=r"fixed image is missing: '/gone/fixed_one.mha' is no longer there"):
        get_reader(str(folder))(str(folder))
    record.write_text("{")
    with pytest.raises(RegistrationError, match="damaged"):
        get_reader(str(folder))(str(folder))


def test_the_sample_is_a_pair_that_corresponds():
    layers = {settings["name"]: (data, settings, kind) for data, settings, kind in make_sample()}
    assert [kind for *_, kind in layers.values()] == ["image", "image", "labels", "labels", "points", "points"]
    assert len(layers["fixed landmarks"][0]) == len(layers["moving landmarks"][0]) > 10
    distances = np.linalg.norm(in_world(layers["fixed landmarks"]) - in_world(layers["moving landmarks"]), axis=1)
    assert 3 < distances.mean() < 20
    assert np.allclose(layers["fixed image"][1]["affine"][:3, :3], 3 * np.eye(3))  # straight: napari shows it as it is


def test_the_manifest_names_what_there_is():
    manifest = Path(plugin.__file__).with_name("napari.yaml").read_text(encoding="utf-8")
    named = re.findall(r"python_name: (\S+):(\S+)", manifest)
    assert len(named) == 7
    for module, name in named:
        if module.endswith("_widget"):  # which needs Qt
            assert util.find_spec(module) is not None
        else:
            assert callable(getattr(import_module(module), name))
    commands = re.findall(r"- id: (\S+)", manifest)
    assert set(re.findall(r"command: (\S+)", manifest)) == set(commands)


def test_an_image_with_nan_leaves_its_window_to_napari(oblique_images):
    values = oblique_images[0].array.astype(np.float32)
    values[0, 0, 0] = np.nan
    layer = image_layer(dataclasses.replace(oblique_images[0], array=values), "it")
    assert "contrast_limits" not in layer[1]
