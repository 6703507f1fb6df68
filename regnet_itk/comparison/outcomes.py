"""What became of each method on each pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from regnet_itk.comparison.methods import Method
from regnet_itk.comparison.records import StepRecord, as_array
from regnet_itk.comparison.step import StepSettings
from regnet_itk.data.grid import FloatArray
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registry import known_metrics
from regnet_itk.pairs import Pair
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain
from regnet_itk.versions import package_versions

CAPTURE_RANGE = 8.0
"""mm; TRE' is the error of the landmarks that are nearer than this after the first stage."""


@dataclass(frozen=True)
class Outcome:
    """What became of a method on a pair.

    Parameters
    ----------
    records : tuple of StepRecord
        Of each stage that ended well; "before" has one too.
    folder : Path
        Of the last of them.
    error : str
        Why the method failed; empty if it did not.
    """

    records: tuple[StepRecord, ...]
    folder: Path
    error: str = ""

    @property
    def last(self) -> StepRecord:
        """The record of the whole chain."""
        return self.records[-1]

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(record.seconds for record in self.records)

    @property
    def peak_mb(self) -> float:
        """Memory of the largest process of all stages, MB."""
        return max(record.peak_mb for record in self.records)

    @property
    def transform(self) -> Path | None:
        """File of the whole transform; None before any stage."""
        return self.folder / self.last.transform if self.last.transform else None

    def chain(self) -> TransformChain:
        """Read the whole transform."""
        return read_chain(self.transform) if self.transform else TransformChain()


@dataclass(frozen=True)
class Comparison:
    """The measures of a set of pairs under several methods.

    Parameters
    ----------
    pairs : tuple of Pair
    methods : tuple of Method
        "before", which has no stages, is the first.
    outcomes : dict
        By the names of pair and method.
    capture_range : float
        mm, for TRE'.
    settings : StepSettings
    versions : dict
        Of the packages.
    metrics : tuple of Metric
        What was measured beside landmarks and true displacements, in the order of the tables.
    """

    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    outcomes: dict[tuple[str, str], Outcome]
    capture_range: float = CAPTURE_RANGE
    settings: StepSettings = field(default_factory=StepSettings)
    versions: dict[str, str] = field(default_factory=package_versions)
    metrics: tuple[Metric, ...] = field(default_factory=known_metrics)

    @property
    def groups(self) -> list[str]:
        """The groups of the pairs, in the order in which they first occur."""
        return list(dict.fromkeys(pair.group for pair in self.pairs))

    @property
    def reference(self) -> str:
        """Name of the stage after which landmarks count as inside the capture range: the first method's first."""
        return self.methods[1].labels[0]

    @property
    def registered_methods(self) -> list[Method]:
        """The methods that go beyond the reference stage."""
        return [method for method in self.methods if method.stages and method.labels != (self.reference,)]

    @property
    def failures(self) -> list[tuple[Pair, Method, str]]:
        """What failed, with the reason."""
        found = (
            (pair, method, self.outcomes[pair.name, method.name]) for pair in self.pairs for method in self.methods
        )
        return [(pair, method, outcome.error) for pair, method, outcome in found if outcome.error]

    def outcome(self, pair: Pair, method: Method) -> Outcome | None:
        """Return what a method found on a pair, or None if it failed."""
        found = self.outcomes[pair.name, method.name]
        return None if found.error else found

    def differences(self, pair: Pair, method: Method, capture_range: float | None = None) -> FloatArray:
        """Return T(x_i) - y_i (n, 3) in mm of the landmarks of a pair.

        Parameters
        ----------
        pair : Pair
        method : Method
        capture_range : float, optional
            Only those nearer than this, in mm, after the reference stage.

        Returns
        -------
        ndarray, shape (n, 3)
            Empty if there are no landmarks or the method failed.
        """
        outcome, reference = self.outcome(pair, method), self.reference_record(pair)
        if outcome is None:
            return np.zeros((0, 3))
        found = as_array(outcome.last.measures.differences)
        if capture_range is None:
            return found
        if reference is None:
            return np.zeros((0, 3))
        return np.asarray(found[np.linalg.norm(as_array(reference.measures.differences), axis=1) <= capture_range])

    def reference_record(self, pair: Pair) -> StepRecord | None:
        """Return the record of the reference stage on a pair, or None if it failed."""
        records = self.outcomes[pair.name, self.methods[1].name].records
        return records[0] if records else None
