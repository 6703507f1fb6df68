"""How long a thread that waits for others keeps its core busy."""

from __future__ import annotations

import os

_TURNS = "5000"
_ALREADY_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Let threads that wait for each other fall asleep after some microseconds; to be called before Torch is imported.

    Torch's threads meet after every small piece of work. GNU's OpenMP lets the first one there keep its core busy for
    milliseconds; where another program has taken one of the cores, that is time the last one lacks. On an idle machine
    so short a wait costs nothing, as the next piece of work comes sooner. It is for programs of our own: the setting
    is one of the whole process and its children. What the environment says already stays.

    References
    ----------
    GNU libgomp manual, "Environment Variables": ``GOMP_SPINCOUNT``.
    """
    if not any(name in os.environ for name in _ALREADY_CHOSEN):
        os.environ["GOMP_SPINCOUNT"] = _TURNS
