"""Images on the network's voxels, against plain averages and SimpleITK's own resampling."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.networks.resampling import resample_for_network

TURNED = tuple(map(tuple, Rotation.from_euler("xyz", (20, -35, 130), degrees=True).as_matrix()))
AIR = -1000.0
FINE = Grid((24, 28, 30), (0.5, 0.5, 0.5), (7.0, 8.0, 9.0), TURNED)


def random_image(grid: Grid, dtype: type = np.int16) -> Image:
    return Image(np.random.default_rng(0).normal(-400, 300, grid.shape).astype(dtype), grid)


def test_voxels_of_twice_the_size_are_means_of_eight() -> None:
    image = random_image(FINE)
    found = resample_for_network(image, FINE.isotropic(1.0), AIR)
    assert found.grid.size == (12, 14, 15)
    assert found.array.dtype == np.float32
    expected = image.array.reshape(15, 2, 14, 2, 12, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found.array, expected, atol=0.01)


@pytest.mark.parametrize("spacing", [0.8, 1.3, 2.0])
def test_what_is_linear_stays_so(spacing: float) -> None:
    linear = Image((FINE.points() @ [1.0, 2.0, -3.0]).astype(np.float32), FINE)
    grid = Grid((4, 3, 3), (spacing,) * 3, tuple(FINE.index_to_point([4.0, 5.0, 6.0])), TURNED)
    np.testing.assert_allclose(
        resample_for_network(linear, grid, AIR).array, grid.points() @ [1.0, 2.0, -3.0], atol=0.01
    )


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.6, 0.9, 3.1)])
def test_the_way_along_the_axes_gives_what_simpleitk_gives(
    spacing: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = random_image(Grid((40, 33, 21), spacing, (-20.0, 5.0, 90.0), TURNED), np.float64)
    start = image.grid.index_to_point([-3.3, 2.4, -1.7])
    grid = Grid((13, 9, 8), (2.0, 2.0, 2.0), tuple(start), TURNED)  # reaches past the image on several sides
    expected = resample_for_network(image, grid, AIR, sitk.Transform(3, sitk.sitkIdentity))
    monkeypatch.setattr("regnet_itk.networks.resampling._CHUNK", 5 * 40 * 33)  # several chunks, the last one smaller
    found = resample_for_network(image, grid, AIR)
    assert 0.05 < (expected.array == -1000).mean() < 0.9
    np.testing.assert_allclose(found.array, expected.array, atol=0.01)


@pytest.mark.parametrize("transform", [None, sitk.Transform(3, sitk.sitkIdentity)])
def test_averaged_noise_is_nearly_alike_on_and_between_the_voxels(transform: sitk.Transform | None) -> None:
    image = random_image(FINE)
    between = Grid((22, 26, 28), FINE.spacing, tuple(FINE.index_to_point([0.5, 0.5, 0.5])), TURNED)
    for averaged, ratio in ((False, 0.5**1.5), (True, (0.5 / 0.59375) ** 1.5)):  # from the weights along one axis
        on, off = (resample_for_network(image, grid, AIR, transform, averaged).array[2:-2, 2:-2, 2:-2].std()
                   for grid in (FINE, between))  # fmt: skip
        assert off / on == pytest.approx(ratio, rel=0.05)


def test_mirrored_axes_take_the_same_values() -> None:
    image = random_image(FINE)
    axes = np.array(TURNED)
    mirrored = Grid((12, 14, 15), (1.0,) * 3, tuple(FINE.index_to_point([22.5, 0.5, 0.5])), axes * [-1, 1, 1])
    np.testing.assert_allclose(
        resample_for_network(image, mirrored, AIR).array,
        resample_for_network(image, FINE.isotropic(1.0), AIR).array[:, :, ::-1],
        atol=0.01,
    )


def test_beside_the_image_is_air() -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0), (500.0, 0.0, 0.0))
    assert (resample_for_network(random_image(FINE), grid, AIR).array == -1000).all()
    along = Grid((2, 2, 2), (1.0, 1.0, 1.0), tuple(FINE.index_to_point([300.0, 0.0, 0.0])), TURNED)
    assert (resample_for_network(random_image(FINE), along, AIR).array == -1000).all()
