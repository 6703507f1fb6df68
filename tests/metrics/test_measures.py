"""Metrics against numpy, scipy and examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, PointsError
from regnet_itk.metrics.measures import (
    ErrorMoments,
    dice,
    displacement_error,
    folding_share,
    label_dice,
    landmark_differences,
    log_jacobian_sd,
    normalised_correlation,
    summarise_errors,
    target_registration_error,
    transform_error,
)
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.matrix import MatrixTransform

GRID = Grid((6, 5, 4), (1.0, 2.0, 3.0), (10.0, -5.0, 7.0))
TURNED = Grid((9, 8, 7), (1.0, 2.0, 3.0), direction=((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


def uniform(vector: tuple[float, float, float], grid: Grid = GRID) -> DisplacementField:
    return DisplacementField(np.broadcast_to(np.array(vector), (*grid.shape, 3)).copy(), grid)


def linear(matrix: np.ndarray, grid: Grid) -> DisplacementField:
    return DisplacementField(grid.points() @ matrix.T, grid)


def test_landmarks_go_from_fixed_to_moving() -> None:
    fixed = np.array([[11.0, -3.0, 9.0], [12.0, -1.0, 10.0]])
    moving = fixed + np.array([3.0, 4.0, 0.0])
    np.testing.assert_allclose(target_registration_error(None, fixed, moving), [5.0, 5.0])
    np.testing.assert_allclose(target_registration_error(uniform((3, 4, 0)), fixed, moving), 0.0, atol=1e-12)
    np.testing.assert_allclose(target_registration_error(uniform((-3, -4, 0)), fixed, moving), [10.0, 10.0])
    np.testing.assert_allclose(
        target_registration_error(lambda x: x + np.array([3, 4, 12]), fixed, moving), [12.0, 12.0]
    )
    np.testing.assert_allclose(landmark_differences(None, fixed, moving), [[-3, -4, 0], [-3, -4, 0]])


def test_summary_by_hand() -> None:
    summary = summarise_errors(np.array([[1.0, 0, 0], [0, -2, 0], [0, 0, 3], [-3, 4, 0], [0, 6, 8]]))
    assert summary.count == 5  # lengths 1, 2, 3, 5, 10
    assert summary.mean == pytest.approx(4.2)
    assert summary.sd == pytest.approx(math.sqrt((3.2**2 + 2.2**2 + 1.2**2 + 0.8**2 + 5.8**2) / 4))
    assert summary.median == pytest.approx(3.0)
    assert summary.p95 == pytest.approx(5 + 0.8 * 5)
    assert summary.max == pytest.approx(10.0)
    assert summary.above_2mm == pytest.approx(3 / 5)
    assert summary.above_5mm == pytest.approx(1 / 5)
    assert summary.mean_absolute == pytest.approx((4 / 5, 12 / 5, 11 / 5))
    assert summary.sd_absolute[0] == pytest.approx(math.sqrt((0.2**2 + 3 * 0.8**2 + 2.2**2) / 4))  # 1 0 0 3 0
    assert summary.mae == pytest.approx(27 / 15)
    assert summarise_errors(np.array([[0.0, 0, 2]])).sd == 0.0


def test_landmarks_that_do_not_fit_are_refused() -> None:
    points = np.zeros((3, 3))
    with pytest.raises(PointsError, match="3 fixed and 2 moving"):
        target_registration_error(None, points, points[:2])
    with pytest.raises(PointsError, match="shape"):
        target_registration_error(None, np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(PointsError, match="not finite"):
        target_registration_error(None, points, points + np.nan)
    with pytest.raises(PointsError, match="2 of 3 errors are not finite"):
        summarise_errors(np.array([[np.nan, 0, 0], [0, np.inf, 0], [0, 0, 0]]))


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=GRID.shape) * 100 - 800
    b = 0.5 * a + rng.normal(size=GRID.shape) * 40
    mask = rng.random(GRID.shape) > 0.4
    whole = normalised_correlation(Image(a, GRID), Image(b, GRID))
    part = normalised_correlation(Image(a, GRID), Image(b, GRID), Image(mask, GRID))
    assert whole == pytest.approx(stats.pearsonr(a.ravel(), b.ravel()).statistic)
    assert part == pytest.approx(np.corrcoef(a[mask], b[mask])[0, 1])
    assert part != pytest.approx(whole)
    assert normalised_correlation(Image(a, GRID), Image(-a, GRID)) == pytest.approx(-1.0)
    assert math.isnan(normalised_correlation(Image(a, GRID), Image(0 * a, GRID)))


def test_correlation_of_short_integers_does_not_overflow() -> None:
    a = np.random.default_rng(1).integers(-1000, 3000, GRID.shape).astype(np.int16)
    assert normalised_correlation(Image(a, GRID), Image(a, GRID)) == pytest.approx(1.0)


def test_images_on_other_grids_are_refused() -> None:
    other = Grid(GRID.size, GRID.spacing, (0.0, 0.0, 0.0))
    a, b = Image(np.ones(GRID.shape), GRID), Image(np.ones(GRID.shape), other)
    for call in (
        lambda: normalised_correlation(a, b),
        lambda: dice(a, b),
        lambda: folding_share(uniform((0, 0, 0)), b),
    ):
        with pytest.raises(ImageError, match="grid"):
            call()
    with pytest.raises(ImageError, match="empty"):
        normalised_correlation(a, a, Image(np.zeros(GRID.shape), GRID))


def test_displacement_error_by_hand() -> None:
    mask = np.zeros(GRID.shape)
    mask[1:3, 1:3, 1:3] = 1
    predicted = uniform((1, 2, 2))
    predicted.vectors[0, 0, 0] = 99.0  # outside the mask
    summary = displacement_error(predicted, uniform((0, 4, 1)), Image(mask, GRID))
    assert summary.count == 8
    assert summary.mean == pytest.approx(math.sqrt(6))
    assert summary.mean_absolute == pytest.approx((1, 2, 1))
    assert displacement_error(predicted, uniform((0, 4, 1))).count == 120


def test_displacement_error_of_a_coarser_field() -> None:
    matrix = np.array([[0.1, 0.02, 0], [0, -0.1, 0.03], [0.05, 0, 0.04]])
    fine, coarse = linear(matrix, TURNED), linear(matrix, TURNED.every(2))
    mask = np.zeros(TURNED.shape)
    mask[:6, :6, :8] = 1  # the coarse field reaches this far
    assert displacement_error(coarse, fine, Image(mask, TURNED)).max < 1e-10
    wrong = linear(matrix.T, TURNED.every(2))
    assert displacement_error(wrong, fine, Image(mask, TURNED)).max > 0.1


def test_folding_share() -> None:
    fold = linear(np.diag([-1.5, 0, 0]), TURNED)  # det = -0.5 everywhere
    stretch = linear(np.diag([0.5, 0, 0]), TURNED)
    assert folding_share(fold) == 1.0
    assert folding_share(stretch) == 0.0
    determinant = np.ones(GRID.shape)
    determinant[0, 0, :3] = (-1.0, 0.0, 0.1)
    assert folding_share(Image(determinant, GRID)) == pytest.approx(2 / 120)
    mask = np.zeros(GRID.shape)
    mask[0, 0] = 1
    assert folding_share(Image(determinant, GRID), Image(mask, GRID)) == pytest.approx(2 / 6)


def test_dice_by_hand() -> None:
    a, b = np.zeros(GRID.shape), np.zeros(GRID.shape)
    a[0, 0, :4] = 1
    b[0, 0, 2:] = 7  # any value but 0 counts
    assert dice(Image(a, GRID), Image(b, GRID)) == pytest.approx(2 * 2 / 8)
    assert math.isnan(dice(Image(0 * a, GRID), Image(0 * a, GRID)))


def test_moments_pool_as_if_all_errors_were_in_one_array() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(40, 3)) * (1, 2, 3) + 0.5
    pooled = sum((ErrorMoments.of(part) for part in (errors[:7], errors[7:7], errors[7:])), ErrorMoments.of(errors[:0]))
    components = np.abs(errors)
    values = [np.linalg.norm(errors, axis=1), components.sum(axis=1), *components.T]
    assert pooled.count == 40
    assert pooled.means == pytest.approx([v.mean() for v in values])
    assert pooled.sds == pytest.approx([v.std(ddof=1) for v in values])
    assert pooled.means[1] == pytest.approx(sum(pooled.means[2:]))  # the columns of the paper's MAE add up


@pytest.mark.parametrize("slab", [1, 10**9])
def test_transform_error_goes_through_the_whole_chain(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regnet_itk.metrics.measures._SLAB_VOXELS", slab)
    matrix = np.array([[0.9, 0.1, 0], [0, 1.1, 0.2], [0, 0, 1]])
    affine = Link(MatrixTransform(matrix, translation=np.array([30.0, -5.0, 2.0])))
    u = linear(np.array([[0.05, 0, 0], [0, 0, 0.02], [0, 0.04, 0]]), TURNED)
    chain = TransformChain((affine,)).then(link_field(u))
    points = TURNED.points()
    true = DisplacementField((points + u.vectors) @ matrix.T + affine.transform.offset - points, TURNED)
    mask = np.zeros(TURNED.shape)
    mask[2:5, 3:6, 1:7] = 1
    assert transform_error(chain, true, Image(mask, TURNED)).means == pytest.approx([0] * 5, abs=1e-9)
    assert transform_error(chain, true, Image(mask, TURNED)).count == 3 * 3 * 6
    off = DisplacementField(true.vectors + np.array([1.0, -2.0, 2.0]), TURNED)
    assert transform_error(chain, off).means == pytest.approx([3, 5, 1, 2, 2])
    assert transform_error(chain, off).count == 9 * 8 * 7
    with pytest.raises(ImageError, match="grid"):
        transform_error(chain, true, Image(np.ones(GRID.shape), GRID))


def test_log_jacobian_by_hand() -> None:
    determinant = np.full(GRID.shape, math.e)
    determinant[0, 0, :3] = (-1.0, 0.0, 1.0)
    mask = np.zeros(GRID.shape)
    mask[0, 0] = 1  # logarithms 0, 1, 1, 1 are left
    assert log_jacobian_sd(Image(determinant, GRID), Image(mask, GRID)) == pytest.approx(0.5)
    assert log_jacobian_sd(linear(np.diag([0.5, 0, 0]), TURNED)) == pytest.approx(0, abs=1e-5)
    assert math.isnan(log_jacobian_sd(linear(np.diag([-1.5, 0, 0]), TURNED)))


def test_dice_of_labels_by_hand() -> None:
    a, b = np.zeros(GRID.shape, int), np.zeros(GRID.shape, int)
    a[0, 0] = (1, 1, 1, 2, 2, 3)
    b[0, 0] = (1, 1, 2, 2, 5, 0)
    assert label_dice(Image(a, GRID), Image(b, GRID)) == pytest.approx({1: 2 * 2 / 5, 2: 2 / 4, 3: 0.0})
    assert label_dice(Image(0 * a, GRID), Image(b, GRID)) == {}
