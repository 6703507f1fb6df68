"""Run a chain of stages on a pair of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import INTERPOLATION_ORDERS, Image, as_image, check_mask, check_registrable
from regnet_itk.data.image_files import read_image
from regnet_itk.data.landmarks import Landmarks, check_landmarks, read_landmarks
from regnet_itk.errors import ImageError, ParameterError, RegNetItkError, TransformError, did_you_mean
from regnet_itk.metrics.inverse_consistency import inverse_consistency
from regnet_itk.metrics.measures import ErrorSummary, summarise_errors
from regnet_itk.parameters import ParameterMap, check_parameter_map, read_parameter_map
from regnet_itk.results import RegistrationResult, StageReport, describe_error, overview_grid
from regnet_itk.stages.base import ImagePair, RunOptions
from regnet_itk.stages.elastix import ElastixStage
from regnet_itk.stages.regnet import RegNetStage
from regnet_itk.transforms.chain import TransformChain, field_link
from regnet_itk.transforms.elastix_reading import read_chain

DEFAULT_STAGES = ("affine", "regnet_multistage")

_RESULT_FORMATS = ("mha", "mhd", "nii", "nii.gz", "nrrd", "nhdr")

Progress = Callable[[int, str, float, str], None]
"""Is given the number and the name of the stage, the fraction of it that is done, and a short text.

The stages of the way back are numbered on, and their names begin with "backward"."""

Report = Callable[[int, StageReport], None]
"""Is given each stage's number and report when it has ended; the stages of the way back are numbered on."""


def register(
    fixed: Any,
    moving: Any,
    stages: str | Path | ParameterMap | Sequence[str | Path | ParameterMap] = DEFAULT_STAGES,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial: str | Path | TransformChain | None = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    both_ways: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    priority: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    log: Callable[[str], None] | None = None,
) -> RegistrationResult:
    """Register `moving` to `fixed` by a chain of elastix and RegNet stages.

    Parameters
    ----------
    fixed, moving : itk.Image, SimpleITK.Image, Image, or path
        Scalar 3D images with their spacing, origin and direction. For arrays: ``Image(array, Grid(..))``.
    stages : sequence of str, Path or ParameterMap
        Names of shipped parameter files ("affine", "regnet", "bspline_3r" ..), paths, or parameter maps, in the order
        in which they run. One alone may be given without a list.
    fixed_mask, moving_mask : like the images, optional
        Voxels other than 0 count; on the grids of their images.
    initial : path or TransformChain, optional
        Where to start: an elastix transform file (``-t0``), an ITK transform file, or a chain.
    fixed_landmarks, moving_landmarks : ndarray (n, 3), Landmarks or path, optional
        Corresponding points in mm, LPS; their errors are reported, they do not guide the registration.
    both_ways : bool
        Register `fixed` to `moving` as well, by the same stages, with masks and landmarks swapped, from the inverse of
        `initial` (exact for matrices; else on voxels of 2 mm or more, and refused if parts of it have none). The
        result then has `backward` and `inverse_consistency`.
    threads : int, optional
        CPU threads; all by default.
    seed : int, optional
        Takes the place of ``RandomSeed`` in elastix's stages.
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps", for the networks.
    priority : str, optional
        elastix's ``-priority``: "high", "abovenormal", "normal", "belownormal", "idle".
    progress, report, log : callable, optional
        See :data:`Progress` and :data:`Report`; `log` is given each line.

    Returns
    -------
    RegistrationResult
        With the transform, the warped image, the displacement field, and a report for each stage.

    Raises
    ------
    ImageError, PointsError, ParameterError, TransformError, ModelError, RegistrationError
        Each with one line that says what was given and what to do.
    """
    if (fixed_landmarks is None) != (moving_landmarks is None):
        raise ParameterError("landmarks are needed for both images (-fp and -mp), or for none")
    maps = _read_maps(stages)
    chain = _initial_chain(initial)
    pair = image_pair(fixed, moving, fixed_mask, moving_mask)
    error = _LandmarkError.of(fixed_landmarks, moving_landmarks, pair)
    inputs = _input_paths(
        fixed=fixed, moving=moving, fixed_mask=fixed_mask, moving_mask=moving_mask,
        fixed_landmarks=fixed_landmarks, moving_landmarks=moving_landmarks,
    )  # fmt: skip
    options = RunOptions(threads, seed, device, priority, log or (lambda line: None))
    task = _Task(pair, chain, plan_stages(maps, chain, options.log), error, inputs)
    _check_what_networks_need(task.stages, pair, device)
    way_back = task.reversed() if both_ways else None  # before anything runs, for what it may refuse
    result = task.run(options, progress, report)
    return result if way_back is None else _with_way_back(result, way_back, options, progress, report)


