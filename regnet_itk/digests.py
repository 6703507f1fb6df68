"""Digests that tell whether what a result was computed from is still the same."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

_SEVERAL_FILES = (".mhd", ".nhdr", ".hdr")
"""Headers, whose voxels lie in a file beside them."""


def digest_text(parts: Sequence[str]) -> str:
    """Return the SHA-256 of some texts, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return a digest of a file; of a folder, of all its files; of a header, of what lies beside it as well.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if path.is_dir():
        return digest_text([digest_file(file) for file in _files(path)])
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def digest_kept_file(path: Path) -> str:
    """Return what `digest_file` does, and read a file again only when its size or time has changed: for models.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    return _digest(path, state_of(path))


@lru_cache(maxsize=32)
def _digest(path: Path, state: str) -> str:
    return digest_file(path)


def state_of(path: Path) -> str:
    """Return sizes and times of the files that `digest_file` reads: while they stay, so most probably does the content.

    Raises
    ------
    OSError
        If there is no such file.
    """
    found = os.stat(path)
    if stat.S_ISREG(found.st_mode) and path.suffix.lower() not in _SEVERAL_FILES:
        return _state(found)
    return digest_text([_state(os.stat(file)) for file in _files(path)])


def _state(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}"


def _files(path: Path) -> list[Path]:
    """Return the files that belong to what a path names."""
    if path.suffix.lower() in _SEVERAL_FILES and path.is_file():
        return sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
