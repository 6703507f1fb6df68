"""What the library logs, on the screen."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from regnet_itk.run_log import Lines


def tell(line: str) -> None:
    """Print a line on standard error; if nobody can read it, the work goes on all the same."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class WarningsToStderr(logging.Handler):
    """Prints warnings: what a command does that shows nothing else of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        tell(f"warning: {record.getMessage()}")


class LogToScreen(logging.Handler):
    """Shows the lines of what was reached, and warnings."""

    def __init__(self, screen: Lines) -> None:
        super().__init__(logging.INFO)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line."""
        if record.levelno >= logging.WARNING:
            self._screen.warn(f"warning: {record.getMessage()}")
        else:
            self._screen.say(record.getMessage())
