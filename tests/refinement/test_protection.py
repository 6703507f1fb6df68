"""Rigid parts and volumes in fields: on turned anisotropic grids, after a T0 with shear, judged by SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.refinement.rigid_parts import fit_rigid
from regnet_itk.refinement.unfolding import least_determinants
from regnet_itk.stages.protection import Protected, Protection
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform

DIRECTION = tuple(map(tuple, Rotation.from_euler("xyz", (-12, 15, 25), degrees=True).as_matrix()))
IMAGE = Grid((60, 52, 30), (1.1, 1.3, 2.6), (-40.0, 25.0, 110.0), DIRECTION)
FIELD = IMAGE.isotropic(2.0)
SHEARED = MatrixTransform([[1.15, 0.12, -0.05], [-0.1, 0.9, 0.08], [0.06, -0.03, 1.08]], translation=[9.0, -14.0, 20.0])
INITIALS = {
    "nothing": TransformChain(),
    "shear": TransformChain((Link(SHEARED),)),
}


def waves(grid: Grid, size: float, seed: int = 0, width: float = 5.0) -> DisplacementField:
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=grid.shape), width) for _ in range(3)], axis=-1)
    return DisplacementField((size * smooth / np.abs(smooth).max()).astype(np.float32), grid)


def ball(centre: tuple[float, float, float], radius: float, number: int = 1) -> np.ndarray:
    middle = IMAGE.index_to_point((np.array(IMAGE.size) - 1) / 2 + centre / np.array(IMAGE.spacing))
    return number * (np.linalg.norm(IMAGE.points() - middle, axis=-1) < radius).astype(np.int16)


def labels(array: np.ndarray) -> Image:
    return Image(array, IMAGE)


def points_in(mask: np.ndarray, count: int = 3000) -> np.ndarray:
    """Return random points anywhere in the voxels of a mask."""
    rng = np.random.default_rng(1)
    index = np.argwhere(mask)[:, ::-1]
    chosen = index[rng.integers(0, len(index), count)] + rng.uniform(-0.5, 0.5, (count, 3))
    return IMAGE.index_to_point(chosen)


def composite(found: Protected, initial: TransformChain, folder) -> sitk.Transform:
    """Return the whole transform as SimpleITK reads it from the file that a run writes."""
    write_itk(initial.then(link_field(found.u)), folder / "T.h5", FIELD)
    return sitk.ReadTransform(str(folder / "T.h5"))


def moved(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points])


def largest_deviation(points: np.ndarray, mapped: np.ndarray) -> float:
    """Return how far a mapping is from the best rigid motion, found by SciPy's own alignment."""
    middle, there = points.mean(axis=0), mapped.mean(axis=0)
    turn, _ = Rotation.align_vectors(mapped - there, points - middle)
    return float(np.linalg.norm(turn.apply(points - middle) + there - mapped, axis=1).max())


