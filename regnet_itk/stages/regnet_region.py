"""Where a RegNet stage works on a pair: where it predicts the displacement, and where it improves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.stages.regnet_labels import follows_labels

if TYPE_CHECKING:
    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.world import World
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.stages.regnet_settings import RegNetSettings
    from regnet_itk.transforms.chain import TransformChain


def check_masks_given(pair: ImagePair, settings: RegNetSettings, source: str) -> None:
    """Refuse a region that is to be the masks where there are none.

    Raises
    ------
    ParameterError
    """
    if settings.region == "mask" and not _has_mask(pair):
        raise ParameterError(f'{source}: (RegNetRegion "mask") needs `fixed_mask` or `moving_mask`')


def _has_mask(pair: ImagePair) -> bool:
    return pair.fixed_mask is not None or pair.moving_mask is not None


@dataclass(frozen=True)
class Regions:
    """The regions of one pair, for one stage.

    Parameters
    ----------
    pair : ImagePair
    initial : TransformChain
        Through which the moving mask is seen.
    settings : RegNetSettings
    world : World
        The model's; says which regions are its own, if nobody asked for another and there are no masks.
    source : str
        The parameter file, for the messages.
    finest : float
        mm; of the voxels that the field is improved on, if the memory allows it.
    images : int
        Of each side.
    protected : Image, optional
        Boolean, on the fixed image's grid: parts whose motion is wanted in any case.
    """

    pair: ImagePair
    initial: TransformChain
    settings: RegNetSettings
    world: World
    source: str
    finest: float
    images: int = 1
    protected: Image | None = None

    @cached_property
    def _scan(self) -> Scan:
        return Scan(self.pair.fixed)

    def to_predict(self, grid: Grid) -> Image:
        """Return where the displacement is wanted: on the fixed image's grid, or, if it is found, on the network's.

        Parameters
        ----------
        grid : Grid
            The network's voxels.

        Raises
        ------
        ImageError
            If no voxel is left.
        ParameterError
            If the region is to be the masks and there are none.
        """
        check_masks_given(self.pair, self.settings, self.source)
        wanted: str = self.settings.region
        if wanted == "auto":
            wanted = "mask" if _has_mask(self.pair) else self.world.region
        whole = self.pair.fixed.grid
        if wanted == "mask":
            masks = [mask for mask in (self._moving_mask_on_fixed(), self.pair.fixed_mask) if mask is not None]
            region = Image(np.logical_or.reduce([mask.array != 0 for mask in masks]), whole)
        elif wanted == "all":
            region = Image(np.ones(whole.shape, dtype=bool), whole)
        else:
            region = self._scan.find(wanted, grid)
        if not region.array.any():
            raise ImageError("the masks leave no voxel of the fixed image; check that masks and images overlap")
        return self._with_protected(region)

    def to_improve(self, predicted: Image) -> Image | None:
        """Return where the field is improved: `predicted`, or, if nobody asked for a region, the world's own.

        Parameters
        ----------
        predicted : Image
            Where the network predicts, as `to_predict` found it.

        Returns
        -------
        Image or None
            On voxels of the size that the memory budget allows; None if the field is not to be improved at all.
        """
        if not any(self.settings.instance_iterations):
            return None
        return self._within_memory(lambda voxel_size: self._to_improve_on(predicted, voxel_size))

    def to_slide(self, predicted: Image) -> tuple[Image, Image] | None:
        """Return what slides, and where both sides are improved; None if nothing is to slide.

        Raises
        ------
        ImageError
            If the lungs are to be found and there are none.
        """
        guide, asked = self.pair.fixed_guides.sliding, self.settings.sliding
        if asked == "none" or (asked == "mask" and guide is None):
            return None
        mask = guide if asked == "mask" and guide is not None else self._scan.find("lungs")
        return mask, self._within_memory(lambda voxel_size: self._predicted_on(predicted, voxel_size))

    def _within_memory(self, region_on: Callable[[float], Image]) -> Image:
        """Return a region on the finest voxels that the memory budget allows."""
        from regnet_itk.refinement.instance_optimisation import MARGIN, voxel_size_within

        found = region_on(self.finest)
        voxels = math.prod(s.stop - s.start for s in bounding_box(found.array, round(MARGIN / self.finest)))
        allowed = voxel_size_within(self.settings.memory, voxels * self.images, self.finest)
        return found if allowed == self.finest else region_on(allowed)

    def _to_improve_on(self, predicted: Image, voxel_size: float) -> Image:
        if self.settings.region == "auto" and not _has_mask(self.pair) and self.world.improved_in:
            try:
                grid = self.pair.fixed.grid.isotropic(voxel_size)
                return self._with_protected(self._with_labels(self._scan.find(self.world.improved_in, grid)))
            except ImageError:
                pass  # of a chest CT: no lungs in it; the whole region then
        return self._predicted_on(predicted, voxel_size)

    def _predicted_on(self, predicted: Image, voxel_size: float) -> Image:
        grid = self.pair.fixed.grid.isotropic(voxel_size)
        chosen = Image(predicted.array.astype(np.uint8), predicted.grid).resampled(grid, order=0)
        return Image(chosen.array > 0, grid)

    def _with_labels(self, region: Image) -> Image:
        """Return a region that nobody asked for with the labels that guide: what they are of is of interest."""
        labels = self.pair.fixed_guides.label
        if labels is None or not follows_labels(self.settings):
            return region
        inside = Image((labels.array != 0).astype(np.uint8), labels.grid).resampled(region.grid, order=0)
        return Image((region.array != 0) | (inside.array > 0), region.grid)

    def _with_protected(self, region: Image) -> Image:
        """Return a region with the parts that are to be protected."""
        if self.protected is None:
            return region
        marked = Image(self.protected.array.astype(np.uint8), self.protected.grid)
        on_grid = marked if region.grid is marked.grid else marked.resampled(region.grid)
        return Image((region.array != 0) | (on_grid.array > 0), region.grid)

    def _moving_mask_on_fixed(self) -> Image | None:
        mask = self.pair.moving_mask
        if mask is None:
            return None
        binary, grid = Image((mask.array != 0).astype(np.uint8), mask.grid), self.pair.fixed.grid
        return binary.resampled(grid, self.initial.to_sitk(grid), order=0)
