"""What the library logs, given to one listener alone, and the lines of a run's log file."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from regnet_itk.events import LOGGER


class Lines(Protocol):
    """Where lines are shown."""

    def say(self, line: str) -> None:
        """Show what was reached."""

    def warn(self, line: str) -> None:
        """Show a warning."""


@contextmanager
def heard_by(handler: logging.Handler) -> Iterator[None]:
    """Give what the library logs, from the handler's level on, to this handler alone."""
    handlers, level = LOGGER.handlers, LOGGER.level
    LOGGER.handlers = [handler]
    LOGGER.setLevel(handler.level)
    try:
        yield
    finally:
        LOGGER.handlers = handlers
        LOGGER.setLevel(level)


class RunLog(logging.Handler):
    """The lines of a run, each with the time since the start; warnings are shown on the screen too.

    Within `heard_by` all that the library logs is among them.
    """

    def __init__(self, screen: Lines) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._started, self._screen = time.perf_counter(), screen

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line of the library."""
        if record.levelno >= logging.WARNING:
            self.warn(record.getMessage())
        else:
            self.note(record.getMessage())

    def seconds(self) -> float:
        """Return the time since the start."""
        return time.perf_counter() - self._started

    def note(self, line: str) -> None:
        """Write a line to the log only."""
        self.lines.append(f"[{self.seconds():8.2f}] {line}")

    def say(self, line: str) -> None:
        """Show a line and log it."""
        self.note(line)
        self._screen.say(line)

    def warn(self, line: str) -> None:
        """Show and log a warning."""
        self.note(f"warning: {line}")
        self._screen.warn(f"warning: {line}")

    def text(self) -> str:
        """Return all lines."""
        return "".join(f"{line}\n" for line in self.lines)
