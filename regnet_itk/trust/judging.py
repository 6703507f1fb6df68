"""The expected error and the verdict of a transform of which nothing else is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regnet_itk.metrics.measures import folding_share
from regnet_itk.metrics.registered_pair import choose_overview_grid
from regnet_itk.stages.judgement import judge
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.trust.prediction import find_error_map
from regnet_itk.trust.verdict import Verdict, give_verdict, longest_side, region_of

if TYPE_CHECKING:
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.trust.error_map import ErrorMap


def judge_transform(pair: ImagePair, chain: TransformChain, *, threads: int | None = None) -> tuple[ErrorMap, Verdict]:
    """Judge a transform by what the images look like under it, whoever found it.

    Parameters
    ----------
    pair : ImagePair
        Of any contrast. With a fixed mask, inside of that.
    chain : TransformChain
        Fixed to moving.
    threads : int, optional
        CPU threads; all by default.

    Returns
    -------
    ErrorMap
    Verdict

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.
    """
    errors = find_error_map(
        pair.fixed, pair.moving, chain, pair.fixed_mask, threads=threads,
        fixed_ignore=pair.fixed_guides.ignore, moving_ignore=pair.moving_guides.ignore,
    )  # fmt: skip
    whole = judge(replace(pair.coarse, any_contrast=True), TransformChain(), chain)
    folding = folding_share(chain.displacement_on(choose_overview_grid(pair.fixed.grid)))
    judged = [("the registration", whole)]
    return errors, give_verdict(errors, judged, folding, longest_side(pair), region_of(pair))