def volumes(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """Return det J by finite differences of mapped points."""
    step = 0.01 * np.eye(3)
    columns = [(moved(transform, points + s) - moved(transform, points - s)) / 0.02 for s in step]
    return np.linalg.det(np.stack(columns, axis=-1))


@pytest.mark.parametrize("initial", INITIALS.values(), ids=INITIALS)
def test_every_rigid_label_moves_rigidly_and_the_field_does_not_fold(initial, tmp_path):
    u = waves(FIELD, 4.0)
    mask = ball((-14, 0, 0), 9, 2) + ball((12, 2, 4), 10, 7)
    found = Protection(rigid=labels(mask)).enforce(u, initial)
    transform = composite(found, initial, tmp_path)
    for number in (2, 7):
        points = points_in(mask == number)
        assert largest_deviation(points, initial.then(link_field(u)).map_points(points)) > 0.3  # it was not
        assert largest_deviation(points, moved(transform, points)) < 0.01
    assert found.deviations.keys() == {2, 7}
    assert max(mm.max() for mm in found.deviations.values()) < 0.01
    assert least_determinants(found.u.vectors, FIELD).min() > 0
    assert not list(found.warnings())
    far = ndimage.distance_transform_edt(mask == 0, sampling=IMAGE.spacing[::-1]) > 42
    changed = DisplacementField(found.u.vectors - u.vectors, FIELD).at(IMAGE.points()[far])
    assert np.abs(changed).max() < 1e-6


def test_the_motion_is_that_of_most_of_the_label():
    rng = np.random.default_rng(0)
    turn = Rotation.from_rotvec([0.05, -0.1, 0.08])
    points = rng.normal((100, -50, 20), 15, (500, 3))
    truth = turn.apply(points) + np.array([3, 1, -2])
    wrong = truth + rng.normal(0, 0.05, truth.shape)
    wrong[:120] += (6.0, -4.0, 3.0)
    found = fit_rigid(points, wrong)
    assert np.linalg.norm(found.map_points(points) - truth, axis=1).max() < 0.05


def test_a_joint_two_voxels_wide_breaks_neither_bone(tmp_path):
    """Two blocks, the second turned against the first, with a gap of 7 mm."""
    along = np.arange(IMAGE.size[0])
    mask = np.zeros(IMAGE.shape, dtype=np.int16)
    mask[8:22, 15:35, 8:26] = 1
    mask[8:22, 15:35, 33:50] = 2
    assert along[33] - along[25] == 8
    points = FIELD.points()
    pivot = IMAGE.index_to_point([29, 25, 15])
    second = (points - pivot) @ IMAGE.direction_matrix[:, 0] > 0
    turned = Rotation.from_rotvec(0.06 * IMAGE.direction_matrix[:, 2]).apply((points - pivot).reshape(-1, 3))
    u = np.where(second[..., None], turned.reshape(points.shape) + pivot - points, 0.0)
    u = np.stack([ndimage.gaussian_filter(u[..., c], 1.5) for c in range(3)], axis=-1).astype(np.float32)
    found = Protection(rigid=labels(mask)).enforce(DisplacementField(u, FIELD), INITIALS["shear"])
    transform = composite(found, INITIALS["shear"], tmp_path)
    for number in (1, 2):
        at = points_in(mask == number)
        assert largest_deviation(at, moved(transform, at)) < 0.01
    assert least_determinants(found.u.vectors, FIELD).min() > 0


def test_labels_that_touch_and_move_apart_are_told_of_with_numbers():
    mask = np.zeros(IMAGE.shape, dtype=np.int16)
    mask[8:22, 15:35, 8:27] = 1
    mask[8:22, 15:35, 27:50] = 2
    step = np.where(IMAGE.point_to_index(FIELD.points())[..., :1] > 26.5, 3.0, 0.0)
    u = step * IMAGE.direction_matrix[:, 1]
    found = Protection(rigid=labels(mask)).enforce(DisplacementField(u.astype(np.float32), FIELD), TransformChain())
    assert max(mm.max() for mm in found.deviations.values()) > 0.2
    assert any("from a rigid motion" in text and "mm" in text for text in found.warnings())


def test_parts_that_meet_at_corners_of_their_voxels_are_told_of(tmp_path):
    """One voxel of the field lies between them, diagonally: the voxels' middles are right, and the corners are not."""
    mask = np.zeros(FIELD.shape, dtype=np.int16)
    mask[8:18, 6:16, 6:16] = 1
    mask[19:29, 17:27, 17:27] = 2
    second = FIELD.point_to_index(FIELD.points())[..., 0] > 16
    u = DisplacementField((4.0 * second[..., None] * IMAGE.direction_matrix[:, 1]).astype(np.float32), FIELD)
    found = Protection(rigid=Image(mask, FIELD)).enforce(u, TransformChain())
    transform = composite(found, TransformChain(), tmp_path)
    truth = []
    for number, corner in {1: (15.48, 15.48, 17.48), 2: (16.52, 16.52, 18.52)}.items():
        at = FIELD.index_to_point(np.concatenate([np.argwhere(mask == number)[:, ::-1], [corner]]))
        truth.append(largest_deviation(at, moved(transform, at)))
    assert max(truth) > 0.2
    assert max(mm.max() for mm in found.deviations.values()) == pytest.approx(max(truth), rel=0.2)
    assert any("from a rigid motion" in text for text in found.warnings())


@pytest.mark.parametrize("initial", INITIALS.values(), ids=INITIALS)
def test_volume_is_kept_at_every_point_of_each_label(initial, tmp_path):
    u = waves(FIELD, 4.0)
    mask = ball((-14, 0, 0), 8, 3) + ball((12, 2, 4), 10, 4)
    found = Protection(volume=labels(mask)).enforce(u, initial)
    transform = composite(found, initial, tmp_path)
    for number in (3, 4):
        points = points_in(mask == number, 1500)
        assert np.abs(volumes(transform, points) - 1).max() < 0.02
    assert max(found.volume_changes.values()) < 0.02
    assert least_determinants(found.u.vectors, FIELD).min() > 0
    assert not list(found.warnings())


def test_volume_is_kept_after_a_field_as_well(tmp_path):
    initial = TransformChain((Link(SHEARED), link_field(waves(FIELD, 2.0, seed=5, width=6.0))))
    mask = ball((0, 0, 0), 9)
    found = Protection(volume=labels(mask)).enforce(waves(FIELD, 2.0), initial)
    points = points_in(mask == 1, 800)
    assert np.abs(volumes(composite(found, initial, tmp_path), points) - 1).max() < 0.03


def test_rigid_wins_where_both_are_wanted_and_it_is_said(tmp_path):
    rigid, volume = ball((-6, 0, 0), 8), ball((4, 0, 0), 10)
    both = Protection(labels(rigid), labels(volume))
    assert f"{np.count_nonzero(rigid & volume)} voxels" in str(both.overlap())
    found = both.enforce(waves(FIELD, 3.0), INITIALS["shear"])
    transform = composite(found, INITIALS["shear"], tmp_path)
    points = points_in(rigid > 0)
    assert largest_deviation(points, moved(transform, points)) < 0.01
    apart = ndimage.distance_transform_edt(rigid == 0, sampling=IMAGE.spacing[::-1]) > 6
    assert np.abs(volumes(transform, points_in((volume > 0) & apart, 800)) - 1).max() < 0.02


@pytest.mark.parametrize("voxels", [(1, 1, 1), (1, 1, 9), (1, 7, 9)], ids=["one", "line", "sheet"])
def test_parts_as_thin_as_one_voxel_turn_with_what_is_around(voxels, tmp_path):
    mask = np.zeros(IMAGE.shape, dtype=np.int16)
    mask[tuple(slice(14, 14 + n) for n in voxels)] = 1
    u = waves(FIELD, 3.0)
    found = Protection(rigid=labels(mask)).enforce(u, INITIALS["shear"])
    points = points_in(mask > 0, 200)
    mapped = moved(composite(found, INITIALS["shear"], tmp_path), points)
    assert largest_deviation(points, mapped) < 0.01
    before = INITIALS["shear"].then(link_field(u)).map_points(points)
    assert np.linalg.norm(mapped - before, axis=1).max() < 2.0


def test_folds_around_a_part_are_left_if_that_is_wanted():
    u = waves(FIELD, 30.0, width=2.5)
    given = Protection(rigid=labels(ball((0, 0, 0), 6)), unfold=False).enforce(u, TransformChain())
    unfolded = Protection(rigid=labels(ball((0, 0, 0), 6))).enforce(u, TransformChain())
    folds = [(least_determinants(found.u.vectors, FIELD) <= 0).mean() for found in (given, unfolded)]
    assert folds[1] < 0.5 * folds[0]


def test_nothing_to_protect_leaves_a_field_alone():
    u = waves(FIELD, 3.0)
    assert Protection().enforce(u, TransformChain()).u is u
