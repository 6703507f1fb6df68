"""What the log of a registration tells while it grows: how far it is, and facts for the record."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from regnet_itk.events import Log

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

Fact = str | float | int | bool

_ITERATION = re.compile(r"\d+\t")
_RESOLUTION = re.compile(r"Resolution: (\d+)$")
_ITERATIONS_SHARE = 0.97
_FACTS: tuple[tuple[re.Pattern[str], str, Callable[[str], Fact]], ...] = (
    (re.compile(r"ELASTIX version: (\S+)"), "elastix", str),  # the first line of each stage
    (re.compile(r"Final metric value\s*= (\S+)"), "final_metric", float),
    (re.compile(r"\(RandomSeed (\d+)\)"), "random_seed", int),
)


class RegistrationLog:
    """Turns lines of elastix's log into progress and facts.

    Parameters
    ----------
    maps : sequence of ParameterMap
        The stages that elastix runs, in their order.
    tell : callable
        Is given the number of the stage, the share of it that is done, and what is being done.
    log : Logger
        Where elastix's lines go.
    """

    def __init__(self, maps: Sequence[ParameterMap], tell: Callable[[int, float, str], None], log: Log) -> None:
        self.facts: list[dict[str, Fact]] = [
            {"resolutions": values.get_int("NumberOfResolutions", 3)} for values in maps
        ]
        self._planned = [_iterations(values) for values in maps]
        self._tell, self._log = tell, log
        self._stage = -1
        self._began: list[float] = []
        self._resolution = self._iterations = 0

    def take(self, line: str) -> None:
        """Take a line."""
        self._log.debug("%s", line)
        if _ITERATION.match(line):
            self._iterations += 1
            return
        if match := _RESOLUTION.match(line):
            self._resolution, self._iterations = int(match[1]), 0
        for fact, name, convert in _FACTS:
            if match := fact.match(line):
                self._learn(name, convert(match[1]))

    def _learn(self, name: str, value: Fact) -> None:
        if name == "elastix":
            self._stage = min(self._stage + 1, len(self.facts) - 1)
            self._began.append(time.perf_counter())
            self._resolution = self._iterations = 0
        self.facts[max(0, self._stage)][name] = value

    def seconds(self) -> list[float]:
        """Return how long each stage took, when all have ended, as exactly as the log was looked at."""
        ends = [*self._began[1:], time.perf_counter()]
        return [end - began for began, end in zip(self._began, ends, strict=False)]

    def report(self) -> None:
        """Tell how far elastix is."""
        stage = max(0, self._stage)
        planned = self._planned[stage]
        done = sum(planned[: self._resolution]) + self._iterations
        share = min(1.0, done / max(1, sum(planned)))
        text = f"resolution {self._resolution + 1} of {len(planned)}, iteration {self._iterations}"
        self._tell(stage, _ITERATIONS_SHARE * share, text)


def _iterations(values: ParameterMap) -> list[int]:
    """Return how many iterations are planned for each resolution."""
    given = values.get_ints("MaximumNumberOfIterations", default=[500])
    count = values.get_int("NumberOfResolutions", 3)
    return [given[r] if r < len(given) else given[0] for r in range(count)]
