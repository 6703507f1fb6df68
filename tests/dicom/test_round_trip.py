"""From two DICOM series by way of a registration to DICOM again: a registration object, a dose, structures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from dicom_cases import check_with_dciodvfy, planned_dose, raw_dose, registered_to_source
from scipy.spatial.transform import Rotation

from regnet_itk.data.image_files import read_image
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.reading import read_transform


def test_the_series_lies_where_it_was_put(registered):
    wanted = registered.place(registered.phantom.fixed)
    found = read_image(registered.folder / "fixed_series")
    assert found.grid.is_close(wanted.grid)
    np.testing.assert_array_equal(found.array, wanted.array)


def test_points_agree_with_the_run_in_our_reader_and_in_another(registered):
    folder, (fixed, moving) = registered.folder, registered.landmarks()
    anywhere = read_image(folder / "fixed_series").grid.random_points(2000, np.random.default_rng(0))
    points = np.concatenate([fixed, anywhere])
    wanted = read_chain(folder / "run" / "TransformParameters.1.txt").map_points(points)
    others = registered_to_source(folder / "reg.dcm", points)
    for found in (read_transform(folder / "reg.dcm").map_points(points), others):
        assert np.linalg.norm(found - wanted, axis=1).max() < 1e-3
    before, after = (np.linalg.norm(at - moving, axis=1).mean() for at in (fixed, others[: len(fixed)]))
    assert after < 0.3 * before  # the direction is the right one


def test_the_validator_finds_no_error(registered):
    check_with_dciodvfy(registered.folder / "reg.dcm")


# Dose and structures, of which the truth is known


@pytest.fixture(scope="module")
def carried(registered, tmp_path_factory):
    """Carry dose and structures by a transform; each once."""
    done = {}

    def carry(transform):
        if transform not in done:
            done[transform] = tmp_path_factory.mktemp("carried")
            words = (
                "-tp",
                transform,
                "-in",
                registered.folder / "dose.dcm",
                "-in",
                registered.folder / "structures.dcm",
            )
            out = ("-out", done[transform], "-loglevel", "off")
            assert call("transform", *words, *registered.both_series(), *out) == 0
        return done[transform]

    return carry


def in_lungs(registered, points):
    mask = registered.place(registered.phantom.fixed_mask)
    index = np.rint(mask.grid.point_to_index(points)).astype(int)
    there = ((index >= 0) & (index < mask.grid.size)).all(axis=-1)
    index[~there] = 0
    return there & (mask.array[index[..., 2], index[..., 1], index[..., 0]] > 0)


def dose_error(registered, folder):
    """The mean error in Gy in the lungs, where the true dose is above a tenth of 60 Gy."""
    found, points = raw_dose(folder / "result.dose.dcm")
    truth = planned_dose(registered.move(points), registered.tumour)
    where = in_lungs(registered, points) & (truth > 6)
    assert where.sum() > 300
    return np.abs(found - truth)[where].mean()


def best_rigid(registered):
    """The rigid transform that is nearest to the true motion in the lungs: no registration finds a better one."""
    points = registered.place(registered.phantom.fixed_mask).grid.points()
    points = points[in_lungs(registered, points)]
    moved = registered.move(points)
    turn, _ = Rotation.align_vectors(moved - moved.mean(axis=0), points - points.mean(axis=0))
    matrix = turn.as_matrix()
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix.ravel())
    transform.SetTranslation(moved.mean(axis=0) - matrix @ points.mean(axis=0))
    sitk.WriteTransform(transform, str(registered.folder / "rigid.tfm"))
    return registered.folder / "rigid.tfm"


def test_the_dose_is_nearer_to_the_truth_than_any_rigid_transform_takes_it(registered, carried):
    rigid = dose_error(registered, carried(best_rigid(registered)))
    ours = dose_error(registered, carried(registered.folder / "run" / "TransformParameters.1.txt"))
    assert ours < 0.4 * rigid
    assert rigid > 2


def test_the_registration_object_carries_as_the_transform_file_does(registered, carried):
    by_file, by_object = (
        raw_dose(carried(registered.folder / name) / "result.dose.dcm")[0]
        for name in ("run/TransformParameters.1.txt", "reg.dcm")
    )
    np.testing.assert_allclose(by_object, by_file, atol=0.01)


def test_volumes_are_the_true_ones_to_two_percent(registered, carried):
    """By the true motion, so that what is left is the error of carrying structures over."""
    grid = registered.place(registered.phantom.fixed).grid
    u = sitk.GetImageFromArray(registered.move(grid.points()) - grid.points(), isVector=True)
    u.SetSpacing(grid.spacing)
    u.SetOrigin(grid.origin)
    u.SetDirection(grid.direction_matrix.ravel())
    sitk.WriteTransform(sitk.DisplacementFieldTransform(u), str(registered.folder / "truth.h5"))
    folder = carried(registered.folder / "truth.h5")
    rows = json.loads((folder / "result.structures.structures.json").read_text(encoding="utf-8"))["structures"]
    found = {row["name"]: row["volume_after_cm3"] for row in rows}
    fine = grid.with_spacing((1.0, 1.0, 1.0))
    tumour = np.linalg.norm(registered.move(fine.points()) - registered.tumour, axis=-1) < 18
    assert found["Tumour"] == pytest.approx(tumour.sum() / 1000, rel=0.02)
    seen = registered.place(registered.phantom.moving).grid.contains(registered.move(grid.points()))
    lungs = (registered.phantom.fixed_mask.array > 0) & seen  # both scans cut them
    assert found["Lungs"] == pytest.approx(lungs.sum() * np.prod(grid.spacing) / 1000, rel=0.02)
    assert rows[1]["volume_before_cm3"] == pytest.approx(4 / 3 * np.pi * 1.8**3, rel=0.02)
    assert dose_error(registered, folder) < 0.5
