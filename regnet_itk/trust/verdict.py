"""The verdict on a registration in a word, with its reasons in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

if TYPE_CHECKING:
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.stages.judgement import Judgement
    from regnet_itk.trust.error_map import ErrorMap

Word = Literal["good", "look", "failed"]

WORDS: tuple[Word, ...] = ("good", "look", "failed")
"""From the best to the worst."""

FAR_OFF = 3.0
"""mm of expected error that somebody should look at; the longest voxel side, if that is more."""

_SHARE_TO_LOOK = 0.05  # of the region, that may be far off without a word
_PLACE_TO_LOOK = 50.0  # cm3 in one piece, that may be so
_SHARE_FAILED = 0.5
_FOLDING = 0.005  # share of voxels
_OUTER_THIRDS = (1 / 3, 2 / 3)


@dataclass(frozen=True)
class Verdict:
    """What to think of a registration.

    Parameters
    ----------
    word : {"good", "look", "failed"}
        Whether to use it, to look at it first, or not to use it.
    reasons : tuple of str
        Why it is not good, the weightiest first.
    """

    word: Word
    reasons: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the verdict as one line of text."""
        return f"verdict: {self.word}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def region_of(pair: ImagePair) -> str:
    """Return what the region of a pair's error map is called."""
    less = any(guides.ignore is not None for guides in (pair.fixed_guides, pair.moving_guides))
    return ("fixed mask" if pair.fixed_mask is not None else "foreground") + " (less what is ignored)" * less


def longest_side(pair: ImagePair) -> float:
    """Return the longest voxel side of both images, mm."""
    return max(*pair.fixed.grid.spacing, *pair.moving.grid.spacing)


def give_verdict(
    errors: ErrorMap, judgements: Sequence[tuple[str, Judgement]], folding: float, coarsest: float, region: str
) -> Verdict:
    """Judge a registration.

    Parameters
    ----------
    errors : ErrorMap
        Of the whole transform.
    judgements : sequence of (str, Judgement)
        Of the stages that have one, with their names, in their order.
    folding : float
        Share of voxels with det J <= 0.
    coarsest : float
        The longest voxel side of both images, mm; see `longest_side`.
    region : str
        What the error map's region is called; see `region_of`.
    """
    found = [
        *_of_errors(errors, max(FAR_OFF, coarsest), region),
        *_of_stages(judgements),
        *_of_folding(folding),
    ]
    if not found:
        return Verdict("good")
    found.sort(key=lambda reason: -WORDS.index(reason[0]))
    return Verdict(found[0][0], tuple(text for _, text in found))


def _of_errors(errors: ErrorMap, limit: float, region: str) -> Iterator[tuple[Word, str]]:
    known = errors.known
    if not known.any():
        yield "failed", f"nowhere in the {region} do both images show anything"
        return
    far = known & (np.nan_to_num(errors.expected) > limit)
    share = float(far.sum() / known.sum())
    if share > _SHARE_FAILED:
        typical = float(np.median(errors.expected[known]))
        yield "failed", f"the images do not fit: about {typical:.0f} mm off in {share:.0%} of the {region}"
    elif far.any():
        part = _largest_part(far)
        volume = float(part.sum() * np.prod(errors.grid.spacing)) / 1000.0
        if share > _SHARE_TO_LOOK or volume > _PLACE_TO_LOOK:
            typical = float(np.median(errors.expected[part]))
            where = _place(errors, part)
            yield (
                "look",
                f"{where} of the {region} lies about {typical:.0f} mm off ({volume:.0f} cm3; {share:.0%} in all)",
            )
    if errors.unusual:
        yield "look", "the pair is unlike all that the expected error was learnt from"


def _largest_part(far: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, count = ndimage.label(far)
    sizes = ndimage.sum_labels(far, labels, np.arange(1, count + 1))
    return np.asarray(labels == 1 + int(np.argmax(sizes)))


def _place(errors: ErrorMap, part: npt.NDArray[np.bool_]) -> str:
    """Return where a part of the lattice lies, as seen by the patient: mm, LPS."""
    points = errors.grid.index_to_point(np.argwhere(errors.known)[:, ::-1].astype(float))
    middle = errors.grid.index_to_point(np.argwhere(part)[:, ::-1].astype(float)).mean(0)
    low, high = points.min(0), points.max(0)
    share = (middle - low) / np.maximum(high - low, 1e-6)
    words = [
        names[0] if value < _OUTER_THIRDS[0] else names[1]
        for value, names in zip(
            share[[2, 0, 1]], (("lower", "upper"), ("right", "left"), ("front", "back")), strict=True
        )
        if not _OUTER_THIRDS[0] <= value <= _OUTER_THIRDS[1]
    ]
    return f"the {' '.join(words)} part" if words else "the middle"


def _of_stages(judgements: Sequence[tuple[str, Judgement]]) -> Iterator[tuple[Word, str]]:
    for name, judgement in judgements:
        if judgement.kept_start:
            yield "look", f"the result of {name} was worse than its start, which was kept"
        elif judgement.is_worse:
            yield "look", f"{name} made the images less alike"
    if not judgements:
        return
    last = judgements[-1][1]
    if last.seems_turned:
        yield "failed", f"the moving image looks turned by 180 degrees about {last.seems_turned}"
    if last.is_impossible:
        yield "failed", "the transform mirrors or stretches as no body does"
    if last.has_little_in_common:
        yield "failed", "the images have little in common: do they show the same part of the body?"


def _of_folding(folding: float) -> Iterator[tuple[Word, str]]:
    if folding > _FOLDING:
        yield "look", f"the transform folds at {folding:.1%} of the voxels"
