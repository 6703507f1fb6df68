"""Whether what is to be read is a file at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MISSING = "does not exist"
FOLDER = "is a folder; give a file"


def why_no_file(path: str | Path, give: str = "give a file") -> str | None:
    """Say why a path cannot be read as a file; reading a pipe, for one, would wait for ever.

    Parameters
    ----------
    path : str or Path
    give : str
        What to do if it is something else than a file.

    Returns
    -------
    str or None
        The end of a sentence that begins with the path: "does not exist" ..; None if it is a file that may be read.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be looked into
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(mode):
        return f"is a folder; {give}"
    if not stat.S_ISREG(mode):
        return f"is neither a file nor a folder; {give}"
    if not os.access(path, os.R_OK):
        return "cannot be read: no permission"
    return None


def is_file(path: str | Path) -> bool:
    """Say whether a path is a file; False too for a path that cannot even be looked at."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False
