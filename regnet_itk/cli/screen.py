"""Progress on the screen: a bar for each stage, or one for the whole, on a terminal; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from regnet_itk.cli.run_log import tell
from regnet_itk.registration_events import RegistrationEvents

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from regnet_itk.events import Progress

_SECONDS_BETWEEN_LINES = 10.0


class Screen(RegistrationEvents):
    """Shows what is told while something runs; used as a context.

    Parameters
    ----------
    loglevel : {"info", "warning", "error", "off"}
        Progress and reports are shown at "info" only, warnings at "warning" too.
    whole : bool
        Whether the progress is that of everything, and not of one stage after the other.
    """

    def __init__(self, loglevel: str = "info", *, whole: bool = False) -> None:
        self._whole = whole
        self.quiet = loglevel != "info"
        self._warns = loglevel in ("info", "warning")
        self._bars: Bars | None = None
        self._tasks: dict[int, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> Screen:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(
                TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[text]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress(self, now: Progress) -> None:
        """Show how far a stage is."""
        if self.quiet:
            return
        if self._bars is not None:
            if now.number not in self._tasks:
                self._tasks[now.number] = self._bars.add_task(self._label(now), total=1.0, text="")
            self._bars.update(self._tasks[now.number], completed=now.fraction, text=now.text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{'' if self._whole else 'stage '}{self._label(now)}: {now.fraction:.0%} {now.text}")

    def _label(self, now: Progress) -> str:
        return now.name if self._whole else f"{now.number} {now.name}"

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        if not self.quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        """Print a warning."""
        if self._warns:
            self._print(line)

    def _print(self, line: str) -> None:
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            tell(line)
