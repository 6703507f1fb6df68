"""What the tests of the commands `transform` and `invert` share: images, chains, and calls of both programs."""

from __future__ import annotations

import re
import subprocess

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.parameters import ParameterMap
from regnet_itk.transforms.bspline import BSplineTransform
from regnet_itk.transforms.chain import Link, TransformChain, link_field
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling_keys import make_resampling_parameters as settings_on

ROTATED = Rotation.from_euler("zyx", [25, -15, 40], degrees=True).as_matrix()
FIXED = Grid((22, 20, 16), (2.0, 2.5, 3.5), (-40.0, 15.0, 130.0), ROTATED)
MOVING = Grid(
    (30, 26, 22), (1.9, 2.2, 3.1), (-48.0, 10.0, 114.0), Rotation.from_euler("x", 35, degrees=True).as_matrix()
)
SETTINGS = settings_on(FIXED, order=3, default=-7.6, pixel_type="short")


def smooth_field(seed=0, peak=4.0, grid=FIXED):
    """A smooth field that is zero at the border of its grid."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(*grid.shape, 3)), (3, 3, 3, 0))
    for axis, n in enumerate(grid.shape):
        ramp = np.clip(np.minimum(np.arange(n), np.arange(n)[::-1]) / 4, 0, 1)
        noise *= ramp.reshape([-1 if a == axis else 1 for a in range(4)])
    return DisplacementField((noise * (peak / np.abs(noise).max())).astype(np.float32), grid)


def affine():
    matrix = np.eye(3) + np.random.default_rng(5).normal(size=(3, 3)) * 0.05
    return MatrixTransform(matrix, FIXED.centre(), np.array([2.5, -3.5, 1.5]))


def bspline():
    grid = Grid((13, 13, 12), (9.0, 9.0, 11.0), tuple(FIXED.index_to_point([-16, -12, -9])), ROTATED)
    return BSplineTransform(np.random.default_rng(8).normal(size=(*grid.shape, 3)) * 1.5, grid)


def plain(transform, **changed):
    return Link(transform, parameters=ParameterMap({**SETTINGS, **changed}))


CHAINS = {
    "affine": TransformChain((plain(affine()),)),
    "affine, bspline": TransformChain((plain(affine()), plain(bspline()))),
    "affine, field": TransformChain((plain(affine()), link_field(smooth_field(), SETTINGS))),
    "bspline, field (parts)": TransformChain((plain(bspline()), link_field(smooth_field(), SETTINGS))),
    "field, bspline": TransformChain((link_field(smooth_field(), SETTINGS), plain(bspline()))),
}
DIFFERENTIABLE = ("affine", "affine, bspline")
"""Those of which the program transformix can compute the Jacobian."""


def moving_image():
    values = gaussian_filter(np.random.default_rng(3).normal(size=MOVING.shape), 2)
    return Image((values * (400 / np.abs(values).max())).astype(np.float32), MOVING)


def fixed_points(n=12):
    index = np.random.default_rng(1).uniform(2, np.asarray(FIXED.size) - 3, (n, 3))
    return FIXED.index_to_point(index).round(3)


def write_points(path, points, kind="point"):
    path.write_text(f"{kind}\n{len(points)}\n" + "".join(" ".join(map(repr, p)) + "\n" for p in points.tolist()))
    return path


def read_output(folder, name="OutputPoint"):
    found = re.findall(rf"{name} = \[ ([^]]*) \]", (folder / "outputpoints.txt").read_text(encoding="utf-8"))
    return np.array([line.split() for line in found], dtype=float)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def transformix(*arguments):
    """Run elastix's program, which now and then aborts (5.0.1) and then has to be asked again."""
    for _ in range(3):
        words = ["transformix", *map(str, arguments), "-threads", "1"]
        done = subprocess.run(words, capture_output=True, timeout=60, check=False)
        if done.returncode >= 0:
            break
    assert done.returncode == 0, done.stdout[-500:]
