"""What a field has to do beside making images agree, as terms of instance optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

DisplacementAt = Callable[[Tensor], Tensor]
"""The displacement as it is in a step: takes indices (n, 3), z, y, x, anywhere on the grid of the pair that is
improved, and returns u (n, 3), x, y, z in mm along the axes of that grid, on the indices' device. It can be
differentiated by what is moved. Beyond the grid nothing is moved; u is what it was. Some thousand indices take some
hundredths of a second, so that a term with more draws some of them in each step."""


class Term(Protocol):
    """Something that a displacement should be like."""

    def cost(self, at: DisplacementAt) -> Tensor:
        """Return how far the displacement is from that, as a scalar, already weighed.

        The differences of the images, to which it is added, are mean squares of features from 0 to 1: some 0.05 where
        the images agree, some 0.2 where they do not.
        """
