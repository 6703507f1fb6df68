"""A follow-up: the lesions of two images, matched through the transform between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from regnet_itk.data.grid import Grid
from regnet_itk.errors import ParameterError
from regnet_itk.followup.expected_errors import ErrorSource
from regnet_itk.followup.findings import Finding
from regnet_itk.followup.lesions import Lesion
from regnet_itk.followup.matching import match_lesions
from regnet_itk.followup.visits import Visits, order_visits
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.trust.error_map import ErrorMap


@dataclass(frozen=True, eq=False)
class FollowUp:
    """What became of the lesions of one image until the other.

    Parameters
    ----------
    findings : tuple of Finding
    visits : Visits
        Which image is the earlier one, and when they were taken.
    """

    findings: tuple[Finding, ...]
    visits: Visits

    def __repr__(self) -> str:
        return f"FollowUp({self.describe()})"

    def describe(self) -> str:
        """Return how many lesions grew, went, came .., as a short text."""
        counts = Counter(finding.status for finding in self.findings)
        return ", ".join(f"{count} {status}" for status, count in counts.items())


def follow_up(
    fixed_lesions: Sequence[Lesion],
    moving_lesions: Sequence[Lesion],
    chain: TransformChain,
    *,
    fixed_grid: Grid,
    moving_grid: Grid,
    expected_error: ErrorMap | float | None,
    fixed_date: str | date | None = None,
    moving_date: str | date | None = None,
    baseline: str | None = None,
) -> FollowUp:
    """Match the lesions of two images through their transform, and tell how they changed.

    Volumes and diameters are those that the lesions have in their own images. The transform says which is which, and
    how far it may be off there decides how far to look.

    Parameters
    ----------
    fixed_lesions, moving_lesions : sequence of Lesion
        As :func:`regnet_itk.read_lesions` gives them.
    chain : TransformChain
        T, fixed to moving.
    fixed_grid, moving_grid : Grid
        Of the images: what lies beyond them is out of view, and not gone.
    expected_error : ErrorMap, float or None
        How far T may be off, as ``result.expected_error``; or the radius in mm within which 90 % lie. None, as of a
        result that cannot tell, is refused.
    fixed_date, moving_date : str or date, optional
        As 2026-01-31. Without them there are no rates of growth, and `baseline` is needed.
    baseline : {"fixed", "moving"}, optional
        The earlier image.

    Raises
    ------
    ParameterError
        If there are no lesions at all, dates lack or contradict `baseline`, or nothing is known of the errors.

    Examples
    --------
    >>> import numpy as np
    >>> import SimpleITK as sitk
    >>> import regnet_itk
    >>> grid = regnet_itk.Grid(size=(60, 60, 40))
    >>> for name, radius, x in (("one", 6.0, 22.0), ("two", 7.5, 30.0)):
    ...     inside = np.linalg.norm(grid.points() - (x, 30.0, 20.0), axis=-1) < radius
    ...     regnet_itk.write_image(regnet_itk.Image(inside.astype(np.uint8), grid), f"{name}.mha")
    >>> fixed, moving = (regnet_itk.read_lesions(f"{name}.mha", grid) for name in ("one", "two"))
    >>> chain = regnet_itk.chain_from_sitk(sitk.TranslationTransform(3, (7.0, 0.0, 0.0)))
    >>> found = regnet_itk.follow_up(
    ...     fixed, moving, chain, fixed_grid=grid, moving_grid=grid, expected_error=2.0,
    ...     fixed_date="2026-01-10", moving_date="2026-05-10")
    >>> finding, = found.findings
    >>> finding.status, round(finding.volume_change, 1), round(finding.doubling_time)
    ('grown', 1.0, 120)
    """
    if not fixed_lesions and not moving_lesions:
        raise ParameterError("neither the fixed nor the moving image has a lesion: all labels are 0")
    visits = order_visits(fixed_date, moving_date, baseline)
    errors = ErrorSource(expected_error)
    groups = match_lesions(fixed_lesions, moving_lesions, chain, (fixed_grid, moving_grid), errors)
    findings = []
    for number, group in enumerate(groups, start=1):
        sides = tuple(fixed_lesions[i] for i in group.fixed), tuple(moving_lesions[j] for j in group.moving)
        before, after = sides if visits.baseline == "fixed" else sides[::-1]
        findings.append(Finding(number, before, after, group, visits.days))
    return FollowUp(tuple(findings), visits)
