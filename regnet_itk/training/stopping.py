"""Interruption that waits for the end of a step, so that a whole checkpoint can be left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether the run has been asked to stop."""

    asked: bool = False


@contextmanager
def stopping_between_steps() -> Iterator[Stop]:
    """Turn the first interruption (Ctrl-C, SIGTERM) into a wish; a second one interrupts at once.

    Only in the main thread, where signals arrive; elsewhere nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
