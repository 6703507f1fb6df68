"""The errors that users meet: one message each, saying what was given and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 1000  # characters


class RegNetItkError(Exception):
    """Base of every error that this package raises on purpose; its text is one line, however long what it quotes is."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} .. {text[-_LONGEST // 2 :]}"


class ImageError(RegNetItkError):
    """An image or mask cannot be read, or cannot be registered."""


class PointsError(RegNetItkError):
    """A landmark file cannot be read, or does not fit its image or partner."""


class ParameterError(RegNetItkError):
    """A parameter file is malformed, or asks for something that does not exist."""


class TransformError(RegNetItkError):
    """A transform file is broken or cannot be converted."""


class DicomError(RegNetItkError):
    """A DICOM file cannot be read or used, or does not belong to the others."""


class ModelError(RegNetItkError):
    """A model file is missing, damaged or of another network."""


class RegistrationError(RegNetItkError):
    """A stage of a registration failed."""


class OutputError(RegNetItkError):
    """A result cannot be written."""


class InterruptedRunError(RegNetItkError):
    """A run was interrupted by the user and can be continued."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'X'?"`` for the known name nearest to `given`, or an empty string.

    Parameters
    ----------
    given : str
        The name as the user wrote it.
    known : iterable of str
        The names that exist.
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""
