"""B-splines that lead farther from the truth than what they began with: the images tell, and the start is kept."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.errors import ImageError, RegistrationError
from regnet_itk.stages.guarded_run import warp_later
from regnet_itk.stages.judged_run import run_judged
from regnet_itk.transforms.matrix import MatrixTransform

if TYPE_CHECKING:
    from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
    from regnet_itk.transforms.chain import TransformChain

_FARTHER = 1.01
"""A stage is undone if the mean of the expected error is so many times that of its start."""


def run_with_undo(
    stage: Stage, pair: ImagePair, initial: TransformChain, options: RunOptions, any_contrast: bool = False
) -> StageResult:
    """Run a stage and judge it; ``(RegNetUndo "true")`` keeps its start where the result is expected to be farther off.

    Parameters
    ----------
    stage, pair, initial, options, any_contrast : as for :func:`regnet_itk.stages.judged_run.run_judged`
    """
    found = run_judged(stage, pair, initial, options, any_contrast)
    if not stage.parameters.get_bool("RegNetUndo", False):
        return found
    began = time.perf_counter()
    found = undo_if_farther_off(stage, found, initial, pair, options)
    return replace(found, seconds=found.seconds + time.perf_counter() - began)


def undo_if_farther_off(
    stage: Stage, found: StageResult, initial: TransformChain, pair: ImagePair, options: RunOptions
) -> StageResult:
    """Return what a stage found, or its start if that is expected to lie nearer to the truth.

    On coarse voxels control points that lie close together follow the noise, and what the stage maximises rises all the
    same. Only stages that follow others are looked at; those that find a matrix have looked themselves.

    Parameters
    ----------
    stage : Stage
        That has run.
    found : StageResult
    initial : TransformChain
        Where it began.
    pair, options : as for :meth:`Stage.run`

    Returns
    -------
    StageResult
        Whose last link is the identity, if the stage was undone; its details say so.
    """
    link = found.chain.links[-1]
    if isinstance(link.transform, MatrixTransform) or not initial.links:
        return found
    from regnet_itk.trust.prediction import find_error_map_of  # of a matrix, nothing of it is needed

    try:
        maps = [find_error_map_of(pair, chain, options.threads) for chain in (initial, found.chain)]
    except (ImageError, RegistrationError):  # nothing stands out of the fixed image; a forked process
        return found
    before, after = (errors.mean for errors in maps)
    if before is None or after is None:
        return found
    details = {**found.details, "expected_error_before": round(before, 3), "expected_error_after": round(after, 3)}
    if after <= _FARTHER * before:
        return replace(found, details=details)
    warning = (
        f"its result is expected to lie farther from the truth ({after:.2f} mm in the mean) than its start "
        f"({before:.2f} mm), which is kept: the voxels may be too coarse for its control points; leave the stage out"
    )
    options.log.warning("%s: %s", stage.name, warning)
    told = "; ".join([*filter(None, [str(details.get("warnings", ""))]), warning])
    identity = replace(link, transform=MatrixTransform(np.eye(3)), combine="compose")
    chain = initial.then(identity)
    warped = warp_later(link.parameters, stage.parameters, pair, chain, options.threads)
    details |= {"warnings": told, "undone": True}
    judgement = found.judgement and replace(found.judgement, after=found.judgement.before)
    if judgement is not None:
        details |= judgement.details()
    return replace(found, chain=chain, result_image=warped, details=details, judgement=judgement)
