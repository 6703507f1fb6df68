"""The expected error and the verdict of a transform of which nothing else is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from regnet_itk.metrics.measures import folding_share
from regnet_itk.metrics.registered_pair import choose_overview_grid
from regnet_itk.stages.judgement import judge
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.trust.prediction import find_error_map_of
from regnet_itk.trust.verdict import Verdict, give_verdict, longest_side, region_of

if TYPE_CHECKING:
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.stages.judgement import Judgement
    from regnet_itk.trust.error_map import ErrorMap


@dataclass(frozen=True, eq=False)
class JudgedTransform:
    """What the images say of a transform.

    Parameters
    ----------
    expected_error : ErrorMap
    verdict : Verdict
    likeness : Judgement
        How alike the images are without and with it.
    folding : float
        Share (0 to 1) of voxels with det J <= 0.
    """

    expected_error: ErrorMap
    verdict: Verdict
    likeness: Judgement
    folding: float


def judge_transform(pair: ImagePair, chain: TransformChain, *, threads: int | None = None) -> JudgedTransform:
    """Judge a transform by what the images look like under it, whoever found it.

    Parameters
    ----------
    pair : ImagePair
        Of any contrast. With a fixed mask, inside of that.
    chain : TransformChain
        Fixed to moving: ``regnet_itk.read_transform(path)``.
    threads : int, optional
        CPU threads; all by default.

    Returns
    -------
    JudgedTransform

    Raises
    ------
    ImageError
        If the fixed image is the same everywhere.

    Examples
    --------
    >>> from regnet_itk import ImagePair, TransformChain, judge_transform, make_phantom
    >>> chest = make_phantom(1, spacing=(5.0, 5.0, 5.0))
    >>> judged = judge_transform(ImagePair(chest.fixed, chest.moving), TransformChain())
    >>> judged.verdict.word
    'failed'
    >>> judged.expected_error.at(chest.fixed_landmarks).shape[1]
    2
    """
    errors = find_error_map_of(pair, chain, threads)
    whole = judge(replace(pair.coarse, any_contrast=True), TransformChain(), chain)
    folding = folding_share(chain.displacement_on(choose_overview_grid(pair.fixed.grid)))
    verdict = give_verdict(errors, [("the registration", whole)], folding, longest_side(pair), region_of(pair))
    return JudgedTransform(errors, verdict, whole, folding)