@dataclass(frozen=True)
class _Task:
    """A registration whose inputs and stages have been checked."""

    pair: ImagePair
    initial: TransformChain
    stages: list[ElastixStage | RegNetStage]
    error: _LandmarkError
    inputs: Mapping[str, str]

    def reversed(self) -> _Task:
        """Return the registration of the fixed to the moving image by the same stages."""
        pair = ImagePair(self.pair.moving, self.pair.fixed, self.pair.moving_mask, self.pair.fixed_mask)
        initial = _inverted(self.initial, self.pair)
        try:
            stages = plan_stages([stage.parameters for stage in self.stages], initial)
        except ParameterError as error:  # what was a B-spline on the way there is a displacement field now
            raise ParameterError(f"the way back, from the inverse of the initial transform: {error}") from None
        swapped = {"fixed": "moving", "moving": "fixed"}
        inputs = {}
        for name, path in self.inputs.items():
            role, dash, what = name.partition("_")
            inputs[f"{swapped[role]}{dash}{what}"] = path
        return _Task(pair, initial, stages, _LandmarkError(self.error.moving, self.error.fixed), inputs)

    def run(self, options: RunOptions, progress: Progress | None, report: Report | None) -> RegistrationResult:
        """Run the stages one after the other."""
        chain, say = self.initial, options.log
        first_error = self.error.under(chain)
        if first_error is not None:
            say(f"before: TRE {describe_error(first_error)}")
        reports: list[StageReport] = []
        for number, stage in enumerate(self.stages):

            def stage_progress(fraction: float, text: str, number: int = number, name: str = stage.name) -> None:
                if progress is not None:
                    progress(number, name, fraction, text)

            say(f"stage {number}: {stage.name} ({stage.parameters.source})")
            found = stage.run(self.pair, chain, replace(options, progress=stage_progress))
            chain = found.chain
            done = StageReport(
                stage.name, stage.parameters, found.seconds, len(chain.links), found.warped, self.error.under(chain),
                found.details, found.iteration_info,
            )  # fmt: skip
            say(f"stage {number}: {found.seconds:.1f} s" + (f", TRE {describe_error(done.tre)}" if done.tre else ""))
            reports.append(done)
            if report is not None:
                report(number, done)
        settings = {name: getattr(options, name) for name in ("threads", "seed", "device", "priority")}
        return RegistrationResult(
            self.pair, chain, tuple(reports), len(self.initial.links), first_error, self.error.fixed, settings,
            self.inputs,
        )  # fmt: skip


def _with_way_back(
    result: RegistrationResult, way_back: _Task, options: RunOptions, progress: Progress | None, report: Report | None
) -> RegistrationResult:
    """Register the other way, and return the result with it and with the residual of both ways together."""
    count = len(result.stages)

    def log(line: str) -> None:
        kind = "warning: " if line.startswith("warning: ") else ""  # which is looked for at the start of lines
        options.log(f"{kind}backward: {line.removeprefix(kind)}")

    def on_progress(number: int, name: str, fraction: float, text: str) -> None:
        if progress is not None:
            progress(count + number, f"backward {name}", fraction, text)

    def on_report(number: int, done: StageReport) -> None:
        if report is not None:
            report(count + number, done)

    try:
        backward = way_back.run(replace(options, log=log), on_progress, on_report)
    except RegNetItkError as error:
        raise type(error)(f"the way back: {error}") from None
    pair = result.pair
    consistency = inverse_consistency(result.chain, backward.chain, pair.fixed, pair.moving.grid, pair.fixed_mask)
    options.log(f"both ways: {consistency.describe()}")
    return replace(result, backward=backward, inverse_consistency=consistency)


def _inverted(initial: TransformChain, pair: ImagePair) -> TransformChain:
    """Return the inverse of the transform to start from, for the way back."""
    if not initial.links:
        return initial
    from regnet_itk.transforms.inverse import FAILED_SHARE, inverse_residual, invert_chain

    grid = overview_grid(pair.moving.grid)
    inverse = invert_chain(initial, pair.fixed.grid, grid)
    if inverse.as_matrix() is None:
        failed = inverse_residual(initial, inverse, pair.fixed.grid, grid=grid).failed
        if failed > FAILED_SHARE:
            raise TransformError(
                f"the initial transform has no inverse at {failed:.2%} of the points, from which the way back could "
                "start: give a matrix, or register one way only"
            )
    return inverse


def _input_paths(**given: Any) -> dict[str, str]:
    """Return where those of the inputs lie that were given as files."""
    return {name: str(Path(value).resolve()) for name, value in given.items() if isinstance(value, str | Path)}


