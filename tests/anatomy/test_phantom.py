"""The phantom's images, field and landmarks agree with each other, judged by SimpleITK and numpy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from regnet_itk.anatomy.phantom import Phantom, make_phantom, write_phantom
from regnet_itk.data.field import read_displacement_field
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import read_image
from regnet_itk.errors import OutputError, ParameterError


@cache
def coarse(seed: int, kind: str = "breathing", noise: float = 0.0, amplitude: float | None = None) -> Phantom:
    return make_phantom(seed, kind, spacing=(8.0, 8.0, 8.0), noise=noise, amplitude=amplitude, oblique=False)


@pytest.fixture(scope="module")
def clean() -> Phantom:
    """Without noise and density change: I_F(x) = I_M(T(x)) but for the sampling."""
    return make_phantom(1, spacing=(1.6, 1.5, 2.0), extent=(250.0, 90.0, 110.0), noise=0.0, density_change=False)


@pytest.fixture(scope="module")
def files(clean: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "made" / "here"
    write_phantom(clean, folder)
    return folder


def read_points(path: Path) -> np.ndarray:
    kind, count, *lines = path.read_text(encoding="utf-8").splitlines()
    assert kind == "point"
    points = np.array([[float(word) for word in line.split()] for line in lines])
    assert points.shape == (int(count), 3)
    return points


def seen_by_both(phantom: Phantom) -> np.ndarray:
    """Say which voxels of the fixed lungs lie in the moving image."""
    grid = phantom.moving.grid
    inner = grid.pad((-3, -3, -3), (-3, -3, -3))
    return inner.contains(phantom.displacement.map_points(phantom.fixed.grid.points())) & (phantom.fixed_mask.array > 0)


def rms(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> float:
    return float(np.sqrt(((a.astype(float) - b)[inside] ** 2).mean()))


def test_fixed_shows_what_moving_shows_at_the_mapped_points(clean: Phantom, files: Path) -> None:
    fixed, moving = (sitk.ReadImage(str(files / f"{name}.mha"), sitk.sitkFloat32) for name in ("fixed", "moving"))
    mask = seen_by_both(clean)
    assert mask.sum() > 50_000
    field = sitk.ReadImage(str(files / "true_displacement.mha"), sitk.sitkVectorFloat64)
    minus = sitk.Compose([-sitk.VectorIndexSelectionCast(field, c) for c in range(3)])
    swapped = sitk.Compose([sitk.VectorIndexSelectionCast(field, c) for c in (2, 1, 0)])
    assert not np.allclose(fixed.GetDirection(), moving.GetDirection())
    assert fixed.GetSize() != moving.GetSize()
    assert fixed.GetOrigin() != moving.GetOrigin()
    value = sitk.GetArrayFromImage(fixed)

    def residual(vectors: sitk.Image | None) -> float:
        transform = sitk.Transform(3, sitk.sitkIdentity)
        if vectors is not None:
            transform = sitk.DisplacementFieldTransform(sitk.Image(vectors))  # it takes the pixels away
        warped = sitk.Resample(moving, fixed, transform, sitk.sitkBSpline, -1000.0)
        return rms(sitk.GetArrayFromImage(warped), value, mask)

    before, after = residual(None), residual(field)
    assert after < 0.2 * before
    assert after < 50.0  # edges of 1.4 mm, seen with voxels of up to 2 mm
    for shift in 0.3 * np.concatenate([np.eye(3), -np.eye(3)]):  # mm: no better field is near
        moved = sitk.GetImageFromArray(sitk.GetArrayFromImage(field) + shift, isVector=True)
        moved.CopyInformation(field)
        assert residual(moved) > 1.05 * after
    assert residual(minus) > before
    assert residual(swapped) > before


def test_masks_follow_the_same_motion(clean: Phantom) -> None:
    warped = clean.moving_mask.resampled(clean.fixed.grid, clean.displacement.to_sitk_transform(), order=0).array > 0
    inside = clean.moving.grid.contains(clean.displacement.map_points(clean.fixed.grid.points()))
    both = np.array([warped, clean.fixed_mask.array > 0])[:, inside]
    assert 2 * both.all(axis=0).sum() / both.sum() > 0.99


def test_masks_are_the_lungs() -> None:
    phantom = make_phantom(4, spacing=(4.0, 4.0, 4.0), noise=0.0)
    for image, mask in ((phantom.fixed, phantom.fixed_mask), (phantom.moving, phantom.moving_mask)):
        inside = mask.array > 0
        litres = inside.sum() * np.prod(mask.grid.spacing) / 1e6
        assert 2.0 < litres < 6.0
        assert -900 < np.median(image.array[inside]) < -780
        assert np.mean(image.array[inside] < -600) > 0.9
        assert set(np.unique(mask.array)) == {0, 1}
        assert image.array.dtype == np.int16


def test_landmarks_fit_the_field(clean: Phantom, files: Path) -> None:
    fixed, moving = (read_points(files / f"{name}_points.txt") for name in ("fixed", "moving"))
    np.testing.assert_array_equal(fixed, clean.fixed_landmarks)  # repr keeps every digit
    np.testing.assert_array_equal(moving, clean.moving_landmarks)
    assert len(fixed) >= 60
    np.testing.assert_allclose(clean.motion.map_points(fixed), moving, atol=1e-6)
    field = sitk.ReadImage(str(files / "true_displacement.mha"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    mapped = np.array([transform.TransformPoint(point) for point in fixed.tolist()])
    np.testing.assert_allclose(mapped, moving, atol=0.03)  # the field is linear between its voxels
    assert np.linalg.norm(fixed - moving, axis=1).mean() > 3.0


def test_field_is_the_motion_at_every_voxel(clean: Phantom, files: Path) -> None:
    field = read_displacement_field(files / "true_displacement.mha")
    points = field.grid.points()
    np.testing.assert_allclose(points + field.vectors, clean.motion.map_points(points), atol=1e-4)
    np.testing.assert_allclose(clean.motion.invert_points(points[::9, ::9, ::9] + field.vectors[::9, ::9, ::9]),
                               points[::9, ::9, ::9], atol=1e-4)  # fmt: skip


def test_landmarks_lie_on_vessels(clean: Phantom) -> None:
    pairs = ((clean.fixed, clean.fixed_landmarks), (clean.moving, clean.moving_landmarks))
    for image, points in pairs:
        index = image.grid.point_to_index(points)[:, ::-1].T
        here = ndimage.map_coordinates(image.array.astype(float), index, order=1)
        around = ndimage.percentile_filter(image.array[::2, ::2, ::2], 50, size=9)
        usual = ndimage.map_coordinates(around.astype(float), index / 2, order=1)
        assert np.mean(here - usual > 250) > 0.95
        assert np.median(here - usual) > 500


@pytest.mark.parametrize("kind", ["breathing", "followup"])
@pytest.mark.parametrize("seed", [0, 4])
def test_motion_is_plausible_and_does_not_fold(kind: str, seed: int) -> None:
    phantom = coarse(seed, kind)  # not oblique: SimpleITK's determinant ignores directions
    determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(phantom.displacement.to_sitk()))
    exact = phantom.motion.jacobian_determinant(phantom.fixed.grid.points())
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(determinant[inner], exact[inner], atol=0.04)
    assert exact.min() > 0.2
    inside = phantom.fixed_mask.array > 0
    length = np.linalg.norm(phantom.displacement.vectors[inside], axis=-1)
    mean, most = ((5.0, 10.5), (12.0, 21.0)) if kind == "breathing" else ((1.0, 5.0), (3.0, 8.0))
    assert mean[0] < length.mean() < mean[1]
    assert most[0] < length.max() < most[1]
    if kind == "breathing":  # fixed is breathed out: the diaphragm goes down (-z) from fixed to moving
        assert phantom.displacement.vectors[inside][:, 2].mean() < -4.0
        assert phantom.fixed_mask.array.sum() < phantom.moving_mask.array.sum()


def test_lungs_and_belly_slide_along_the_wall() -> None:
    """By 25 mm at most; nothing gapes or overlaps: the map has an inverse everywhere."""
    phantom = make_phantom(4, "sliding", spacing=(6.0, 6.0, 6.0), noise=0.0, amplitude=25.0)
    points = phantom.fixed.grid.points()
    assert phantom.fixed_sliding is not None
    slides = phantom.fixed_sliding.array > 0
    np.testing.assert_array_equal(phantom.motion.slides(points), slides)
    assert (slides | (phantom.fixed_mask.array == 0)).all()
    np.testing.assert_allclose(phantom.motion.invert_points(phantom.motion.map_points(points)), points, atol=1e-5)
    assert phantom.motion.jacobian_determinant(points).min() > 0.3  # on either side
    u = phantom.displacement.vectors
    across = [np.abs(np.diff(u[..., 2], axis=axis))[np.diff(slides, axis=axis)] for axis in (1, 2)]
    assert 15.0 < max(step.max() for step in across) < 30.0
    near = ndimage.binary_dilation(slides) & ndimage.binary_dilation(~slides)

    def likeness(vectors: np.ndarray) -> float:
        index = phantom.moving.grid.point_to_index(points + vectors)[..., ::-1]
        shown = ndimage.map_coordinates(phantom.moving.array.astype(float), np.moveaxis(index, -1, 0), order=1)
        return float(np.corrcoef(shown[near], phantom.fixed.array[near])[0, 1])

    blurred = ndimage.gaussian_filter(u, (3, 3, 3, 0))  # as if it did not slide
    assert 1.0 - likeness(u) < 0.6 * (1.0 - likeness(blurred))


def test_amplitude_sets_the_diaphragm() -> None:
    small, large = (coarse(0, amplitude=amplitude) for amplitude in (2.0, 20.0))
    lengths = [np.linalg.norm(p.displacement.vectors, axis=-1)[p.fixed_mask.array > 0].max() for p in (small, large)]
    assert lengths[0] < 8 < 16 < lengths[1]
    assert large.motion.jacobian_determinant(large.fixed.grid.points()).min() > 0.2


def test_density_change_keeps_the_mass_of_the_lungs() -> None:
    def mass(image: Image, mask: Image) -> float:
        inside = ndimage.binary_erosion(mask.array > 0)
        parenchyma = inside & (image.array < -650)
        return float((image.array[parenchyma] + 1000.0).mean() * mask.array.sum())

    ratios = []
    for change in (True, False):
        phantom = make_phantom(4, spacing=(5.0, 5.0, 5.0), noise=0.0, density_change=change)
        ratios.append(mass(phantom.fixed, phantom.fixed_mask) / mass(phantom.moving, phantom.moving_mask))
    assert ratios[0] == pytest.approx(1.0, abs=0.03)
    assert ratios[1] < 0.95


def test_seeds() -> None:
    first, same, other = coarse(0, noise=30.0), coarse.__wrapped__(0, noise=30.0), coarse(4)
    assert first is not same
    for name in ("fixed", "moving", "fixed_mask", "moving_mask"):
        np.testing.assert_array_equal(getattr(first, name).array, getattr(same, name).array)
    np.testing.assert_array_equal(first.displacement.vectors, same.displacement.vectors)
    np.testing.assert_array_equal(first.fixed_landmarks, same.fixed_landmarks)
    assert first.fixed.grid.size == other.fixed.grid.size
    assert np.corrcoef(first.fixed.array.ravel(), other.fixed.array.ravel())[0, 1] < 0.97
    assert np.abs(first.displacement.vectors - other.displacement.vectors).max() > 1.0
    assert not np.array_equal(first.moving_landmarks[:20], other.moving_landmarks[:20])


def test_noise_is_as_strong_as_asked() -> None:
    quiet, loud = (coarse(0, noise=noise) for noise in (0.0, 30.0))
    difference = loud.fixed.array.astype(float) - quiet.fixed.array
    assert np.std(difference[quiet.fixed.array > -850]) == pytest.approx(30.0, rel=0.05)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="did you mean 'breathing'"):
        make_phantom(kind="breething")
    with pytest.raises(ParameterError, match="amplitude"):
        make_phantom(amplitude=-1.0)
    with pytest.raises(ParameterError, match="noise"):
        make_phantom(noise=-1.0)


def test_folder_that_cannot_be_written(clean: Phantom, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_phantom(clean, tmp_path / "file" / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_files(files: Path, clean: Phantom) -> None:
    assert sorted(f.name for f in files.iterdir()) == [
        "fixed.mha", "fixed_mask.mha", "fixed_points.txt", "moving.mha", "moving_mask.mha", "moving_points.txt",
        "true_displacement.mha",
    ]  # fmt: skip
    again = read_image(files / "moving.mha")
    assert again.grid.is_close(clean.moving.grid)
    np.testing.assert_array_equal(again.array, clean.moving.array)
