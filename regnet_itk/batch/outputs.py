"""What a batch writes when it ends: a table of all pairs, and a page with the worst of them first."""

from __future__ import annotations

import json
import math
import platform
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from regnet_itk.batch.facts import PairFacts
from regnet_itk.batch.figures import draw_distributions
from regnet_itk.batch.records import PairRecord
from regnet_itk.batch.run import Batch
from regnet_itk.batch.work import PAIRS
from regnet_itk.output_files import OutputFiles
from regnet_itk.outputs import staged_folder
from regnet_itk.pairs import Pair
from regnet_itk.report.elements import Cell, Column, Figure, Link, Note, Table
from regnet_itk.report.page import write_report
from regnet_itk.report.table_text import format_number, format_rows
from regnet_itk.trust.verdict import WORDS
from regnet_itk.versions import package_versions

SHOWN = 500
"""Rows of a table in the page, at most; the CSV file has all."""

FAILED_SHOWN = 50
"""The same of the tables of what failed, above it."""

PICTURES = 6
"""Pictures of the worst pairs in the page."""

BATCH_FILES = OutputFiles(r"batch\.(csv|html|json)", "batch.json", exclusive=False)
"""What a batch writes, beside the folder `pairs`."""

_CSV_COLUMNS = (
    "name", "group", "status", "verdict", "expected_error_mm", "similarity_before", "similarity_after", "worse",
    "folding", "tre_before_mm", "tre_after_mm", "tre_of_guides", "inverse_consistency_mm", "seconds", "stages",
    "reasons", "warnings", "reason", "folder",
)  # fmt: skip


def write_batch(batch: Batch, folder: str | Path, title: str = "Batch") -> None:
    """Write ``batch.csv``, ``batch.html`` and ``batch.json``.

    Parameters
    ----------
    batch : Batch
    folder : str or Path
        That of the batch: the page leads to the pictures in it.
    title : str
        Of the page.

    Raises
    ------
    OutputError
        If something cannot be written.
    """
    worst = sort_worst_first(batch)
    with staged_folder(folder, BATCH_FILES) as stage:
        rows = [_csv_row(pair, batch.records.get(pair.name)) for pair in batch.pairs]
        (stage / "batch.csv").write_text(format_rows([_CSV_COLUMNS, *rows]), encoding="utf-8")
        (stage / "batch.json").write_text(json.dumps(_facts(batch), indent=1) + "\n", encoding="utf-8")
        write_report(
            stage / "batch.html", title, summary=describe_batch(batch), tables=_tables(batch, worst),
            figures=[*_distributions(batch), *_pictures(batch, worst)],
            notes=[Note("Settings", {name: str(value) for name, value in _settings(batch).items()})],
        )  # fmt: skip


def sort_worst_first(batch: Batch) -> list[Pair]:
    """Return the pairs: failed, missing, then from the worst to the best verdict and expected error."""

    def badness(pair: Pair) -> tuple[float, ...]:
        record = batch.records.get(pair.name)
        if record is None:
            return (1, 0, 0, 0)
        if record.status == "failed":
            return (0, 0, 0, 0)
        facts = record.facts
        verdict = list(WORDS).index(facts.verdict) if facts.verdict in WORDS else -1
        similarity = 1.0 if facts.similarity_after is None else facts.similarity_after
        expected = math.inf if facts.expected_error is None else facts.expected_error
        return (2, -verdict, -expected, similarity)

    return sorted(batch.pairs, key=badness)


def describe_batch(batch: Batch) -> str:
    """Return in a sentence or two how it went."""
    failed, missing = len(batch.failed), len(batch.missing)
    parts = [f"{len(batch.pairs)} pairs, {len(batch.pairs) - failed - missing} of them done"]
    if failed:
        parts.append(f"{failed} failed")
    if missing:
        parts.append(f"{missing} not registered yet")
    done = [record.facts for record in batch.records.values() if record.status == "done"]
    folded = sum(bool(facts.folding) for facts in done)
    verdicts = Counter(facts.verdict for facts in done)
    told = ", ".join(f"{verdicts[word]} {word}" for word in WORDS)
    return f"{', '.join(parts)}. Verdicts: {told}. With folding: {folded}."


