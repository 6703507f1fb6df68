"""What is told while something runs: how far it is, and lines of log.

The lines go to the standard logger ``regnet_itk``, which is silent until a program asks for them::

    logging.basicConfig()
    logging.getLogger("regnet_itk").setLevel(logging.INFO)

WARNING is for what a user should know, INFO for what was reached, DEBUG for all else, elastix's own log included.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

Log = logging.Logger | logging.LoggerAdapter[Any]

LOGGER = logging.getLogger("regnet_itk")
LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Parameters
    ----------
    fraction : float
        The share of it that is done: 0 to 1, never falling.
    text : str
        What is being done, in a few words.
    number : int
        Which piece it is, where there are several: stages, images ..
    name : str
        Its name.
    """

    fraction: float
    text: str = ""
    number: int = 0
    name: str = ""


class Events:
    """Hears what is told; this one drops the progress and logs to ``regnet_itk``. Derive from it to listen.

    Attributes
    ----------
    log : logging.Logger or LoggerAdapter
        Where the lines go.
    """

    log: Log = LOGGER

    def progress(self, now: Progress) -> None:
        """Hear how far the work is."""


class PrefixedLog(logging.LoggerAdapter[Any]):
    """A log that puts a text before each line."""

    def __init__(self, log: Log, prefix: str) -> None:
        super().__init__(log)
        self.prefix = prefix

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Put the text before the line."""
        return f"{self.prefix}{msg}", kwargs
