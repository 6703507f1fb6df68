"""Tasks done by processes of this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from multiprocessing.connection import wait

from regnet_itk.child_processes import Child, Done, Failed, Work
from regnet_itk.engines.base import Task
from regnet_itk.events import Progress


class LocalEngine:
    """Processes of this machine that do one task after the other; see :class:`regnet_itk.engines.base.Engine`.

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

    def run(
        self, work: Work, tasks: Iterable[Task], hear: Callable[[Task, Progress], None]
    ) -> Iterator[tuple[Task, Done | Failed]]:
        """Do tasks."""
        waiting = deque(tasks)
        at_work: dict[Child, Task] = {}
        while waiting or at_work:
            for child in self._idle(work, at_work, len(waiting)):
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
                yield task, said

    def _idle(self, work: Work, at_work: Collection[Child], wanted: int) -> list[Child]:
        """Return at most so many children that have nothing to do, new ones as long as there may be more."""
        while len(self._children) < min(self._jobs, len(at_work) + wanted):
            self._children.append(Child(work))
        return [child for child in self._children if child not in at_work][:wanted]

    def _ready(self, at_work: Iterable[Child]) -> list[Child]:
        """Wait until some of the children have something to tell."""
        by_connection = {child.connection: child for child in at_work}
        return [by_connection[connection] for connection in wait(list(by_connection))]  # type: ignore[index]
