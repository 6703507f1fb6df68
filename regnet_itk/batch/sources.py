"""What is given to be registered: a list of pairs, a data set in the order of BIDS, or a series of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from regnet_itk.batch.bids import IMAGES, BidsExport, describe_derivatives, read_bids
from regnet_itk.batch.series import join_series, split_series
from regnet_itk.batch.work import Export
from regnet_itk.data.suffixes import IMAGE_SUFFIXES, known_suffix
from regnet_itk.errors import ParameterError
from regnet_itk.pairs import Pair, read_pairs


@dataclass(frozen=True)
class Source:
    """The pairs, and what else is to be made of them.

    Parameters
    ----------
    pairs : list of Pair
    export : Export, optional
        Writes more of each result.
    finish : callable, optional
        Writes what takes the results of all pairs, and returns where it is.
    """

    pairs: list[Pair]
    export: Export | None = None
    finish: Callable[[], Path] | None = None


@dataclass(frozen=True)
class SourceOptions:
    """What a user says of the pairs, each for one kind of source.

    Parameters
    ----------
    images : str, optional
        Which files of a session are taken, in a data set of BIDS.
    fixed_session : str, optional
        The session that the others are registered to.
    fixed_frame : int, optional
        The frame of a series that the others are registered to.
    """

    images: str | None = None
    fixed_session: str | None = None
    fixed_frame: int | None = None

    def check(self, given: Path, kind: str, *used: str) -> None:
        """Refuse what means nothing for a kind of source."""
        for name, value in vars(self).items():
            if value is not None and name not in used:
                raise ParameterError(f"'{given}' is {kind}, for which `{name}` means nothing; leave it out")


def read_source(given: str | Path, out: str | Path, options: SourceOptions | None = None) -> Source:
    """Find the pairs of a list, a data set or a series.

    Parameters
    ----------
    given : str or Path
        A CSV file, a folder, or a 4D image.
    out : str or Path
        Folder of the batch; the frames of a series are written there.
    options : SourceOptions, optional

    Raises
    ------
    ParameterError, ImageError, OutputError
        If it cannot be read, holds no pair, or something of it cannot be written.
    """
    given, out, options = Path(given), Path(out), options or SourceOptions()
    if given.is_dir():
        options.check(given, "a data set", "images", "fixed_session")
        root = given.resolve()
        pairs = read_bids(root, options.images or IMAGES, options.fixed_session)
        describe_derivatives(root, out)
        return Source(pairs, BidsExport(root, out.resolve()))
    if known_suffix(given, IMAGE_SUFFIXES):
        options.check(given, "a series", "fixed_frame")
        pairs = split_series(given, out, options.fixed_frame or 0)
        return Source(pairs, finish=lambda: join_series(given, out, pairs))
    options.check(given, "a list of pairs")
    return Source(read_pairs(given, check_files=False))
