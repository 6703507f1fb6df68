"""An elastix stage with something around it: images that are clipped, a start that is chosen, a result that is judged.

What elastix finds from the chosen start, and the start itself, become one transform of the chain: its files are those
of a run of elastix alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.data.image import Image
from regnet_itk.data.pixel_types import cast_values
from regnet_itk.events import Events, Progress
from regnet_itk.stages.coarse_pair import CoarsePair, clip_image, intensity_limits
from regnet_itk.stages.elastix_settings import ElastixSettings
from regnet_itk.stages.judgement import CLEARLY, Judgement, judge
from regnet_itk.stages.keys import declared_keys
from regnet_itk.stages.start import AS_THEY_LIE, Start, find_start
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.transforms.matrix import EULER, MatrixTransform, as_euler, matrix_of
from regnet_itk.transforms.resampling import resample_through
from regnet_itk.transforms.resampling_keys import grid_keys, result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
    from regnet_itk.transforms.base import Transform

_ELASTIX_SHARE = 0.9  # of the progress
_POOR = 0.75
"""A score below this is worth a look at turned images; after the stage, whole chests have 0.9, two patients 0.8."""


def run_guarded(
    stage: Stage, settings: ElastixSettings, pair: ImagePair, initial: TransformChain, options: RunOptions
) -> StageResult:
    """Run an elastix stage from a start that is chosen, on images that are clipped, and judge what it found.

    Parameters
    ----------
    stage : Stage
        Its map says what elastix shall do.
    settings : ElastixSettings
        What shall be done around that.
    pair, initial, options : as for :meth:`Stage.run`

    Returns
    -------
    StageResult
        `initial` with one link more; the warped image is that of the moving image as it was given.
    """
    began = time.perf_counter()
    options.progress(0.0, "looking for a start")
    coarse = replace(pair.coarse, any_contrast=stage.compares_any_contrast)
    start = _choose_start(settings, coarse, initial)
    begin = initial if start.transform.is_identity else initial.then(Link(start.transform))
    found = _run_elastix(stage, settings, pair, begin, options)
    options.progress(_ELASTIX_SHARE, "judging")
    link = found.chain.links[-1]
    joined = replace(link, transform=_join(start.transform, link.transform))
    chain = initial.then(joined)
    judgement = replace(judge(coarse, initial, chain), start=start.name)
    if settings.undo and (judgement.is_impossible or judgement.after.score < start.look.score - CLEARLY):
        chain = initial.then(replace(joined, transform=_of_type(link.transform, start.transform), combine="compose"))
        judgement = replace(judge(coarse, initial, chain), start=start.name, kept_start=True)
    if settings.start == "best" and not settings.turns and not initial.links:
        judgement = replace(judgement, seems_turned=_find_turn(coarse, judgement))
    warped = warp_later(found.chain.links[-1].parameters, stage.parameters, pair, chain, options.threads)
    options.progress(1.0, "done")
    return replace(found, chain=chain, seconds=time.perf_counter() - began, result_image=warped, judgement=judgement)


def _choose_start(settings: ElastixSettings, coarse: CoarsePair, initial: TransformChain) -> Start:
    """Return where elastix starts, after the transforms that there are already."""
    if settings.start != "best" or initial.links:
        name = "initial transform" if initial.links else AS_THEY_LIE
        return Start(name, MatrixTransform(np.eye(3)), coarse.look(initial.map_points))
    return find_start(coarse, settings.turns)


def _find_turn(coarse: CoarsePair, judgement: Judgement) -> str | None:
    """Return the axis about which the moving image looks turned, if the result is poor and another start better."""
    return find_start(coarse, turned=True).axis if judgement.after.score < _POOR else None


def _run_elastix(
    stage: Stage, settings: ElastixSettings, pair: ImagePair, begin: TransformChain, options: RunOptions
) -> StageResult:
    """Run elastix alone; the last link of the result's chain is what it found after `begin`."""
    parameters = stage.parameters.without(*declared_keys(ElastixSettings)).with_(WriteResultImage=False)
    if settings.start == "best":
        parameters = parameters.with_(AutomaticTransformInitialization=False)
    if "DefaultPixelValue" not in parameters:
        parameters = parameters.with_(DefaultPixelValue=intensity_limits(pair.moving)[0])
    if settings.clip == "auto":
        pair = _clipped(pair)
    grid = pair.fixed.grid
    if settings.most_voxels:
        pair = pair.without_ignored().shrunk(settings.most_voxels)
    found = replace(stage, parameters=parameters).run(pair, begin, replace(options, events=_Share(options.events)))
    *before, last = found.chain.links
    as_given = replace(last, parameters=last.parameters.with_(**grid_keys(grid)))
    return replace(found, chain=TransformChain((*before, as_given)))


def _clipped(pair: ImagePair) -> ImagePair:
    """Return a pair whose images have no values below and above what anatomy has."""
    fixed, *more_fixed = map(clip_image, pair.fixed_images)
    moving, *more_moving = map(clip_image, pair.moving_images)
    return replace(pair, fixed=fixed, moving=moving, more_fixed=tuple(more_fixed), more_moving=tuple(more_moving))


class _Share(Events):
    """Tells of elastix's progress as of a share of the stage's."""

    def __init__(self, events: Events) -> None:
        self.log = events.log
        self._events = events

    def progress(self, now: Progress) -> None:
        """Pass on how far elastix is."""
        self._events.progress(replace(now, fraction=_ELASTIX_SHARE * now.fraction))


def _join(start: MatrixTransform, found: Transform) -> Transform:
    """Return what elastix found after a start, and the start before it, as one transform of the same type."""
    if not isinstance(found, MatrixTransform) or start.is_identity:
        return found
    return _of_type(found, matrix_of(lambda points: found.map_points(start.map_points(points))))


def _of_type(found: Transform, total: MatrixTransform) -> MatrixTransform:
    """Return a matrix as the type of transform that a stage looks for: a rotation stays one; else it is affine."""
    return as_euler(total) if isinstance(found, MatrixTransform) and found.name == EULER else total


def warp_later(
    resampling: ParameterMap, parameters: ParameterMap, pair: ImagePair, chain: TransformChain, threads: int | None
) -> Callable[[], Image] | None:
    """Return what makes the moving image, as it was given, under a chain; None if the map wants no result image.

    Few look at the image between two stages: it is made while the results are written, when a core is free.
    """
    if not parameters.get_bool("WriteResultImage", True):
        return None
    return partial(_warp, resampling, parameters, pair, chain, threads)


def _warp(
    resampling: ParameterMap, parameters: ParameterMap, pair: ImagePair, chain: TransformChain, threads: int | None
) -> Image:
    grid = pair.fixed.grid
    order = parameters.get_int("FinalBSplineInterpolationOrder", 3)
    default = resampling.get_float("DefaultPixelValue", 0.0)
    warped = resample_through(pair.moving, chain, grid, order, default, threads=threads)
    return Image(cast_values(warped.array, result_pixel_type(parameters)), grid)
