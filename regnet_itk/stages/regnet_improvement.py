"""The step of a RegNet stage after the network: the field is improved on the very pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.data.image import Image, bounding_box
from regnet_itk.stages.regnet_inputs import resample_pair

_TURNS = 2
"""How often both directions are improved; each time by a share of the steps."""

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.world import World
    from regnet_itk.refinement.agreement import InstancePair
    from regnet_itk.refinement.instance_optimisation import InstanceOptions
    from regnet_itk.refinement.terms import Term
    from regnet_itk.stages.base import ImagePair, RunOptions
    from regnet_itk.stages.ignored import Ignored
    from regnet_itk.stages.regnet_settings import RegNetSettings


@dataclass(frozen=True, eq=False)
class BothWays:
    """Fields of both directions.

    Parameters
    ----------
    u, v : DisplacementField
        mm, LPS, both on the fixed side: x + u(x) of the fixed image, and back from there.
    residual : float
        Mean of |u(x) + v(x + u(x))| in mm.
    """

    u: DisplacementField
    v: DisplacementField
    residual: float = 0.0


@dataclass(frozen=True, eq=False)
class Improvement:
    """Instance optimisation of the fields of a pair, as a stage does it.

    Parameters
    ----------
    pairs : sequence of ImagePair
        Whose sum of differences is improved.
    composite : SimpleITK.Transform
        The transform so far, fixed to moving; the fields lie within it.
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
    """

    pairs: Sequence[ImagePair]
    composite: sitk.Transform
    ignored: Ignored
    world: World
    settings: RegNetSettings
    options: RunOptions
    name: str
    scale: float
    make_terms: Callable[[InstancePair], Sequence[Term]]

    def with_iterations(self, iterations: tuple[int, ...]) -> Improvement:
        """Return the same with other steps."""
        return replace(self, settings=replace(self.settings, instance_iterations=iterations))

    def improve(
        self, u: DisplacementField, region: Image, *, since: float = 0.4, until: float = 0.85
    ) -> DisplacementField:
        """Improve a field on the voxels of a region and around it.

        Parameters
        ----------
        u : DisplacementField
            mm, LPS, on the fixed side.
        region : Image
            Voxels other than 0 are improved; its voxels are those that are worked on.
        since, until : float
            The share of the stage's work that is done before and after, for the progress.

        Returns
        -------
        DisplacementField
            On the grid of `u`; `u` itself if the region is empty.
        """
        from regnet_itk.refinement.instance_optimisation import optimise_field

        if not region.array.any():
            return u
        instance = self._instance_pair(region)

        def tell(fraction: float) -> None:
            self.options.progress(since + (until - since) * fraction, "improving")

        return optimise_field(instance, u, self._instance_options(region), tell, self.make_terms(instance))

    def improve_both_ways(
        self, start: BothWays, region: Image, *, since: float = 0.4, until: float = 0.85
    ) -> BothWays:  # fmt: skip
        """Improve the fields of both directions in turns, each so that it and the other one undo each other.

        Parameters
        ----------
        start : BothWays
        region, since, until
            As for :meth:`improve`; the region is not empty.
        """
        from regnet_itk.refinement.consistency_term import ConsistencyTerm, inverse_residual
        from regnet_itk.refinement.instance_optimisation import optimise_field

        there, weight = self._instance_pair(region), self.settings.inverse_consistency
        grid, inside = there.fixed.grid, there.region.array
        back = replace(
            there, fixed=there.moving, moving=there.fixed, region=Image(inside & there.known.array, grid),
            known=Image(~self.ignored.in_fixed(grid), grid),
            further=tuple((moving, fixed) for fixed, moving in there.further),
        )  # fmt: skip
        chosen = self._instance_options(region)
        chosen = replace(chosen, iterations=tuple(-(-steps // _TURNS) for steps in chosen.iterations))
        u, v, done = start.u, start.v, 0

        def tell(fraction: float) -> None:
            share = (done + fraction) / (2 * _TURNS)
            self.options.progress(since + (until - since) * share, "improving both ways")

        for turn in range(_TURNS):
            terms = [*self.make_terms(there), ConsistencyTerm(v, grid, inside, weight, turn)]
            u, done = optimise_field(there, u, chosen, tell, terms), done + 1
            v, done = optimise_field(back, v, chosen, tell, [ConsistencyTerm(u, grid, inside, weight, turn)]), done + 1
        return BothWays(u, v, inverse_residual(u, v, grid, inside))

    def _instance_pair(self, region: Image) -> InstancePair:
        """Return the images on the voxels of a region and around it."""
        from regnet_itk.refinement.agreement import InstancePair, dependable
        from regnet_itk.refinement.instance_optimisation import MARGIN

        box = bounding_box(region.array, round(MARGIN / region.grid.spacing[0]))
        grid, background = region.grid.part(box), self.world.background
        seen = [
            resample_pair(pair, grid, self.composite, background, threads=self.options.threads, averaged=True)
            for pair in self.pairs
        ]
        known = np.logical_and.reduce([_known(pair.moving, grid, self.composite) for pair in self.pairs])
        known &= ~self.ignored.in_moving(grid, self.composite)
        compared = (region.array[box] != 0) & dependable(~self.ignored.in_fixed(grid))
        return InstancePair(
            *seen[0], Image(compared, grid), Image(known, grid), self.world.intensity_range, tuple(seen[1:])
        )

    def _instance_options(self, region: Image) -> InstanceOptions:
        """Return how a field is improved, with more smoothness for coarse images."""
        from regnet_itk.refinement.instance_optimisation import VOXEL_SIZE, InstanceOptions, smoothness_factor

        settings, options, voxel_size, factor = self.settings, self.options, region.grid.spacing[0], 1.0
        if voxel_size > VOXEL_SIZE * self.scale:
            options.log.debug(
                f"{self.name}: improving on voxels of {voxel_size:.2f} mm, for which the memory budget is enough"
            )
        if self.world.voxel_sizes is None:  # else all lengths have grown with the images' voxels already
            factor = smoothness_factor(*(image for pair in self.pairs for image in (pair.fixed, pair.moving)))
        if factor > 1:
            options.log.debug(
                f"{self.name}: improving with {factor:.3g} times the smoothness, as the voxels are coarse"
            )
        return InstanceOptions(
            settings.instance_iterations, settings.instance_smoothness * factor, settings.instance_information,
            options.seed or 0, options.device, options.threads, self.scale,
        )  # fmt: skip


def _known(moving: Image, grid: Grid, composite: sitk.Transform) -> npt.NDArray[np.bool_]:
    """Return where a moving image is known, on the grid of the fixed side."""
    everywhere = Image(np.ones(moving.grid.shape, dtype=np.uint8), moving.grid)
    return np.asarray(everywhere.resampled(grid, composite, order=0).array > 0)
