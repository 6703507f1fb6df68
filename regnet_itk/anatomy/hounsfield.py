"""Whether an image looks like a CT in Hounsfield units."""

from __future__ import annotations

from regnet_itk.data.image import Image

AIR = -1000.0
"""HU."""


def is_hounsfield(image: Image) -> bool:
    """Say whether the values look like Hounsfield units: some are as low as those of air or lung."""
    return bool(image.array.min() < AIR / 2)
