"""What a step of a comparison found and what it cost, as ``measures.json`` keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.grid import FloatArray
from regnet_itk.metrics.measures import ErrorMoments
from regnet_itk.metrics.metric import RESERVED, Found, mean_of
from regnet_itk.stages.base import Detail

RECORD = "measures.json"


@dataclass(frozen=True)
class Trust:
    """How far a transform is to be trusted; NaN where that is not known.

    Parameters
    ----------
    verdict : str
        "good", "look" or "failed"; empty if nobody can say.
    reasons : str
        Of the verdict.
    expected : float
        Mean expected error, mm.
    off : float
        Where the truth is known: the mean difference of expected and true error, mm.
    coverage : float
        Where the truth is known: the share (0 to 1) of points within the radius that is to hold in 90 % of the cases.
    """

    verdict: str = ""
    reasons: str = ""
    expected: float = math.nan
    off: float = math.nan
    coverage: float = math.nan


@dataclass(frozen=True)
class Measures:
    """How good a transform T of a pair is; None or empty where the pair does not tell.

    Parameters
    ----------
    mapped : list of points
        T(x_i) of the fixed landmarks, mm, LPS.
    differences : list of vectors
        T(x_i) - y_i, mm.
    field : ErrorMoments, optional
        Errors of the displacement inside the fixed mask.
    metrics : mapping
        What each metric found, by its name.
    trust : Trust
    """

    mapped: list[list[float]]
    differences: list[list[float]]
    field: ErrorMoments | None
    metrics: Mapping[str, Found]
    trust: Trust = Trust()

    def to_json(self) -> dict[str, Any]:
        """Return the measures as plain values, the metrics beside the others."""
        moments = None if self.field is None else asdict(self.field)
        return {
            "mapped": self.mapped,
            "differences": self.differences,
            "field": moments,
            "trust": asdict(self.trust),
            **self.metrics,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Measures:
        """Take what `to_json` returned."""
        moments = content["field"]
        if moments is not None:
            moments = ErrorMoments(moments["count"], tuple(moments["sums"]), tuple(moments["squares"]))
        metrics = {name: found for name, found in content.items() if name not in RESERVED}
        trust = Trust(**content.get("trust", {}))
        return cls(content["mapped"], content["differences"], moments, metrics, trust)


@dataclass(frozen=True)
class StepRecord:
    """What a step did.

    Parameters
    ----------
    label : str
        The stage's name.
    key, measured_key : str
        Of what the transform, and the measures, were computed from; if they differ, so may the result.
    transform : str
        File of the whole transform up to this step, in the step's folder; empty before any stage.
    seconds : float
        Wall-clock time of the stage alone.
    peak_mb : float
        Largest memory of any of its processes, MB.
    details : mapping
        What the stage said about itself.
    measures : Measures
    """

    label: str
    key: str
    measured_key: str
    transform: str
    seconds: float
    peak_mb: float
    details: Mapping[str, Detail]
    measures: Measures

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        content = {**vars(self), "measures": self.measures.to_json()}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _check(self) -> None:
        """Raise a TypeError or ValueError if something is not of its type."""
        measures = self.measures
        told = measures.trust.verdict, measures.trust.reasons
        for text in (self.label, self.key, self.measured_key, self.transform, *told):
            if not isinstance(text, str):
                raise TypeError(text)
        moments = (
            () if measures.field is None else (measures.field.count, *measures.field.sums, *measures.field.squares)
        )
        trust = measures.trust
        for number in (self.seconds, self.peak_mb, *moments, trust.expected, trust.off, trust.coverage):
            if not isinstance(number, int | float):
                raise TypeError(number)
            float(number)
        if len(as_array(measures.mapped)) != len(as_array(measures.differences)):
            raise ValueError("points")
        dict(self.details)
        for found in measures.metrics.values():
            mean_of(found)

    @classmethod
    def read(cls, path: Path) -> StepRecord | None:
        """Read a record; None if there is none, it is damaged, or of another version of this program."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**{**content, "measures": Measures.from_json(content["measures"])})
            found._check()
            return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None


def as_array(vectors: Any) -> FloatArray:
    """Return lists of vectors as an array (n, 3); there may be none."""
    return np.asarray(vectors, dtype=float).reshape(-1, 3)
