"""A model's world: what its images show, and how their values are to be read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from regnet_itk.anatomy.regions import Scan, check_region
from regnet_itk.data.grid import FloatArray
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, ParameterError

Range = tuple[float, float]

_DARKEST = 0.5  # percentile: what an image has where there is nothing
_ENOUGH = 1_000_000  # values to take percentiles of


@dataclass(frozen=True)
class World:
    """What a model's images show, how their values are to be read, and where in them it works.

    A recipe gives it as a table ``[world]``; it travels in the model's description. Values are in `unit`.
    """

    images: str
    """In a few words, for messages: "chest CT"."""
    unit: str
    """Of the values: "HU", "per mille"."""
    intensity_range: Range
    """These values become -1 and 1; what lies outside is clipped."""
    background: float
    """What lies beyond an image, and where there is nothing; no value of importance is lower."""
    region: str
    """Where it predicts if no mask is given: what lies outside was not seen, or hardly, in training."""
    trained_in: str
    """Where training looks: blocks are drawn from this region and judged in it."""
    improved_in: str = ""
    """Where instance optimisation works if no mask is given; else, and if it is not found, where the network
    predicts."""
    percentiles: Range | None = None
    """Images are first scaled so that these percentiles of their values become the ends of `intensity_range`: for
    scanners whose values have no unit. None takes the values as they are."""
    percentiles_in: str = "all"
    """The region whose values the percentiles are of; of the whole image where it is not found."""
    voxel_sizes: Range | None = None
    """mm. The model counts in voxels and works on any size between these, chosen for each pair; None keeps to the
    voxels of its training."""
    any_contrast: bool = False
    """What is bright in one image may be dark in the other."""
    dark: float | None = None
    """Every image has values below this inside of its region; one that has none is warned of. None expects nothing."""
    highest: float | None = None
    """Higher values are cut off in training; by default those more than three times the width of `intensity_range`
    above `background`."""
    smallest: float = 54.0
    """mm. An image to train on must measure so much along each axis."""
    long_axis: int = 2
    """The image's axis (0 for x) along which the body lies: breathing moves along it, slices are thick along it."""

    def __post_init__(self) -> None:
        low, high = self.intensity_range
        if not low < high:
            raise ParameterError(f"an empty intensity range: {low:g} to {high:g}")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            given = " to ".join(f"{p:g}" for p in self.percentiles)
            raise ParameterError(f"'percentiles' are two rising numbers from 0 to 100, not {given}")
        if self.long_axis not in (0, 1, 2):
            raise ParameterError(f"'long_axis' is 0, 1 or 2 for x, y or z, not {self.long_axis}")
        if self.voxel_sizes is not None and not 0 < self.voxel_sizes[0] <= self.voxel_sizes[1]:
            raise ParameterError("'voxel_sizes' are the smallest and the largest size in mm, above 0")
        for name in filter(None, (self.region, self.trained_in, self.improved_in, self.percentiles_in)):
            check_region(name)

    @property
    def training_place(self) -> str:
        """Where training looks, in a word that follows "the"."""
        return "image" if self.trained_in == "all" else self.trained_in

    @property
    def top(self) -> float:
        """The highest value that training keeps."""
        low, high = self.intensity_range
        return self.background + 3 * (high - low) if self.highest is None else self.highest

    def standardise(self, image: Image) -> Image:
        """Return an image whose values are in `unit`: itself, if there are no `percentiles`.

        Raises
        ------
        ParameterError
            If all values are alike.
        """
        if self.percentiles is None:
            return image
        factor, shift = self._scale(image)
        return Image((image.array * factor + shift).astype(np.float32), image.grid)

    def background_of(self, image: Image) -> float:
        """Return the value of an image, in its own unit, that stands for the background."""
        if self.percentiles is None:
            return self.background
        if self.percentiles_in != "all":  # the surround is darker than what the percentiles are of
            return float(np.percentile(_thinned(image.array), _DARKEST))
        factor, shift = self._scale(image)
        return (self.background - shift) / factor

    def _scale(self, image: Image) -> tuple[float, float]:
        assert self.percentiles is not None
        low, high = (float(value) for value in np.percentile(_thinned(self._looked_at(image)), self.percentiles))
        if not low < high:
            raise ParameterError(
                f"the image's values are alike from the {self.percentiles[0]:g}th to the {self.percentiles[1]:g}th "
                f"percentile ({low:g}): it cannot be scaled to {self.unit}"
            )
        factor = (self.intensity_range[1] - self.intensity_range[0]) / (high - low)
        return factor, self.intensity_range[0] - factor * low

    def _looked_at(self, image: Image) -> FloatArray:
        """Return the values that the percentiles are of."""
        if self.percentiles_in != "all":
            with contextlib.suppress(ImageError):
                inside = Scan(image).find(self.percentiles_in).array
                if inside.any():
                    return image.array[inside]
        return image.array


def _thinned(values: FloatArray) -> FloatArray:
    """Return evenly chosen values, as many as percentiles need."""
    flat = values.ravel()
    return flat[:: max(1, flat.size // _ENOUGH)]


CHEST_CT = World(
    images="chest CT",
    unit="HU",
    intensity_range=(-1000.0, 200.0),
    background=-1000.0,
    region="body",
    trained_in="lungs",
    improved_in="lungs",
    dark=-500.0,
    highest=3000.0,
)
"""The world of the models that ship; lung and air lie below -500 HU, all else of a body above."""
