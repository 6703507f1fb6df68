"""Whether a stage made a pair better: how alike the images are before and after it, and what its transform does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from regnet_itk.stages.coarse_pair import CoarsePair, Look

if TYPE_CHECKING:
    from regnet_itk.data.grid import FloatArray
    from regnet_itk.transforms.chain import TransformChain

CLEARLY = 0.02
"""By how much a score must fall for a stage to have made it worse."""

_LARGEST_SCALE = 1.7
"""A body is not longer or shorter than this, against another one, along any direction."""

_ALIKE = {False: 0.4, True: 0.2}
"""The least similarity of images that show the same, of one contrast and of any: chests of two patients have 0.47 or
more, a chest and an abdomen 0.37; MR and CT of two chests 0.33, a brain and a liver 0.15."""

_LITTLE_OVERLAP = 0.25


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a stage did to a pair.

    Parameters
    ----------
    before, after : Look
        What the pair looked like before and after the stage, on the common region (the masks, if given).
    matrix : ndarray, shape (3, 3), optional
        A of T(x) = A x + b, if the whole transform is a matrix.
    start : str, optional
        Where the stage started, if it chose that.
    kept_start : bool
        Whether its result was worse than that start, which was kept.
    seems_turned : str, optional
        The axis about which the moving image looks turned by 180 degrees.
    any_contrast : bool
        Whether the same may be bright in one image and dark in the other.
    """

    before: Look
    after: Look
    matrix: FloatArray | None = None
    start: str | None = None
    kept_start: bool = False
    seems_turned: str | None = None
    any_contrast: bool = False

    @property
    def scales(self) -> FloatArray:
        """The singular values of the matrix, the largest first; ones without a matrix."""
        return np.ones(3) if self.matrix is None else np.linalg.svd(self.matrix, compute_uv=False)

    @property
    def is_worse(self) -> bool:
        """Whether the images are clearly less alike after the stage."""
        return self.before.score > 0 and self.after.score < self.before.score - CLEARLY

    @property
    def is_impossible(self) -> bool:
        """Whether the matrix mirrors, or stretches as no body can be stretched."""
        if self.matrix is None:
            return False
        largest, _, least = self.scales
        return bool(np.linalg.det(self.matrix) <= 0 or largest > _LARGEST_SCALE or least < 1 / _LARGEST_SCALE)

    @property
    def has_little_in_common(self) -> bool:
        """Whether the images hardly show the same after the stage."""
        unlike = self.after.similarity < _ALIKE[self.any_contrast] or self.after.overlap < _LITTLE_OVERLAP
        return self.after.score > 0 and unlike

    @property
    def made_worse(self) -> bool:
        """Whether the stage made the pair worse, found something worse than its start, or what no body allows."""
        return self.is_worse or self.kept_start or self.is_impossible

    def describe(self) -> str:
        """Return the judgement as one line of text."""
        start = f"start: {self.start}, " if self.start else ""
        change = f"similarity {self.before.similarity:.2f} -> {self.after.similarity:.2f}"
        scales = "" if self.matrix is None else f", scales {' '.join(f'{s:.2f}' for s in self.scales)}"
        return f"{start}{change}, overlap {self.after.overlap:.0%}{scales}"

    def details(self) -> dict[str, str | float | bool]:
        """Return the judgement for ``registration.json``."""
        found: dict[str, str | float | bool] = {
            "similarity_before": round(self.before.similarity, 4),
            "similarity_after": round(self.after.similarity, 4),
            "overlap": round(self.after.overlap, 4),
        }
        if self.matrix is not None:
            largest, _, least = (float(s) for s in self.scales)
            found["largest_scale"], found["least_scale"] = round(largest, 4), round(least, 4)
            found["determinant"] = round(float(np.linalg.det(self.matrix)), 4)
        if self.start:
            found["start"], found["kept_start"] = self.start, self.kept_start
        return found

    def warnings(self) -> list[str]:
        """Return what a user should know, a sentence each."""
        found = []
        if self.kept_start:
            found.append(
                f"its result was worse than its start ({self.start}), which is kept; the images may show different "
                "parts of the body, or something that one of them lacks: look at the result, give masks of what both "
                "show, or an initial transform"
            )
        elif self.is_worse:
            found.append(
                f"the images are less alike after it (similarity {self.before.similarity:.2f} -> "
                f"{self.after.similarity:.2f}, overlap {self.before.overlap:.0%} -> {self.after.overlap:.0%}): look at "
                "the result, and leave the stage out or begin with another one if it is wrong"
            )
        if self.seems_turned:
            found.append(
                f"the moving image looks turned by 180 degrees about {self.seems_turned}: give (RegNetStartTurns "
                '"true") in the parameter file to start from there'
            )
        if self.is_impossible:
            found.append(
                f"the transform mirrors or stretches (singular values {' '.join(f'{s:.2f}' for s in self.scales)}) as "
                "no body does; look at the result"
            )
        if self.has_little_in_common:
            found.append(
                f"the images have little in common after it (similarity {self.after.similarity:.2f}, overlap "
                f"{self.after.overlap:.0%}): do they show the same part of the body?"
            )
        return found


def judge(pair: CoarsePair, before: TransformChain, after: TransformChain) -> Judgement:
    """Compare what a pair looks like before and after a stage.

    Parameters
    ----------
    pair : CoarsePair
    before, after : TransformChain
        The whole transform, fixed to moving.
    """
    matrix = after.as_matrix()
    return Judgement(
        pair.look(before.map_points), pair.look(after.map_points), None if matrix is None else matrix.matrix,
        any_contrast=pair.any_contrast,
    )  # fmt: skip
