"""Lesions of known shape and place, and a folder of a run whose transform is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from shifted_pairs import shift

from regnet_itk.anatomy.nodules import FATES, add_nodules
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.followup.lesions import lesions_of_labels
from regnet_itk.registration import register
from regnet_itk.trust.error_map import ErrorMap

#: oblique by some 20 degrees, anisotropic, offset; its third axis is the one nearest to feet-to-head
_TURN = np.linalg.qr(np.array([[1.0, 0.2, -0.3], [-0.3, 1, 0.2], [0.2, -0.3, 1]]))[0]
_TURN = _TURN * np.sign(np.diag(_TURN))
OBLIQUE = Grid((70, 60, 40), (1.0, 1.1, 1.6), (-40.0, 25.0, 110.0), tuple(map(tuple, _TURN)))


def ball(grid, *balls):
    """Labels of balls (centre, radius) in mm, numbered from 1."""
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for number, (centre, radius) in enumerate(balls, start=1):
        labels[np.linalg.norm(grid.points() - centre, axis=-1) <= radius] = number
    return Image(labels, grid)


def lesions(grid, *balls):
    """Lesions that are balls, measured."""
    return lesions_of_labels(ball(grid, *balls))


def phantoms_with_nodules(seeds=(3, 4, 5)):
    """Ten nodules in each of some phantoms, whose own images are coarse; nodules are labelled on voxels of 1 mm."""
    for seed in seeds:
        phantom = make_phantom(seed, "followup" if seed % 2 else "breathing", spacing=(5.0, 5.0, 5.0), landmarks=0)
        yield add_nodules(phantom, seed, FATES if seed % 2 else (*FATES[:-1], "merged"))


SHIFT = np.array([14.0, -6.0, 4.0])
RUN_GRID = replace(OBLIQUE, size=(56, 48, 32))


def write_run(folder, error=1.0, verdict="good"):
    """Write images, the run that found SHIFT between them, and lesions: one that grew, one that went, one that came."""
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.normal(0, 20, RUN_GRID.shape), axis=0) - 700
    moving_grid = replace(RUN_GRID, origin=tuple(np.array(RUN_GRID.origin) + SHIFT))
    fixed, moving = Image(values.astype(np.int16), RUN_GRID), Image(values.astype(np.int16), moving_grid)
    centre = RUN_GRID.centre()
    marked = {
        "fixed": ball(RUN_GRID, (centre, 6.0), (centre + np.array([14, 8, 0]), 5.0)),
        "moving": ball(moving_grid, (centre + SHIFT + np.array([-14, 0, 4]), 4.0), (centre + SHIFT, 7.5)),
    }
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image, folder / f"{name}.mha")
        write_image(marked[name], folder / f"{name}_lesions.mha")
    result = register(folder / "fixed.mha", folder / "moving.mha", stages=[shift(folder / "log", *SHIFT)], threads=1)
    result.write(folder / "run")
    grid = RUN_GRID.isotropic(4.0)
    known = np.full((*grid.shape, 2), (error, 2.5 * error), dtype=np.float32)
    ErrorMap(known, grid).write(folder / "run" / "errorMap.0.mha")
    path = folder / "run" / "registration.json"
    record = json.loads(path.read_text()) | {"verdict": {"word": verdict, "reasons": []}}
    path.write_text(json.dumps(record))
    return folder / "run"
