"""How a RegNet stage finds the displacement field of a pair, one step after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regnet_itk.data.image import Image
from regnet_itk.networks.suitability import (
    capture_range_reached,
    coarse_voxels,
    small_image,
    unlike_intensities,
)
from regnet_itk.stages.ignored import Ignored
from regnet_itk.stages.protection import Protection
from regnet_itk.stages.regnet_guides import lead_by_guides
from regnet_itk.stages.regnet_improvement import BothWays, Improvement
from regnet_itk.stages.regnet_inputs import check_overlap, resample_pair, standardised_pairs
from regnet_itk.stages.regnet_look import NetworkLook
from regnet_itk.stages.regnet_region import Regions
from regnet_itk.stages.regnet_sliding import SIDE_ITERATIONS, let_slide

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.inference import Predictor
    from regnet_itk.networks.model import Model, ModelDescription
    from regnet_itk.networks.world import World
    from regnet_itk.refinement.agreement import InstancePair
    from regnet_itk.refinement.terms import Term
    from regnet_itk.stages.base import Detail, ImagePair, RunOptions
    from regnet_itk.stages.regnet_labels import GuidingLabels
    from regnet_itk.stages.regnet_landmarks import GuidingLandmarks
    from regnet_itk.stages.regnet_settings import RegNetSettings
    from regnet_itk.transforms.chain import TransformChain

_WHOLE_IMPROVED = 0.5
"""The share of the work that is done when a field has been improved whose sides are to be improved yet."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FoundField:
    """What a network and the steps after it have found.

    Parameters
    ----------
    u : DisplacementField
        mm, LPS, on the fixed side: F(x) = M(T0(x + u(x))).
    details : dict
        What is recorded of it.
    warnings : tuple of str
        What a user should know, a sentence each.
    """

    u: DisplacementField
    details: dict[str, Detail]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Predicted:
    """What the network has predicted, what guided it, and how it looked at the pair."""

    u: DisplacementField
    guides: Sequence[GuidingLandmarks | GuidingLabels]
    look: NetworkLook

    def make_terms(self, instance: InstancePair) -> list[Term]:
        """Return what the guides add to instance optimisation on a pair."""
        return [term for guide in self.guides for term in guide.terms(instance)]


@dataclass(frozen=True, eq=False)
class FieldSearch:
    """The search for the displacement field of one pair.

    Parameters
    ----------
    pair : ImagePair
    initial : TransformChain
        T0, the transform so far.
    model : Model
        On the voxels that it shall work on.
    settings : RegNetSettings
    follows : frozenset of str
        Which guides of the pair count.
    options : RunOptions
    name, source : str
        Of the stage and of its parameter file, for messages.
    """

    pair: ImagePair
    initial: TransformChain
    model: Model
    settings: RegNetSettings
    follows: frozenset[str]
    options: RunOptions
    name: str
    source: str
    _told: dict[str, Detail] = field(default_factory=dict)

    def run(self) -> FoundField:
        """Predict the displacement, improve it, and make it keep what it has to.

        Raises
        ------
        ImageError
            If the region to predict in is empty, or the images do not overlap under the initial transform.
        ParameterError
            If the region is to be a mask and there is none, or the memory budget is too small.
        """
        self.options.progress(0.0, "resampling")
        with ThreadPoolExecutor(max_workers=1) as aside:  # masks keep one thread busy, all else all of them
            region_found = aside.submit(self._regions.to_predict, self._grid)
            resampled = [self._resampled(one) for one in self._seen]
            region = region_found.result()
            to_improve = aside.submit(self._regions.to_improve, region)
            inside = self._covered(region, self._grid)
            check_overlap(*resampled[0], inside, self._world.background)
            predicted = self._predicted(resampled, inside)
        u = self._improved(predicted, region, to_improve)
        covered = self._covered(inside, u.grid)
        u = self._faded(u, covered)
        protected = self._protection.enforce(u, self.initial)
        self._told.update(protected.details())
        lengths = np.linalg.norm(protected.u.vectors, axis=-1)
        warnings = (
            *self._unlike_training(resampled, self._ignored.left_of(inside, self._composite)),
            *_too_far(self.model.description, lengths, lengths[covered.array]),
            *filter(None, [self._protection.overlap()]),
            *protected.warnings(),
        )
        return FoundField(protected.u, {**_lengths_told(lengths), **self._told}, warnings)

    @property
    def _world(self) -> World:
        return self.model.description.world

    @cached_property
    def _scale(self) -> float:
        """The size of the model's voxels over that which its network was made for: that of all lengths."""
        return self.model.description.voxel_size / self.model.architecture.voxel_size

    @cached_property
    def _grid(self) -> Grid:
        return self.pair.fixed.grid.isotropic(self.model.description.voxel_size)

    @cached_property
    def _composite(self) -> sitk.Transform:
        return self.initial.to_sitk(self.pair.fixed.grid)

    @cached_property
    def _seen(self) -> list[ImagePair]:
        return standardised_pairs(self.pair, self._world)

    @cached_property
    def _ignored(self) -> Ignored:
        return Ignored.of(self.pair) if "ignore" in self.follows else Ignored()

    @cached_property
    def _protection(self) -> Protection:
        guides = self.pair.fixed_guides
        rigid, volume = (getattr(guides, name) if name in self.follows else None for name in ("rigid", "volume"))
        return Protection(rigid, volume, self._ignored.fixed, self.settings.unfold)

    @cached_property
    def _regions(self) -> Regions:
        from regnet_itk.refinement.instance_optimisation import VOXEL_SIZE

        return Regions(
            self.pair, self.initial, self.settings, self._world, self.source, finest=self._scale * VOXEL_SIZE,
            images=len(self._seen), protected=self._protection.inside,
        )  # fmt: skip

    def _resampled(self, pair: ImagePair) -> tuple[Image, Image]:
        background, threads = self._world.background, self.options.threads
        return resample_pair(pair, self._grid, self._composite, background, threads=threads)

    @staticmethod
    def _covered(region: Image, grid: Grid) -> Image:
        from regnet_itk.networks.regions import covering

        return Image(covering(region, grid), grid)

    def _predicted(self, resampled: Sequence[tuple[Image, Image]], inside: Image) -> _Predicted:
        """Return what the network predicts, led by landmarks and labels, and these."""
        options, settings, predictor = self.options, self.settings, self._predictor()
        options.log.debug(
            f"{self.name}: {self._grid.size} voxels of {self._grid.spacing[0]} mm on {predictor.device}"
        )  # fmt: skip
        look = NetworkLook(
            self._seen, resampled, self.initial, inside, predictor, settings.fade, self._world, options.threads
        )  # fmt: skip
        u, guides = lead_by_guides(
            look, self.pair, self._composite, settings=settings, options=options, stage=self.name
        )  # fmt: skip
        u, folded = self._unfolded(u)
        self._told.update(_predicted_by(self.model, predictor), unfolded_share=round(folded, 6))
        for guide in guides:
            self._told.update(guide.details())
        return _Predicted(self._carried_on(u), guides, look)

    def _predictor(self) -> Predictor:
        from regnet_itk.networks.inference import InferenceOptions, Predictor

        settings, options = self.settings, self.options
        inference = InferenceOptions(
            options.device, settings.precision, settings.memory, settings.output_step, settings.repetitions,
            settings.stages, options.threads,
        )  # fmt: skip
        reached = 0.0

        def report(fraction: float) -> None:
            nonlocal reached
            reached = max(reached, fraction)  # of several images, and in a second look, it begins again
            options.progress(0.1 + 0.3 * reached, "predicting")

        return Predictor(self.model, inference, report)

    def _improved(
        self, predicted: _Predicted, region: Image, to_improve: Future[Image | None]
    ) -> DisplacementField:  # fmt: skip
        """Return a field that instance optimisation has improved, and of which a part slides if that is wanted."""
        u = predicted.u
        improvement = Improvement(
            self._seen, self._composite, self._ignored, self._world, self.settings, self.options, self.name,
            self._scale, predicted.make_terms,
        )  # fmt: skip
        sliding = self._regions.to_slide(region)
        if (improved_in := to_improve.result()) is not None:
            until = 0.85 if sliding is None else _WHOLE_IMPROVED
            if self.settings.inverse_consistency and improved_in.array.any():
                start = BothWays(u, self._unfolded(predicted.look.predict_back())[0])
                both = improvement.improve_both_ways(start, improved_in, until=until)
                u = both.u
                self._told["inverse_residual_mm"] = round(both.residual, 3)
            else:
                u = improvement.improve(u, improved_in, until=until)
            u, _ = self._unfolded(self._carried_on(u))
        if sliding is None:
            return u
        of_sides = partial(improvement.with_iterations(SIDE_ITERATIONS).improve, since=_WHOLE_IMPROVED)
        slid = let_slide(u, *sliding, of_sides, self._scale)
        if not slid.details:
            self.options.log.warning(f"{self.name}: what is to slide has no border within the image, so nothing slides")
        self._told.update(slid.details)
        return self._unfolded(slid.u)[0]

    def _carried_on(self, u: DisplacementField) -> DisplacementField:
        """Return a field that goes on smoothly through what is ignored."""
        from regnet_itk.refinement.instance_optimisation import CONTROL_SPACING

        return self._ignored.carry_on(u, self.initial, self._scale * CONTROL_SPACING)

    def _faded(self, u: DisplacementField, covered: Image) -> DisplacementField:
        """Return a field that falls to zero outside of what is covered."""
        from regnet_itk.networks.regions import fade

        width = self.settings.fade
        u = fade(u, covered, width)
        if width > np.linalg.norm(u.vectors[covered.array], axis=-1).mean():  # else a step was asked for
            u, _ = self._unfolded(u)
        return u

    def _unfolded(self, u: DisplacementField) -> tuple[DisplacementField, float]:
        """Return a field that does not fold, if that is wanted, and the share of it that had to be smoothed."""
        from regnet_itk.networks.devices import limited_threads
        from regnet_itk.refinement.unfolding import unfold_field

        if not self.settings.unfold:
            return u, 0.0
        with limited_threads(self.options.threads):
            found, share = unfold_field(u)
        if share:
            self.options.log.debug(f"{self.name}: the field was smoothed at {share:.3%} of the voxels, where it folded")
        return found, share

    def _unlike_training(self, seen: Sequence[tuple[Image, Image]], region: Image) -> Iterator[str]:
        """Say how the images, as given and as the network saw them, are unlike those that it was trained on."""
        inside, description = region.array.astype(bool), self.model.description
        for side, (role, given) in enumerate((("fixed", self.pair.fixed_images), ("moving", self.pair.moving_images))):
            for number, image in enumerate(given):
                name = f"{role} image {number}" if number else f"{role} image"
                yield from filter(None, (
                    unlike_intensities(seen[number][side], inside, description, name),
                    coarse_voxels(image.grid, description, name),
                    small_image(image.grid, description, name),
                ))  # fmt: skip


def _predicted_by(model: Model, predictor: Predictor) -> dict[str, Detail]:
    """Return what is recorded of the network."""
    return {
        "model": model.description.name,
        "model_sha256": model.digest,
        "architecture": model.description.architecture,
        "voxel_size_mm": model.description.voxel_size,
        "device": str(predictor.device),
        "precision": str(predictor.precision).removeprefix("torch."),
    }


def _lengths_told(lengths: FloatArray) -> dict[str, Detail]:
    """Return what is recorded of |u| in mm."""
    return {
        "mean_displacement_mm": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
        "max_displacement_mm": float(lengths.max()),
    }


def _too_far(description: ModelDescription, lengths: FloatArray, lengths_inside: FloatArray) -> Iterator[str]:
    """Say if displacements come near the largest that the network follows."""
    found = capture_range_reached(lengths_inside, float(lengths.max()), description)
    if found is not None:
        yield found
