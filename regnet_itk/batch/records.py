"""What became of a pair, as ``batch.json`` in its folder keeps it: the file that says that the others are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from regnet_itk.batch.facts import PairFacts
from regnet_itk.digests import digest_file, state_of
from regnet_itk.outputs import write_whole

RECORD = "batch.json"

Status = Literal["begun", "done", "failed"]
_STATUSES = ("begun", "done", "failed")


@dataclass(frozen=True, slots=True)
class FileMark:
    """By what a file is known again.

    Parameters
    ----------
    state : str
        Of its size and time; enough to look at, as long as it is the same.
    digest : str
        Of its content, which counts.
    """

    state: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Read a file, or a folder.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        return cls(state_of(path), digest_file(path))

    def seems_same(self, path: Path) -> bool:
        """Say whether a file looks as it did; its content is not read."""
        try:
            return state_of(path) == self.state
        except OSError:
            return False

    def is_same(self, path: Path) -> bool:
        """Say whether a file has the content it had."""
        try:
            return state_of(path) == self.state or digest_file(path) == self.digest
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class PairRecord:
    """What became of a pair.

    Parameters
    ----------
    status : {"begun", "done", "failed"}
        A pair that is begun, and on which nobody works, is as good as one of which nothing is known.
    settings : str
        Digest of the settings.
    inputs : mapping
        The pair's files, by what they are.
    result : FileMark, optional
        That of ``registration.json``, if the pair is done.
    reason : str
        Why it failed.
    seconds : float
        Wall-clock time, with reading and writing.
    facts : PairFacts
    """

    status: Status
    settings: str
    inputs: Mapping[str, FileMark] = field(default_factory=dict)
    result: FileMark | None = None
    reason: str = ""
    seconds: float = 0.0
    facts: PairFacts = field(default_factory=PairFacts)

    def without_marks(self) -> PairRecord:
        """Return the record without what only tells whether it still holds: of many thousands, it takes most memory."""
        return replace(self, inputs={}, result=None)

    def write(self, folder: Path) -> None:
        """Write the record into a pair's folder, which is created if needed, whole or not at all.

        Raises
        ------
        OutputError, OSError
            If it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_whole(folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> PairRecord | None:
        """Read the record of a pair's folder; None if there is none, it is damaged, or of another version."""
        try:
            content = json.loads((folder / RECORD).read_bytes())
            inputs = {str(name): FileMark(**mark) for name, mark in content["inputs"].items()}
            result = FileMark(**content["result"]) if content["result"] else None
            found = cls(**{**content, "inputs": inputs, "result": result, "facts": PairFacts(**content["facts"])})
            return found if _is_sound(found) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def _is_sound(record: PairRecord) -> bool:
    """Say whether all is of its type."""
    facts = record.facts
    texts = [record.settings, record.reason, facts.verdict, facts.reasons, facts.stages, facts.worse, facts.warnings]
    for mark in (*record.inputs.values(), *([record.result] if record.result else [])):
        texts += [mark.state, mark.digest]
    numbers = [
        facts.similarity_before, facts.similarity_after, facts.folding, facts.tre_before, facts.tre_after,
        facts.inverse_consistency, facts.expected_error,
    ]  # fmt: skip
    return (
        record.status in _STATUSES
        and (record.result is not None or record.status != "done")
        and all(isinstance(text, str) for text in texts)
        and all(number is None or isinstance(number, int | float) for number in numbers)
        and isinstance(record.seconds, int | float)
        and isinstance(facts.guided, bool)
    )
