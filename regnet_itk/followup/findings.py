"""What became of each lesion: how it is called, and how much it grew."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regnet_itk.followup.lesions import Lesion
from regnet_itk.followup.matching import Group

SIGNIFICANT = 0.25
"""A change of volume that is smaller may be one of the measurement (British Thoracic Society, 2015)."""

_DAYS_OF_A_YEAR = 365.25


@dataclass(frozen=True, eq=False)
class Finding:
    """Lesions of both dates that are one and the same; of a lesion that went or came, of one date.

    Parameters
    ----------
    number : int
        From 1 on.
    baseline, follow_up : tuple of Lesion
        Each measured in the space of its own image.
    group : Group
        How they were matched.
    days : int or None
        From the baseline to the follow-up.

    References
    ----------
    Callister et al., "British Thoracic Society guidelines for the investigation and management of pulmonary nodules",
    Thorax 2015, for 25 % of volume. Eisenhauer et al., European Journal of Cancer 2009 (RECIST 1.1), for the diameters
    of lesions that split (their sum) or merged (the longest one).
    """

    number: int
    baseline: tuple[Lesion, ...]
    follow_up: tuple[Lesion, ...]
    group: Group
    days: int | None = None

    @property
    def name(self) -> str:
        """What to call it, by the names of its lesions: "3 > 4+5", of one that went "3 >", of one that came "> 4"."""
        before, after = ("+".join(lesion.name for lesion in side) for side in (self.baseline, self.follow_up))
        return f"{before} > {after}".strip()

    @property
    def status(self) -> str:
        """In a word or two.

        "grown", "shrunk" or "stable" (by `SIGNIFICANT`), "found again" (where a volume lacks), "new", "gone", "split",
        "merged", "regrouped" (several became several others), "out of view".
        """
        before, after = len(self.baseline), len(self.follow_up)
        if not before or not after:
            return ("new" if after else "gone") if self.group.in_view else "out of view"
        if before > 1 or after > 1:
            return "split" if before == 1 else ("merged" if after == 1 else "regrouped")
        change = self.volume_change
        if change is None:
            return "found again"
        return "stable" if abs(change) < SIGNIFICANT else ("grown" if change > 0 else "shrunk")

    @property
    def volumes(self) -> tuple[float | None, float | None]:
        """Of the baseline and of the follow-up in mm3, in all."""
        return _sum(self.baseline), _sum(self.follow_up)

    @property
    def diameters(self) -> tuple[float | None, float | None]:
        """The longest axial ones in mm; of several lesions their sum."""
        return _diameter(self.baseline), _diameter(self.follow_up)

    @property
    def volume_change(self) -> float | None:
        """As a part of the baseline's volume: 0.5 is 50 % more."""
        before, after = self.volumes
        return after / before - 1 if before and after else None

    @property
    def doubling_time(self) -> float | None:
        """Days in which the volume doubles if it goes on to grow by the same factor; None if it does not grow."""
        change = self.volume_change
        if change is None or self.days is None or change <= 0:
            return None
        return self.days * math.log(2) / math.log1p(change)

    @property
    def growth_per_year(self) -> float | None:
        """The change of volume in a year, as a part, if it goes on by the same factor; None without dates."""
        change = self.volume_change
        if change is None or self.days is None:
            return None
        exponent = math.log1p(change) * _DAYS_OF_A_YEAR / self.days
        return math.expm1(exponent) if exponent < 700 else math.inf

    @property
    def diameter_change(self) -> float | None:
        """Of the longest diameter, mm."""
        before, after = self.diameters
        return after - before if before and after else None

    def describe(self) -> str:
        """Return it as one line."""
        parts = [f"{self.name}: {self.status}"]
        (before, after), change = self.volumes, self.volume_change
        if before is not None and after is not None and change is not None:
            parts.append(f"{before / 1000:.2f} to {after / 1000:.2f} cm3 ({change:+.0%})")
        elif before is not None or after is not None:
            parts.append(f"{(before or after or 0.0) / 1000:.2f} cm3")
        if self.doubling_time is not None:
            parts.append(f"doubles in {self.doubling_time:.0f} days")
        return ", ".join(parts) + "".join(f"; {note}" for note in self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is uncertain about it."""
        lesions = (*self.baseline, *self.follow_up)
        notes = list(self.group.doubts)
        if any(lesion.is_small for lesion in lesions):
            notes.append("few voxels, so that volumes are uncertain")
        if any(lesion.cut for lesion in lesions):
            notes.append("cut by the border of its image")
        if not self.group.error.known:
            notes.append("the transform's error is not known here; taken to be that of its worst places")
        return tuple(notes)


def _sum(lesions: tuple[Lesion, ...]) -> float | None:
    volumes = [lesion.volume for lesion in lesions if lesion.volume is not None]
    return sum(volumes) if volumes and len(volumes) == len(lesions) else None


def _diameter(lesions: tuple[Lesion, ...]) -> float | None:
    found = [lesion.longest for lesion in lesions if lesion.longest is not None]
    return sum(found) if found and len(found) == len(lesions) else None
