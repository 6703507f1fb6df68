"""Labels that guide a RegNet stage: where they are far apart the network looks again from where they lead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.errors import ParameterError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.grid import Grid
    from regnet_itk.refinement.agreement import InstancePair
    from regnet_itk.refinement.label_term import LabelSurface
    from regnet_itk.refinement.terms import Term
    from regnet_itk.stages.base import Detail, ImagePair, RunOptions
    from regnet_itk.stages.regnet_look import NetworkLook
    from regnet_itk.stages.regnet_settings import RegNetSettings

_FAR = 5.0
"""mm between the surfaces of a label, at a twentieth of them: from there on, the network looks again from where the
labels lead."""

_BETTER = 0.75
"""What it then finds counts if labels are apart by less than this part of before."""

_STEP = 2.0  # mm; voxels of the labels' distances
_MOST_VOXELS = 12_000_000
_START_VOXELS = 6.0  # mm
_START_ITERATIONS = (20, 20, 20)
_START_SCALE = 2.0  # of the B-splines that bring labels near to each other, before images count


def check_labels(pair: ImagePair, settings: RegNetSettings, source: str) -> None:
    """Refuse labels of which the images share none, and weights that are no pairs of label and weight.

    Raises
    ------
    ParameterError
    """
    weights = settings.label_weight
    if len(weights) > 1 and (len(weights) % 2 or any(n != int(n) for n in weights[::2])):
        raise ParameterError(
            f"{source}: 'RegNetLabelWeight' takes one weight for all labels, or a label and its weight, a label and "
            f"its weight .., not {' '.join(f'{w:g}' for w in weights)}"
        )
    if _are_given(pair, settings) and not _shared(pair):
        raise ParameterError(
            f"the labels of the fixed image ({_named(_numbers(pair.fixed_guides.label))}) and of the moving image "
            f"({_named(_numbers(pair.moving_guides.label))}) have no number in common; give the same structure the "
            "same number"
        )


def follows_labels(settings: RegNetSettings) -> bool:
    """Say whether labels would guide a stage: only instance optimisation looks at them."""
    return any(settings.instance_iterations) and settings.label_weight != (0.0,)


def _are_given(pair: ImagePair, settings: RegNetSettings) -> bool:
    return follows_labels(settings) and pair.fixed_guides.label is not None and pair.moving_guides.label is not None


def _numbers(labels: Image | None) -> set[int]:
    return set() if labels is None else {int(number) for number in np.unique(labels.array)} - {0}


def _shared(pair: ImagePair) -> set[int]:
    return _numbers(pair.fixed_guides.label) & _numbers(pair.moving_guides.label)


def _named(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


@dataclass(frozen=True, eq=False)
class GuidingLabels:
    """Labels of one pair, for one stage.

    Parameters
    ----------
    pair : ImagePair
    composite : SimpleITK.Transform
        The transform so far, fixed to moving.
    weights : dict of int to float
        Of the labels that guide.
    options : RunOptions
    stage : str
        Its name, for the log.
    """

    pair: ImagePair
    composite: sitk.Transform
    weights: dict[int, float]
    options: RunOptions
    stage: str

    @classmethod
    def of(
        cls, pair: ImagePair, composite: sitk.Transform, settings: RegNetSettings, options: RunOptions, stage: str
    ) -> GuidingLabels | None:
        """Return the labels of a pair as they guide a stage; None if they are not to, or there are none."""
        if not _are_given(pair, settings):
            return None
        shared, given = _shared(pair), settings.label_weight
        alone = [
            f"{_named(numbers - shared)} of the {role} image"
            for role, numbers in (
                ("fixed", _numbers(pair.fixed_guides.label)), ("moving", _numbers(pair.moving_guides.label))
            )
            if numbers - shared
        ]  # fmt: skip
        if alone:
            options.log.warning(f"{stage}: labels that the other image does not have are not used: {'; '.join(alone)}")
        named = {} if len(given) == 1 else dict(zip(map(int, given[::2]), given[1::2], strict=True))
        everywhere = given[0] if len(given) == 1 else 1.0
        weights = {number: named.get(number, everywhere) for number in sorted(shared)}
        return cls(pair, composite, {number: w for number, w in weights.items() if w > 0}, options, stage)

    @cached_property
    def surfaces(self) -> list[LabelSurface]:
        """The surfaces of the labels, under the transform so far."""
        from regnet_itk.refinement.label_term import label_surfaces

        grid = self._grid()
        fixed, moving = self.pair.fixed_guides.label, self.pair.moving_guides.label
        assert fixed is not None
        assert moving is not None
        seen = _seen_on(grid, fixed, None), _seen_on(grid, moving, self.composite)
        there = [number for number in self.weights if all((image.array == number).any() for image in seen)]
        if missing := set(self.weights) - set(there):
            self.options.log.warning(
                f"{self.stage}: labels {_named(missing)} are not used: the transform so far leads them out of the "
                "fixed image, or they are smaller than its voxels of 2 mm"
            )
        return list(label_surfaces(*seen, there, np.random.default_rng(self.options.seed or 0)))

    def lead(self, u: DisplacementField, look: NetworkLook) -> DisplacementField:
        """Return a predicted field, or a better one that the network finds from where the labels lead.

        Parameters
        ----------
        u : DisplacementField
            What the network predicted, mm, LPS.
        look : NetworkLook
            How it did so.
        """
        off = self._off(u)
        self.options.log.debug(f"{self.stage}: labels are apart by {_described(off)}")
        if not off or max(off.values()) < _FAR:
            return u
        again = look.again(self._brought_near(u))
        after = self._off(again)
        self.options.log.debug(f"{self.stage}: after a second look by {_described(after)}")
        return again if sum(after.values()) < _BETTER * sum(off.values()) else u

    def terms(self, pair: InstancePair) -> list[Term]:
        """Return what the labels add to instance optimisation on a pair."""
        from regnet_itk.refinement.label_term import LabelTerm

        if not self.surfaces:
            return []
        volume = float(pair.region.array.sum()) * float(np.prod(pair.fixed.grid.spacing))
        return [LabelTerm(pair.fixed.grid, self.surfaces, self.weights, volume, self.options.seed or 0)]

    def details(self) -> dict[str, Detail]:
        """Return what is recorded of them."""
        return {"guiding_labels": ", ".join(str(surface.number) for surface in self.surfaces)}

    def _grid(self) -> Grid:
        """Return the voxels of the labels' distances."""
        whole = self.pair.fixed.grid
        volume = float(np.prod(whole.size)) * float(np.prod(whole.spacing))
        return whole.isotropic(max(_STEP, (volume / _MOST_VOXELS) ** (1 / 3)))

    def _off(self, u: DisplacementField) -> dict[int, float]:
        return {surface.number: surface.off(u.at(surface.points)) for surface in self.surfaces}

    def _brought_near(self, u: DisplacementField) -> DisplacementField:
        """Return a field under which the labels lie on each other, whatever the images show."""
        from regnet_itk.refinement.agreement import InstancePair
        from regnet_itk.refinement.instance_optimisation import InstanceOptions, optimise_field
        from regnet_itk.refinement.label_term import LabelTerm

        grid = self.pair.fixed.grid.isotropic(_START_VOXELS)
        flat, nowhere = (Image(np.zeros(grid.shape, dtype=kind), grid) for kind in (np.float32, bool))
        blind = InstancePair(flat, flat, nowhere, nowhere)
        term = LabelTerm(grid, self.surfaces, self.weights, 0.0, self.options.seed or 0)
        options = InstanceOptions(
            _START_ITERATIONS, device=self.options.device, threads=self.options.threads, scale=_START_SCALE
        )
        return optimise_field(blind, u, options, terms=[term])


def _described(off: dict[int, float]) -> str:
    return ", ".join(f"{mm:.1f} mm ({number})" for number, mm in off.items())


def _seen_on(grid: Grid, labels: Image, composite: sitk.Transform | None) -> Image:
    """Return labels on other voxels, the nearest of each, and `UNKNOWN` beyond their image."""
    from regnet_itk.refinement.label_term import UNKNOWN

    found = labels.resampled(grid, composite, order=0, default=UNKNOWN)
    return Image(np.rint(found.array).astype(np.int32), grid)
