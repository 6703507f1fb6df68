"""What does many tasks; each is told apart by the caller, and whatever goes wrong with one does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from regnet_itk.child_processes import Done, Failed, Work
from regnet_itk.events import Progress

Task = TypeVar("Task")


class Engine(Protocol):
    """What does tasks; used as a context."""

    def __enter__(self) -> Engine:
        """Get ready."""

    def __exit__(self, *_: object) -> None:
        """End all that was started."""

    def run(
        self, work: Work, tasks: Iterable[Task], hear: Callable[[Task, Progress], None]
    ) -> Iterator[tuple[Task, Done | Failed]]:
        """Do tasks, as many at a time as there are workers.

        Parameters
        ----------
        work : callable
            Does one, and tells how far it is; a function of a module, the same one each time that an engine is used.
        tasks : iterable
            What can be sent to other processes.
        hear : callable
            Hears how far each is, where the engine can tell.

        Yields
        ------
        (task, Done or Failed)
            In the order in which they end.
        """
