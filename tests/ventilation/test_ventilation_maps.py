"""Ventilation and density: of breaths of which all is known, with SimpleITK's Jacobian as a judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from breath_cases import CENTRE, CHAIN, FIXED, GROWTH, breath, density, lungs
from scipy import ndimage

from regnet_itk import DisplacementField, Grid, Image, TransformChain, find_ventilation, invert_chain
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.transforms.chain import Link
from regnet_itk.ventilation.regions import tabulate_regions

VOXEL = float(np.prod(FIXED.spacing)) / 1000


def known(image):
    values = image.array[np.isfinite(image.array)]
    assert values.size
    return values


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_an_affine_breath_that_keeps_its_mass(smoothing):
    maps = find_ventilation(*breath(), CHAIN, lungs(), smoothing=smoothing)
    assert maps.inhale == "moving"
    np.testing.assert_allclose(known(maps.jacobian_ventilation()), GROWTH - 1, atol=1e-5)
    np.testing.assert_allclose(known(maps.hounsfield_ventilation()), GROWTH - 1, atol=0.01)
    np.testing.assert_allclose(known(maps.density_change()), 0.0, atol=1.5)
    assert maps.mass_factor == pytest.approx(1.0, abs=0.001)
    assert maps.jacobian_ventilation().grid == FIXED
    assert np.array_equal(np.isfinite(maps.jacobian_ventilation().array), lungs().array > 0)


def test_the_fixed_image_may_be_the_one_breathed_in():
    exhale, inhale = breath(gain=1.1)
    back = invert_chain(CHAIN, FIXED)
    region = Image((lungs().resampled(inhale.grid, back.to_sitk(), order=0).array > 0).astype(np.uint8), inhale.grid)
    maps = find_ventilation(inhale, exhale, back, region)
    assert maps.inhale == "fixed"
    assert maps.mass_factor == pytest.approx(1 / 1.1, rel=0.01)
    np.testing.assert_allclose(known(maps.jacobian_ventilation()), GROWTH - 1, atol=1e-4)
    np.testing.assert_allclose(known(maps.hounsfield_ventilation()), GROWTH - 1, atol=0.01)
    (row,) = tabulate_regions(maps, region)
    (other,) = tabulate_regions(find_ventilation(exhale, inhale, CHAIN, lungs()), lungs())
    assert row.inhale_ml == pytest.approx(other.inhale_ml, rel=0.01)
    assert row.exhale_ml == pytest.approx(other.exhale_ml, rel=0.01)
    assert row.fixed_mass == pytest.approx(other.moving_mass, rel=0.01)


def test_mass_that_comes_is_corrected_in_ventilation_and_told_as_density():
    maps = find_ventilation(*breath(gain=1.1), CHAIN, lungs(), smoothing=0)
    assert maps.mass_factor == pytest.approx(1 / 1.1, rel=0.001)
    np.testing.assert_allclose(known(maps.hounsfield_ventilation()), GROWTH - 1, atol=0.01)
    change = maps.density_change()
    where = np.isfinite(change.array)
    np.testing.assert_allclose(change.array[where], 100 * density(FIXED.points())[where], atol=1.5)


def test_det_j_is_that_of_simpleitk_on_an_anisotropic_grid():
    grid = Grid((30, 26, 20), (1.5, 2.0, 3.0), (10.0, 20.0, 30.0))  # its filter knows no directions
    rng = np.random.default_rng(2)
    u = ndimage.gaussian_filter(rng.normal(size=(*grid.shape, 3)), (4, 4, 4, 0)) * 60.0
    u += 0.05 * (grid.points() - grid.centre())
    field = DisplacementField(u.astype(np.float32), grid)
    judge = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field.to_sitk()))
    inner = np.zeros(grid.shape, np.uint8)
    inner[4:-4, 4:-4, 4:-4] = 1
    values = Image(np.zeros(grid.shape, np.float32), grid)
    maps = find_ventilation(values, values, TransformChain((Link(field),)), Image(inner, grid), inhale="moving")
    assert maps.densities is None and maps.hounsfield_ventilation() is None and maps.density_change() is None
    found = maps.jacobian_ventilation().array
    assert judge[inner > 0].std() > 0.05
    np.testing.assert_allclose(found[np.isfinite(found)], judge[np.isfinite(found)] - 1, atol=2e-3)
    assert np.isfinite(found).sum() > 0.95 * inner.sum()


def test_each_label_and_all_of_them():
    """Only the upper half expands: it has all of the ventilation."""
    grid = Grid((20, 20, 30), (2.0, 2.0, 2.0))
    u = np.zeros((*grid.shape, 3), np.float32)
    up = np.clip(grid.points()[..., 2] - 30.0, 0, None)
    u[..., 2] = 0.2 * up
    fixed = Image(np.full(grid.shape, -700.0, np.float32), grid)
    tall = replace(grid, size=(20, 20, 40))
    moving = Image(np.where(tall.points()[..., 2] > 30.0, 300 / 1.2 - 1000, -700.0).astype(np.float32), tall)
    region = Image(np.ones(grid.shape, np.uint8), grid)
    labels = Image(np.where(grid.points()[..., 2] > 30.0, 7, 2).astype(np.int16), grid)
    chain = TransformChain((Link(DisplacementField(u, grid)),))
    maps = find_ventilation(fixed, moving, chain, region, smoothing=0)
    whole, lower, upper = tabulate_regions(maps, region, labels)
    assert [row.region for row in (whole, lower, upper)] == ["all", "2", "7"]
    volume = 20 * 20 * 0.008
    assert lower.exhale_ml == pytest.approx(16 * volume) and upper.exhale_ml == pytest.approx(14 * volume)
    assert upper.jacobian_ventilation == pytest.approx(0.2, abs=0.01)
    assert upper.hu_median == pytest.approx(0.2, abs=0.02)
    assert lower.jacobian_ventilation == pytest.approx(0.0, abs=0.01)
    assert upper.share_of_ventilation == pytest.approx(1.0, abs=0.06)
    assert whole.inhale_ml == pytest.approx(lower.inhale_ml + upper.inhale_ml)
    assert whole.fixed_density == pytest.approx(300, abs=0.5)
    assert upper.moving_density == pytest.approx(250, abs=5)
    assert whole.moving_mass == pytest.approx(whole.fixed_mass, rel=0.02)


def test_smoothing_stays_inside_and_takes_no_vessel_in():
    fixed, moving = breath()
    with_vessel = fixed.array.copy()
    index = np.round(FIXED.point_to_index(CENTRE)).astype(int)
    with_vessel[index[2], index[1], :] = 50.0
    with_vessel[lungs().array == 0] = 60.0
    maps = find_ventilation(Image(with_vessel, FIXED), moving, CHAIN, lungs())
    found = maps.hounsfield_ventilation().array
    assert np.isnan(found[index[2], index[1], :]).all()
    np.testing.assert_allclose(found[np.isfinite(found)], GROWTH - 1, atol=0.01)


def test_what_lies_beyond_the_moving_image_is_left_out():
    fixed, moving = breath()
    lower = moving.grid.crop((0, 0, 0), (50, 44, 20))
    maps = find_ventilation(fixed, Image(moving.array[:20], lower), CHAIN, lungs())
    assert 0.1 < maps.beyond < 0.7
    there = lower.contains(CHAIN.map_points(FIXED.points())) & (lungs().array > 0)
    assert (np.isfinite(maps.jacobian_ventilation().array) != there).mean() < 0.005
    (row,) = tabulate_regions(maps, lungs())
    assert row.known_share == pytest.approx(1 - maps.beyond)


def test_what_is_refused_or_told(caplog):
    fixed, moving = breath()
    same = TransformChain()
    with pytest.raises(ParameterError, match=r"nearly the same volume in both images \(\+0.0% in the moving one\)"):
        find_ventilation(fixed, fixed, same, lungs())
    with pytest.raises(ImageError, match="the region lies on another grid"):
        find_ventilation(moving, fixed, same, lungs())
    with pytest.raises(ImageError, match="the region is empty"):
        find_ventilation(fixed, moving, CHAIN, Image(np.zeros(FIXED.shape, np.uint8), FIXED))
    away = Image(moving.array, replace(moving.grid, origin=(900.0, 900.0, 900.0)))
    with pytest.raises(ImageError, match="leads all of the region out of the moving image"):
        find_ventilation(fixed, away, CHAIN, lungs())
    with pytest.raises(ParameterError, match="not 'both'"):
        find_ventilation(fixed, moving, CHAIN, lungs(), inhale="both")
    with pytest.raises(ParameterError, match="smoothing of -1"):
        find_ventilation(fixed, moving, CHAIN, lungs(), smoothing=-1.0)
    maps = find_ventilation(fixed, moving, CHAIN, lungs())
    beside = Image(lungs().array + 1, FIXED)
    assert [row.region for row in tabulate_regions(maps, lungs(), beside)] == ["all", "2"]
    assert "which have no row: 1" in caplog.text
    zeros = np.zeros(FIXED.shape, np.float32)
    for values, message in (
        (zeros, "labels are empty"), (zeros + 0.5, "no whole numbers"), (np.float32(lungs().array == 0), "lie nowhere"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message):
            tabulate_regions(maps, lungs(), Image(values, FIXED))
    with pytest.raises(ImageError, match="the labels lie on another grid"):
        tabulate_regions(maps, lungs(), Image(np.ones((4, 4, 4), np.uint8), Grid((4, 4, 4))))