def _csv_row(pair: Pair, record: PairRecord | None) -> list[str]:
    if record is None:
        return [pair.name, pair.group, "missing", *[""] * (len(_CSV_COLUMNS) - 4), f"{PAIRS}/{pair.file_name}"]
    facts = record.facts
    return [
        pair.name, pair.group, record.status, facts.verdict, _number(facts.expected_error),
        _number(facts.similarity_before), _number(facts.similarity_after), facts.worse, _number(facts.folding),
        _number(facts.tre_before), _number(facts.tre_after), "yes" if facts.guided else "",
        _number(facts.inverse_consistency),
        f"{record.seconds:.1f}", facts.stages, facts.reasons, facts.warnings, record.reason,
        f"{PAIRS}/{pair.file_name}",
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else format_number(value)


def _facts(batch: Batch) -> dict[str, object]:
    return {
        "versions": {"python": platform.python_version(), **package_versions()},
        "settings": _settings(batch),
        "pairs": len(batch.pairs),
        "failed": len(batch.failed),
        "missing": len(batch.missing),
    }


def _settings(batch: Batch) -> dict[str, object]:
    settings = batch.settings
    stages = "chosen for each pair by what its images show"
    if settings.stages is not None:
        stages = ", then ".join(f"{stage.name} ({stage.parameters.source})" for stage in settings.stages)
    return {"stages": stages, **{name: value for name, value in vars(settings).items() if name != "stages"}}


def _tables(batch: Batch, worst: Sequence[Pair]) -> list[Table]:
    done = [pair for pair in worst if _is_done(batch, pair)]
    others = [pair for pair in worst if not _is_done(batch, pair)]
    tables = [_reasons_table(batch), _failures_table(batch, others), _pairs_table(batch, done)]
    return [table for table in tables if table.rows]


def _is_done(batch: Batch, pair: Pair) -> bool:
    record = batch.records.get(pair.name)
    return record is not None and record.status == "done"


def _pairs_table(batch: Batch, pairs: Sequence[Pair]) -> Table:
    """Return a table of the worst pairs that are done; columns in which nothing stands are left out."""
    rows = [_row(pair, batch.records[pair.name]) for pair in pairs[:SHOWN]]
    columns = [
        Column("Pair"), Column("Group"), Column("Verdict"), Column("Expected error", "mm", digits=2),
        Column("Similarity before", digits=3), Column("after", digits=3), Column("Made worse by"),
        Column("Folding", "%"), Column("TRE before", "mm", digits=2), Column("TRE after", "mm", digits=2),
        Column("Both ways", "mm", digits=2), Column("Time", "s", digits=1),
        Column("What to know"),
    ]  # fmt: skip
    used = [number for number in range(len(columns)) if any(row[number] not in (None, "") for row in rows)]
    caption = (
        f"{_shown_of(len(rows), len(pairs))} From the worst verdict and the largest expected error on. "
        "A name leads to the pair's picture."
    )
    if any(batch.records[pair.name].facts.guided for pair in pairs):
        caption += " Landmarks that guided a registration are no measure of it (tre_of_guides in batch.csv)."
    return Table("Registered", [columns[n] for n in used], [[row[n] for n in used] for row in rows], caption)


def _shown_of(shown: int, count: int) -> str:
    return "The worst come first." if shown == count else f"The worst {shown} of {count}; batch.csv has all."


def _row(pair: Pair, record: PairRecord) -> list[Cell]:
    facts = record.facts
    folding = None if facts.folding is None else 100 * facts.folding
    return [
        Link(pair.name, _leads_to(pair, facts)), pair.group, facts.verdict, facts.expected_error,
        facts.similarity_before, facts.similarity_after, facts.worse, folding,
        facts.tre_before, facts.tre_after, facts.inverse_consistency, record.seconds, facts.reasons or facts.warnings,
    ]  # fmt: skip


def _leads_to(pair: Pair, facts: PairFacts) -> str:
    """Return the file to look at; what elastix computes as a whole has no picture."""
    return f"{PAIRS}/{pair.file_name}/{'registration.png' if facts.folding is not None else 'registration.json'}"


def _reasons_table(batch: Batch) -> Table:
    """Return the reasons of failures, of which many are the same but for the names of the files."""
    kinds: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}
    for pair, reason in batch.failed:
        kind = re.sub(r"'[^']*'", "'..'", reason)
        kinds[kind] += 1
        examples.setdefault(kind, (pair.name, reason))
    rows: list[list[Cell]] = [[count, *examples[kind]] for kind, count in kinds.most_common(FAILED_SHOWN)]
    columns = [Column("Pairs"), Column("For example"), Column("Reason there")]
    return Table("Why pairs failed", columns, rows if len(kinds) < len(batch.failed) else [])


def _failures_table(batch: Batch, pairs: Sequence[Pair]) -> Table:
    """Return the pairs that failed or are missing."""
    rows: list[list[Cell]] = []
    for pair in pairs[:FAILED_SHOWN]:
        record = batch.records.get(pair.name)
        rows.append([pair.name, pair.group, record.reason if record else "not registered yet, or changed since"])
    caption = "" if len(rows) == len(pairs) else f"{len(rows)} of {len(pairs)}; batch.csv has all."
    return Table("Failed or missing", [Column("Pair"), Column("Group"), Column("Why")], rows, caption)


def _distributions(batch: Batch) -> list[Figure]:
    records = [record for record in batch.records.values() if record.status == "done"]
    if len(records) < 2:
        return []
    return [
        Figure(
            "All pairs", draw_distributions(records),
            "Histograms of similarity, folding, landmark errors and times over all pairs",
            "How many pairs have which similarity before (grey) and after registration, folding, landmark error, time.",
        )
    ]  # fmt: skip


def _pictures(batch: Batch, worst: Sequence[Pair]) -> Iterator[Figure]:
    """Yield the pictures of the worst pairs that have one."""
    shown = 0
    for pair in worst:
        record = batch.records.get(pair.name)
        if shown == PICTURES:
            return
        if record is None or record.status != "done" or record.facts.folding is None:
            continue
        path = batch.out / _leads_to(pair, record.facts)
        if path.is_file():
            shown += 1
            yield Figure(pair.name, path, f"Fixed, moving and warped image, and differences, of {pair.name}")
