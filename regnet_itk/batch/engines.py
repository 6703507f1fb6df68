"""Where the pairs of a batch are registered: here, in processes of our own, or wherever an engine has its workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Protocol

from regnet_itk.batch.records import PairRecord
from regnet_itk.batch.work import PairTask, run_pair
from regnet_itk.child_processes import Child, Failed
from regnet_itk.events import Progress

Hear = Callable[[PairTask, Progress], None]
Found = tuple[PairTask, PairRecord | None]
"""A task, and the record of its pair, or None if somebody else works on it."""


class Engine(Protocol):
    """What runs the tasks of a batch; used as a context."""

    def __enter__(self) -> Engine:
        """Get ready."""

    def __exit__(self, *_: object) -> None:
        """End all that was started."""

    def run(self, tasks: Iterable[PairTask], hear: Hear) -> Iterator[Found]:
        """Register pairs, as many at a time as there are workers.

        Parameters
        ----------
        tasks : iterable of PairTask
        hear : callable
            Hears how far each is, where the engine can tell.

        Yields
        ------
        Found
            In the order in which they end.
        """


class LocalEngine:
    """Processes of this machine, each of which does one pair after the other.

    Parameters
    ----------
    jobs : int
        How many.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._children: list[Child] = []

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        while self._children:
            self._children.pop().end()

    def run(self, tasks: Iterable[PairTask], hear: Hear) -> Iterator[Found]:
        """Register pairs; see :class:`Engine`."""
        waiting = deque(tasks)
        at_work: dict[Child, PairTask] = {}
        while waiting or at_work:
            for child in self._idle(at_work, len(waiting)):
                at_work[child] = waiting.popleft()
                child.give(at_work[child])
            for child in self._ready(at_work):
                said = child.receive()
                if isinstance(said, Progress):
                    hear(at_work[child], said)
                    continue
                task = at_work.pop(child)
                if isinstance(said, Failed) and not said.lives:
                    self._children.remove(child)
                    child.end()
                yield task, failed(task, said.reason) if isinstance(said, Failed) else said.result

    def _idle(self, at_work: Collection[Child], wanted: int) -> list[Child]:
        """Return at most so many children that have nothing to do, new ones as long as there may be more."""
        while len(self._children) < min(self._jobs, len(at_work) + wanted):
            self._children.append(Child(run_pair))
        return [child for child in self._children if child not in at_work][:wanted]

    def _ready(self, at_work: Iterable[Child]) -> list[Child]:
        """Wait until some of the children have something to tell."""
        by_connection = {child.connection: child for child in at_work}
        return [by_connection[connection] for connection in wait(list(by_connection))]  # type: ignore[index]


def failed(task: PairTask, reason: str) -> PairRecord:
    """Return the record of a pair whose process could not write one."""
    return PairRecord("failed", task.settings.fingerprint(), reason=reason)
