"""The step of a RegNet stage after the network: the field is improved on the very pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.data.image import Image, bounding_box
from regnet_itk.stages.regnet_inputs import resample_pair

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.world import World
    from regnet_itk.refinement.agreement import InstancePair
    from regnet_itk.refinement.terms import Term
    from regnet_itk.stages.base import ImagePair, RunOptions
    from regnet_itk.stages.ignored import Ignored
    from regnet_itk.stages.regnet_settings import RegNetSettings


def improve_prediction(
    u: DisplacementField,
    pairs: Sequence[ImagePair],
    composite: sitk.Transform,
    region: Image,
    ignored: Ignored,
    *,
    world: World,
    settings: RegNetSettings,
    options: RunOptions,
    name: str,
    scale: float,
    make_terms: Callable[[InstancePair], Sequence[Term]] = lambda _: (),
    since: float = 0.4,
    until: float = 0.85,
) -> DisplacementField:
    """Improve a predicted field by instance optimisation, on the voxels of a region and around it.

    Parameters
    ----------
    u : DisplacementField
        What the network predicted, mm, LPS.
    pairs : sequence of ImagePair
        Whose sum of differences is improved.
    composite : SimpleITK.Transform
        The transform so far, fixed to moving; u lies within it.
    region : Image
        Voxels other than 0 are improved; its voxels are those that are worked on.
    ignored : Ignored
        What is left out of either image, with all that self-similarity contexts of it would look at.
    world : World
        In whose unit the images are.
    settings : RegNetSettings
    options : RunOptions
    name : str
        Of the stage, for the log.
    scale : float
        Of all lengths, as instance optimisation has it.
    make_terms : callable
        Returns what else counts on a pair beside the images' agreement.
    since, until : float
        The share of the stage's work that is done before and after, for the progress.

    Returns
    -------
    DisplacementField
        On the grid of `u`; `u` itself if the region is empty.
    """
    if not region.array.any():
        return u
    from regnet_itk.refinement.agreement import InstancePair, dependable
    from regnet_itk.refinement.instance_optimisation import (  # fmt: skip
        MARGIN,
        VOXEL_SIZE,
        InstanceOptions,
        optimise_field,
        smoothness_factor,
    )

    voxel_size = region.grid.spacing[0]
    if voxel_size > VOXEL_SIZE * scale:
        options.log.debug(f"{name}: improving on voxels of {voxel_size:.2f} mm, for which the memory budget is enough")
    box = bounding_box(region.array, round(MARGIN / voxel_size))
    grid = region.grid.part(box)
    seen = [
        resample_pair(pair, grid, composite, world.background, threads=options.threads, averaged=True) for pair in pairs
    ]
    known = np.logical_and.reduce([_known(pair.moving, grid, composite) for pair in pairs])
    known &= ~ignored.in_moving(grid, composite)
    compared = (region.array[box] != 0) & dependable(~ignored.in_fixed(grid))
    instance = InstancePair(*seen[0], Image(compared, grid), Image(known, grid), world.intensity_range, tuple(seen[1:]))
    factor = 1.0
    if world.voxel_sizes is None:  # else all lengths have grown with the images' voxels already
        factor = smoothness_factor(*(image for pair in pairs for image in (pair.fixed, pair.moving)))
    if factor > 1:
        options.log.debug(f"{name}: improving with {factor:.3g} times the smoothness, as the voxels are coarse")
    chosen = InstanceOptions(
        settings.instance_iterations, settings.instance_smoothness * factor, settings.instance_information,
        options.seed or 0, options.device, options.threads, scale,
    )  # fmt: skip
    return optimise_field(
        instance,
        u,
        chosen,
        lambda fraction: options.progress(since + (until - since) * fraction, "improving"),
        make_terms(instance),
    )


def _known(moving: Image, grid: Grid, composite: sitk.Transform) -> npt.NDArray[np.bool_]:
    """Return where a moving image is known, on the grid of the fixed side."""
    everywhere = Image(np.ones(moving.grid.shape, dtype=np.uint8), moving.grid)
    return np.asarray(everywhere.resampled(grid, composite, order=0).array > 0)
