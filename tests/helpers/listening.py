"""Events that remember what they were told."""

from __future__ import annotations

import logging

from regnet_itk.events import Progress
from regnet_itk.registration_events import RegistrationEvents
from regnet_itk.training.events import TrainingEvents, TrainingStep


class Heard(RegistrationEvents):
    """Remembers the progress, the lines of log, those of them that are warnings, and what each stage did."""

    def __init__(self) -> None:
        self.progresses: list[Progress] = []
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.reports: list[tuple[int, str]] = []
        self.log = logging.Logger("heard", logging.DEBUG)
        self.log.addHandler(_Lines(self))

    def progress(self, now):
        self.progresses.append(now)

    def stage_done(self, number, report):
        self.reports.append((number, report.name))


class HeardTraining(TrainingEvents):
    """Remembers every step, and the lines of log."""

    def __init__(self) -> None:
        self.steps: list[TrainingStep] = []
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.log = logging.Logger("heard", logging.DEBUG)
        self.log.addHandler(_Lines(self))

    def step_done(self, now):
        self.steps.append(now)


class _Lines(logging.Handler):
    def __init__(self, heard: Heard | HeardTraining) -> None:
        super().__init__()
        self._heard = heard

    def emit(self, record):
        self._heard.lines.append(record.getMessage())
        if record.levelno >= logging.WARNING:
            self._heard.warnings.append(record.getMessage())
