"""Who works on a pair: of all processes, on all machines that share a folder, one at a time.

A claim is a file that only one process can create. While its process lives the file is locked, and its time is set anew
every few seconds. Where one of both has ended, so has the claim: the lock tells at once on the same machine, the time
tells in the end on all others, whose file system may not pass locks on. The claim of a dead process is not removed, as
that could meet one that has just been made; the next one gets the next number, which again only one can create.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from regnet_itk.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: only the time tells
    fcntl = None  # type: ignore[assignment]

LEASE = 300.0
"""Seconds after which a process on another machine that has not been heard of is taken for dead."""

_BEAT = 15.0
_SUFFIX = ".claim"


class Claim:
    """The right to work on something, until it is released; used as a context. See :func:`take_claim`."""

    def __init__(self, path: Path, opened: int) -> None:
        self._path, self._opened = path, opened
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def holds(self) -> bool:
        """Say whether the claim is still ours: another machine may have taken this process for dead."""
        name, number = _parts(self._path.name)
        try:
            return self._is_there() and max(_numbers(self._path.parent, name)) == number
        except OSError:
            return False

    def release(self) -> None:
        """Give it up."""
        self._ended.set()
        with contextlib.suppress(OSError):
            if self._is_there():
                if fcntl is None:  # Windows removes no file that is open
                    os.close(self._opened)
                self._path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._opened)

    def _is_there(self) -> bool:
        """Say whether the file is the one that we made."""
        try:
            return os.path.samestat(os.fstat(self._opened), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(OSError):  # a shared folder may be away for a moment
                os.utime(self._path)


def take_claim(folder: Path, name: str) -> Claim | None:
    """Claim something for this process.

    Parameters
    ----------
    folder : Path
        Where the claims lie; created if needed. All who may work on the same thing must use the same folder.
    name : str
        Of what is claimed: part of a file name.

    Returns
    -------
    Claim or None
        None if somebody else works on it.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    try:
        dead = {number: _said_by_dead(_file(folder, name, number)) for number in _numbers(folder, name)}
        if None in dead.values():
            return None
        mine = max(dead, default=0) + 1
        claim = _create(_file(folder, name, mine))
    except (FileExistsError, FileNotFoundError):  # somebody was quicker, or has removed the folder, which was empty
        return None
    except OSError as error:
        raise _cannot_write(folder, error) from None
    others = {number: _read(_file(folder, name, number)) for number in _numbers(folder, name) if number != mine}
    if others.items() - dead.items():  # some came while we looked: both step back
        claim.release()
        return None
    for number in others:
        _file(folder, name, number).unlink(missing_ok=True)
    return claim


def _create(path: Path) -> Claim:
    """Make a claim's file, which must not exist; its text is that of no other claim."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks there: the time has to tell
                fcntl.flock(opened, fcntl.LOCK_EX)
        os.write(opened, f"{_this_machine()}\n{uuid.uuid4()}\n".encode())
    except OSError:
        os.close(opened)
        path.unlink(missing_ok=True)
        raise
    return Claim(path, opened)


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write to the output folder '{folder}': {error.strerror}")


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}~{number}{_SUFFIX}"


def _parts(file_name: str) -> tuple[str, int]:
    """Return what a claim's file is of, and its number; another file has the number 0."""
    name, _, number = file_name.removesuffix(_SUFFIX).rpartition("~")
    return name, int(number) if number.isdigit() and file_name.endswith(_SUFFIX) else 0


def _numbers(folder: Path, name: str) -> list[int]:
    """Return the numbers of the claims on something."""
    found = (_parts(entry.name) for entry in os.scandir(folder))
    return sorted(number for of, number in found if of == name and number)


def _read(path: Path) -> str:
    """Return what a claim's file says; nothing if it is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _said_by_dead(path: Path) -> str | None:
    """Return what a claim's file says, if its process has ended; None if it is at work.

    Raises
    ------
    FileNotFoundError
        If the claim was released just now.
    """
    opened = os.open(path, os.O_RDWR)
    try:
        lock = _try_lock(opened)
        said = _read(path)
        if lock == "taken" or (not (lock == "free" and said.startswith(f"{_this_machine()}\n")) and _age(path) < LEASE):
            return None
        return said
    finally:
        os.close(opened)


def _try_lock(opened: int) -> Literal["free", "taken", "none"]:
    """Say whether another process has a file locked; or that there are no locks."""
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "taken" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else "none"
    return "free"


def _age(path: Path) -> float:
    """Return the seconds since a file was touched, by the clock of the disk it lies on."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="now-") as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime


def _this_machine() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"
