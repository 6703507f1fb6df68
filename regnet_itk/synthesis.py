"""Synthetic pairs as files: images with their true displacement, a list of pairs, and the heat maps of Fig. 2."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.errors import OutputError
from regnet_itk.events import Events, Progress
from regnet_itk.figures.slices import Plane, Shade, choose_planes, draw_slice
from regnet_itk.inputs import is_file
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import write_whole
from regnet_itk.pairs import Pair
from regnet_itk.training.paper_pairs import FREQUENCIES, SyntheticPair, paper_pairs

PAIRS_OF_AN_IMAGE = 2 * len(FREQUENCIES)
_CORONAL = 1
_DPI = 130

PAIRS_FILE = "pairs.csv"


@dataclass(frozen=True, eq=False)
class SynthesisInput:
    """An image that synthetic pairs are made of.

    Parameters
    ----------
    name : str
        Begins the names of its files.
    image : Image
        In Hounsfield units.
    mask : Image, optional
        Of the lungs, on the image's grid; deformed along.
    """

    name: str
    image: Image
    mask: Image | None = None


@dataclass(frozen=True)
class _HeatMap:
    heading: str
    lengths: FloatArray


def synthetic_files(names: Sequence[str], folder: Path) -> OutputFiles:
    """Return what a synthesis calls its files.

    Parameters
    ----------
    names : sequence of str
        Of its images.
    folder : Path
        Where it is to write.

    Raises
    ------
    OutputError
        If the list of pairs in the folder is of other images.
    """
    every = f"({'|'.join(map(re.escape, names))})"
    own = rf"{every}_\d_(fixed|moving|displacement|fixed_mask)\.mha|{every}_displacements\.png|{re.escape(PAIRS_FILE)}"
    path = folder / PAIRS_FILE
    if is_file(path):
        try:
            listed = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        except OSError as error:
            raise OutputError(f"cannot write to the output folder '{folder}': {error.strerror}") from None
        others = [row.split(",")[0] for row in listed if not re.match(rf"{every}_\d,", row)]
        if others:
            raise OutputError(f"'{path}' lists pairs of other images ('{others[0]}'); give another folder")
    return OutputFiles(own, PAIRS_FILE, exclusive=False)


def write_synthetic_pairs(
    source: SynthesisInput, folder: Path, seed: int, count: int, events: Events | None = None
) -> list[Pair]:
    """Write the synthetic pairs of an image, with the picture of their displacements.

    Parameters
    ----------
    source : SynthesisInput
    folder : Path
        Must exist. Gets ``NAME_K_fixed.mha``, ``NAME_K_moving.mha`` (float32), ``NAME_K_displacement.mha`` (float32,
        mm, LPS, on the image's grid), with a mask ``NAME_K_fixed_mask.mha``, and ``NAME_displacements.png``.
    seed : int
        The same seed and name give the same voxels, whatever other images there are.
    count : int
        The first so many of the pairs that :func:`regnet_itk.training.synthesis.paper_pairs` makes.
    events : Events, optional
        Hears the share that is done.

    Returns
    -------
    list of Pair
        Their group is the frequency of the deformation.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    rng = np.random.default_rng([seed, zlib.crc32(source.name.encode())])
    plane = choose_planes(source.image.grid, source.mask)[_CORONAL]
    written, maps = [], []
    for number, pair in enumerate(islice(paper_pairs(source.image, rng, source.mask), count), start=1):
        written.append(_write_pair(pair, f"{source.name}_{number}", folder))
        lengths = np.linalg.norm(pair.displacement.at(plane.points()), axis=-1)
        maps.append(_HeatMap(f"{number}: {pair.name.replace('-', ', ')}", lengths))
        if events is not None:
            events.progress(Progress(number / count, f"pair {number} of {count}", name=source.name))
    _draw(maps, plane, folder / f"{source.name}_displacements.png", source.name)
    return written


def _write_pair(pair: SyntheticPair, name: str, folder: Path) -> Pair:
    fixed, moving, displacement, fixed_mask = (
        folder / f"{name}_{role}.mha" for role in ("fixed", "moving", "displacement", "fixed_mask")
    )
    # noise does not compress, and trying takes longer than all the rest
    write_image(pair.fixed, fixed, compress=False)
    write_image(pair.moving, moving, compress=False)
    _on_voxels(pair.displacement, pair.fixed.grid).write(displacement)
    mask = pair.fixed_mask
    masked = mask is not None and bool(mask.array.any())
    if mask is not None and masked:
        write_image(Image((mask.array != 0).astype(np.uint8), mask.grid), fixed_mask)
    group = pair.name.split("-")[-1]
    return Pair(name, fixed, moving, fixed_mask if masked else None, displacement=displacement, group=group)


def _on_voxels(field: DisplacementField, grid: Grid) -> DisplacementField:
    """Return a field at the voxels of another grid: the same vectors there, as a field is linear between its own."""
    import SimpleITK as sitk

    from regnet_itk.data.image import place

    like = place(sitk.Image(grid.size, sitk.sitkUInt8), grid)
    return DisplacementField.from_sitk(sitk.Resample(field.to_sitk(), like, sitk.Transform(3, sitk.sitkIdentity)))


def _draw(maps: list[_HeatMap], plane: Plane, path: Path, title: str) -> None:
    """Draw the lengths of displacements on a coronal slice, a row for each moving image, all with one shade."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(maps), len(FREQUENCIES))
    rows = -(-len(maps) // columns)
    across, down = plane.size_mm
    height = float(np.clip(2.5 * down / across, 1.0, 5.0))
    figure = Figure(
        figsize=(2.5 * columns + 1.1, rows * (height + 0.35) + 0.5), facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: length of the displacement on a coronal slice", fontsize=9)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shade = Shade(0.0, max(float(found.lengths.max()) for found in maps) or 1.0, "magma")
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    for axes, found in zip(panels, maps, strict=False):
        shown = draw_slice(axes, plane, found.lengths, shade, letters=axes is panels[0])
        axes.set_title(found.heading, fontsize=8.5)
    figure.colorbar(shown, ax=list(panels), shrink=0.85, aspect=18, pad=0.02).set_label("mm", fontsize=8.5)
    write_whole(path, lambda part: figure.savefig(part, dpi=_DPI))
