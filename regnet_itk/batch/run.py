"""Register many pairs: what is finished is kept, what fails is reported, and nothing stops the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from regnet_itk.batch.records import FileMark, PairRecord
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.batch.work import CLAIMS, PAIRS, Export, PairTask, run_pair
from regnet_itk.child_processes import Done, Failed
from regnet_itk.engines.base import Engine
from regnet_itk.engines.local_engine import LocalEngine
from regnet_itk.events import Events, Progress
from regnet_itk.outputs import check_writable
from regnet_itk.pairs import Pair, check_inputs_outside

_READERS = 16
"""Records that are read at a time: on a shared folder most of the time is waiting."""

_BETWEEN_LOOKS = 2.0  # seconds, while others work on the pairs that are left


@dataclass(frozen=True)
class Batch:
    """What became of many pairs.

    Parameters
    ----------
    out : Path
    settings : BatchSettings
    pairs : tuple of Pair
    records : mapping
        The records of the pairs that are done or failed, by the names of the pairs.
    """

    out: Path
    settings: BatchSettings
    pairs: tuple[Pair, ...]
    records: Mapping[str, PairRecord]

    @property
    def failed(self) -> list[tuple[Pair, str]]:
        """The pairs that failed, and why."""
        found = ((pair, self.records.get(pair.name)) for pair in self.pairs)
        return [(pair, record.reason) for pair, record in found if record is not None and record.status == "failed"]

    @property
    def missing(self) -> list[Pair]:
        """The pairs that were not registered yet, or of which something has changed since."""
        return [pair for pair in self.pairs if pair.name not in self.records]


@dataclass(frozen=True)
class BatchPlan:
    """What is to be done; see :func:`plan_batch`."""

    out: Path
    settings: BatchSettings
    tasks: tuple[PairTask, ...]

    def find_finished(self) -> dict[str, PairRecord]:
        """Return the records of the pairs that are finished, as far as a look at the files tells, by their names."""
        digest = self.settings.fingerprint()
        return _read_many(lambda task: task.find_finished(digest, FileMark.seems_same), self.tasks)

    def with_records(self, records: Mapping[str, PairRecord]) -> Batch:
        """Return what became of the pairs."""
        return Batch(self.out, self.settings, tuple(task.pair for task in self.tasks), records)


def plan_batch(
    pairs: Sequence[Pair], out: str | Path, settings: BatchSettings | None = None, export: Export | None = None
) -> BatchPlan:
    """Plan to register many pairs.

    Parameters
    ----------
    pairs : sequence of Pair
    out : str or Path
        ``pairs/PAIR/`` there is what ``regnet-itk run`` writes, with ``batch.json``.
    settings : BatchSettings, optional
    export : Export, optional
        Writes more of each result.

    Raises
    ------
    OutputError
        If `out` cannot be written, or one of the images lies among the results in it.
    """
    check_writable(out)
    folder, settings = Path(out).resolve(), settings or BatchSettings()
    check_inputs_outside(pairs, folder / PAIRS)
    tasks = (PairTask(pair.absolute(), folder, settings, export) for pair in pairs)
    return BatchPlan(folder, settings, tuple(tasks))


def run_batch(plan: BatchPlan, engine: Engine | None = None, events: Events | None = None) -> Batch:
    """Register all pairs of which no finished result is there.

    Other processes may work on the same pairs in the same folder, on this machine or others: each pair is done by one
    of them, and all of them return when all pairs are done.

    Parameters
    ----------
    plan : BatchPlan
    engine : Engine, optional
        By default one process of this machine.
    events : Events, optional
        Hears the share that is done, with the time that is left, and in its log, at the level INFO, a line for each
        pair.

    Returns
    -------
    Batch
        With what failed.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    watch = _Watch(len(plan.tasks), events or Events(), time.monotonic(), plan.settings.fingerprint())
    records = plan.find_finished()
    watch.kept = len(records)
    if records:
        watch.events.log.info(f"{len(records)} of {len(plan.tasks)} pairs are finished and kept")
    left = [task for task in plan.tasks if task.pair.name not in records]
    if left:
        with engine or LocalEngine(1) as ready:
            records |= _run_all(left, ready, watch)
    with contextlib.suppress(OSError):  # there is none, or others are at work
        (plan.out / CLAIMS).rmdir()
    return plan.with_records(records)


