"""Folders for files on their way, which do not stay for ever when their process is killed.

Such a folder is locked for as long as its process lives; the next that makes one beside it clears it away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]


class HeldFolder:
    """A new folder for files on their way, known to be in use for as long as this process lives; used as a context.

    Folders of the same prefix beside it whose processes have ended are removed.

    Parameters
    ----------
    parent : str or Path
        Where to make it; must exist.
    prefix : str
        What its name begins with.

    Attributes
    ----------
    path : Path

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, parent: str | Path, prefix: str) -> None:
        _clear_abandoned(Path(parent), prefix)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._lock = _lock(self.path, exclusively=False)
            if self.path.exists():  # else another has cleared it away before it was locked
                return
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path, *, exclusively: bool) -> int | None:
    """Lock a folder; None if it has gone, or the system has no such locks.

    Exclusively, None too if another has it locked; else it waits for one that is just clearing it away.
    """
    if fcntl is None:
        return None
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusively else fcntl.LOCK_SH)
    except OSError:
        os.close(opened)
        return None
    return opened


def _clear_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders that processes have left which were killed."""
    with contextlib.suppress(OSError):
        for folder in [Path(entry.path) for entry in os.scandir(parent) if entry.name.startswith(prefix)]:
            lock = _lock(folder, exclusively=True)
            if lock is not None:
                if not folder.is_symlink():
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
