"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from regnet_itk.errors import OutputError
from regnet_itk.held_folders import HeldFolder
from regnet_itk.output_files import OutputFiles

_NEXT_TO_NOTHING = 2**20  # bytes; file systems rarely fill up to the last one
_PART = ".part-"


def _write_error(path: Path, error: Exception) -> OutputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = getattr(error, "strerror", None)
    reason = known or (lines[-1] if lines else type(error).__name__)
    if not known and _is_full(path if path.is_dir() else path.parent):
        reason = f"No space left on device ({reason})"  # numpy and torch say only how far they came
    return OutputError(f"cannot write '{path}': {reason}")


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NEXT_TO_NOTHING
    except OSError:
        return False


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Parameters
    ----------
    path : str or Path
        The wanted file. Its folder must exist.
    write : callable
        Is given a path with the same suffix, and writes there.

    Raises
    ------
    OutputError
        If the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    try:
        held = HeldFolder(path.parent, _PART)
    except OSError as error:
        raise _write_error(path, error) from None
    folder = held.path
    try:
        part = folder / path.name
        write(part)
        if not part.is_file() or not part.stat().st_size:
            raise OSError(errno.EIO, "nothing was written; the disk may be full")
        _move(sorted(folder.iterdir(), key=lambda f: f == part), path.parent)  # a raw part first, its header last
    except (OSError, RuntimeError) as error:
        raise _write_error(path, error) from None
    finally:
        held.remove()


@contextmanager
def staged_folder(folder: str | Path, files: OutputFiles | None = None) -> Iterator[Path]:
    """Give a temporary folder whose files move into `folder` when the block ends well.

    `folder` is created if needed. If the block raises, nothing of it is kept, and a folder that was created
    here is removed again.

    Parameters
    ----------
    folder : str or Path
        Where the results shall be.
    files : OutputFiles, optional
        What they are called; those of an earlier run are removed. By default all that is there stays.

    Yields
    ------
    Path
        The temporary folder, on the same file system.

    Raises
    ------
    OutputError
        If the folder cannot be created or written.
    """
    folder = Path(folder).resolve()
    check_writable(folder)
    created = [p for p in (folder, *folder.parents) if not p.exists()]
    done = False
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = HeldFolder(folder, _PART)
        except OSError as error:
            raise OutputError(f"cannot write to the output folder '{folder}': {error.strerror}") from None
        stage = held.path
        try:
            yield stage
            _replace(sorted(stage.iterdir()), folder, files)
        except OSError as error:
            raise _write_error(folder, error) from None
        except OutputError as error:  # names a file that the user never sees
            raise OutputError(str(error).replace(str(stage), str(folder))) from None
        finally:
            held.remove()
        done = True
    finally:
        if not done:
            for path in created:
                if path.exists() and not any(path.iterdir()):
                    path.rmdir()


def _replace(new: list[Path], folder: Path, files: OutputFiles | None) -> None:
    """Move files into a folder, in place of those of an earlier run."""
    if files is None:
        _move(new, folder)
        return
    _check_no_folders(new, folder)
    names = {file.name for file in new}
    outdated = [file for file in files.find_earlier(folder) if file.name not in names]
    if outdated or len(new) > 1:  # while it is neither the one nor the other run, nothing says that it is one
        (folder / files.record).unlink(missing_ok=True)
    for file in outdated:
        file.unlink(missing_ok=True)
    _move(sorted(new, key=lambda f: f.name == files.record), folder)


def _check_no_folders(files: list[Path], folder: Path) -> None:
    """Refuse, before any file is moved, a folder that has the name of one."""
    for file in files:
        if (folder / file.name).is_dir():
            raise OutputError(f"cannot write '{folder / file.name}': there is a folder of that name")


def _move(files: list[Path], folder: Path) -> None:
    _check_no_folders(files, folder)
    for file in files:
        os.replace(file, folder / file.name)


def check_writable(folder: str | Path) -> None:
    """Make sure, before long work, that a folder can be created and written.

    Raises
    ------
    OutputError
        If it is a file, or the folder or the nearest existing one above it cannot be written.
    """
    try:
        folder = Path(folder).resolve()
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        raise OutputError(f"cannot write to the output folder '{folder}': {error.strerror}") from None
    if not there.is_dir():
        raise OutputError(f"cannot write to the output folder '{folder}': '{there}' is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to the output folder '{folder}': no permission to write to '{there}'")
