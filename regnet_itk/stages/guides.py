"""What a user knows of an image beside its voxels, and what the displacement field has to make of it.

Labels guide the field; other masks protect what must not change, or say where there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from regnet_itk.data.image import Image, check_mask

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
