"""The steps of a comparison on one pair: each method's stages, of which those that chains share run once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from regnet_itk.child_processes import run_apart
from regnet_itk.comparison.methods import BEFORE, Method
from regnet_itk.comparison.outcomes import Outcome
from regnet_itk.comparison.records import RECORD, StepRecord, as_array
from regnet_itk.comparison.step import Step, StepSettings, run_step
from regnet_itk.digests import digest_file, digest_text
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.events import Events, Progress
from regnet_itk.metrics.metric import Metric, mean_of
from regnet_itk.pairs import Pair
from regnet_itk.trust.error_map import MODEL_FILE
from regnet_itk.versions import package_versions

_FOR_REGISTRATION = ("fixed", "moving")
_MASKS = ("fixed_mask", "moving_mask")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class PairTask:
    """A pair, and what is done with it; see :func:`compare_methods_on`.

    Parameters
    ----------
    pair : Pair
    folder : Path
        Of all pairs.
    methods : tuple of Method
    labels : mapping
        The label of each stage, by its fingerprint.
    settings : StepSettings
    metrics : tuple of Metric
    """

    pair: Pair
    folder: Path
    methods: tuple[Method, ...]
    labels: Mapping[str, str]
    settings: StepSettings
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class PairOutcomes:
    """What became of a pair.

    Parameters
    ----------
    outcomes : mapping
        By the names of the methods.
    lines : tuple of str
        A line for each step that ended.
    """

    outcomes: Mapping[str, Outcome]
    lines: tuple[str, ...]


def compare_pair(task: PairTask, events: Events) -> PairOutcomes:
    """Run all methods on a pair, for an engine; the lines of log come with the outcomes.

    Raises
    ------
    ParameterError
        If a model's file was changed meanwhile.
    """
    lines: list[str] = []
    outcomes = compare_methods_on(task, events.progress, lines.append)
    return PairOutcomes(outcomes, tuple(lines))


def compare_methods_on(task: PairTask, show: Callable[[Progress], None], tell: Tell) -> dict[str, Outcome]:
    """Run all methods on a pair; whatever goes wrong with one of them is in its outcome.

    Parameters
    ----------
    task : PairTask
    show : callable
        Hears the share that is done.
    tell : callable
        Hears a line for each step that ended.

    Returns
    -------
    dict
        Outcomes by the names of the methods.

    Raises
    ------
    ParameterError
        If a model's file was changed meanwhile.
    """
    steps = _Steps(task, show, tell)
    return {method.name: steps.outcome(method) for method in task.methods}


@dataclass
class _Steps:
    """Runs the steps of a pair, each once."""

    task: PairTask
    show: Callable[[Progress], None]
    tell: Tell
    done: dict[tuple[str, ...], StepRecord | str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def outcome(self, method: Method) -> Outcome:
        """Run the stages of a method that were not run yet; whatever goes wrong with them is in the outcome."""
        folder = self._folder / BEFORE
        unusable = self.done.get((BEFORE,))
        if isinstance(unusable, str):  # what cannot be read or measured now cannot be later
            return Outcome((), folder, unusable)
        try:
            return self._chain(method)
        except OSError as error:  # a file that was there when the list was read, or a full disk
            return Outcome((), folder, f"'{error.filename}': {error.strerror}")

    def _chain(self, method: Method) -> Outcome:
        records: list[StepRecord] = []
        task, folder = self.task, self._folder
        key = self._input_key()
        chain: tuple[str, ...] = ()
        initial: Path | None = None
        for stage in method.stages or (None,):
            mark = "" if stage is None else stage.fingerprint()
            if stage is not None and mark not in task.labels:
                raise ParameterError(f"the model of '{stage.name}' has changed meanwhile; start the comparison again")
            label = task.labels[mark]
            chain = (*chain, label)
            folder = self._folder / "+".join(chain)
            key = key if stage is None else digest_text([key, mark])
            measured_key = self._measured_key(key)
            step = Step(
                task.pair, stage, label, initial, folder, key, measured_key, task.settings, task.metrics
            )  # fmt: skip
            if chain not in self.done:
                self.done[chain] = self._run(step)
            found = self.done[chain]
            if isinstance(found, str):
                return Outcome(tuple(records), folder, found)
            records.append(found)
            initial = folder / found.transform
        return Outcome(tuple(records), folder)

    def _input_key(self) -> str:
        """Return a digest of all that a registration of the pair depends on, but the stages."""
        used = (*_FOR_REGISTRATION, *(_MASKS if self.task.settings.masks_guide else ()), *self.task.pair.guides)
        how = self.task.settings
        settings = json.dumps([how.threads, how.seed, how.device])
        return digest_text([*self._digests(used), settings, json.dumps(package_versions(), sort_keys=True)])

    def _measured_key(self, key: str) -> str:
        marks = (metric.fingerprint() for metric in self.task.metrics)
        return digest_text([key, *self._digests(tuple(self.task.pair.files())), *marks, digest_file(MODEL_FILE)])

    def _digests(self, columns: tuple[str, ...]) -> Iterator[str]:
        for column, path in self.task.pair.files().items():
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

    @property
    def _folder(self) -> Path:
        return self.task.folder / self.task.pair.file_name

    def _show(self, step: Step, now: Progress) -> None:
        count = sum(max(1, len(method.stages)) for method in self.task.methods)
        share = min(1.0, (len(self.done) + now.fraction) / count)
        self.show(Progress(share, f"{step.label}: {now.text}"))

    def _report(self, step: Step, text: str) -> None:
        self.tell(f"{step.pair.name}: {step.folder.name}: {text}")


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
