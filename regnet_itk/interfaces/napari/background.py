"""Work beside the window, whose errors are told in one line."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from napari.qt.threading import WorkerBase, create_worker
from qtpy.QtCore import QObject, Signal

from regnet_itk.child_processes import Done, Failed, failure_of
from regnet_itk.events import Progress
from regnet_itk.interfaces.napari.runs import Stopped


class _Told(QObject):
    """Carries what a thread tells to the thread of the window."""

    progress = Signal(object)


@dataclass(frozen=True)
class Course:
    """Goes with a piece of work: it tells how far it is, and asks whether it shall stop.

    Parameters
    ----------
    tell : callable
        Is given a :class:`~regnet_itk.events.Progress`.
    is_stopped : callable
    """

    tell: Callable[[Progress], None]
    is_stopped: Callable[[], bool]


def end_work_at_exit() -> None:
    """Let the work end before Python does; napari sees to it only where its event loop runs."""
    atexit.register(WorkerBase.await_workers)


def work_in_background(
    work: Callable[[Course], Any],
    hear: Callable[[Progress], None],
    done: Callable[[Any], None],
    failed: Callable[[str], None],
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Let a thread do some work; what is called here runs in the thread of the window.

    Parameters
    ----------
    work : callable
    hear : callable
        Hears how far it is.
    done : callable
        Is given what the work returns.
    failed : callable
        Is given, in one line, why it failed.
    is_stopped : callable
        Says whether the work shall stop; it shall as well when napari is closed.
    """
    told = _Told()

    def do() -> Done | Failed:
        course = Course(told.progress.emit, lambda: is_stopped() or worker.abort_requested)
        try:
            return Done(work(course))
        except Stopped:
            return Failed("stopped; nothing was written")
        except Exception as error:
            return Failed(failure_of(error))

    def end(outcome: Done | Failed) -> None:
        if isinstance(outcome, Failed):
            failed(outcome.reason)
        else:
            done(outcome.result)

    worker = create_worker(do, _start_thread=False)
    told.progress.connect(hear)
    worker.returned.connect(end)
    worker.start()
