"""Images of fewer voxels for elastix: their geometry judged by SimpleITK, and the transforms found on them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from transform_cases import FIXED

from regnet_itk.anatomy.pair_kinds import make_whole_pair
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.elastix import jobs
from regnet_itk.parameters import read_parameter_map
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.block_means import block_for, shrink_image, shrink_mask
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.resampling_keys import read_resampling_grid

QUICK = read_parameter_map("affine").with_(
    NumberOfResolutions=2, ImagePyramidSchedule=[2, 2, 2, 1, 1, 1], MaximumNumberOfIterations=120
)


def noise(grid: Grid, dtype: type = np.int16) -> Image:
    return Image(np.random.default_rng(0).normal(0, 300, grid.shape).astype(dtype), grid)


@pytest.mark.parametrize(("voxels", "block"), [(3000, (2, 1, 1)), (700, (3, 2, 2)), (7040, (1, 1, 1))])
def test_blocks_are_means_that_lie_where_itk_puts_them(voxels, block):
    image = noise(FIXED)
    assert tuple(block_for(FIXED, voxels, 4)) == block
    found = shrink_image(image, voxels)
    judge = sitk.BinShrink(sitk.Cast(image.to_sitk(), sitk.sitkFloat32), list(block))
    assert found.grid.size == judge.GetSize()
    np.testing.assert_allclose(found.grid.spacing, judge.GetSpacing())
    np.testing.assert_allclose(found.grid.origin, judge.GetOrigin())
    np.testing.assert_allclose(found.array, sitk.GetArrayFromImage(judge), atol=1e-3)


def test_thin_axes_keep_as_many_voxels_as_elastix_needs():
    grid = Grid((200, 6, 200), (1.0, 1.0, 1.0))
    assert shrink_image(noise(grid), 1000).grid.size[1] >= 4


def test_a_thin_mask_is_not_lost():
    mask = Image(np.zeros(FIXED.shape, dtype=np.uint8), FIXED)
    mask.array[8, 5:12, 9] = 2
    found = shrink_mask(mask, 900)
    assert found.grid == shrink_image(noise(FIXED), 900).grid
    assert found.array.any()
    assert found.array.mean() < 0.02
    solid = Image(np.ones(FIXED.shape, dtype=np.uint8), FIXED)
    assert shrink_mask(solid, 900).array.all()


@pytest.fixture(scope="module")
def whole():
    return make_whole_pair(spacing=5.0, oblique=True)


def test_an_affine_transform_is_found_on_few_voxels(whole, monkeypatch):
    given = []
    monkeypatch.setattr(
        "regnet_itk.stages.elastix.write_images", lambda images, path: given.extend(images) or write(images, path)
    )
    write = jobs.write_images
    stage = ElastixStage(QUICK.with_(RegNetMostVoxels=20_000))
    mask = Image((whole.fixed.array > -950).astype(np.uint8), whole.fixed.grid)
    pair = ImagePair(whole.fixed, whole.moving, mask)
    result = stage.run(pair, TransformChain(), RunOptions())
    assert all(image.array.size < 50_000 < whole.fixed.array.size for image in given)
    assert whole.landmark_error(result.chain.map_points) < 0.5 * whole.landmark_error()
    (link,) = result.chain.links
    assert read_resampling_grid(link.parameters).is_close(whole.fixed.grid, 1e-6)
    assert result.warped.grid == whole.fixed.grid
