"""A stage that is run, and then judged: a user is told where it made things worse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regnet_itk.stages.judgement import judge

if TYPE_CHECKING:
    from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
    from regnet_itk.transforms.chain import TransformChain


def run_judged(
    stage: Stage, pair: ImagePair, initial: TransformChain, options: RunOptions, any_contrast: bool = False
) -> StageResult:
    """Run a stage, and say if it has made it worse.

    Parameters
    ----------
    stage, pair, initial, options : as for :meth:`Stage.run`
    any_contrast : bool
        Whether the same may be bright in one image and dark in the other.

    Returns
    -------
    StageResult
        The stage's own, with its judgement, which stands in the details, too.
    """
    found = stage.run(pair, initial, options)
    judgement = found.judgement
    if judgement is None:
        coarse = replace(pair.coarse, any_contrast=any_contrast or stage.compares_any_contrast)
        judgement = judge(coarse, initial, found.chain)
    details = {**found.details, **judgement.details()}
    warnings = judgement.warnings()
    for warning in warnings:
        options.log.warning("%s: %s", stage.name, warning)
    if warnings:
        details["warnings"] = "; ".join([*filter(None, [str(details.get("warnings", ""))]), *warnings])
    return replace(found, details=details, judgement=judgement)
