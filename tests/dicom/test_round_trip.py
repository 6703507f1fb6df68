"""From two DICOM series by way of a registration to a DICOM registration object, and back."""

from __future__ import annotations

import numpy as np
import pytest
from command import call
from dicom_cases import check_with_dciodvfy, registered_to_source, turned, write_series
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.image_files import read_image, write_image
from regnet_itk.parameters import read_parameter_map
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.transforms.reading import read_transform

OBLIQUE = Rotation.from_euler("zyx", [12, -9, 15], degrees=True).as_matrix()
SHIFT = np.array([30.0, -20.0, 110.0])


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A folder with the series of a phantom on oblique, anisotropic axes, and with their registration."""
    folder = tmp_path_factory.mktemp("dicom")
    phantom = make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0))
    for side in ("fixed", "moving"):
        write_series(turned(getattr(phantom, side), OBLIQUE, SHIFT), folder / side, side)
    write_image(turned(phantom.fixed_mask, OBLIQUE, SHIFT), folder / "fixed_mask.mha")
    quick = read_parameter_map("affine").with_(
        NumberOfResolutions=1, ImagePyramidSchedule=[4, 4, 4], MaximumNumberOfIterations=60
    )
    (folder / "affine.txt").write_text(quick.to_text())
    arguments = ("-f", folder / "fixed", "-m", folder / "moving", "-fMask", folder / "fixed_mask.mha")
    stages = ("-p", folder / "affine.txt", "-p", "regnet_multistage")
    assert call("run", *arguments, *stages, "-threads", 1, "-loglevel", "off", "-out", folder / "run") == 0
    assert call("convert", folder / "run" / "TransformParameters.1.txt", folder / "reg.dcm",
                "--fixed-series", folder / "fixed", "--moving-series", folder / "moving") == 0  # fmt: skip
    fixed = turned(phantom.fixed, OBLIQUE, SHIFT)
    landmarks = [points @ OBLIQUE.T + SHIFT for points in (phantom.fixed_landmarks, phantom.moving_landmarks)]
    return folder, fixed, landmarks


def test_the_series_lies_where_it_was_put(registered):
    folder, fixed, _ = registered
    found = read_image(folder / "fixed")
    assert found.grid.is_close(fixed.grid)
    np.testing.assert_array_equal(found.array, fixed.array)


def test_points_agree_with_the_run_in_our_reader_and_in_another(registered):
    folder, fixed, (fixed_points, moving_points) = registered
    points = np.concatenate([fixed_points, fixed.grid.random_points(2000, np.random.default_rng(0))])
    wanted = read_chain(folder / "run" / "TransformParameters.1.txt").map_points(points)
    for found in (
        read_transform(folder / "reg.dcm").map_points(points),
        registered_to_source(folder / "reg.dcm", points),
    ):
        assert np.linalg.norm(found - wanted, axis=1).max() < 1e-3
    errors = [
        np.linalg.norm(found - moving_points, axis=1).mean()
        for found in (fixed_points, registered_to_source(folder / "reg.dcm", fixed_points))
    ]
    assert errors[1] < 0.5 * errors[0]  # the direction is the right one


def test_the_validator_finds_no_error(registered):
    check_with_dciodvfy(registered[0] / "reg.dcm")
