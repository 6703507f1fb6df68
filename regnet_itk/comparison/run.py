"""Register a set of pairs by several methods, and measure all of them alike.

A method is a chain of stages. Chains that begin alike share the results of what they have in common: the affine stage
runs once a pair. Each stage runs in a process of its own, and what is finished is kept.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.comparison.pairs import Pair
from regnet_itk.comparison.records import RECORD, StepRecord, as_array
from regnet_itk.comparison.step import Step, StepSettings, run_step
from regnet_itk.data.grid import FloatArray
from regnet_itk.digests import digest_file, digest_text
from regnet_itk.errors import ParameterError, RegistrationError, did_you_mean
from regnet_itk.events import Events, Progress
from regnet_itk.metrics.metric import Metric, mean_of
from regnet_itk.metrics.registry import check_portable, known_metrics
from regnet_itk.outputs import check_writable
from regnet_itk.parameters import ParameterMap, shipped_parameter_files
from regnet_itk.results import package_versions
from regnet_itk.stages.base import Stage
from regnet_itk.stages.planning import StageLike, check_stages, read_stages
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.elastix_reading import read_chain

DEFAULT_METHODS = ("affine", "bspline_1r", "bspline_3r", "regnet", "regnet_multistage_oneshot", "regnet_multistage")
CAPTURE_RANGE = 8.0
"""mm; TRE' is the error of the landmarks that are nearer than this after the first stage."""

BEFORE = "before"
_COMMON = "affine"
_FOR_REGISTRATION = ("fixed", "moving")
_MASKS = ("fixed_mask", "moving_mask")


@dataclass(frozen=True)
class Method:
    """A named chain of stages.

    Parameters
    ----------
    name : str
        As it is shown.
    stages : tuple of Stage
        In the order in which they run; none at all for "before".
    labels : tuple of str
        A name of each stage: of its parameter file.
    """

    name: str
    stages: tuple[Stage, ...]
    labels: tuple[str, ...]


def read_methods(names: Sequence[str], chains: Sequence[str] = ()) -> list[Method]:
    """Read methods.

    Parameters
    ----------
    names : sequence of str
        Names of shipped parameter files, joined by "+" for chains: "regnet_multistage+bspline_refine". The affine
        stage is put before each.
    chains : sequence of str
        Chains under names of their own: "mine=affine,./my.txt,bspline_refine", taken as they are.

    Raises
    ------
    ParameterError, ModelError
        If one is unknown (with the nearest known one), malformed, or named twice.

    Examples
    --------
    >>> from regnet_itk import read_methods
    >>> [method.name for method in read_methods(["affine", "bspline_3r"], ["mine=affine,regnet"])]
    ['affine', 'bspline_3r', 'mine']
    """
    own = dict(_split(chain) for chain in chains)
    shipped = shipped_parameter_files()
    methods = []
    for name in names:
        parts = name.split("+")
        unknown = next((part for part in parts if part not in shipped), None)
        if unknown is not None and name not in own:
            known = [*shipped, *own]
            raise ParameterError(
                f"there is no method '{unknown}'"
                + (did_you_mean(unknown, known) or f"; known are {', '.join(known)}")
                + "; chains of your own files are given as --method NAME=affine,FILE"
            )
        if name not in own:
            methods.append(plan_method(name, parts if parts[0] == _COMMON else [_COMMON, *parts]))
    methods += [plan_method(name, files) for name, files in own.items()]
    if not methods:
        raise ParameterError("no method was given; name at least one, such as --methods affine,regnet_multistage")
    taken = [method.name for method in methods]
    twice = next((name for name in taken if taken.count(name) > 1 or name == BEFORE), None)
    if twice is not None:
        raise ParameterError(f"the method name '{twice}' is taken; give each method a name of its own")
    return methods


def _split(chain: str) -> tuple[str, list[str]]:
    name, equals, files = chain.partition("=")
    parts = [part.strip() for part in files.split(",") if part.strip()]
    if not (name.strip() and equals and parts):
        raise ParameterError(f"the method '{chain}' is not of the form NAME=FILE,FILE,.. such as mine=affine,./my.txt")
    return name.strip(), parts


def plan_method(name: str, stages: StageLike | Sequence[StageLike]) -> Method:
    """Return a method of stages that are given in any way that :func:`regnet_itk.register` takes.

    Parameters
    ----------
    name : str
        As it is shown.
    stages : StageLike or sequence of StageLike
        Stages, parameter maps, paths, or names of shipped parameter files, in the order in which they run.

    Raises
    ------
    ParameterError, ModelError
        If one is unknown or malformed.
    """
    given = [stages] if isinstance(stages, Stage | ParameterMap | str | Path) else list(stages)
    read = read_stages(given)
    check_stages(read, TransformChain())
    return Method(name, tuple(read), tuple(_label(one, stage) for one, stage in zip(given, read, strict=True)))


def _label(given: StageLike, stage: Stage) -> str:
    """Return a stage's name as part of a folder's: that of its parameter file, or its own."""
    if isinstance(given, str | Path):
        return Path(given).stem.replace("+", "_")
    return re.sub(r"[^\w.-]+", "_", stage.name)


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
        If `out` cannot be written.
    ParameterError
        If a model's file was changed meanwhile, or a metric cannot be used.
    """
    check_writable(out)
    metrics = known_metrics()
    check_portable(metrics)
    folder, settings = Path(out).resolve() / "pairs", settings or StepSettings()
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
        return digest_text([key, *self._digests(pair, tuple(pair.files())), *marks])

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
            _run_apart(step, lambda fraction, text: self._show(step, fraction, text))
        except RegistrationError as error:
            self._report(step, f"failed: {error}")
            return str(error)
        found = StepRecord.read(step.folder / RECORD)
        if found is None:
            return f"its record '{step.folder / RECORD}' cannot be read"
        self._report(step, _summary(found))
        return found

    def _show(self, step: Step, fraction: float, text: str) -> None:
        number, count, steps = self.begun
        share = (number + min(1.0, (len(self.done) + fraction) / steps)) / count
        what = f"pair {number + 1} of {count} ({step.pair.name}), {step.label}: {text}"
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


def _run_apart(step: Step, show: Callable[[float, str], None]) -> None:
    """Run a step in a process of its own.

    Raises
    ------
    RegistrationError
        If it failed or was ended.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run_step, args=(step, sender))
    child.start()
    sender.close()
    try:
        failure = _follow(receiver, show)
        child.join()
    finally:
        if child.is_alive():
            child.terminate()
            child.join(10)
            child.kill()
        child.join()
        receiver.close()
    if failure is None:
        why = "; probably memory ran out: use smaller images" if child.exitcode == -9 else ""
        failure = f"its process ended with the status {child.exitcode}{why}"
    if failure:
        raise RegistrationError(failure)


def _follow(receiver: Connection[Any, Any], show: Callable[[float, str], None]) -> str | None:
    """Pass progress on until the child ends; return its error, an empty string for none, None if it said nothing."""
    while True:
        try:
            kind, fraction, text = receiver.recv()
        except EOFError:
            return None
        if kind == "progress":
            show(fraction, text)
        elif kind == "done":
            return ""
        elif kind == "failed":
            return str(text)
