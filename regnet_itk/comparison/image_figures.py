"""The paper's figures 2 and 5, of a comparison: displacements, images and their differences, on a coronal slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet_itk.anatomy.hounsfield import AIR
from regnet_itk.comparison.outcomes import Comparison
from regnet_itk.data.field import DisplacementField, read_displacement_field
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.image_files import read_image
from regnet_itk.figures.canvas import LETTERS, new_figure
from regnet_itk.figures.slices import (
    Plane,
    Shade,
    choose_difference_shade,
    choose_grey_shade,
    choose_planes,
    draw_outline,
    draw_slice,
)
from regnet_itk.metrics.measures import normalised_correlation
from regnet_itk.pairs import Pair
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_PAIRS = 3
"""Pairs in the figures of images, at most."""

_CORONAL = 1
_MARGIN = 25.0  # mm around the mask


def choose_pairs(comparison: Comparison) -> list[Pair]:
    """Return the first pair of each group on which something succeeded beyond the reference stage."""
    found: dict[str, Pair] = {}
    for pair in comparison.pairs:
        if any(comparison.outcome(pair, method) for method in comparison.methods[1:]):
            found.setdefault(pair.group, pair)
    return list(found.values())[:SHOWN_PAIRS]


@dataclass(frozen=True)
class Example:
    """A coronal slice of a pair, as it is shown.

    Parameters
    ----------
    pair : Pair
    fixed, moving : Image
        `fixed` is cut to the surroundings of its mask.
    mask : Image or None
    plane : Plane
        Of `fixed`.
    reference : TransformChain
        The first stage.
    chains : dict
        Of each method that succeeded, by its name.
    truth : DisplacementField or None
    """

    pair: Pair
    fixed: Image
    moving: Image
    mask: Image | None
    plane: Plane
    reference: TransformChain
    chains: dict[str, TransformChain]
    truth: DisplacementField | None

    @classmethod
    def read(cls, comparison: Comparison, pair: Pair) -> Example:
        """Read what is shown of a pair."""
        fixed, moving = read_image(pair.fixed, "fixed image"), read_image(pair.moving, "moving image")
        mask = read_image(pair.fixed_mask, "fixed mask") if pair.fixed_mask else None
        found = ((method.name, comparison.outcome(pair, method)) for method in comparison.methods)
        chains = {name: outcome.chain() for name, outcome in found if outcome is not None}
        first = comparison.outcomes[pair.name, comparison.methods[1].name]
        record = comparison.reference_record(pair)
        folder = first.folder.parent / comparison.reference
        reference = read_chain(folder / record.transform) if record is not None else TransformChain()
        if mask is not None:
            mask = Image((mask.array != 0).astype(np.uint8), fixed.grid)
            fixed, mask = _surroundings(fixed, mask)
        truth = read_displacement_field(pair.displacement) if pair.displacement else None
        plane = choose_planes(fixed.grid, mask)[_CORONAL]
        return cls(pair, fixed, moving, mask, plane, reference, chains, truth)

    @property
    def slice_grid(self) -> Grid:
        """The grid of the slice, one voxel thick."""
        start, size = [0, 0, 0], list(self.fixed.grid.size)
        start[self.plane.axes[0]], size[self.plane.axes[0]] = self.plane.index, 1
        return self.fixed.grid.crop(start, size)

    def warped(self, chain: TransformChain) -> FloatArray:
        """Return the slice (rows, columns) of the warped moving image."""
        default = float(max(self.moving.array.min(), AIR))
        found = self.moving.resampled(self.slice_grid, chain.to_sitk(self.fixed.grid), default=default)
        return np.asarray(replace(self.plane, grid=self.slice_grid, index=0).slice(found.array))

    def correlation(self, picture: FloatArray) -> float:
        """Return the correlation of a slice (rows, columns) with that of the fixed image, inside the mask."""
        inside = None if self.mask is None else self.plane.slice(self.mask.array)
        fixed = _as_image(self.plane.slice(self.fixed.array).astype(float))
        return normalised_correlation(_as_image(picture), fixed, None if inside is None else _as_image(inside))

    def lengths(self, chain: TransformChain | None) -> FloatArray:
        """Return |T(x) - A(x)| in mm on the slice (rows, columns); of the truth if there is no chain."""
        points = self.plane.points()
        start = self.reference.map_points(points)
        ends = chain.map_points(points) if chain is not None else points + self._true(points)
        return np.asarray(np.linalg.norm(ends - start, axis=-1))

    def _true(self, points: FloatArray) -> FloatArray:
        assert self.truth is not None
        return self.truth.at(points)


def _surroundings(fixed: Image, mask: Image) -> tuple[Image, Image]:
    """Return the parts of an image and its mask around the mask."""
    box = bounding_box(mask.array != 0, [round(_MARGIN / spacing) for spacing in reversed(mask.grid.spacing)])
    grid = fixed.grid.part(box)
    return Image(fixed.array[box], grid), Image(mask.array[box], grid)


def _panels(examples: Sequence[Example], columns: int, rows_each: int) -> tuple[Figure, Any]:
    """Return a figure with a sub-figure for each example, all panels as wide as a page allows."""
    width = max(7.2, 1.35 * columns)
    heights = []
    for example in examples:
        across, down = example.plane.size_mm
        heights.append(rows_each * width / columns * down / across + 0.55)
    figure = new_figure(width, sum(heights))
    return figure, figure.subfigures(len(examples), 1, height_ratios=heights, squeeze=False)[:, 0]


def draw_displacements(examples: Sequence[Example], names: list[str]) -> Figure:
    """Draw the displacements of the named methods, after the true ones."""
    known = any(example.truth is not None for example in examples)
    figure, parts = _panels(examples, len(names) + known, 1)
    for part, example in zip(parts, examples, strict=True):
        pictures = {"true": example.lengths(None)} if example.truth is not None else {}
        pictures |= {name: example.lengths(example.chains[name]) for name in names if name in example.chains}
        highest = max((float(np.percentile(picture, 99.5)) for picture in pictures.values()), default=1.0)
        shade = Shade(0.0, highest if highest > 1e-6 else 1.0, "magma")
        panels = part.subplots(1, len(names) + known, squeeze=False)[0]
        part.suptitle(example.pair.name, fontsize=LETTERS + 0.5)
        shown = None
        for axes, name in zip(panels, [*(["true"] if known else []), *names], strict=False):
            axes.set_axis_off()
            if name in pictures:
                shown = draw_slice(axes, example.plane, pictures[name], shade, letters=axes is panels[0])
                if example.mask is not None:
                    draw_outline(axes, example.plane, example.mask)
            axes.set_title(_heading(name), fontsize=LETTERS - 1)
        if shown is not None:
            _bar(part, shown, panels, "mm")
    return figure


def _heading(name: str) -> str:
    return name.replace("+", " +\n")


def _bar(part: Any, shown: Any, panels: Any, unit: str) -> None:
    bar = part.colorbar(shown, ax=list(panels), shrink=0.85, aspect=18, pad=0.01)
    bar.set_label(unit, fontsize=LETTERS)
    bar.ax.tick_params(labelsize=LETTERS - 0.5)


def draw_images(examples: Sequence[Example]) -> Figure:
    """Draw the images before and after each method, with their differences from the fixed image."""
    names = list(dict.fromkeys(name for example in examples for name in example.chains))
    figure, parts = _panels(examples, 1 + len(names), 2)
    for part, example in zip(parts, examples, strict=True):
        part.suptitle(example.pair.name, fontsize=LETTERS + 0.5)
        panels = part.subplots(2, 1 + len(names), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        fixed = example.plane.slice(example.fixed.array).astype(float)
        results = {name: example.warped(example.chains[name]) for name in names if name in example.chains}
        grey, difference = (
            choose_grey_shade(example.fixed),
            choose_difference_shade(_as_image(fixed), _as_image(next(iter(results.values())))),
        )
        draw_slice(panels[0, 0], example.plane, fixed, grey, letters=True)
        panels[0, 0].set_title("fixed", fontsize=LETTERS - 1)
        shown = None
        for (upper, lower), name in zip(panels.T[1:], names, strict=True):
            upper.set_title(_heading(name), fontsize=LETTERS - 1)
            if name in results:
                draw_slice(upper, example.plane, results[name], grey, letters=False)
                shown = draw_slice(lower, example.plane, fixed - results[name], difference, letters=False)
                lower.set_title(f"r = {example.correlation(results[name]):.3f}", fontsize=LETTERS - 1)
        if shown is not None:
            _bar(part, shown, panels[1], difference.unit)
    return figure


def _as_image(picture: FloatArray) -> Image:
    """Return a slice (rows, columns) as an image one voxel thick."""
    return Image(picture[None], Grid((picture.shape[1], picture.shape[0], 1)))
