"""The step of a RegNet stage that lets something slide: each side is improved by itself, then both are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from regnet_itk.data.image import Image

if TYPE_CHECKING:
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.stages.base import Detail

SIDE_ITERATIONS = (20, 20, 30)
"""Steps of instance optimisation for each side: wide B-splines first, as its start may be a centimetre off."""

_INNER_DONE = 0.7  # of the stage's work
_SHELL = 25.0  # mm around what slides that are improved as well
_FINE = 0.75  # voxels of the field that slides, in voxels of the network


class Improve(Protocol):
    """Improves a field inside a region (boolean), and tells the progress from one share to another."""

    def __call__(
        self, u: DisplacementField, *, region: Image, since: float = ..., until: float = ...
    ) -> DisplacementField:
        """Return the better field."""


@dataclass(frozen=True)
class SlidingResult:
    """A field that may slide.

    Parameters
    ----------
    u : DisplacementField
        On finer voxels than before.
    details : mapping
        What is recorded: the largest slip, and what still gapes; nothing if the mask has no border, and nothing slides.
    """

    u: DisplacementField
    details: dict[str, Detail]


def let_slide(
    u: DisplacementField,
    mask: Image,
    region: Image,
    improve: Improve,
    scale: float = 1.0,
) -> SlidingResult:
    """Let what a mask shows slide along its surroundings.

    Parameters
    ----------
    u : DisplacementField
        What was found without sliding, mm, LPS.
    mask : Image
        On the fixed side; voxels other than 0 slide.
    region : Image
        Boolean: where the images are compared, on the voxels on which a field is improved.
    improve : Improve
        Improves one side.
    scale : float
        Of all lengths.
    """
    from regnet_itk.refinement.sliding import Border, carry_to_border, close_gaps, join_sides

    border, on_region = Border.of(mask, u.grid, scale), Border.of(mask, region.grid, scale)
    if border is None or on_region is None:
        return SlidingResult(u, {})
    wanted, distance = region.array.astype(bool), on_region.distance
    inner, outer = carry_to_border(u, border)
    around = wanted & (distance < 0) & (distance > -scale * _SHELL)
    inner = improve(inner, region=Image(wanted & (distance > 0), region.grid), until=_INNER_DONE)
    outer = improve(outer, region=Image(around, region.grid), since=_INNER_DONE)
    inner, outer, gap = close_gaps(inner, outer, border)
    joined, slips = join_sides(u, inner, outer, border, u.grid.isotropic(_FINE * min(u.grid.spacing)))
    details: dict[str, Detail] = {
        "largest_slip_mm": round(float(np.percentile(slips, 99)), 2),
        "sliding_gap_mm": round(gap, 3),
    }
    return SlidingResult(joined, details)