def _run_all(tasks: Sequence[PairTask], engine: Engine, watch: _Watch) -> dict[str, PairRecord]:
    """Register pairs until none is left that somebody else works on."""
    records: dict[str, PairRecord] = {}
    while tasks:
        busy = []
        for task, said in engine.run(run_pair, tasks, watch.hear):
            record = record_of(task, said)
            if record is None:
                busy.append(task)
            else:
                records[task.pair.name] = record.without_marks()
            watch.ended(task, record)
        if busy:
            watch.tell(f"waiting for {len(busy)} that others work on")
            time.sleep(_BETWEEN_LOOKS)
        tasks = busy
    return records


def record_of(task: PairTask, said: Done | Failed) -> PairRecord | None:
    """Return the record of a pair, also of one whose process could not write it; None if somebody else works on it."""
    if isinstance(said, Failed):
        return PairRecord("failed", task.settings.fingerprint(), reason=said.reason)
    found: PairRecord | None = said.result
    return found


def collect_batch(plan: BatchPlan) -> Batch:
    """Return what is there of a batch; nothing is registered.

    Parameters
    ----------
    plan : BatchPlan
    """
    records = plan.find_finished()
    rest = [task for task in plan.tasks if task.pair.name not in records]
    found = _read_many(lambda task: PairRecord.read(task.folder), rest)
    return plan.with_records(records | {name: record for name, record in found.items() if record.status == "failed"})


def _read_many(read: Callable[[PairTask], PairRecord | None], tasks: Sequence[PairTask]) -> dict[str, PairRecord]:
    """Read records; of those that are there, by the names of the pairs."""
    with ThreadPoolExecutor(_READERS) as readers:
        found = zip(tasks, readers.map(read, tasks), strict=True)
        return {task.pair.name: record.without_marks() for task, record in found if record is not None}


@dataclass
class _Watch:
    """Tells how far all pairs are, and how long the rest will take."""

    count: int
    events: Events
    started: float
    settings: str
    warned: bool = False
    kept: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, float] = field(default_factory=dict)

    def hear(self, task: PairTask, now: Progress) -> None:
        """Hear how far a pair is."""
        self.running[task.pair.name] = now.fraction
        self.tell(f"{task.pair.name}: {now.text}" if len(self.running) == 1 else f"{len(self.running)} at work")

    def ended(self, task: PairTask, record: PairRecord | None) -> None:
        """Hear what became of a pair; None if somebody else works on it."""
        self.running.pop(task.pair.name, None)
        if record is None:
            return
        self.done += record.status == "done"
        self.failed += record.status == "failed"
        how = f"failed: {record.reason}" if record.status == "failed" else record.facts.describe()
        self.events.log.info(f"{task.pair.name}: {record.seconds:.1f} s, {how}")
        if record.settings != self.settings and not self.warned:
            self.warned = True
            self.events.log.warning(
                "a worker has other versions or models than this process: the next start registers its pairs anew"
            )
        self.tell("")

    def tell(self, text: str) -> None:
        """Tell how far it is."""
        ended = self.done + self.failed
        worked = ended + sum(self.running.values())
        share = (self.kept + worked) / self.count
        parts = [f"{self.kept + self.done} of {self.count} pairs done"]
        parts += [f"{self.failed} failed"] if self.failed else []
        left = self.count - self.kept - worked
        if worked > 0 and left > 0:
            parts.append(f"about {_in_words((time.monotonic() - self.started) / worked * left)} left")
        self.events.progress(Progress(min(1.0, share), ", ".join([*parts, *([text] if text else [])]), name="batch"))


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
