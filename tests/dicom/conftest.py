"""A patient on oblique, anisotropic axes, as DICOM, and the registration of both scans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command import call
from dicom_cases import turned, write_patient
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import Phantom, make_phantom
from regnet_itk.data.image_files import write_image
from regnet_itk.parameters import read_parameter_map

OBLIQUE = Rotation.from_euler("zyx", [12, -9, 15], degrees=True).as_matrix()
SHIFT = np.array([30.0, -20.0, 110.0])


@dataclass(frozen=True)
class Registered:
    """The folder of a patient's files and the registration in it; the truth, in the patient's space."""

    folder: Path
    phantom: Phantom
    tumour: np.ndarray

    def place(self, image):
        """An image of the phantom in the patient's space."""
        return turned(image, OBLIQUE, SHIFT)

    def move(self, points):
        """The patient's true motion, fixed to moving."""
        return self.phantom.motion.map_points((points - SHIFT) @ OBLIQUE) @ OBLIQUE.T + SHIFT

    def landmarks(self):
        """The landmarks of the fixed and of the moving scan."""
        phantom = self.phantom
        return [points @ OBLIQUE.T + SHIFT for points in (phantom.fixed_landmarks, phantom.moving_landmarks)]

    def both_series(self):
        return ("--fixed-series", self.folder / "fixed_series", "--moving-series", self.folder / "moving_series")


@pytest.fixture(scope="package")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom")
    phantom = make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0))
    found = Registered(folder, phantom, write_patient(phantom, folder, OBLIQUE, SHIFT))
    write_image(found.place(phantom.fixed_mask), folder / "fixed_mask.mha")
    quick = read_parameter_map("affine").with_(
        NumberOfResolutions=1, ImagePyramidSchedule=[4, 4, 4], MaximumNumberOfIterations=60
    )
    (folder / "affine.txt").write_text(quick.to_text())
    images = ("-f", folder / "fixed_series", "-m", folder / "moving_series", "-fMask", folder / "fixed_mask.mha")
    stages = ("-p", folder / "affine.txt", "-p", "regnet_multistage")
    assert call("run", *images, *stages, "-threads", 1, "-loglevel", "off", "-out", folder / "run") == 0
    transform = folder / "run" / "TransformParameters.1.txt"
    assert call("convert", transform, folder / "reg.dcm", *found.both_series()) == 0
    return found
