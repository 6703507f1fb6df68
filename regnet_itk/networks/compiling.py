"""How loops are compiled by numba, and how they share the processor with Torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numba
import torch

_ONE_AT_A_TIME = threading.Lock()


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop when it is first used; keep it on disk, unless there is no folder that can be written."""
    try:
        made: Callable[..., None] = numba.njit(parallel=True, fastmath=True, cache=True)(function)
    except RuntimeError:
        made = numba.njit(parallel=True, fastmath=True)(function)
    return made


@contextmanager
def on_torch_threads() -> Iterator[None]:
    """Run compiled loops on as many threads as Torch has; not every threading layer bears two calls at once."""
    with _ONE_AT_A_TIME:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield
