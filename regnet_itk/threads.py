"""Threads: how many resample; how long one of Torch's that waits keeps its core busy; that they survive no fork."""

from __future__ import annotations

import os

from regnet_itk.errors import RegistrationError

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


def bound_resampling(count: int | None) -> None:
    """Bound the threads with which SimpleITK resamples, of the whole process; None or 0 leaves all."""
    if count:
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def share_of_threads(processes: int) -> int | None:
    """Return how many threads each of several processes may have; None, for all, if there is one alone."""
    if processes == 1:
        return None
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // processes)


class _Use:
    """Where Torch has been used."""

    process: int | None = None


def use_torch(threads: int, *, works: bool = True) -> None:
    """Note that Torch works in this process; refuse it in one that was forked from a process in which it had worked.

    Its threads are not copied by a fork, but what waits for them is: it would wait for ever.

    Parameters
    ----------
    threads : int
        How many of Torch's threads are to work; one alone waits for nobody.
    works : bool
        Whether Torch's threads work now; else it is only asked whether they may.

    Raises
    ------
    RegistrationError
    """
    if _Use.process not in (None, os.getpid()) and threads > 1:
        raise RegistrationError(
            "this process was forked from one in which Torch had worked already, whose threads are missing here; start "
            "worker processes with the method 'spawn': multiprocessing.get_context(\"spawn\")"
        )
    if works:
        _Use.process = os.getpid()
