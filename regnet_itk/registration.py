"""Run a chain of stages on a pair of images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.elastix_results import ElastixResult, register_whole, why_whole
from regnet_itk.errors import ParameterError, RegNetItkError, TransformError
from regnet_itk.metrics.inverse_consistency import inverse_consistency
from regnet_itk.metrics.registered_pair import choose_overview_grid
from regnet_itk.registration_events import RegistrationEvents, StageEvents, WayBackEvents
from regnet_itk.registration_inputs import (
    Images,
    LandmarkPair,
    check_both_or_none,
    initial_chain,
    input_paths,
    with_guides,
)
from regnet_itk.results import RegistrationResult
from regnet_itk.stage_report import StageReport, describe_error
from regnet_itk.stages.base import ImagePair, RunOptions, Stage
from regnet_itk.stages.choice import StageChoice, choose_stages
from regnet_itk.stages.guides import Guides
from regnet_itk.stages.planning import StageLike, check_guides_followed, check_stages, load_stages, read_stages
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.trust.undoing import run_with_undo

_ALWAYS_THERE = ("auto", "cpu")
"""Devices that need no look at Torch to be found."""


def register(
    fixed: Any,
    moving: Any,
    stages: StageLike | Sequence[StageLike] | None = None,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial: str | Path | TransformChain | None = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    fixed_judge_landmarks: Any = None,
    moving_judge_landmarks: Any = None,
    fixed_guides: Guides[Any] | None = None,
    moving_guides: Guides[Any] | None = None,
    both_ways: bool = False,
    threads: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    priority: str | None = None,
    events: RegistrationEvents | None = None,
) -> RegistrationResult | ElastixResult:
    """Register `moving` to `fixed` by a chain of elastix and RegNet stages.

    A chain of elastix's stages alone may have images of two or four dimensions, and any transform that elastix knows:
    elastix then computes it as a whole, and an :class:`regnet_itk.ElastixResult` is returned.

    Parameters
    ----------
    fixed, moving : itk.Image, SimpleITK.Image, Image, or path, or a list of such
        Scalar 3D images with their spacing, origin and direction. For arrays: ``Image(array, Grid(..))``. Of several,
        elastix's stages compare each pair in a metric of its own; all else is done with the first.
    stages : sequence of str, Path, ParameterMap or Stage
        Names of shipped parameter files ("affine", "regnet", "bspline_3r" ..), paths, parameter maps, or stages of your
        own, in the order in which they run. One alone may be given without a list. By default "affine" and
        "regnet_multistage" where both images look like CTs of the chest, else "affine_mi" and "regnet_general"; the
        settings of the result say which, and why.
    fixed_mask, moving_mask : like the images, optional
        Voxels other than 0 count; on the grids of their images. Of several, the first is that of the first image.
    initial : path or TransformChain, optional
        Where to start: an elastix transform file (``-t0``), an ITK transform file, or a chain.
    fixed_landmarks, moving_landmarks : ndarray (n, 3), Landmarks or path, optional
        Corresponding points in mm, LPS. Their errors are reported, and they guide the stages that are told to be guided
        by them: those of elastix with the metric "CorrespondingPointsEuclideanDistanceMetric", those of RegNet with
        ``(RegNetLandmarkWeight 1)``.
    fixed_judge_landmarks, moving_judge_landmarks : ndarray (n, 3), Landmarks or path, optional
        Corresponding points that no stage sees. The errors that are reported are theirs, then.
    fixed_guides, moving_guides : Guides, optional
        What else is known of each image: ``Guides(rigid="bones.mha")``; its members are like the images, on their
        grids.
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
    events : RegistrationEvents, optional
        Hears how far each stage is, and what it did. By default lines of log go to the logger ``regnet_itk``.

    Returns
    -------
    RegistrationResult or ElastixResult
        With the transform, the warped image, the displacement field, and a report for each stage; or with what elastix
        wrote.

    Raises
    ------
    ImageError, PointsError, ParameterError, TransformError, ModelError, RegistrationError
        Each with one line that says what was given and what to do.
    """
    check_both_or_none(fixed_landmarks, moving_landmarks, "landmarks")
    check_both_or_none(fixed_judge_landmarks, moving_judge_landmarks, "judge_landmarks")
    fixed_guides, moving_guides = fixed_guides or Guides(), moving_guides or Guides()
    events = events or RegistrationEvents()
    options = RunOptions(threads, seed, device, priority, events)
    planned = read_stages(stages, events.log) if stages is not None else []
    _check_device_name(device)
    inputs = input_paths(
        fixed=fixed, moving=moving, fixed_mask=fixed_mask, moving_mask=moving_mask,
        fixed_landmarks=fixed_landmarks, moving_landmarks=moving_landmarks,
        fixed_judge_landmarks=fixed_judge_landmarks, moving_judge_landmarks=moving_judge_landmarks,
        **{f"fixed_{name}": given for name, given in fixed_guides.given()},
        **{f"moving_{name}": given for name, given in moving_guides.given()},
    )  # fmt: skip
    images = Images.read(fixed, moving, fixed_mask, moving_mask)
    choice: StageChoice | None = None
    if stages is None:
        pair = images.to_pair()
        choice = choose_stages(pair.fixed, pair.moving)
        planned = read_stages(choice.stages, events.log)
    whole = why_whole(planned, images, initial)
    if whole is not None:
        for name, _ in (*fixed_guides.given(), *moving_guides.given()):
            raise ParameterError(f"elastix computes {whole} as a whole, and knows of no {name} mask; leave it out")
        left_out = "displacement field, det J, picture" + ", landmark error" * (fixed_landmarks is not None)
        left_out += ", way back" * both_ways
        events.log.warning(f"elastix computes {whole} as a whole, without what needs 3D transforms here: {left_out}")
        return register_whole(
            planned, images, initial, landmarks=(fixed_landmarks, moving_landmarks), inputs=inputs, options=options,
            events=events,
        )  # fmt: skip
    chain = initial_chain(initial)
    pair = images.to_pair()
    landmarks = LandmarkPair.read(fixed_landmarks, moving_landmarks, pair)
    pair = replace(
        with_guides(pair, fixed_guides, moving_guides),
        fixed_landmarks=landmarks.fixed, moving_landmarks=landmarks.moving,
    )  # fmt: skip
    for warning in check_guides_followed(planned, pair, both_ways=both_ways):
        events.log.warning(warning)
    if fixed_judge_landmarks is not None:
        landmarks = LandmarkPair.read(fixed_judge_landmarks, moving_judge_landmarks, pair)
    else:
        landmarks = replace(landmarks, guiding=any(stage.guided_by_landmarks for stage in planned))
    if planned[0].waits_for_another_process and device in _ALWAYS_THERE:
        check_stages(planned, chain, pair, options, load=False)
        options = replace(options, meanwhile=partial(load_stages, planned, pair, options))
    else:
        check_stages(planned, chain, pair, options)
    task = _Task(pair, chain, planned, landmarks, inputs, choice)
    way_back = task.reversed() if both_ways else None  # before anything runs, for what it may refuse
    if choice is not None:
        events.log.info(choice.describe())
        events.stages_chosen(choice)
    result = task.run(options, events)
    return result if way_back is None else _with_way_back(result, way_back, options, events)


@dataclass(frozen=True)
class _Task:
    """A registration whose inputs and stages have been checked."""

    pair: ImagePair
    initial: TransformChain
    stages: Sequence[Stage]
    landmarks: LandmarkPair
    inputs: Mapping[str, str]
    choice: StageChoice | None

    def reversed(self) -> _Task:
        """Return the registration of the fixed to the moving image by the same stages."""
        pair = self.pair.swapped()
        initial = _inverted(self.initial, self.pair)
        try:
            check_stages(self.stages, initial, pair)
        except ParameterError as error:  # what was a B-spline on the way there is a displacement field now
            raise ParameterError(f"the way back, from the inverse of the initial transform: {error}") from None
        swapped = {"fixed": "moving", "moving": "fixed"}
        inputs = {}
        for name, path in self.inputs.items():
            role, dash, what = name.partition("_")
            inputs[f"{swapped[role]}{dash}{what}"] = path
        return _Task(pair, initial, self.stages, self.landmarks.swapped(), inputs, self.choice)

    def run(self, options: RunOptions, events: RegistrationEvents) -> RegistrationResult:
        """Run the stages one after the other."""
        chain = self.initial
        first_error = self.landmarks.error_under(chain)
        if first_error is not None:
            events.log.info(f"before: TRE {describe_error(first_error)}")
            events.landmarks_before(first_error)
        any_contrast = any(stage.compares_any_contrast for stage in self.stages)
        reports: list[StageReport] = []
        several = bool(self.pair.more_fixed or self.pair.more_moving)
        settings = {name: getattr(options, name) for name in ("threads", "seed", "device", "priority")}
        if self.pair.fixed_landmarks is not None and any(stage.guided_by_landmarks for stage in self.stages):
            settings["guided_by_landmarks"] = True
        if self.choice is not None:
            settings["stages_chosen_as"] = self.choice.reason
        for number, stage in enumerate(self.stages):
            events.log.debug("stage %d: %s (%s)", number, stage.name, stage.parameters.source)
            if several and not stage.takes_several_images:
                events.log.warning(
                    f"stage {number} ({stage.name}) uses the first fixed and the first moving image only"
                )
            of_stage = replace(options, events=StageEvents(events, number, stage.name))
            found = run_with_undo(stage, self.pair, chain, of_stage, any_contrast)
            chain = found.chain
            done = StageReport(
                stage.name, stage.parameters, found.seconds, len(chain.links), found.result_image,
                self.landmarks.error_under(chain), found.details, found.iteration_info, found.judgement,
            )  # fmt: skip
            tre = f", TRE {describe_error(done.tre)}" if done.tre else ""
            judgement = f", {found.judgement.describe()}" if found.judgement else ""
            events.log.info(f"stage {number}: {found.seconds:.1f} s{tre}{judgement}")
            reports.append(done)
            events.stage_done(number, done)
            result = RegistrationResult(
                self.pair, chain, tuple(reports), len(self.initial.links), first_error,
                None if self.landmarks.fixed is None else self.landmarks.fixed.points, settings, self.inputs,
            )  # fmt: skip
            _warn_of_folding(result, events)
        return result


def _warn_of_folding(result: RegistrationResult, events: RegistrationEvents) -> None:
    """Say if the transform folds after the last stage that was run; a matrix on top of others adds none."""
    last = result.chain.links[-1].transform if result.chain.links else None
    if isinstance(last, MatrixTransform) and np.linalg.det(last.matrix) > 0:
        return
    if result.folding > 0:
        number = len(result.stages) - 1
        events.log.warning(
            f"stage {number} {result.stages[-1].name}: the transform folds (det J <= 0) at "
            f"{100 * result.folding:.2g} % of the voxels, where it has no inverse and cannot be trusted"
        )


def _with_way_back(
    result: RegistrationResult, way_back: _Task, options: RunOptions, events: RegistrationEvents
) -> RegistrationResult:
    """Register the other way, and return the result with it and with the residual of both ways together."""
    try:
        backward = way_back.run(options, WayBackEvents(events, len(result.stages)))
    except RegNetItkError as error:
        raise type(error)(f"the way back: {error}") from None
    pair = result.pair
    consistency = inverse_consistency(result.chain, backward.chain, pair.fixed, pair.moving.grid, pair.fixed_mask)
    events.log.info(f"both ways: {consistency.describe()}")
    events.both_ways(consistency)
    return replace(result, backward=backward, inverse_consistency=consistency)


def _inverted(initial: TransformChain, pair: ImagePair) -> TransformChain:
    """Return the inverse of the transform to start from, for the way back."""
    if not initial.links:
        return initial
    from regnet_itk.transforms.inverse import FAILED_SHARE, invert_chain, measure_inverse_residual

    grid = choose_overview_grid(pair.moving.grid)
    inverse = invert_chain(initial, pair.fixed.grid, grid)
    if inverse.as_matrix() is None:
        failed = measure_inverse_residual(initial, inverse, pair.fixed.grid, grid=grid).failed
        if failed > FAILED_SHARE:
            raise TransformError(
                f"the initial transform has no inverse at {failed:.2%} of the points, from which the way back could "
                "start: give a matrix, or register one way only"
            )
    return inverse


def _check_device_name(device: str) -> None:
    """Refuse a device that cannot be; without the seconds that torch takes to load, which says if it is there."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ParameterError(f"unknown device '{device}'; use auto, cpu, cuda, cuda:N or mps")
