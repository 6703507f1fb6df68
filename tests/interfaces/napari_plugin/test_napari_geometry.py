"""Where real layers of napari lie, with ITK and SimpleITK as judges; needs napari, and neither Qt nor a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

napari_layers = pytest.importorskip("napari.layers", reason="pip install 'regnet-itk[napari]'")

from npe2 import PluginManifest  # noqa: E402

import regnet_itk.interfaces.napari as plugin  # noqa: E402
from regnet_itk.data.grid import Grid  # noqa: E402
from regnet_itk.data.image import Image, grid_of  # noqa: E402
from regnet_itk.data.image_files import write_image  # noqa: E402
from regnet_itk.data.landmarks import Landmarks, read_landmarks  # noqa: E402
from regnet_itk.errors import ImageError, PointsError  # noqa: E402
from regnet_itk.interfaces.napari.geometry import grid_of_layer, image_of_layer, landmarks_of_layer  # noqa: E402
from regnet_itk.interfaces.napari.layer_inputs import LayerInputs  # noqa: E402
from regnet_itk.interfaces.napari.layers import FILE, image_layer, labels_layer, landmarks_layer  # noqa: E402
from regnet_itk.interfaces.napari.reading import get_reader  # noqa: E402
from regnet_itk.interfaces.napari.writing import (  # noqa: E402
    write_image_layer,
    write_labels_layer,
    write_points_layer,
)

NEAR = 1e-3  # mm


def shown(layer_data):
    return napari_layers.Layer.create(*layer_data)


def same_places(image, other):
    """Say whether two images have the same values at the same points, in whatever order their axes are."""
    index = other.grid.point_to_index(image.grid.points()).round().astype(int)
    apart = np.abs(other.grid.index_to_point(index) - image.grid.points()).max()
    return apart < NEAR and np.array_equal(other.array[index[..., 2], index[..., 1], index[..., 0]], image.array)


def test_voxels_of_layers_lie_where_itk_and_simpleitk_say(oblique_images):
    for image in oblique_images:
        layer = shown(image_layer(image, "it"))
        theirs, simple = image.to_itk(), image.to_sitk()
        for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
            point = np.array(theirs.TransformIndexToPhysicalPoint(index))
            assert np.abs(np.array(simple.TransformIndexToPhysicalPoint(index)) - point).max() < NEAR
            data = np.array(layer.world_to_data(point[::-1]))
            assert np.abs(np.array(layer.data_to_world(data.round()))[::-1] - point).max() < NEAR
            assert layer.data[tuple(data.round().astype(int))] == simple.GetPixel(index)
        assert same_places(image, image_of_layer(layer))


def test_a_layer_that_was_moved_is_taken_where_it_is_shown(oblique_images):
    image = oblique_images[50]
    layer = shown(image_layer(image, "it"))
    layer.translate = (0.0, 4.0, -7.0)  # in voxels, which the affine then turns
    moved = image_of_layer(layer)
    for index in ((0, 0, 0), (3, 4, 2)):
        x, y, z = index
        point = np.array(layer.data_to_world((z, y, x)))[::-1]
        assert np.abs(np.array(moved.to_sitk().TransformIndexToPhysicalPoint(index)) - point).max() < NEAR
    assert np.abs(np.array(moved.grid.origin) - image.grid.origin).max() > 3


def test_layers_of_other_readers_are_taken_by_scale_rotation_and_translation():
    array = np.arange(24.0).reshape(2, 3, 4)
    turn = np.array([[0.6, 0.0, -0.8], [0.0, 1.0, 0.0], [0.8, 0.0, 0.6]])
    layer = napari_layers.Image(array, scale=(3.0, 2.0, 1.0), rotate=turn, translate=(30.0, 20.0, 10.0))
    found = image_of_layer(layer)
    np.testing.assert_allclose(found.grid.spacing, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(found.grid.origin, (10.0, 20.0, 30.0))
    np.testing.assert_allclose(found.to_sitk().TransformIndexToPhysicalPoint((0, 0, 1)), (10 + 2.4, 20, 30 + 1.8))


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e-3), ("mm", 1.0), ("cm", 10.0), ("pixel", 1.0)])
def test_units_are_turned_into_millimetres(unit, factor):
    layer = napari_layers.Image(np.zeros((2, 3, 4)), scale=(3, 2, 1), translate=(30, 20, 10), units=(unit,) * 3)
    grid = grid_of_layer(layer)
    np.testing.assert_allclose(grid.spacing, np.multiply((1, 2, 3), factor))
    np.testing.assert_allclose(grid.origin, np.multiply((10, 20, 30), factor))


def test_flipped_axes_are_the_directions_of_an_image():
    layer = napari_layers.Image(np.arange(24.0).reshape(2, 3, 4), scale=(1, -2, 1), translate=(0, 50, 0))
    image = image_of_layer(layer).to_sitk()
    assert image.TransformIndexToPhysicalPoint((0, 1, 0)) == (0.0, 48.0, 0.0)


def test_what_cannot_be_registered_is_refused_in_one_line():
    cases = {
        "2 dimensions": napari_layers.Image(np.zeros((3, 4)), name="it"),
        "4 dimensions": napari_layers.Image(np.zeros((2, 3, 4, 5)), name="it"),
        "colour image": napari_layers.Image(np.zeros((2, 3, 4, 3), np.uint8), rgb=True, name="it"),
        "several resolutions": napari_layers.Image([np.zeros((4, 4, 4)), np.zeros((2, 2, 2))], name="it"),
        "is sheared": napari_layers.Image(np.zeros((2, 3, 4)), shear=(0.5, 0, 0), name="it"),
        "is no image": napari_layers.Points(np.zeros((2, 3)), name="it"),
        "no length": napari_layers.Image(np.zeros((2, 3, 4)), units=("s", "mm", "mm"), name="it"),
    }
    for reason, layer in cases.items():
        with pytest.raises(ImageError, match=reason) as error:
            image_of_layer(layer)
        assert "'it'" in str(error.value)
        assert "\n" not in str(error.value)


def test_points_go_to_layers_and_back(oblique_images):
    for image in oblique_images[44:]:
        points = image.grid.random_points(4, np.random.default_rng(0))
        for grid in (None, image.grid):
            found = landmarks_of_layer(shown(landmarks_layer(Landmarks(points, tuple("abcd")), "points", grid)))
            assert np.abs(found.points - points).max() < NEAR
            assert found.names == tuple("abcd")


def test_points_without_three_coordinates_or_without_any_are_refused():
    with pytest.raises(PointsError, match="2 coordinates; 3 are needed"):
        landmarks_of_layer(napari_layers.Points(np.zeros((2, 2)), name="it"))
    with pytest.raises(PointsError, match="'it' has no points"):
        landmarks_of_layer(napari_layers.Points(np.zeros((0, 3)), name="it"))


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nrrd"])
def test_layers_are_saved_with_their_place(oblique_images, tmp_path, suffix):
    image = oblique_images[51]
    layer = shown(image_layer(image, "it"))
    layer.translate = (2.0, 0.0, 1.0)
    data, settings, _ = layer.as_layer_data_tuple()
    path = str(tmp_path / f"saved{suffix}")
    assert write_image_layer(path, data, settings) == [path]
    stored = sitk.ReadImage(path)
    found = Image(sitk.GetArrayFromImage(stored), grid_of(stored))
    assert same_places(image_of_layer(layer), found)
    assert not same_places(image, found)


def test_labels_and_points_are_saved(oblique_images, tmp_path):
    image = oblique_images[49]
    labels = Image((image.array > 0).astype(np.uint8), image.grid)
    data, settings, _ = shown(labels_layer(labels, "it")).as_layer_data_tuple()
    (path,) = write_labels_layer(str(tmp_path / "labels.nii.gz"), data, settings)
    stored = sitk.ReadImage(path)
    assert same_places(labels, Image(sitk.GetArrayFromImage(stored), grid_of(stored)))
    points = image.grid.random_points(4, np.random.default_rng(0))
    data, settings, _ = shown(landmarks_layer(Landmarks(points), "p", image.grid)).as_layer_data_tuple()
    (path,) = write_points_layer(str(tmp_path / "points.fcsv"), data, settings)
    assert np.abs(read_landmarks(path).points - points).max() < NEAR


def test_a_file_is_registered_as_a_file_unless_its_layer_was_changed(oblique_images, tmp_path):
    paths, layers = {}, {}
    for role, image in zip(("fixed", "moving", "fixed_mask"), oblique_images[48:51], strict=True):
        paths[role] = tmp_path / f"{role}.mha"
        write_image(image, paths[role])
        layers[role] = shown(get_reader(str(paths[role]))(str(paths[role]))[0])
    layers["moving"].translate = (0.0, 0.0, 5.0)
    layers["fixed_mask"].data = np.where(np.asarray(layers["fixed_mask"].data) > 0, 1, 0)
    inputs = LayerInputs.of(layers).read()
    assert inputs.fixed == paths["fixed"]
    assert inputs.to_be_written() == {"moving": "layer.moving.mha", "fixed_mask": "layer.fixed_mask.mha"}
    assert same_places(image_of_layer(layers["moving"]), inputs.moving)
    layers["fixed"].metadata = {FILE: str(tmp_path / "gone.mha")}
    assert isinstance(LayerInputs.of(layers).read().fixed, Image)


def test_what_is_missing_is_told():
    image = napari_layers.Image(np.zeros((4, 4, 4)))
    points = napari_layers.Points(np.zeros((2, 3)))
    with pytest.raises(ImageError, match="no moving image is chosen"):
        LayerInputs.of({"fixed": image, "moving": None})
    with pytest.raises(ImageError, match="are the same layer"):
        LayerInputs.of({"fixed": image, "moving": image})
    other = napari_layers.Image(np.zeros((4, 4, 4)))
    with pytest.raises(PointsError, match="for one image only"):
        LayerInputs.of({"fixed": image, "moving": other, "fixed_landmarks": points, "moving_landmarks": None})


def test_a_grid_needs_no_layer_of_that_many_voxels():
    huge = np.broadcast_to(np.uint8(0), (2000, 2000, 2000))
    assert grid_of_layer(napari_layers.Image(huge, contrast_limits=(0, 1))) == Grid((2000, 2000, 2000))


def test_napari_takes_the_manifest():
    manifest = PluginManifest.from_file(Path(plugin.__file__).with_name("napari.yaml"))
    kinds = {
        kind: len(getattr(manifest.contributions, kind)) for kind in ("widgets", "readers", "writers", "sample_data")
    }
    assert kinds == {"widgets": 2, "readers": 1, "writers": 3, "sample_data": 1}
