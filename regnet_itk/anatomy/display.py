"""How images of a modality are shown: their unit, grey window and what is told apart, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from regnet_itk.anatomy.hounsfield import is_hounsfield
from regnet_itk.anatomy.lungs import shows_lungs
from regnet_itk.data.image import Image


@dataclass(frozen=True)
class Display:
    """How the values of a modality are shown.

    Parameters
    ----------
    unit : str
        Of the values.
    window : tuple of float
        Values that are black and white in pictures.
    difference : float
        Differences from minus to plus this have colours.
    span : tuple of float
        Values between which the viewer of a report tells differences.
    """

    unit: str
    window: tuple[float, float]
    difference: float
    span: tuple[float, float]


CHEST_CT = Display("HU", (-1350.0, 150.0), 500.0, (-1024.0, 500.0))
"""The lung window; the viewer goes from air to dense bone."""

BODY_CT = Display("HU", (-160.0, 240.0), 200.0, (-1024.0, 500.0))
"""The window of soft tissue, for CTs without lungs."""


def find_display(*images: Image) -> Display | None:
    """Return how images are shown that belong together; None if nothing is known about them.

    Their percentiles say then what is black and white.
    """
    if not all(map(is_hounsfield, images)):
        return None
    return CHEST_CT if any(map(shows_lungs, images)) else BODY_CT
