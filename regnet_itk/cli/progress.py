"""Progress on the screen: a bar for each stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0


class StageProgress:
    """Show how far the stages are; used as a context.

    Parameters
    ----------
    loglevel : {"info", "warning", "error", "off"}
        Progress and reports are shown at "info" only, warnings at "warning" too.
    """

    def __init__(self, loglevel: str = "info") -> None:
        self.quiet = loglevel != "info"
        self._warns = loglevel in ("info", "warning")
        self._bars: Progress | None = None
        self._tasks: dict[int, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> StageProgress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._bars = Progress(
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

    def show(self, stage: int, name: str, fraction: float, text: str) -> None:
        """Take a report of progress, as `regnet_itk.register` gives it."""
        if self.quiet:
            return
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(f"{stage} {name}", total=1.0, text="")
            self._bars.update(self._tasks[stage], completed=fraction, text=text)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"stage {stage} {name}: {fraction:.0%} {text}")

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
            print(line, file=sys.stderr, flush=True)
