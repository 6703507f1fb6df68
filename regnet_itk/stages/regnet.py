"""A stage that a network computes: RegNet predicts the displacement that is left after the stages before it."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import numpy.typing as npt

from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.errors import ImageError, ParameterError
from regnet_itk.networks.suitability import capture_range_reached, coarse_voxels, unlike_intensities
from regnet_itk.stages.base import Detail, ImagePair, RunOptions, StageResult
from regnet_itk.transforms.chain import TransformChain, field_link
from regnet_itk.transforms.resampling_keys import resampling_parameters, result_pixel_type

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.anatomy.lungs import ChestMasks
    from regnet_itk.data.field import DisplacementField
    from regnet_itk.data.grid import Grid
    from regnet_itk.networks.inference import Predictor
    from regnet_itk.networks.model import Model
    from regnet_itk.parameters import ParameterMap

DEFAULT_MODEL = "regnet_multistage"
"""The better of the shipped models on the validation images."""

Precision = Literal["auto", "float32", "bfloat16"]
FloatArray = npt.NDArray[np.float32]
Region = Literal["auto", "mask", "lungs", "body", "all"]


@dataclass(frozen=True)
class RegNetSettings:
    """The ``RegNet`` keys of a parameter map.

    Parameters
    ----------
    model : str
        ``RegNetModel``: a shipped model's name, or the path of a model file.
    output_step : int
        ``RegNetOutputStep``: 1 predicts every voxel, 2 every second one (the paper's network only).
    precision : {"auto", "float32", "bfloat16"}
        ``RegNetPrecision``.
    memory : float
        ``RegNetMemoryBudget``: GB for the network's activations, and then for the features of instance optimisation.
    fade : float
        ``RegNetFadeWidth``: mm over which the field falls to zero outside the region.
    region : {"auto", "mask", "lungs", "body", "all"}
        ``RegNetRegion``: where to predict. "auto" takes the masks where they are given, else what the model is for.
    repetitions : int
        ``RegNetRepetitions``: how often the coarse-to-fine network is applied.
    stages : tuple of float
        ``RegNetStages``: voxel sizes in mm of the coarse-to-fine network's stages to run, the coarsest first; none are
        all.
    instance_iterations : int
        ``RegNetInstanceIterations``: steps of gradient descent on this very pair after the network.
    instance_smoothness : float
        ``RegNetInstanceSmoothness``: weight of smoothness in them; coarse images get more (`smoothness_factor`).
    """

    model: str = DEFAULT_MODEL
    output_step: int = 2
    precision: Precision = "auto"
    memory: float = 2.5
    fade: float = 20.0
    region: Region = "auto"
    repetitions: int = 1
    stages: tuple[float, ...] = ()
    instance_iterations: int = 0
    instance_smoothness: float = 0.02

    @classmethod
    def from_parameters(cls, parameters: ParameterMap) -> RegNetSettings:
        """Read the keys of a checked map; what it leaves out has the default.

        Raises
        ------
        ParameterError
            If the output step is neither 1 nor 2.
        """
        step = parameters.get_int("RegNetOutputStep", cls.output_step)
        if step not in (1, 2):
            raise ParameterError(f"{parameters.source}: 'RegNetOutputStep' must be 1 or 2, not {step}")
        return cls(
            model=parameters.get_str("RegNetModel", cls.model),
            output_step=step,
            precision=cast("Precision", parameters.get_str("RegNetPrecision", cls.precision)),
            memory=parameters.get_float("RegNetMemoryBudget", cls.memory),
            fade=parameters.get_float("RegNetFadeWidth", cls.fade),
            region=cast(Region, parameters.get_str("RegNetRegion", cls.region)),
            repetitions=parameters.get_int("RegNetRepetitions", cls.repetitions),
            stages=tuple(parameters.get_floats("RegNetStages", default=())),
            instance_iterations=parameters.get_int("RegNetInstanceIterations", cls.instance_iterations),
            instance_smoothness=parameters.get_float("RegNetInstanceSmoothness", cls.instance_smoothness),
        )


@dataclass(frozen=True)
class RegNetStage:
    """One stage that a network computes.

    With T0 the transform so far, the network sees the fixed image and the moving image resampled through T0, both on
    cubic voxels along the fixed image's axes, and predicts u with F(x) = M(T0(x + u(x))).

    Parameters
    ----------
    parameters : ParameterMap
        A map with ``(Registration "RegNetRegistration")``.
    """

    parameters: ParameterMap

    @property
    def name(self) -> str:
        """The model's name after the word RegNet, for messages and reports."""
        return f"RegNet {Path(self.settings.model).stem}"

    @property
    def settings(self) -> RegNetSettings:
        """The stage's settings, as its parameter map says."""
        return RegNetSettings.from_parameters(self.parameters)

    def check(self, initial: TransformChain) -> None:
        """Load the model, so that a missing or damaged one is found before the stages before it have run.

        Raises
        ------
        ModelError
            If the model does not exist, is damaged, or is of another network than it says.
        ParameterError
            If the pixel type of the result, the output step or one of the stages does not exist.
        """
        from regnet_itk.networks.inference import finest_level

        result_pixel_type(self.parameters)
        finest_level(self._model(), self.settings.stages)

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Predict the displacement, and return `initial` with it as the innermost link.

        Raises
        ------
        ImageError
            If the region to predict in is empty, or the images do not overlap under `initial`.
        ParameterError
            If the region is to be a mask and there is none, or the memory budget is too small.
        """
        from regnet_itk.anatomy.lungs import ChestMasks
        from regnet_itk.networks.inference import covering, fade

        started = time.perf_counter()
        settings, model = self.settings, self._model()
        options.progress(0.0, "resampling")
        grid = pair.fixed.grid.isotropic(model.description.voxel_size)
        composite = initial.to_sitk(pair.fixed.grid)
        masks = ChestMasks(pair.fixed)
        with ThreadPoolExecutor(max_workers=1) as aside:  # masks keep one thread busy, all else all of them
            region_found = aside.submit(self._region, pair, initial, grid, masks)
            fixed, moving = _resampled(pair, grid, composite, options)
            region = region_found.result()
            to_improve = aside.submit(self._region_to_improve, pair, region, masks)
            inside = Image(covering(region, grid), grid)
            _check_overlap(fixed, moving, inside)
            predictor = self._predictor(model, options)
            options.log(f"{self.name}: {grid.size} voxels of {grid.spacing[0]} mm on {predictor.device}")
            u = predictor.predict(fixed, moving, inside, margin=settings.fade)
        if (improved_in := to_improve.result()) is not None:
            u = self._improved(pair, composite, improved_in, u, options)
        covered = Image(covering(inside, u.grid), u.grid)
        u = fade(u, covered, settings.fade)
        options.progress(0.87, "warping")
        chain = initial.then(field_link(u, self._resampling(pair)))
        warped = self._warped(pair, chain)
        options.progress(1.0, "done")
        lengths = np.linalg.norm(u.vectors, axis=-1)
        details: dict[str, Detail] = {
            "model": model.description.name,
            "model_sha256": model.digest,
            "architecture": model.description.architecture,
            "device": str(predictor.device),
            "precision": str(predictor.precision).removeprefix("torch."),
            "mean_displacement_mm": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
            "max_displacement_mm": float(lengths.max()),
        }
        warnings = self._warnings(pair, (fixed, moving), inside, lengths, lengths[covered.array])
        for warning in warnings:
            options.log(f"warning: {self.name}: {warning}")
        if warnings:
            details["warnings"] = "; ".join(warnings)
        return StageResult(chain, time.perf_counter() - started, warped, details)

    def _predictor(self, model: Model, options: RunOptions) -> Predictor:
        from regnet_itk.networks.inference import InferenceOptions, Predictor

        settings = self.settings
        chosen = InferenceOptions(
            options.device, settings.precision, settings.memory, settings.output_step, settings.repetitions,
            settings.stages, options.threads,
        )  # fmt: skip
        return Predictor(model, chosen, lambda fraction: options.progress(0.1 + 0.3 * fraction, "predicting"))

    def _region_to_improve(self, pair: ImagePair, region: Image, masks: ChestMasks) -> Image | None:
        """Return where the field is improved: the region of the network, or, if nobody asked for it, only the lungs.

        None if it is not to be improved at all.
        """
        from regnet_itk.refinement.instance_optimisation import MARGIN, VOXEL_SIZE, voxel_size_within

        if not self.settings.instance_iterations:
            return None
        found = self._region_on(pair, region, masks, VOXEL_SIZE)
        voxels = math.prod(s.stop - s.start for s in bounding_box(found.array, round(MARGIN / VOXEL_SIZE)))
        allowed = voxel_size_within(self.settings.memory, voxels)
        return found if allowed == VOXEL_SIZE else self._region_on(pair, region, masks, allowed)

    def _region_on(self, pair: ImagePair, region: Image, masks: ChestMasks, voxel_size: float) -> Image:
        """Return the voxels of such a size where the field is to be improved."""
        grid = pair.fixed.grid.isotropic(voxel_size)
        if self.settings.region == "auto" and pair.fixed_mask is None and pair.moving_mask is None:
            try:
                return masks.lungs(grid)
            except ImageError:
                pass  # not a chest: the whole region then
        chosen = Image(region.array.astype(np.uint8), region.grid).resampled(grid, order=0)
        return Image(chosen.array > 0, grid)

    def _improved(
        self, pair: ImagePair, composite: sitk.Transform, region: Image, u: DisplacementField, options: RunOptions
    ) -> DisplacementField:
        """Improve u on this pair, on the voxels of `region` and around it."""
        from regnet_itk.refinement.instance_optimisation import (  # fmt: skip
            MARGIN,
            VOXEL_SIZE,
            InstanceOptions,
            InstancePair,
            improved,
            smoothness_factor,
        )

        voxel_size = region.grid.spacing[0]
        if voxel_size > VOXEL_SIZE:
            options.log(
                f"{self.name}: improving on voxels of {voxel_size:.2f} mm, for which the memory budget is enough"
            )
        box = bounding_box(region.array, round(MARGIN / voxel_size))
        grid = region.grid.part(box)
        everywhere = Image(np.ones(pair.moving.grid.shape, dtype=np.uint8), pair.moving.grid)
        instance = InstancePair(
            *_resampled(pair, grid, composite, options, averaged=True),
            Image(region.array[box], grid),
            everywhere.resampled(grid, composite, order=0),
        )
        settings = self.settings
        factor = smoothness_factor(pair.fixed, pair.moving)
        if factor > 1:
            options.log(f"{self.name}: improving with {factor:.3g} times the smoothness, as the voxels are coarse")
        chosen = InstanceOptions(
            settings.instance_iterations, settings.instance_smoothness * factor, options.seed or 0, options.device,
            options.threads,
        )  # fmt: skip
        return improved(instance, u, chosen, lambda fraction: options.progress(0.4 + 0.45 * fraction, "improving"))

    def _warnings(
        self, pair: ImagePair, seen: tuple[Image, Image], region: Image, lengths: FloatArray, lengths_inside: FloatArray
    ) -> list[str]:
        """Return how the images, as given and as the network saw them, and how far it moves are unlike its training."""
        description = self._model().description
        found: list[str | None] = []
        for role, given, resampled in zip(
            ("fixed image", "moving image"), (pair.fixed, pair.moving), seen, strict=True
        ):
            found.append(unlike_intensities(resampled, region.array.astype(bool), description, role))
            found.append(coarse_voxels(given.grid, description, role))
        found.append(capture_range_reached(lengths_inside, float(lengths.max()), description))
        return [warning for warning in found if warning is not None]

    def _model(self) -> Model:
        from regnet_itk.networks.model import find_model

        beside = Path(self.parameters.source).parent
        path = find_model(self.settings.model, beside).resolve()
        return _loaded(path, path.stat().st_mtime_ns)

    def _resampling(self, pair: ImagePair) -> dict[str, tuple[str, ...]]:
        parameters = self.parameters
        return resampling_parameters(
            pair.fixed.grid,
            parameters.get_int("FinalBSplineInterpolationOrder", 3),
            parameters.get_float("DefaultPixelValue", -1000.0),
            result_pixel_type(parameters),
            parameters.get_str("ResultImageFormat", "mha"),
        )

    def _region(self, pair: ImagePair, initial: TransformChain, grid: Grid, masks: ChestMasks) -> Image:
        """Return where the displacement is wanted: on the fixed image's grid, or, if it is found, on the network's."""
        wanted: str = self.settings.region
        given = pair.fixed_mask is not None or pair.moving_mask is not None
        if wanted == "mask" and not given:
            raise ParameterError(f'{self.parameters.source}: (RegNetRegion "mask") needs -fMask or -mMask')
        if wanted == "auto":
            wanted = "mask" if given else self._model().description.region
        if wanted == "mask":
            given_masks = [mask for mask in (_moving_mask_on_fixed(pair, initial), pair.fixed_mask) if mask is not None]
            region = Image(np.logical_or.reduce([mask.array != 0 for mask in given_masks]), pair.fixed.grid)
        elif wanted == "all":
            region = Image(np.ones(pair.fixed.grid.shape, dtype=bool), pair.fixed.grid)
        else:
            region = masks.lungs(grid) if wanted == "lungs" else masks.body(grid)
        if not region.array.any():
            raise ImageError("the masks leave no voxel of the fixed image; check that masks and images overlap")
        return region

    def _warped(self, pair: ImagePair, chain: TransformChain) -> Image | None:
        if not self.parameters.get_bool("WriteResultImage", True):
            return None
        order = self.parameters.get_int("FinalBSplineInterpolationOrder", 3)
        default = self.parameters.get_float("DefaultPixelValue", -1000.0)
        warped = pair.moving.resampled(pair.fixed.grid, chain.to_sitk(pair.fixed.grid), order, default)
        return Image(cast_values(warped.array, result_pixel_type(self.parameters)), warped.grid)


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Model:
    """Load a model once for as long as its file is not `changed` (its time stamp)."""
    from regnet_itk.networks.model import load_model

    return load_model(path)


def _resampled(
    pair: ImagePair, grid: Grid, composite: sitk.Transform, options: RunOptions, averaged: bool = False
) -> tuple[Image, Image]:
    """Return the fixed image, and the moving image through the transform so far, on the same voxels."""
    from regnet_itk.networks.devices import limited_threads
    from regnet_itk.networks.resampling import resampled_for_network

    with limited_threads(options.threads):
        return (
            resampled_for_network(pair.fixed, grid, averaged=averaged),
            resampled_for_network(pair.moving, grid, composite, averaged),
        )


def _moving_mask_on_fixed(pair: ImagePair, initial: TransformChain) -> Image | None:
    if pair.moving_mask is None:
        return None
    binary = Image((pair.moving_mask.array != 0).astype(np.uint8), pair.moving_mask.grid)
    return binary.resampled(pair.fixed.grid, initial.to_sitk(pair.fixed.grid), order=0)


def _check_overlap(fixed: Image, moving: Image, region: Image) -> None:
    inside = region.array.astype(bool)
    if not (moving.array[inside] > -1000.0).any() and (fixed.array[inside] > -1000.0).any():
        raise ImageError(
            "the images do not overlap where the displacement is wanted: the moving image lies elsewhere in space; "
            "put an affine stage with (AutomaticTransformInitialization) before, or give -t0"
        )