def image_pair(fixed: Any, moving: Any, fixed_mask: Any = None, moving_mask: Any = None) -> ImagePair:
    """Read or take two images and their masks, and check that they can be registered.

    Raises
    ------
    ImageError
        If one cannot be read, is not 3D and scalar, has NaN, is constant, or a mask is empty or on another grid.
    """
    images = {}
    for role, given in (("fixed", fixed), ("moving", moving)):
        images[role] = _image(given, f"{role} image")
        check_registrable(images[role], f"{role} image")
    masks: dict[str, Image | None] = {}
    for role, given in (("fixed", fixed_mask), ("moving", moving_mask)):
        masks[role] = None if given is None else _image(given, f"{role} mask")
        mask = masks[role]
        if mask is not None:
            check_mask(mask, images[role], role)
    return ImagePair(images["fixed"], images["moving"], masks["fixed"], masks["moving"])


def _read_maps(stages: str | Path | ParameterMap | Sequence[str | Path | ParameterMap]) -> list[ParameterMap]:
    given = [stages] if isinstance(stages, str | Path | ParameterMap) else list(stages)
    if not given:
        raise ParameterError("no stage was given; name at least one parameter file, such as 'affine'")
    return [stage if isinstance(stage, ParameterMap) else read_parameter_map(stage) for stage in given]


def plan_stages(
    maps: Sequence[ParameterMap], initial: TransformChain, say: Callable[[str], None] = lambda _: None
) -> list[ElastixStage | RegNetStage]:
    """Check the parameter maps, and find what would fail later, before anything runs.

    Raises
    ------
    ParameterError, ModelError
    """
    planned: list[ElastixStage | RegNetStage] = []
    expected = initial
    for parameters in maps:
        _check_output_keys(parameters)
        for warning in check_parameter_map(parameters):
            say(f"warning: {warning}")
        stage = RegNetStage(parameters) if parameters.is_regnet else ElastixStage(parameters)
        stage.check(expected)
        if parameters.is_regnet:
            expected = expected.then(field_link(DisplacementField(np.zeros((1, 1, 1, 3)), Grid((1, 1, 1)))))
        planned.append(stage)
    return planned


def _check_output_keys(parameters: ParameterMap) -> None:
    """Refuse what would fail when a stage has run and its result is made or written."""
    suffix = parameters.get_str("ResultImageFormat", "mha")
    if suffix not in _RESULT_FORMATS:
        near = did_you_mean(suffix, _RESULT_FORMATS) or f"; known are {', '.join(_RESULT_FORMATS)}"
        raise ParameterError(f"{parameters.source}: there is no ResultImageFormat '{suffix}'{near}")
    parameters.get_bool("WriteResultImage", True)
    parameters.get_float("DefaultPixelValue", 0.0)
    order = parameters.get_int("FinalBSplineInterpolationOrder", 3)
    if order not in INTERPOLATION_ORDERS:
        raise ParameterError(
            f"{parameters.source}: 'FinalBSplineInterpolationOrder' must be between 0 and "
            f"{max(INTERPOLATION_ORDERS)}, not {order}"
        )


def _check_what_networks_need(planned: Sequence[ElastixStage | RegNetStage], pair: ImagePair, device: str) -> None:
    networks = [stage for stage in planned if isinstance(stage, RegNetStage)]
    if networks:
        from regnet_itk.networks.devices import find_device

        find_device(device)
    elif not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):  # without the seconds that torch takes to load
        raise ParameterError(f"unknown device '{device}'; use auto, cpu, cuda, cuda:N or mps")
    for stage in networks:
        if stage.settings.region == "mask" and pair.fixed_mask is None and pair.moving_mask is None:
            raise ParameterError(f'{stage.parameters.source}: (RegNetRegion "mask") needs -fMask or -mMask')


def _image(given: Any, role: str) -> Image:
    if isinstance(given, str | Path):
        return read_image(given, role)
    try:
        return as_image(given)
    except ImageError as error:
        raise ImageError(f"{role}: {error}") from None


def _initial_chain(initial: str | Path | TransformChain | None) -> TransformChain:
    if initial is None:
        return TransformChain()
    return initial if isinstance(initial, TransformChain) else read_chain(initial)


class _LandmarkError:
    """Landmarks of a pair, and their error under a transform; without landmarks there is none."""

    def __init__(self, fixed: Any, moving: Any) -> None:
        self.fixed, self.moving = fixed, moving

    @classmethod
    def of(cls, fixed: Any, moving: Any, pair: ImagePair) -> _LandmarkError:
        if fixed is None:
            return cls(None, None)
        of_fixed = _landmarks(fixed, pair.fixed.grid)
        of_moving = _landmarks(moving, pair.moving.grid)
        check_landmarks(of_fixed, of_moving, pair.fixed.grid, pair.moving.grid)
        return cls(of_fixed.points, of_moving.points)

    def under(self, chain: TransformChain) -> ErrorSummary | None:
        if self.fixed is None:
            return None
        return summarise_errors(chain.map_points(self.fixed) - self.moving)


def _landmarks(given: Any, grid: Grid) -> Landmarks:
    if isinstance(given, Landmarks):
        return given
    if isinstance(given, str | Path):
        return read_landmarks(given, grid)
    return Landmarks(np.asarray(given, dtype=float))
