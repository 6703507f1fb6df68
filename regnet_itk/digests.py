"""Digests that tell whether what a result was computed from is still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
        return digest_text([digest_file(file) for file in sorted(path.iterdir()) if file.is_file()])
    files = sorted(path.parent.glob(f"{path.stem}.*")) if path.suffix.lower() in _SEVERAL_FILES else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
