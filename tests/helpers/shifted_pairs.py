"""Pairs whose moving image is the fixed one, moved, and a stage that moves by a vector: quick, and known."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.data.landmarks import Landmarks, write_landmarks
from regnet_itk.errors import RegistrationError
from regnet_itk.pairs import Pair
from regnet_itk.parameters import ParameterMap, as_values
from regnet_itk.stages.base import Stage, StageResult
from regnet_itk.transforms.chain import Link
from regnet_itk.transforms.matrix import MatrixTransform

#: turned about x by 30 degrees, anisotropic, offset
GRID = Grid(
    (16, 14, 12), (1.5, 2.0, 2.5), (-20.0, 35.0, 10.0), ((1, 0, 0), (0, 0.75**0.5, -0.5), (0, 0.5, 0.75**0.5))
)  # fmt: skip
TRUE = np.array([3.0, -4.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Shift(Stage):
    """A stage that moves by a vector, and notes each run; it may also fail, die or wait, on pairs with masks alone."""

    name: str = "Shift"

    def run(self, pair, initial, options):
        values = self.parameters
        with Path(values.get_str("Log")).open("a", encoding="utf-8") as file:
            file.write(f"{self.name} {'masked' if pair.fixed_mask else 'unmasked'}\n")
        what = values.get_str("What", "")
        if values.get_bool("MaskedOnly", False) and pair.fixed_mask is None:
            what = ""
        if what == "fail":
            raise RegistrationError("it does not converge")
        if what == "die":
            os._exit(7)
        if what == "crash":
            raise ZeroDivisionError("a mistake")
        options.progress(0.5, "half")
        time.sleep(values.get_float("Wait", 0.0))
        move = MatrixTransform(np.eye(3), translation=np.array(values.get_floats("Vector", 3)))
        chain = initial.then(Link(move))
        grid = pair.fixed.grid
        warped = pair.moving.resampled(grid, chain.to_sitk(grid), 3, 0.0) if values.get_bool("Warp", False) else None
        return StageResult(chain, 1.25, warped, {"of": "a test"})


def shift(log, *vector, **more):
    values = {"Log": str(log), "Vector": vector or (0, 0, 0), **more}
    return Shift(ParameterMap({key: as_values(value) for key, value in values.items()}))


def runs(log):
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def make_pairs(folder):
    """Two pairs whose moving image is the fixed one moved by TRUE; the landmarks of the second are 1 mm off in x."""
    folder.mkdir()
    found = []
    rng = np.random.default_rng(0)
    for number, group in enumerate(("near", "far")):
        values = np.cumsum(rng.normal(0, 60, GRID.shape), axis=0) - 700
        fixed = Image(values.astype(np.int16), GRID)
        moving = Image(fixed.array, dataclasses.replace(GRID, origin=tuple(np.array(GRID.origin) + TRUE)))
        mask = np.zeros(GRID.shape, np.uint8)
        mask[3:9, 3:11, 3:12] = 1
        points = GRID.index_to_point(rng.uniform((4, 4, 4), (11, 9, 8), (12, 3)))
        files = {name: folder / f"{number}-{name}.mha" for name in ("fixed", "moving", "fixed_mask", "displacement")}
        files |= {name: folder / f"{number}-{name}.csv" for name in ("fixed_landmarks", "moving_landmarks")}
        for name, image in (("fixed", fixed), ("moving", moving), ("fixed_mask", Image(mask, GRID))):
            write_image(image, files[name])
        DisplacementField(np.broadcast_to(TRUE, (*GRID.shape, 3)).copy(), GRID).write(files["displacement"])
        write_landmarks(Landmarks(points), files["fixed_landmarks"])
        write_landmarks(Landmarks(points + TRUE + (number, 0, 0)), files["moving_landmarks"])
        found.append(Pair(f"p{number}", group=group, **files))
    return found
