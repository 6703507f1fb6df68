"""Work in processes of their own, which tell how far they are; one that dies takes nobody with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType, ModuleType, TracebackType
from typing import Any, Self

from regnet_itk.errors import RegistrationError, RegNetItkError
from regnet_itk.events import Events, Progress
from regnet_itk.threads import wait_briefly

Work = Callable[[Any, Events], Any]
"""Does one task and tells how far it is; a function of a module, as it is called in another process."""

_PATIENCE = 10.0  # seconds in which a process that is asked to end removes its temporary files


@dataclass(frozen=True)
class Done:
    """What a task gave."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """Why a task failed, in one line, and whether its process is there to do another."""

    reason: str
    lives: bool = True


class Child:
    """A process that does one task after the other; used as a context.

    What is loaded for one task, as the models, is there for the next.

    Parameters
    ----------
    work : callable
        What is done with a task.
    with_main : bool
        Whether the process runs the script of its parent once more, as `multiprocessing` does, so that the tasks may
        hold what is defined there. A script that opens a window without asking for its own name would open another.
    """

    def __init__(self, work: Work, with_main: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, work))
        with contextlib.nullcontext() if with_main else _without_main(), _as_parent():
            self._process.start()
        other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def give(self, task: Any) -> None:
        """Let the process do a task; one that has ended says so when it is asked for the result."""
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def receive(self) -> Progress | Done | Failed:
        """Wait for what the process tells next: how far it is, and in the end what it found."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode
            why = "; probably memory ran out: use smaller images" if status == -getattr(signal, "SIGKILL", 9) else ""
            return Failed(f"its process ended with the status {status}{why}", lives=False)
        assert isinstance(said, Progress | Done | Failed)
        return said

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the script that runs here from `multiprocessing`, which looks for it in ``sys.modules``."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _as_parent() -> Iterator[None]:
    """Let a process that is a daemon have children, as those of Dask's workers; ours end when their parent does."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon


def run_apart(work: Work, task: Any, hear: Callable[[Progress], None]) -> Any:
    """Do one task in a process of its own.

    Parameters
    ----------
    work : callable
    task : object
    hear : callable
        Hears how far it is.

    Returns
    -------
    object
        What `work` returned.

    Raises
    ------
    RegistrationError
        If it failed or the process was ended.
    """
    with Child(work) as child:
        child.give(task)
        while isinstance(said := child.receive(), Progress):
            hear(said)
    if isinstance(said, Failed):
        raise RegistrationError(said.reason)
    return said.result


def failure_of(error: Exception) -> str:
    """Return in one line why something failed; one pair must not stop the others, whatever happened to it."""
    if isinstance(error, RegNetItkError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; use smaller images or a mask"
    if isinstance(error, OSError) and error.filename:
        return f"'{error.filename}': {error.strerror}"
    return " ".join(f"{type(error).__name__}: {error}".split())


class _ToParent(Events):
    """Tells the parent how far the task is."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    def progress(self, now: Progress) -> None:
        self._connection.send(now)


def _serve(connection: Connection[Any, Any], work: Work) -> None:
    """Do the tasks that the parent gives until it closes the connection."""
    wait_briefly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, _terminated)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # while Python ends, an exception would be printed
            return
        said: Done | Failed
        try:
            said = Done(work(task, _ToParent(connection)))
        except Exception as error:
            said = Failed(failure_of(error))
        connection.send(said)


def _end_with_parent() -> None:
    """End when the parent has: killed, it could not end us."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds the stack, so that temporary files and elastix's process go
