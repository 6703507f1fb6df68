"""How images are shown: by what they are, not by one modality's window."""

from __future__ import annotations

import numpy as np

from regnet_itk.anatomy.display import find_display
from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image

GRID = Grid((40, 36, 30), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0))


def tissue(level: float) -> Image:
    """Return a body of one density in air, with some noise."""
    distance = np.linalg.norm((GRID.points() - GRID.centre()) / [70.0, 60.0, 200.0], axis=-1)
    noise = 10 * np.random.default_rng(0).normal(size=GRID.shape)
    return Image((np.where(distance < 1, level, -1000.0) + noise).astype(np.float32), GRID)


def test_a_chest_has_the_lung_window_and_an_abdomen_that_of_soft_tissue() -> None:
    chest = make_phantom(1, spacing=(4.0, 4.0, 4.0)).fixed
    lung, soft = find_display(chest), find_display(tissue(40.0))
    assert lung is not None
    assert soft is not None
    assert lung.window[0] < -1000 < -500 < lung.window[1]
    assert -300 < soft.window[0] < 40 < soft.window[1] < 400
    assert find_display(chest, tissue(40.0)) == lung


def test_nothing_is_known_of_what_is_no_ct() -> None:
    mr = Image(tissue(40.0).array + 1500, GRID)
    assert find_display(mr) is None
    assert find_display(tissue(40.0), mr) is None
