"""How loops are compiled by numba, and how they share the processor with Torch."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_LOG = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()
_FUSED = {"contract"}  # a product and a sum in one; all else stays as written, NaN too


@cache
def find_kernels(module: str) -> Any:
    """Return the module of compiled loops with this name, or None, with a warning, where numba cannot be loaded."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # it is missing, or broken
        _LOG.warning(
            "numba cannot be loaded (%s): registrations are as right without it, and take several times as long; "
            "install it anew", error,
        )  # fmt: skip
        return None


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop when it is first used; keep it on disk, unless there is no folder that can be written."""
    return _compile(function, parallel=True, fastmath=True)


def compiled_for_one_thread(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a loop as :func:`compiled` does, for parts of the work that Python's threads share; NaN are kept."""
    return _compile(function, nogil=True, fastmath=_FUSED)


def _compile(function: Callable[..., None], **options: Any) -> Callable[..., None]:
    import numba

    try:
        made: Callable[..., None] = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        made = numba.njit(**options)(function)
    return made


@contextmanager
def on_torch_threads() -> Iterator[None]:
    """Run compiled loops on as many threads as Torch has; not every threading layer bears two calls at once."""
    import numba
    import torch

    with _ONE_AT_A_TIME:
        count = torch.get_num_threads()
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        if torch.get_num_threads() != count:  # numba starts its threads in the first call, and tells OpenMP of them
            torch.set_num_threads(count)
        yield
