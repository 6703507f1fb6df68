"""A stage that a network computes: RegNet predicts the displacement that is left after the stages before it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from regnet_itk.data.image import Image
from regnet_itk.digests import digest_kept_file, digest_text
from regnet_itk.networks.suitability import (
    capture_range_reached,
    coarse_voxels,
    small_image,
    unlike_intensities,
)
from regnet_itk.stages.base import Detail, ImagePair, RunOptions, Stage, StageResult
from regnet_itk.stages.found_field import apply_found_field
from regnet_itk.stages.regnet_guides import lead_by_guides
from regnet_itk.stages.regnet_improvement import improve_prediction
from regnet_itk.stages.regnet_inputs import check_overlap, fit_to_pair, resample_pair, standardised_pairs
from regnet_itk.stages.regnet_labels import check_labels, follows_labels
from regnet_itk.stages.regnet_look import NetworkLook
from regnet_itk.stages.regnet_region import Regions, check_masks_given
from regnet_itk.stages.regnet_settings import RegNetSettings
from regnet_itk.stages.regnet_sliding import SIDE_ITERATIONS, let_slide
from regnet_itk.transforms.resampling_keys import result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.networks.inference import Predictor
    from regnet_itk.networks.model import Model, ModelDescription
    from regnet_itk.transforms.chain import TransformChain

REGNET_REGISTRATION = "RegNetRegistration"
"""What ``Registration`` says in the parameter map of a RegNet stage."""

_WHOLE_IMPROVED = 0.5
"""The share of the work that is done when a field has been improved whose sides are improved yet."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RegNetStage(Stage):
    """One stage that a network computes.

    With T0 the transform so far, the network sees the fixed image and the moving image resampled through T0, both on
    cubic voxels along the fixed image's axes, and predicts u with F(x) = M(T0(x + u(x))). Of several images of each
    side it sees one pair after the other.

    Parameters
    ----------
    parameters : ParameterMap
        A map with ``(Registration "RegNetRegistration")``.
    """

    settings_type: ClassVar[type] = RegNetSettings
    adds_field: ClassVar[bool] = True
    takes_several_images: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The model's name after the word RegNet, for messages and reports."""
        return f"RegNet {Path(self.settings.model).stem}"

    @property
    def settings(self) -> RegNetSettings:
        """The settings that the parameter map gives."""
        return RegNetSettings.from_parameters(self.parameters)

    @property
    def follows(self) -> frozenset[str]:
        """The guides that the keys do not leave aside."""
        settings = self.settings
        asked = {"label": follows_labels(settings), "sliding": settings.sliding == "mask"}
        return frozenset(name for name, follows in asked.items() if follows)

    @property
    def guided_by_landmarks(self) -> bool:
        """Whether the landmarks have a weight."""
        return self.settings.landmark_weight > 0

    @property
    def compares_any_contrast(self) -> bool:
        """Whether the model's images may differ in contrast."""
        from regnet_itk.networks.model import read_model_header

        return read_model_header(self._model_file())[0].world.any_contrast

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:
        """Refuse what shows without loading the model.

        Raises
        ------
        ModelError
            If the model does not exist, or its file is damaged.
        ParameterError
            If the pixel type of the result or one of the network's stages does not exist, or the region is to be a
            mask and there is none.
        """
        from regnet_itk.networks.model import check_model_file

        result_pixel_type(self.parameters)
        check_model_file(self._model_file())
        if pair is not None:
            check_masks_given(pair, self.settings, self.parameters.source)
            check_labels(pair, self.settings, self.parameters.source)
        if self.settings.stages or self.settings.voxel_size is not None:  # only the model can say if they fit
            self.load(pair, options)

    def load(self, pair: ImagePair | None, options: RunOptions) -> None:
        """Load Torch, the model, and numba.

        Raises
        ------
        ModelError
            If the model is of another network than it says.
        ParameterError
            If one of the network's stages or the device does not exist.
        """
        from regnet_itk.networks.devices import find_device
        from regnet_itk.networks.interpolation import load_kernels

        settings, model = self.settings, self._model()
        if pair is not None and (settings.stages or settings.voxel_size is not None):  # else there is nothing to refuse
            model = self._model_for(pair)
        model.stages_left_out(settings.stages)
        if find_device(options.device).type == "cpu":
            load_kernels()

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Predict the displacement, and return `initial` with it as the innermost link.

        Raises
        ------
        ImageError
            If the region to predict in is empty, or the images do not overlap under `initial`.
        ParameterError
            If the region is to be a mask and there is none, or the memory budget is too small.
        """
        from regnet_itk.networks.regions import covering, fade
        from regnet_itk.refinement.instance_optimisation import VOXEL_SIZE

        started = time.perf_counter()
        settings, model = self.settings, self._model_for(pair)
        world, voxel_size = model.description.world, model.description.voxel_size
        seen = standardised_pairs(pair, world)
        options.progress(0.0, "resampling")
        grid = pair.fixed.grid.isotropic(voxel_size)
        composite = initial.to_sitk(pair.fixed.grid)
        scale = voxel_size / model.architecture.voxel_size
        regions = Regions(
            pair, initial, settings, world, self.parameters.source, finest=scale * VOXEL_SIZE, images=len(seen)
        )
        with ThreadPoolExecutor(max_workers=1) as aside:  # masks keep one thread busy, all else all of them
            region_found = aside.submit(regions.to_predict, grid)
            resampled = [resample_pair(one, grid, composite, world.background, threads=options.threads) for one in seen]
            region = region_found.result()
            to_improve = aside.submit(regions.to_improve, region)
            inside = Image(covering(region, grid), grid)
            check_overlap(*resampled[0], inside, world.background)
            predictor = self._predictor(model, options)
            options.log.debug(f"{self.name}: {grid.size} voxels of {grid.spacing[0]} mm on {predictor.device}")
            look = NetworkLook(
                seen, resampled, initial, inside, predictor, settings.fade, world, options.threads
            )  # fmt: skip
            u, guides = lead_by_guides(look, pair, composite, settings=settings, options=options, stage=self.name)
            u, folded = self._unfolded(u, options)
        improve = partial(
            improve_prediction,
            pairs=seen, composite=composite, world=world, options=options, name=self.name, scale=scale,
            make_terms=lambda instance: [term for guide in guides for term in guide.terms(instance)],
        )  # fmt: skip
        sliding = regions.to_slide(region)
        if (improved_in := to_improve.result()) is not None:
            until = 0.85 if sliding is None else _WHOLE_IMPROVED
            u, _ = self._unfolded(improve(u, region=improved_in, settings=settings, until=until), options)
        slid: dict[str, Detail] = {}
        if sliding is not None:
            both_sides = replace(settings, instance_iterations=SIDE_ITERATIONS)
            slide = let_slide(u, *sliding, partial(improve, settings=both_sides, since=_WHOLE_IMPROVED), scale)
            u, slid = self._unfolded(slide.u, options)[0], slide.details
        covered = Image(covering(inside, u.grid), u.grid)
        u = fade(u, covered, settings.fade)
        if settings.fade > np.linalg.norm(u.vectors[covered.array], axis=-1).mean():  # else a step was asked for
            u, _ = self._unfolded(u, options)
        options.progress(0.87, "warping")
        background = world.background_of(pair.moving)
        chain, warped = apply_found_field(u, pair, initial, self.parameters, background, threads=options.threads)
        options.progress(1.0, "done")
        lengths = np.linalg.norm(u.vectors, axis=-1)
        details = {**_details(model, predictor, lengths), "unfolded_share": round(folded, 6), **slid}
        details |= {name: value for guide in guides for name, value in guide.details().items()}
        warnings = [
            *_unlike_training(model.description, pair, resampled, inside),
            *_too_far(model.description, lengths, lengths[covered.array]),
        ]
        for warning in warnings:
            options.log.warning("%s: %s", self.name, warning)
        if warnings:
            details["warnings"] = "; ".join(warnings)
        return StageResult(chain, time.perf_counter() - started, warped, details)

    def fingerprint(self) -> str:
        """Return a digest of the parameters and of the model's file.

        Raises
        ------
        ModelError
            If there is no such model.
        """
        return digest_text([*self._described(), digest_kept_file(self._model_file())])

    def _predictor(self, model: Model, options: RunOptions) -> Predictor:
        from regnet_itk.networks.inference import InferenceOptions, Predictor

        settings = self.settings
        inference = InferenceOptions(
            options.device, settings.precision, settings.memory, settings.output_step, settings.repetitions,
            settings.stages, options.threads,
        )  # fmt: skip
        reached = 0.0

        def report(fraction: float) -> None:
            nonlocal reached
            reached = max(reached, fraction)  # of several images, and in a second look, it begins again
            options.progress(0.1 + 0.3 * reached, "predicting")

        return Predictor(model, inference, report)

    def _unfolded(self, u: DisplacementField, options: RunOptions) -> tuple[DisplacementField, float]:
        """Return a field that does not fold, if that is wanted, and the share of it that had to be smoothed."""
        from regnet_itk.networks.devices import limited_threads
        from regnet_itk.refinement.unfolding import unfold_field

        if not self.settings.unfold:
            return u, 0.0
        with limited_threads(options.threads):
            found, share = unfold_field(u)
        if share:
            options.log.debug(f"{self.name}: the field was smoothed at {share:.3%} of the voxels, where it folded")
        return found, share

    def _model_for(self, pair: ImagePair) -> Model:
        """Return the model on the voxels that are asked for, or else fit the pair."""
        wanted = self.settings.voxel_size
        return fit_to_pair(self._model(), pair) if wanted is None else self._model().at_voxel_size(wanted)

    def _model_file(self) -> Path:
        from regnet_itk.networks.model import find_model

        return find_model(self.settings.model, Path(self.parameters.source).parent)

    def _model(self) -> Model:
        path = self._model_file().resolve()
        return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Model:
    """Load a model once for as long as its file is not `changed` (its time stamp)."""
    from regnet_itk.networks.model import load_model

    return load_model(path)


def _details(model: Model, predictor: Predictor, lengths: FloatArray) -> dict[str, Detail]:
    """Return what is recorded of a prediction; `lengths` are |u| in mm."""
    return {
        "model": model.description.name,
        "model_sha256": model.digest,
        "architecture": model.description.architecture,
        "voxel_size_mm": model.description.voxel_size,
        "device": str(predictor.device),
        "precision": str(predictor.precision).removeprefix("torch."),
        "mean_displacement_mm": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
        "max_displacement_mm": float(lengths.max()),
    }


def _unlike_training(
    description: ModelDescription, pair: ImagePair, seen: Sequence[tuple[Image, Image]], region: Image
) -> Iterator[str]:
    """Say how the images, as given and as the network saw them, are unlike those that it was trained on."""
    inside = region.array.astype(bool)
    for side, (role, given) in enumerate((("fixed", pair.fixed_images), ("moving", pair.moving_images))):
        for number, image in enumerate(given):
            name = f"{role} image {number}" if number else f"{role} image"
            yield from filter(None, (
                unlike_intensities(seen[number][side], inside, description, name),
                coarse_voxels(image.grid, description, name),
                small_image(image.grid, description, name),
            ))  # fmt: skip


def _too_far(description: ModelDescription, lengths: FloatArray, lengths_inside: FloatArray) -> Iterator[str]:
    """Say if displacements come near the largest that the network was trained on."""
    found = capture_range_reached(lengths_inside, float(lengths.max()), description)
    if found is not None:
        yield found
