"""What a user knows of an image beside its voxels, and what the displacement field has to make of it.

Labels guide the field; other masks protect what must not change, or say where there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np

from regnet_itk.data.image import Image, check_mask
from regnet_itk.errors import ImageError

Given = TypeVar("Given")


@dataclass(frozen=True, eq=False)
class Guides(Generic[Given]):
    """What is known of one image; each an image of whole numbers on its grid, where 0 is nothing.

    Parameters
    ----------
    label : optional
        Segmentations of structures that both images show, by the same numbers.
    ignore : optional
        Where there is nothing to compare: what only one image shows (a tumour, a resection, an implant), artefacts.
    rigid : optional
        What moves rigidly: one motion for each number.
    volume : optional
        What keeps its volume, by the same.
    sliding : optional
        What slides along its surroundings, such as the lungs.
    """

    label: Given | None = None
    ignore: Given | None = None
    rigid: Given | None = None
    volume: Given | None = None
    sliding: Given | None = None

    def given(self) -> Iterator[tuple[str, Given]]:
        """Yield the names and values of those that are there."""
        for member in fields(self):
            value = getattr(self, member.name)
            if value is not None:
                yield member.name, value


GUIDES = tuple(member.name for member in fields(Guides))
"""The names of all of them."""


def check_guides(guides: Guides[Image], image: Image, role: str) -> None:
    """Refuse guides that are empty, hold anything but whole numbers, or do not lie on the grid of their image.

    Parameters
    ----------
    guides : Guides of Image
    image : Image
    role : str
        "fixed" or "moving", for the message.

    Raises
    ------
    ImageError
    """
    for name, mask in guides.given():
        check_mask(mask, image, f"{role} {name}")


def masks_without(ignored: Image | None, images: Sequence[Image], masks: Sequence[Image]) -> list[Image | None]:
    """Return the masks of images less what is to be ignored in them.

    Parameters
    ----------
    ignored : Image, optional
        On the grid of the first image; of the others, what lies at the same place.
    images : sequence of Image
        Of one side.
    masks : sequence of Image
        Theirs: none, one for all of them, or one for each.

    Returns
    -------
    list of (Image or None)
        One for each image; the given ones, at least one entry, if nothing is to be ignored.
    """
    if ignored is None:
        return list(masks) or [None]
    found: list[Image | None] = []
    for number, image in enumerate(images):
        mask = masks[min(number, len(masks) - 1)] if masks else None
        grid = image.grid if mask is None else mask.grid
        there = mark(ignored).resampled(grid, order=0).array > 0
        found.append(Image(~there if mask is None else (mask.array != 0) & ~there, grid))
    return found


def mark(mask: Image) -> Image:
    """Return a mask with 1 where it is not 0, in a type that can be resampled."""
    return Image((mask.array != 0).astype(np.uint8), mask.grid)


def check_something_left(ignored: Image | None, mask: Image | None, role: str) -> None:
    """Refuse to ignore all of an image.

    Raises
    ------
    ImageError
    """
    if ignored is None:
        return
    compared = (ignored.array == 0) if mask is None else (ignored.array == 0) & (mask.array != 0)
    if not compared.any():
        what = f"{role} image" if mask is None else f"{role} mask"
        raise ImageError(f"the {role} ignore mask covers all of the {what}, and leaves nothing to compare")
