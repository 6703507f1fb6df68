"""Which stages run if none is named: judged on phantoms, turned, cut, and in other contrasts."""

from __future__ import annotations

import numpy as np
import pytest

from regnet_itk.anatomy.lungs import shows_lungs
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.parameters import read_parameter_map
from regnet_itk.stages.choice import ANY_STAGES, CHEST_CT_STAGES, choose_stages

PHANTOM = make_phantom(1, spacing=(5.0, 4.5, 6.0))
FIXED, MOVING = PHANTOM.fixed, PHANTOM.moving


def with_axes_swapped(image: Image) -> Image:
    """The same image, stored with its slices along x: the body's axis is the array's last one."""
    d = np.asarray(image.grid.direction_matrix)[:, [2, 1, 0]]
    grid = Grid(image.grid.size[::-1], image.grid.spacing[::-1], image.grid.origin, tuple(map(tuple, d)))
    return Image(np.ascontiguousarray(image.array.transpose(2, 1, 0)), grid)


def below_the_diaphragm(image: Image) -> Image:
    """What a scan of the abdomen shows: the lungs' bases at one end only."""
    lungs = np.flatnonzero((image.array < -700).any(axis=(1, 2)))
    kept = slice(0, lungs[0] + (lungs[-1] - lungs[0]) // 4)
    repeated = np.repeat(image.array[:1], image.array.shape[0], axis=0)  # there is more of the body below
    array = np.concatenate([repeated, image.array[kept]])
    return Image(array, Grid(array.shape[::-1], image.grid.spacing, image.grid.origin, image.grid.direction))


def test_two_chests_get_the_chest_s_model() -> None:
    for fixed, moving in ((FIXED, MOVING), (with_axes_swapped(FIXED), MOVING)):
        choice = choose_stages(fixed, moving)
        assert choice.stages == CHEST_CT_STAGES
    assert choice.describe() == (
        "no stage was named: affine, then regnet_multistage, as both images look like CTs of the chest"
    )


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize(
    "other",
    [
        Image((-FIXED.array).astype(np.float32), FIXED.grid),
        Image(((FIXED.array + 1024.0) / 3).astype(np.float32), FIXED.grid),
        below_the_diaphragm(FIXED),
        Image(np.full((40, 40, 40), 40.0, dtype=np.float32), Grid((40, 40, 40), (3.0, 3.0, 3.0))),
    ],
    ids=["inverted", "no HU", "abdomen", "nothing"],
)
def test_all_else_gets_the_general_model(other: Image, role: str) -> None:
    choice = choose_stages(other, MOVING) if role == "fixed" else choose_stages(FIXED, other)
    assert choice.stages == ANY_STAGES
    assert choice.reason == f"the {role} image does not look like a CT of the chest"


def test_both_choices_are_shipped() -> None:
    for name in (*CHEST_CT_STAGES, *ANY_STAGES):
        read_parameter_map(name)


def test_a_glance_is_enough_for_a_chest_on_fine_and_on_coarse_voxels() -> None:
    for spacing in ((2.0, 2.0, 2.0), (6.0, 5.0, 9.0)):
        size = [max(1, int(n * s / t)) for n, s, t in zip(FIXED.grid.size, FIXED.grid.spacing, spacing, strict=True)]
        grid = Grid(tuple(size), spacing, FIXED.grid.origin, FIXED.grid.direction)
        assert shows_lungs(FIXED.resampled(grid, default=-1000.0))
