"""A whole run with rigid bones and a kept volume: what its files say, as SimpleITK reads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from command import call
from scipy import ndimage
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.parameters import read_parameter_map

#: as an affine stage may leave it: with scaling and shear
INITIAL = """(Transform "AffineTransform")
(NumberOfParameters 12)
(TransformParameters 1.03 0.02 0.0 -0.01 0.97 0.02 0.01 0.0 1.02 1.0 -1.5 2.0)
(CenterOfRotationPoint 0 0 0)
(HowToCombineTransforms "Compose")
(Size 10 10 10) (Index 0 0 0) (Spacing 1 1 1) (Origin 0 0 0) (Direction 1 0 0 0 1 0 0 0 1)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, inside the lungs' mask, and the points of what was protected."""
    folder = tmp_path_factory.mktemp("run")
    phantom = make_phantom(3, spacing=(4.0, 4.0, 4.4), extent=(290, 220, 180))
    grid = phantom.fixed.grid
    bones, _ = ndimage.label(phantom.fixed.array > 250)
    sizes = np.bincount(bones.ravel())
    spine, other = np.argsort(-sizes[1:])[:2] + 1
    rigid = (np.where(bones == spine, 4, 0) + np.where(bones == other, 9, 0)).astype(np.int16)
    heart = 2 * (np.linalg.norm(grid.points() - (20.0, -15.0, -20.0), axis=-1) < 22).astype(np.int16)
    images = {"fixed": phantom.fixed, "moving": phantom.moving, "lungs": phantom.fixed_mask}
    for name, image in (images | {"rigid": Image(rigid, grid), "heart": Image(heart, grid)}).items():
        write_image(image, folder / f"{name}.mha")
    (folder / "t0.txt").write_text("\n".join(INITIAL.replace(") (", ")\n(").splitlines()))
    stage = read_parameter_map("regnet_multistage").with_(RegNetInstanceIterations=10)
    (folder / "stage.txt").write_text(stage.to_text())
    flags = [("-f", "fixed"), ("-m", "moving"), ("-fMask", "lungs"), ("-fRigid", "rigid"), ("-fVolume", "heart")]
    arguments = [word for flag, name in flags for word in (flag, folder / f"{name}.mha")]
    more = ("-t0", folder / "t0.txt", "-p", folder / "stage.txt", "-threads", 1, "-loglevel", "off")
    assert call("run", *arguments, *more, "-out", folder / "run") == 0
    points = {
        number: grid.index_to_point(np.argwhere(mask == number)[:, ::-1][:1500])
        for mask, number in ((rigid, 4), (rigid, 9), (heart, 2))
    }
    return folder / "run", points


def moved(folder, points):
    transform = sitk.ReadTransform(str(folder / "TransformParameters.0-Composite.h5"))
    return np.array([transform.TransformPoint(point) for point in points])


@pytest.mark.parametrize("number", [4, 9])
def test_a_bone_outside_of_the_mask_moves_rigidly_on_top_of_shear(run, number):
    folder, points = run[0], run[1][number]
    mapped = moved(folder, points)
    middle, there = points.mean(axis=0), mapped.mean(axis=0)
    turn, _ = Rotation.align_vectors(mapped - there, points - middle)
    assert np.linalg.norm(turn.apply(points - middle) + there - mapped, axis=1).max() < 0.01
    assert np.linalg.norm(mapped - points, axis=1).mean() > 0.5


def test_the_volume_is_kept_on_top_of_shear(run):
    folder, points = run[0], run[1][2]
    columns = [(moved(folder, points + s) - moved(folder, points - s)) / 0.02 for s in 0.01 * np.eye(3)]
    assert np.abs(np.linalg.det(np.stack(columns, axis=-1)) - 1).max() < 0.02


def test_the_record_tells_of_each_number(run):
    record = json.loads((run[0] / "registration.json").read_text())
    (stage,) = record["stages"]
    assert stage["rigid_4_deviation_mm"] < 0.01 and stage["rigid_9_deviation_mm"] < 0.01
    assert stage["volume_2_largest_change"] < 0.02
    assert {"fixed_rigid", "fixed_volume"} <= record["inputs"].keys()
    assert record["folding"]["share_det_jacobian_not_positive"] == 0
