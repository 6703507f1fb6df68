"""What tests of the plugin share: a pair of oblique, anisotropic images of which one is the other, moved."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image

AXES = [
    np.eye(3)[:, order] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
OBLIQUE = [Rotation.from_euler("zyx", (25, -15, 40), degrees=True).as_matrix() @ AXES[i] for i in (0, 13, 29, 46)]


@pytest.fixture(scope="session")
def oblique_images():
    """Images of anisotropic voxels whose axes lie in all 48 ways along the world's, or are oblique."""
    rng = np.random.default_rng(0)
    return [
        Image(
            rng.integers(-1000, 1000, (5, 6, 7)).astype(np.int16),
            Grid((7, 6, 5), (0.7, 2.0, 3.5), (10.5, -220.0, 1300.25), tuple(map(tuple, direction))),
        )
        for direction in AXES + OBLIQUE
    ]


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory):
    """A small digital chest of oblique grids as files."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(make_phantom(5, spacing=(3.9, 3.6, 4.4), extent=(160.0, 140.0, 130.0), landmarks=20), folder)
    return folder


@pytest.fixture(scope="session")
def quick_affine(tmp_path_factory):
    """A parameter file that is quick, and moves the image."""
    from quick_stages import AFFINE

    path = tmp_path_factory.mktemp("stages") / "quick.txt"
    path.write_text(AFFINE.to_text())
    return path


@pytest.fixture(scope="session")
def finished_run(phantom_folder, quick_affine, tmp_path_factory):
    """The folder of a registration of the phantom, with landmarks and a mask."""
    from command import call

    out = tmp_path_factory.mktemp("finished") / "run"
    files = {
        "-f": "fixed.mha", "-m": "moving.mha", "-fMask": "fixed_mask.mha", "-fp": "fixed_points.txt",
        "-mp": "moving_points.txt",
    }  # fmt: skip
    given = [word for flag, name in files.items() for word in (flag, phantom_folder / name)]
    stages = ("-p", quick_affine, "-p", "regnet_multistage_fast")
    assert call("run", *given, *stages, "-threads", 1, "-loglevel", "off", "-out", out) == 0
    return out
