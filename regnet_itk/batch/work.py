"""One pair of a batch: claimed, registered, written and recorded by whichever process comes to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from regnet_itk.batch.claims import Claim, take_claim
from regnet_itk.batch.facts import PairFacts
from regnet_itk.batch.records import FileMark, PairRecord
from regnet_itk.batch.settings import BatchSettings
from regnet_itk.child_processes import failure_of
from regnet_itk.elastix_results import ElastixResult
from regnet_itk.errors import OutputError
from regnet_itk.events import Events
from regnet_itk.pairs import FILE_COLUMNS, Pair
from regnet_itk.registration import register
from regnet_itk.registration_events import WholeProgress
from regnet_itk.registration_inputs import guides_of
from regnet_itk.result_files import RECORD as RUN_RECORD
from regnet_itk.result_files import RUN_FILES
from regnet_itk.results import BACKWARD_FOLDER, RegistrationResult
from regnet_itk.run_log import RunLog, heard_by
from regnet_itk.threads import bound_resampling

USED = tuple(
    column for column in FILE_COLUMNS if column not in ("displacement", "fixed_judge_labels", "moving_judge_labels")
)
"""What of a pair a registration depends on."""

PAIRS, CLAIMS = "pairs", "claims"
"""The folders of the pairs and of the claims, in that of the batch."""

_ONE_AT_A_TIME = threading.Lock()  # a library's threads and its log are those of the whole process


Export = Callable[[Pair, RegistrationResult | ElastixResult, Path], object]
"""Is given a pair, its result, and the folder in which that is written, to write more of it elsewhere."""


@dataclass(frozen=True)
class PairTask:
    """A pair to be registered.

    Parameters
    ----------
    pair : Pair
    out : Path
        Folder of the batch.
    settings : BatchSettings
    export : Export, optional
        Writes more of the result.
    """

    pair: Pair
    out: Path
    settings: BatchSettings
    export: Export | None = None

    @property
    def folder(self) -> Path:
        """Where the registration is written, as by ``regnet-itk run``."""
        return self.out / PAIRS / self.pair.file_name

    def inputs(self) -> dict[str, Path]:
        """Return the files that the registration depends on, by what they are."""
        return {name: path for name, path in self.pair.files().items() if name in USED}

    def mark_inputs(self) -> dict[str, FileMark]:
        """Return by what these files are known again; none if one cannot be read, which the registration tells best."""
        try:
            return {name: FileMark.of(path) for name, path in self.inputs().items()}
        except OSError:
            return {}

    def find_finished(self, settings: str, same: Callable[[FileMark, Path], bool]) -> PairRecord | None:
        """Return the record of the pair, if it is done and nothing that it depends on has changed.

        Parameters
        ----------
        settings : str
            Digest of the settings.
        same : callable
            Says whether a file is the same: :meth:`FileMark.seems_same` or :meth:`FileMark.is_same`.
        """
        record = PairRecord.read(self.folder)
        if record is None or record.status != "done" or record.result is None or record.settings != settings:
            return None
        inputs = self.inputs()
        if inputs.keys() != record.inputs.keys():
            return None
        marks = [(record.result, self.folder / RUN_RECORD), *((record.inputs[name], inputs[name]) for name in inputs)]
        return record if all(same(mark, path) for mark, path in marks) else None


def run_pair(task: PairTask, events: Events) -> PairRecord | None:
    """Register a pair, unless it is finished; whatever goes wrong is in its record.

    Parameters
    ----------
    task : PairTask
    events : Events
        Hears how far it is.

    Returns
    -------
    PairRecord or None
        None if another process works on it.

    Raises
    ------
    OutputError
        If the folder of the batch cannot be written.
    """
    with _ONE_AT_A_TIME:
        claim = take_claim(task.out / CLAIMS, task.pair.file_name)
        if claim is None:
            return None
        with claim:
            settings = task.settings.fingerprint()
            kept = task.find_finished(settings, FileMark.seems_same)
            if kept is not None:  # finished meanwhile
                return kept
            kept = task.find_finished(settings, FileMark.is_same)
            if kept is not None:  # its files were copied: what they look like now is remembered
                mark = FileMark.of(task.folder / RUN_RECORD)
                record = replace(kept, inputs=task.mark_inputs(), result=mark)
                record.write(task.folder)
                return record
            return _run(task, settings, claim, events)


def _run(task: PairTask, settings: str, claim: Claim, events: Events) -> PairRecord | None:
    started = time.perf_counter()
    try:
        _begin(task, settings)
    except (OutputError, OSError) as error:  # of which nothing is written into a folder that is not ours
        return PairRecord("failed", settings, reason=failure_of(error))
    try:
        inputs = task.mark_inputs()  # before they are read: what changes from now on makes it another pair
        result, log = _register(task, events)
        if not claim.holds():
            return None
        result.write(task.folder, log.lines)
        if task.export is not None:
            task.export(task.pair, result, task.folder)
        mark = FileMark.of(task.folder / RUN_RECORD)
        seconds = time.perf_counter() - started
        record = PairRecord("done", settings, inputs, mark, seconds=seconds, facts=PairFacts.of(result))
    except Exception as error:  # one pair must not stop the others
        record = PairRecord("failed", settings, reason=failure_of(error), seconds=time.perf_counter() - started)
    if not claim.holds():
        return None
    record.write(task.folder)
    return record


def _begin(task: PairTask, settings: str) -> None:
    """Make the folder ours, without what was there of other settings or of a process that was killed."""
    with_backward = task.folder, task.folder / BACKWARD_FOLDER
    if PairRecord.read(task.folder) is None:
        for folder in with_backward:
            RUN_FILES.check(folder)
    PairRecord("begun", settings).write(task.folder)
    for folder in with_backward:
        RUN_FILES.clear(folder)


def _register(task: PairTask, events: Events) -> tuple[RegistrationResult | ElastixResult, RunLog]:
    """Run the stages; the log is what ``regnet-itk run`` would have written."""
    settings, pair = task.settings, task.pair
    bound_resampling(settings.threads)
    stages = settings.stages
    follows_labels = stages is None or any("label" in stage.follows for stage in stages)
    known = {name: path for name, path in pair.files().items() if follows_labels or not name.endswith("_labels")}
    log = RunLog(_Unseen())
    with heard_by(log):
        result = register(
            pair.fixed, pair.moving, settings.stages,
            fixed_mask=pair.fixed_mask, moving_mask=pair.moving_mask,
            fixed_landmarks=pair.fixed_landmarks, moving_landmarks=pair.moving_landmarks,
            fixed_judge_landmarks=pair.fixed_judge_landmarks, moving_judge_landmarks=pair.moving_judge_landmarks,
            fixed_guides=guides_of(known, "fixed"), moving_guides=guides_of(known, "moving"),
            both_ways=settings.both_ways, threads=settings.threads, seed=settings.seed, device=settings.device,
            priority=settings.priority, events=WholeProgress(events, settings.stage_count),
        )  # fmt: skip
    log.note(f"total {log.seconds():.1f} s")
    return result, log


class _Unseen:
    """Shows nothing: what is worth it stands in the record."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def warn(self, line: str) -> None:
        """Show nothing."""
