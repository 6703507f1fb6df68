"""A breath of which all is known: tissue that expands by an affine map and keeps its mass, or wins some."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
from shifted_pairs import shift

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.registration import register
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.elastix_writing import write_elastix
from regnet_itk.transforms.matrix import MatrixTransform

_TURN = np.linalg.qr(np.array([[1.0, 0.3, -0.3], [-0.2, 1, 0.4], [0.3, -0.2, 1]]))[0]
_TURN = _TURN * np.sign(np.diag(_TURN))
#: oblique, anisotropic, offset
FIXED = Grid((34, 30, 24), (2.0, 2.4, 3.0), (30.0, -60.0, 200.0), tuple(map(tuple, _TURN)))
CENTRE = FIXED.centre()
MATRIX = np.array([[1.10, 0.03, 0.0], [-0.02, 1.06, 0.04], [0.0, 0.05, 1.12]])
GROWTH = float(np.linalg.det(MATRIX))
AFFINE = MatrixTransform(MATRIX, CENTRE, [4.0, -3.0, 2.0])
CHAIN = TransformChain((Link(AFFINE),))


def density(points):
    """g/ml in the fixed image: smooth, between 0.2 and 0.4."""
    x, y, z = np.moveaxis((points - CENTRE) / 40.0, -1, 0)
    return 0.3 + 0.05 * np.sin(2 * x + y) + 0.05 * np.cos(1.5 * z - y)


def breath(gain=1.0):
    """Images breathed out (fixed) and in (moving): det J is GROWTH everywhere, the latter has `gain` times the mass."""
    wide = replace(FIXED, size=(50, 44, 36), direction=np.eye(3), spacing=(2.2, 2.2, 2.6))
    wide = replace(wide, origin=tuple(AFFINE.map_points(CENTRE[None])[0] - (wide.centre() - np.array(wide.origin))))
    back = np.linalg.inv(MATRIX)
    before = (wide.points() - AFFINE.map_points(CENTRE[None])[0]) @ back.T + CENTRE
    hounsfield = [1000 * (values - 1) for values in (density(FIXED.points()), gain * density(before) / GROWTH)]
    return Image(hounsfield[0].astype(np.float32), FIXED), Image(hounsfield[1].astype(np.float32), wide)


def lungs():
    """An ellipsoid in the middle of the fixed image."""
    away = (FIXED.points() - CENTRE) @ FIXED.direction_matrix / (0.4 * np.array(FIXED.size) * FIXED.spacing)
    return Image((np.linalg.norm(away, axis=-1) < 1).astype(np.uint8), FIXED)


def write_run(folder):
    """Write the breath, a mask, labels of its halves, and a run that found its transform."""
    fixed, moving = breath()
    mask = lungs()
    halves = np.where(np.arange(FIXED.shape[0])[:, None, None] < FIXED.shape[0] // 2, 4, 9) * mask.array
    named = {"fixed": fixed, "moving": moving, "mask": mask, "lobes": Image(halves.astype(np.uint8), FIXED)}
    for name, image in named.items():
        write_image(image, folder / f"{name}.mha")
    found = register(folder / "fixed.mha", folder / "moving.mha", stages=[shift(folder / "log", 0, 0, 0)], threads=1)
    found.write(folder / "run")
    shutil.copy(write_elastix(CHAIN, folder)[-1], folder / "run" / "TransformParameters.0.txt")
    return folder / "run"
