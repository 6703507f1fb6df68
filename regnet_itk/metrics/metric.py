"""What a metric is: one number for a registered pair, with all that tables need to know about it."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from regnet_itk.errors import ParameterError, RegistrationError, RegNetItkError
from regnet_itk.metrics.registered_pair import NEEDS, Need, RegisteredPair

RESERVED = ("mapped", "differences", "field", "trust")
"""What records hold beside the metrics."""

Found = float | Mapping[str, float]
"""A number, or one for each structure (label), by its name; empty if nothing could be measured."""


@dataclass(frozen=True)
class Metric:
    """A measure of one registration.

    Parameters
    ----------
    name : str
        A word of letters, digits and "_" that no other metric has; records and ``measures.csv`` call it so.
    heading : str
        As tables show it.
    compute : callable
        A function of a module, so that other processes find it. Takes a :class:`RegisteredPair` and returns a number,
        or a mapping of numbers by structures, whose mean is shown.
    unit : str
        As tables show it: "mm", "%" ..
    better : {"lower", "higher"}, optional
        Whether lower or higher numbers are better; None if the tables shall mark none as the best.
    needs : tuple of str
        What must be known about a pair, see :data:`Need`; without it the metric is not computed.
    digits : int
        Decimals of what is shown.
    factor : float
        What the number is multiplied by to be shown in `unit`: 100 for a share in %. Records hold the number itself.
    column : str
        Its column in ``measures.csv``; by default its name.
    compared : bool
        Whether every two methods are compared by it.
    before : bool
        Whether it tells something about the images before any registration. False for what is known then, such as
        that nothing folds.
    of_runs : bool
        Whether the page of a single registration shows it after each stage.

    Raises
    ------
    ParameterError
        If the name is no such word, or a need is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import regnet_itk
    >>> def brightness(pair):
    ...     return pair.warped.array.mean()
    >>> metric = regnet_itk.Metric("brightness", "mean of the warped image", brightness, "HU", digits=1)
    >>> grid = regnet_itk.Grid(size=(4, 4, 4))
    >>> image = regnet_itk.Image(np.full(grid.shape, -500.0), grid)
    >>> round(metric.measure(regnet_itk.RegisteredPair(image, image, regnet_itk.TransformChain())), 3)
    -500.0
    """

    name: str
    heading: str
    compute: Callable[[RegisteredPair], Found]
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    needs: tuple[Need, ...] = ()
    digits: int = 3
    factor: float = 1.0
    column: str = ""
    compared: bool = True
    before: bool = True
    of_runs: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in RESERVED:
            raise ParameterError(
                f"a metric cannot be called '{self.name}': its name is a word of letters, digits and _, and none of "
                f"{', '.join(RESERVED)}"
            )
        unknown = next((need for need in self.needs if need not in NEEDS), None)
        if unknown is not None:
            raise ParameterError(
                f"the metric '{self.name}' needs '{unknown}', which is not known; known are {', '.join(NEEDS)}"
            )
        object.__setattr__(self, "column", self.column or self.name)

    @property
    def title(self) -> str:
        """The heading with the unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    def applies_to(self, pair: RegisteredPair) -> bool:
        """Say whether all that the metric needs is known about a pair."""
        return all(pair.has(need) for need in self.needs)

    def measure(self, pair: RegisteredPair) -> Found:
        """Return what was measured; an empty mapping if the pair lacks what the metric needs.

        Raises
        ------
        RegNetItkError
            If the function fails, or returns no number.
        """
        if not self.applies_to(pair):
            return {}
        try:
            found = self.compute(pair)
            return {str(name): float(v) for name, v in found.items()} if isinstance(found, Mapping) else float(found)
        except RegNetItkError:
            raise
        except Exception as error:  # whatever a function of another package does wrong
            raise RegistrationError(f"the metric '{self.name}' failed: {type(error).__name__}: {error}") from error

    def shown(self, found: Found | None) -> float:
        """Return the number that tables show, in `unit`; NaN where nothing was measured."""
        return self.factor * mean_of(found)

    def fingerprint(self) -> str:
        """Return a digest of the metric and the file that computes it: if it changes, so may the number."""
        try:
            code = Path(inspect.getfile(inspect.unwrap(self.compute))).read_bytes()
        except (TypeError, OSError):  # a callable object, or code that was typed in
            code = repr(type(self.compute)).encode()
        return hashlib.sha256(f"{self.name}\n{', '.join(self.needs)}\n".encode() + code).hexdigest()


def mean_of(found: Found | None) -> float:
    """Return a number as it is, and of several the mean; NaN where nothing was measured."""
    if isinstance(found, Mapping):
        return float(np.mean(list(found.values()))) if found else math.nan
    return math.nan if found is None else float(found)
