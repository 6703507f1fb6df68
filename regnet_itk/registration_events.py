"""What is told while a registration runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regnet_itk.events import Events, PrefixedLog, Progress

if TYPE_CHECKING:
    from regnet_itk.metrics.inverse_consistency import InverseConsistency
    from regnet_itk.metrics.measures import ErrorSummary
    from regnet_itk.stage_report import StageReport
    from regnet_itk.stages.choice import StageChoice


class RegistrationEvents(Events):
    """Hears what :func:`regnet_itk.register` tells; derive from it, and write the methods that you want.

    Stages are numbered from 0; those of the way back are numbered on, and the names in their progress begin with
    "backward". The lines of log go to `log`.
    """

    def stages_chosen(self, choice: StageChoice) -> None:
        """Hear which stages run and why, if none were named."""

    def landmarks_before(self, error: ErrorSummary) -> None:
        """Hear the landmark error before the first stage, if there are landmarks."""

    def stage_done(self, number: int, report: StageReport) -> None:
        """Hear what a stage did, when it has ended."""

    def both_ways(self, consistency: InverseConsistency) -> None:
        """Hear how well both ways agree, if both were asked for."""


class StageEvents(Events):
    """Passes on what one stage tells, as that of a stage with a number and a name."""

    def __init__(self, events: Events, number: int, name: str) -> None:
        self.log = events.log
        self._events, self._number, self._name = events, number, name

    def progress(self, now: Progress) -> None:
        """Pass on how far the stage is."""
        self._events.progress(replace(now, number=self._number, name=self._name))


class WayBackEvents(RegistrationEvents):
    """Passes on what the registration of the way back tells, after `count` stages of the way there."""

    def __init__(self, events: RegistrationEvents, count: int) -> None:
        self.log = PrefixedLog(events.log, "backward: ")
        self._events, self._count = events, count

    def progress(self, now: Progress) -> None:
        """Pass on how far a stage is."""
        self._events.progress(replace(now, number=self._count + now.number, name=f"backward {now.name}"))

    def stage_done(self, number: int, report: StageReport) -> None:
        """Pass on what a stage did."""
        self._events.stage_done(self._count + number, report)


class WholeProgress(RegistrationEvents):
    """Passes on how far all stages together are, to who does not ask for more."""

    def __init__(self, events: Events, stages: int) -> None:
        self._events, self._stages = events, stages

    def progress(self, now: Progress) -> None:
        """Pass it on as a share of the whole."""
        share = min(1.0, (now.number + now.fraction) / self._stages)
        self._events.progress(Progress(share, f"{now.name}: {now.text}"))
