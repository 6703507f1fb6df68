"""The regions that can be found in an image, by their names.

A region finder of another package is found through an entry point of the group ``regnet_itk.regions``, whose name is
the region's and whose object is the function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image
from regnet_itk.entry_points import list_entry_points, load_entry_point
from regnet_itk.errors import ParameterError, did_you_mean

if TYPE_CHECKING:
    from regnet_itk.anatomy.lungs import ChestMasks


class Scan:
    """An image with what has been found in it so far: two regions of one image share their work.

    Parameters
    ----------
    image : Image
    """

    def __init__(self, image: Image) -> None:
        self.image = image

    @cached_property
    def chest(self) -> ChestMasks:
        """The masks of a chest CT."""
        from regnet_itk.anatomy.lungs import ChestMasks

        return ChestMasks(self.image)

    def find(self, region: str, grid: Grid | None = None) -> Image:
        """Find a region.

        Parameters
        ----------
        region : str
            Its name.
        grid : Grid, optional
            Where it is wanted; the image's by default.

        Returns
        -------
        Image
            Boolean, on `grid`.

        Raises
        ------
        ImageError
            If it is not in the image.
        ParameterError
            If no region has this name.
        """
        return _finder(region)(self, grid or self.image.grid)


RegionFinder = Callable[[Scan, Grid], Image]
"""Takes a scan and a grid, and returns the region on the grid (boolean); raises ImageError if it is not there."""


def _find_lungs(scan: Scan, grid: Grid) -> Image:
    return scan.chest.lungs(grid)


def _find_body(scan: Scan, grid: Grid) -> Image:
    return scan.chest.body(grid)


def _find_foreground(scan: Scan, grid: Grid) -> Image:
    """Return the body of a CT, or what stands out from the dark surround of any other image."""
    from regnet_itk.anatomy.foreground import foreground_mask
    from regnet_itk.anatomy.hounsfield import is_hounsfield

    return scan.chest.body(grid) if is_hounsfield(scan.image) else foreground_mask(scan.image, grid)


def _find_all(scan: Scan, grid: Grid) -> Image:
    """Return where the image is."""
    everywhere = Image(np.ones(scan.image.grid.shape, dtype=np.uint8), scan.image.grid)
    return Image(everywhere.resampled(grid, order=0).array > 0, grid)


REGION_FINDERS: dict[str, RegionFinder] = {
    "lungs": _find_lungs,
    "body": _find_body,
    "foreground": _find_foreground,
    "all": _find_all,
}
"""The regions of this package: lungs and body of a CT in Hounsfield units; what stands out in any image; all of it."""

ENTRY_POINTS = "regnet_itk.regions"
"""The group of entry points through which other packages add theirs."""


def known_regions() -> tuple[str, ...]:
    """Return the names of all regions that can be found."""
    return tuple(dict.fromkeys((*REGION_FINDERS, *list_entry_points(ENTRY_POINTS))))


def check_region(name: str) -> None:
    """Refuse the name of a region that nobody can find.

    Raises
    ------
    ParameterError
    """
    if name not in REGION_FINDERS and name not in list_entry_points(ENTRY_POINTS):
        near = did_you_mean(name, known_regions()) or f"; known are {', '.join(known_regions())}"
        raise ParameterError(f"'{name}' is no region that can be found in an image{near}")


def _finder(name: str) -> RegionFinder:
    check_region(name)
    if name in REGION_FINDERS:
        return REGION_FINDERS[name]
    found: RegionFinder = load_entry_point(list_entry_points(ENTRY_POINTS)[name], "region", callable, ParameterError)
    return found
