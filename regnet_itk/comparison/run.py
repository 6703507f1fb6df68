"""Register a set of pairs by several methods, and measure all of them alike.

A method is a chain of stages. Chains that begin alike share the results of what they have in common: the affine stage
runs once a pair. Each stage runs in a process of its own, and what is finished is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from regnet_itk.child_processes import run_apart
from regnet_itk.comparison.methods import BEFORE, Method
from regnet_itk.comparison.outcomes import CAPTURE_RANGE, Comparison, Outcome
from regnet_itk.comparison.records import RECORD, StepRecord, as_array
from regnet_itk.comparison.step import Step, StepSettings, run_step
from regnet_itk.digests import digest_file, digest_text
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.events import Events, Progress
from regnet_itk.metrics.metric import Metric, mean_of
from regnet_itk.metrics.registry import check_portable, known_metrics
from regnet_itk.outputs import check_writable
from regnet_itk.pairs import Pair, check_inputs_outside
from regnet_itk.trust.error_map import MODEL_FILE
from regnet_itk.versions import package_versions

_FOR_REGISTRATION = ("fixed", "moving")
_MASKS = ("fixed_mask", "moving_mask")


def compare(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    out: str | Path,
    settings: StepSettings | None = None,
    *,
    capture_range: float = CAPTURE_RANGE,
    events: Events | None = None,
) -> Comparison:
    """Register all pairs by all methods. What `out` holds already, of the same files and settings, is kept.

    Parameters
    ----------
    pairs : sequence of Pair
    methods : sequence of Method
        The first stage of the first one decides which landmarks count for TRE'.
    out : str or Path
        ``pairs/PAIR/STAGE+STAGE/`` there holds the transform and the measures of each step.
    settings : StepSettings
    capture_range : float
        mm, for TRE'.
    events : Events, optional
        Hears the share that is done, and in its log, at the level INFO, a line for each step that ended.

    Returns
    -------
    Comparison
        With what failed; a failure does not stop the rest.

    Raises
    ------
    OutputError
        If `out` cannot be written, or an input lies among the steps in it.
    ParameterError
        If a model's file was changed meanwhile, or a metric cannot be used.
    """
    check_writable(out)
    metrics = known_metrics()
    check_portable(metrics)
    folder, settings = Path(out).resolve() / "pairs", settings or StepSettings()
    check_inputs_outside(pairs, folder)
    steps = _Steps(folder, settings, events or Events(), _unique_labels(methods), metrics=metrics)
    compared = (Method(BEFORE, (), ()), *methods)
    outcomes = {}
    for number, pair in enumerate(pairs):
        steps.begin(number, len(pairs), sum(max(1, len(method.stages)) for method in compared))
        for method in compared:
            outcomes[pair.name, method.name] = steps.outcome(pair, method)
    return Comparison(tuple(pairs), compared, outcomes, capture_range, settings, metrics=metrics)


def _unique_labels(methods: Sequence[Method]) -> dict[str, str]:
    """Return the label of each stage by its fingerprint; different stages of the same name are numbered."""
    found: dict[str, str] = {"": BEFORE}
    for method in methods:
        for stage, label in zip(method.stages, method.labels, strict=True):
            taken = sum(other.split("~")[0] == label for mark, other in found.items() if mark != stage.fingerprint())
            found.setdefault(stage.fingerprint(), f"{label}~{taken + 1}" if taken else label)
    return found


@dataclass
class _Steps:
    """Runs the steps of a comparison, each once."""

    folder: Path
    settings: StepSettings
    events: Events
    labels: dict[str, str]
    done: dict[tuple[str, ...], StepRecord | str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    begun: tuple[int, int, int] = (0, 1, 1)
    metrics: tuple[Metric, ...] = field(default_factory=known_metrics)

    def begin(self, number: int, count: int, steps: int) -> None:
        """Begin with pair `number` of `count`, which has at most so many steps."""
        self.done, self.digests, self.begun = {}, {}, (number, count, steps)

    def outcome(self, pair: Pair, method: Method) -> Outcome:
        """Run the stages of a method that were not run yet; whatever goes wrong with them is in the outcome."""
        folder = self.folder / pair.file_name / BEFORE
        unusable = self.done.get((BEFORE,))
        if isinstance(unusable, str):  # what cannot be read or measured now cannot be later
            return Outcome((), folder, unusable)
        try:
            return self._chain(pair, method)
        except OSError as error:  # a file that was there when the list was read, or a full disk
            return Outcome((), folder, f"'{error.filename}': {error.strerror}")

    def _chain(self, pair: Pair, method: Method) -> Outcome:
        records: list[StepRecord] = []
        folder = self.folder / pair.file_name
        key = self._input_key(pair)
        chain: tuple[str, ...] = ()
        initial: Path | None = None
        for stage in method.stages or (None,):
            mark = "" if stage is None else stage.fingerprint()
            if stage is not None and mark not in self.labels:
                raise ParameterError(f"the model of '{stage.name}' has changed meanwhile; start the comparison again")
            label = self.labels[mark]
            chain = (*chain, label)
            folder = self.folder / pair.file_name / "+".join(chain)
            key = key if stage is None else digest_text([key, mark])
            measured_key = self._measured_key(pair, key)
            step = Step(pair, stage, label, initial, folder, key, measured_key, self.settings, self.metrics)
            if chain not in self.done:
                self.done[chain] = self._run(step)
            found = self.done[chain]
            if isinstance(found, str):
                return Outcome(tuple(records), folder, found)
            records.append(found)
            initial = folder / found.transform
        return Outcome(tuple(records), folder)

    def _input_key(self, pair: Pair) -> str:
        """Return a digest of all that a registration of the pair depends on, but the stages."""
        used = (*_FOR_REGISTRATION, *(_MASKS if self.settings.masks_guide else ()))
        settings = json.dumps([self.settings.threads, self.settings.seed, self.settings.device])
        return digest_text([*self._digests(pair, used), settings, json.dumps(package_versions(), sort_keys=True)])

    def _measured_key(self, pair: Pair, key: str) -> str:
        marks = (metric.fingerprint() for metric in self.metrics)
        return digest_text([key, *self._digests(pair, tuple(pair.files())), *marks, digest_file(MODEL_FILE)])

    def _digests(self, pair: Pair, columns: tuple[str, ...]) -> Iterator[str]:
        for column, path in pair.files().items():
            if column in columns:
                if column not in self.digests:
                    self.digests[column] = digest_file(path)
                yield f"{column}={self.digests[column]}"

    def _run(self, step: Step) -> StepRecord | str:
        """Return the record of a step, or the reason why it failed."""
        kept = StepRecord.read(step.folder / RECORD)
        if kept is not None and not (step.folder / kept.transform).exists():
            kept = None
        if kept is not None and kept.measured_key == step.measured_key:
            self._report(step, "kept")
            return kept
        if kept is not None and kept.key == step.key:
            step = Step(**{**vars(step), "kept": kept})
        elif kept is not None:
            shutil.rmtree(step.folder)
        try:
            _run_apart(step, lambda now: self._show(step, now))
        except RegistrationError as error:
            self._report(step, f"failed: {error}")
            return str(error)
        found = StepRecord.read(step.folder / RECORD)
        if found is None:
            return f"its record '{step.folder / RECORD}' cannot be read"
        self._report(step, _summary(found))
        return found

    def _show(self, step: Step, now: Progress) -> None:
        number, count, steps = self.begun
        share = (number + min(1.0, (len(self.done) + now.fraction) / steps)) / count
        what = f"pair {number + 1} of {count} ({step.pair.name}), {step.label}: {now.text}"
        self.events.progress(Progress(share, what, name="comparison"))

    def _report(self, step: Step, text: str) -> None:
        self.events.log.info("%s: %s: %s", step.pair.name, step.folder.name, text)


def _summary(record: StepRecord) -> str:
    parts = [f"{record.seconds:.1f} s"] if record.transform else []
    differences = as_array(record.measures.differences)
    if len(differences):
        parts.append(f"TRE {np.linalg.norm(differences, axis=1).mean():.2f} mm")
    if record.measures.field is not None:
        parts.append(f"field error {record.measures.field.means[0]:.2f} mm")
    return ", ".join([*parts, f"correlation {mean_of(record.measures.metrics.get('correlation')):.3f}"])


def _run_apart(step: Step, show: Callable[[Progress], None]) -> None:
    """Run a step in a process of its own; a RegistrationError says why it failed."""
    run_apart(run_step, step, show)
