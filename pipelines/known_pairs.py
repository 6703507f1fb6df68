"""Pairs of images whose displacement is known at every voxel, as files: phantoms, and CTs that are deformed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from regnet_itk.anatomy.phantom import make_phantom, write_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Triple
from regnet_itk.data.image import Image
from regnet_itk.data.image_files import write_image
from regnet_itk.networks.world import CHEST_CT
from regnet_itk.outputs import staged_folder
from regnet_itk.pairs import Pair
from regnet_itk.training.paper_pairs import deform_pair

NOISE = 5.0
"""HU, of both images of a deformed CT, as in the paper."""

_TRUTH = "true_displacement.mha"


def phantom_pair(
    folder: Path, name: str, *, seed: int, kind: str, spacing: Triple, extent: Triple, amplitude: float | None = None
) -> Pair:
    """Return the pair of a chest phantom, and make its files if they are not there yet.

    Parameters
    ----------
    folder : Path
        Of this pair alone: it must tell apart whatever the other parameters tell apart.
    name : str
        Of the pair.
    seed, kind, spacing, extent, amplitude : as for :func:`regnet_itk.anatomy.phantom.make_phantom`
    """
    if not (folder / _TRUTH).is_file():
        write_phantom(make_phantom(seed, kind, spacing=spacing, extent=extent, amplitude=amplitude), folder)
    return Pair(
        name,
        folder / "fixed.mha",
        folder / "moving.mha",
        folder / "fixed_mask.mha",
        folder / "moving_mask.mha",
        folder / "fixed_points.txt",
        folder / "moving_points.txt",
        folder / _TRUTH,
    )


def is_made(folder: Path) -> bool:
    """Say whether the files of a deformed CT are there."""
    return (folder / _TRUTH).is_file()


def make_deformed(
    folder: Path,
    image: Image,
    region: Image,
    u: DisplacementField,
    rng: np.random.Generator,
    *,
    moving: Image | None = None,
    noise: float = NOISE,
    background: float = CHEST_CT.background,
) -> None:
    """Deform an image and write fixed and moving image, the region in the fixed one, and the displacement everywhere.

    Parameters
    ----------
    folder : Path
    image : Image
        Becomes the moving image.
    region : Image
        Of it, that counts: of a CT of the chest, the lungs.
    u : DisplacementField
        T(x) = x + u(x), mm, LPS, on any grid over the image.
    rng : numpy.random.Generator
        For the noise.
    moving : Image, optional
        The same image in another contrast, which becomes the moving image in its place.
    noise : float
        Standard deviation, in the image's unit.
    background : float
        What lies beyond the image.
    """
    pair = deform_pair(image, u, noise, rng, background)
    shown = (
        pair.moving
        if moving is None
        else Image((moving.array + rng.normal(0.0, noise, moving.array.shape)).astype(np.float32), moving.grid)
    )
    mask = region.resampled(image.grid, u.to_sitk_transform(), order=0)
    with staged_folder(folder) as stage:
        write_image(pair.fixed, stage / "fixed.mha")
        write_image(shown, stage / "moving.mha")
        write_image(Image(mask.array.astype(np.uint8), mask.grid), stage / "fixed_mask.mha")
        DisplacementField(u.at(image.grid.points()).astype(np.float32), image.grid).write(stage / _TRUTH)


def deformed_image_pair(folder: Path, name: str) -> Pair:
    """Return the pair that :func:`make_deformed` wrote; it has no landmarks, since every voxel is known."""
    return Pair(
        name,
        folder / "fixed.mha",
        folder / "moving.mha",
        folder / "fixed_mask.mha",
        displacement=folder / _TRUTH,
    )
