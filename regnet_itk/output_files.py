"""What a command calls its files: a folder holds those of one run, not of two, and never loses what is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from regnet_itk.errors import OutputError


@dataclass(frozen=True)
class OutputFiles:
    """The names of the files that a command writes to a folder, by which those of an earlier run are known.

    Parameters
    ----------
    names : str
        A regular expression of whole names.
    record : str
        The file that says that the others are of one run; it is the first to go and the last to come.
    with_it : tuple of str
        Files that others made of such a run, and that are worth nothing without it.
    exclusive : bool
        Whether a folder with files of such names and without a record is refused: they are of another program.
    """

    names: str
    record: str
    with_it: tuple[str, ...] = ()
    exclusive: bool = True

    def find_earlier(self, folder: Path) -> list[Path]:
        """Return the files of an earlier run in a folder."""
        if not (folder / self.record).is_file():
            return []
        return [file for file in self._matching(folder) if file.is_file() or file.is_symlink()]

    def clear(self, folder: Path) -> None:
        """Remove what such a run, whole or broken off, has left in a folder.

        Raises
        ------
        OSError
            If something cannot be removed.
        """
        if folder.is_dir():
            (folder / self.record).unlink(missing_ok=True)  # from here on it is no whole run
            for file in self._matching(folder):
                file.unlink(missing_ok=True)

    def _matching(self, folder: Path) -> list[Path]:
        return sorted(f for f in folder.iterdir() if f.name in self.with_it or re.fullmatch(self.names, f.name))

    def check(self, folder: str | Path, inputs: Iterable[str | Path | None] = ()) -> None:
        """Refuse a folder whose files would be lost or mixed with others; to be called before the work.

        Parameters
        ----------
        folder : str or Path
            Where the files are to be written.
        inputs : iterable of str, Path or None
            The files that are read.

        Raises
        ------
        OutputError
            If one of the inputs would be overwritten, or files of another program lie there.
        """
        folder = Path(folder)
        check_inputs_stay(folder, inputs, lambda name: name in self.with_it or bool(re.fullmatch(self.names, name)))
        try:
            if not self.exclusive or not folder.is_dir() or (folder / self.record).is_file():
                return
            others = [file.name for file in self._matching(folder) if file.name not in self.with_it]
        except OSError as error:
            raise OutputError(f"cannot write to the output folder '{folder}': {error.strerror}") from None
        if others:
            raise OutputError(
                f"the output folder '{folder}' holds '{others[0]}', which is of another program or of a run that was "
                f"broken off (there is no {self.record}); give another folder, or empty this one"
            )


def check_inputs_stay(folder: Path, inputs: Iterable[str | Path | None], is_written: Callable[[str], bool]) -> None:
    """Refuse to write to a folder where an input would be overwritten.

    Parameters
    ----------
    folder : Path
    inputs : iterable of str, Path or None
    is_written : callable
        Says whether a file of a name may be written, or removed, there.

    Raises
    ------
    OutputError
    """
    target = os.path.realpath(folder)
    for given in (given for given in inputs if given):
        absolute = os.path.abspath(given)
        where = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
        for file in (where, os.path.realpath(absolute)):
            if os.path.dirname(file) == target and is_written(os.path.basename(file)):
                raise OutputError(
                    f"'{given}' is read, and lies in the output folder '{folder}', where it would be overwritten or "
                    "removed; give another folder"
                )
