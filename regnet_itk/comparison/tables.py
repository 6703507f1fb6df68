"""The tables of a comparison: the paper's Table 1, the metrics with what they cost, what differs, and each pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from regnet_itk.comparison.methods import BEFORE, Method
from regnet_itk.comparison.outcomes import Comparison, Outcome
from regnet_itk.metrics.measures import summarise_errors
from regnet_itk.metrics.metric import Metric, mean_of
from regnet_itk.metrics.paired_tests import PairedDifference, adjust_by_holm, paired_difference
from regnet_itk.pairs import Pair
from regnet_itk.report.elements import Cell, Column, Table, Value
from regnet_itk.report.table_text import format_number, format_rows
from regnet_itk.trust.verdict import WORDS

ALL, NO_GROUP = "all", "no group"


@dataclass(frozen=True)
class ErrorRow:
    """A row of Table 1.

    Parameters
    ----------
    measure : str
        "MAE" (|e_x| + |e_y| + |e_z| of the displacement field, as in the paper), "EPE" (its Euclidean length), "TRE"
        or "TRE'".
    method, data : str
        `data` is the group of the pairs.
    count : int
        Voxels or landmarks.
    pairs : int
        Pairs of images that they come from.
    means, sds : tuple of float
        Of the measure, and of the absolute errors along x, y, z, over all voxels or landmarks, mm.
    median, p95, above_2mm, above_5mm : float
        Of landmarks; NaN for fields.
    """

    measure: str
    method: str
    data: str
    count: int
    pairs: int
    means: tuple[float, ...]
    sds: tuple[float, ...]
    median: float = math.nan
    p95: float = math.nan
    above_2mm: float = math.nan
    above_5mm: float = math.nan


def divide_pairs(comparison: Comparison) -> dict[str, list[Pair]]:
    """Return all pairs, and if there are several groups, those of each."""
    groups = comparison.groups
    if len(groups) == 1:
        return {groups[0] or ALL: list(comparison.pairs)}
    every = f"{ALL} pairs" if ALL in groups else ALL
    parts = {group or NO_GROUP: [pair for pair in comparison.pairs if pair.group == group] for group in groups}
    return {every: list(comparison.pairs), **parts}


def collect_error_rows(comparison: Comparison) -> list[ErrorRow]:
    """Return the rows of Table 1: MAE and EPE where the truth is known, TRE and TRE' where there are landmarks."""
    of = [(method, data, pairs) for data, pairs in divide_pairs(comparison).items() for method in comparison.methods]
    rows: list[ErrorRow | None] = []
    for name, first in (("MAE", 1), ("EPE", 0)):
        rows += [_field_row(comparison, *which, name=name, first=first) for which in of]
    for name, limit in (("TRE", None), ("TRE'", comparison.capture_range)):
        rows += [_landmark_row(comparison, *which, name=name, limit=limit) for which in of]
    return [row for row in rows if row is not None]


def _field_row(
    comparison: Comparison, method: Method, data: str, pairs: Sequence[Pair], *, name: str, first: int
) -> ErrorRow | None:
    outcomes = (comparison.outcome(pair, method) for pair in pairs)
    moments = [o.last.measures.field for o in outcomes if o is not None and o.last.measures.field is not None]
    if not moments:
        return None
    pooled = sum(moments[1:], start=moments[0])
    means, sds = pooled.means, pooled.sds
    return ErrorRow(
        name, method.name, data, pooled.count, len(moments), (means[first], *means[2:]), (sds[first], *sds[2:])
    )


def _landmark_row(
    comparison: Comparison, method: Method, data: str, pairs: Sequence[Pair], *, name: str, limit: float | None
) -> ErrorRow | None:
    found = [vectors for pair in pairs if len(vectors := comparison.differences(pair, method, limit))]
    if not found:
        return None
    s = summarise_errors(np.concatenate(found))
    return ErrorRow(
        name, method.name, data, s.count, len(found), (s.mean, *s.mean_absolute), (s.sd, *s.sd_absolute), s.median,
        s.p95, s.above_2mm, s.above_5mm,
    )  # fmt: skip


def tabulate_errors(comparison: Comparison) -> Table:
    """Return Table 1."""
    columns = [
        Column("Evaluation"), Column("Method"), Column("Data"), Column("Measure", "mm"), Column("x", "mm"),
        Column("y", "mm"), Column("z", "mm"), Column("median", "mm", digits=2), Column("95 %", "mm", digits=2),
        Column("> 2 mm", "%", digits=1), Column("> 5 mm", "%", digits=1), Column("n", digits=0),
        Column("pairs", digits=0),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for row in collect_error_rows(comparison):
        numbers = [_spread(mean, sd) for mean, sd in zip(row.means, row.sds, strict=True)]
        shares = [100 * row.above_2mm, 100 * row.above_5mm]
        rows.append([row.measure, row.method, row.data, *numbers, row.median, row.p95, *shares, row.count, row.pairs])
    return Table("Errors", columns, rows, _error_caption(comparison))


def _error_caption(comparison: Comparison) -> str:
    return (
        "Mean ± standard deviation over all landmarks, or all voxels inside the fixed masks, of all pairs; x, y, z: "
        "absolute errors along the axes. MAE: |e_x| + |e_y| + |e_z| of the displacement where the truth is known, as "
        "in the paper, whose three columns add up to its first; EPE: its Euclidean length. TRE: distance of landmarks "
        f"after registration; TRE': of those within {comparison.capture_range:g} mm after {comparison.reference}."
    )


def _spread(mean: float, sd: float, digits: int = 2) -> Value:
    return Value(mean, f"{mean:.{digits}f} ± {sd:.{digits}f}")


@dataclass(frozen=True)
class _Quantity:
    """A column of the table of quality and cost: a number of each outcome, already in its unit."""

    column: Column
    of: Callable[[Outcome], float]
    digits: int
    before: bool = False


def _quantities(comparison: Comparison) -> list[_Quantity]:
    """Return the metrics, then what it cost."""
    metrics = [
        _Quantity(Column(metric.heading, metric.unit), partial(_shown, metric), metric.digits, metric.before)
        for metric in comparison.metrics
    ]
    costs = [
        _Quantity(Column("time", "s"), lambda outcome: outcome.seconds, 1),
        _Quantity(Column("last stage", "s"), lambda outcome: outcome.last.seconds, 1),
        _Quantity(Column("peak memory", "GB"), lambda outcome: outcome.peak_mb / 1024, 2),
    ]
    trust = [
        _Quantity(Column("expected error", "mm"), lambda outcome: outcome.last.measures.trust.expected, 2, True),
        _Quantity(Column("off the true one by", "mm"), lambda outcome: outcome.last.measures.trust.off, 2, True),
        _Quantity(
            Column("within the radius", "%"), lambda outcome: 100 * outcome.last.measures.trust.coverage, 0, True
        ),
    ]
    return metrics + costs + trust


def _shown(metric: Metric, outcome: Outcome) -> float:
    return metric.shown(outcome.last.measures.metrics.get(metric.name))


def tabulate_quality(comparison: Comparison) -> Table:
    """Return the measures that need no truth, and what each method costs: mean ± standard deviation over pairs."""
    quantities = _quantities(comparison)
    rows: list[list[Cell]] = []
    for data, pairs in divide_pairs(comparison).items():
        for method in comparison.methods:
            outcomes = [o for pair in pairs if (o := comparison.outcome(pair, method)) is not None]
            values = [
                _over_pairs([q.of(outcome) for outcome in outcomes if method.stages or q.before], q.digits)
                for q in quantities
            ]
            rows.append([method.name, data, *values, len(outcomes), len(pairs) - len(outcomes)])
    columns = [Column("Method"), Column("Data"), *(quantity.column for quantity in quantities)]
    columns += [Column("pairs", digits=0), Column("failed", digits=0)]
    caption = (
        "Mean ± standard deviation over pairs. Correlation, Dice and det J inside the fixed masks, where there are "
        "any; det J on voxels of 2 mm or more, its logarithm where it is positive. Expected error: by what the images "
        "look like; where the truth is known, how far it is off that, and how many points lie within the radius that "
        "is to hold for 90 % of them. Time: all stages of the chain, "
        "without reading and writing; last stage: that one alone. Peak memory: of the largest process."
    )
    return Table("Quality and cost", columns, rows, caption)


def _over_pairs(values: Sequence[float], digits: int) -> Value | None:
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return None
    mean = float(known.mean())
    return _spread(mean, float(known.std(ddof=1)), digits) if len(known) > 1 else Value(mean, f"{mean:.{digits}f}")


@dataclass(frozen=True)
class DifferenceRow:
    """How a measure of the first method differs from that of the second; see :class:`PairedDifference`."""

    measure: str
    first: str
    second: str
    difference: PairedDifference
    adjusted: float


def compare_methods(comparison: Comparison, seed: int = 0) -> list[DifferenceRow]:
    """Compare every two methods, over the pairs on which both ended well.

    Parameters
    ----------
    comparison : Comparison
    seed : int
        Of the bootstrap.
    """
    methods = [method for method in comparison.methods if method.name != BEFORE]
    rows = []
    for name, values in _per_pair(comparison):
        found = []
        for first, second in combinations(methods, 2):
            both = [(values(pair, first), values(pair, second)) for pair in comparison.pairs]
            known = np.array([ab for ab in both if np.isfinite(ab).all()]).reshape(-1, 2)
            if len(known) > 1:
                found.append((first.name, second.name, paired_difference(known[:, 0], known[:, 1], seed=seed)))
        adjusted = adjust_by_holm([difference.p_value for *_, difference in found])
        rows += [DifferenceRow(name, *row, p) for row, p in zip(found, adjusted, strict=True)]
    return rows


def _per_pair(comparison: Comparison) -> Iterator[tuple[str, Callable[[Pair, Method], float]]]:
    """Yield the measures that are compared, each as a function that gives a number a pair."""
    yield "EPE, mm", partial(_of_outcome, comparison, _field_length)
    yield "TRE, mm", partial(_mean_distance, comparison, None)
    yield "TRE', mm", partial(_mean_distance, comparison, comparison.capture_range)
    for metric in comparison.metrics:
        if metric.compared:
            yield metric.title, partial(_of_outcome, comparison, partial(_shown, metric))


def _of_outcome(comparison: Comparison, number: Callable[[Outcome], float], pair: Pair, method: Method) -> float:
    outcome = comparison.outcome(pair, method)
    return math.nan if outcome is None else number(outcome)


def _mean_distance(comparison: Comparison, limit: float | None, pair: Pair, method: Method) -> float:
    """Return the mean distance of the landmarks of a pair, NaN without any."""
    found = comparison.differences(pair, method, limit)
    return float(np.linalg.norm(found, axis=1).mean()) if len(found) else math.nan


def _field_length(outcome: Outcome) -> float:
    found = outcome.last.measures.field
    return found.means[0] if found is not None else math.nan


def _field_sum(outcome: Outcome) -> float:
    found = outcome.last.measures.field
    return found.means[1] if found is not None else math.nan


def tabulate_differences(comparison: Comparison, seed: int = 0) -> Table:
    """Return what differs between every two methods."""
    columns = [
        Column("Measure"), Column("First"), Column("Second"), Column("first - second", digits=3),
        Column("95 % interval"), Column("p", digits=4), Column("p, adjusted", digits=4), Column("pairs", digits=0),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for row in compare_methods(comparison, seed):
        d = row.difference
        interval = Value(d.low, f"{d.low:.3f} to {d.high:.3f}")
        rows.append([row.measure, row.first, row.second, d.mean, interval, d.p_value, row.adjusted, d.count])
    caption = (
        "Means a pair, over the pairs on which both methods ended well: the pair is the unit, for its landmarks are "
        "not independent. Interval: percentile bootstrap over pairs (10 000 resamples, seeded). p: Wilcoxon's "
        "signed-rank test, two-sided; adjusted for the number of comparisons of a measure by Holm's method."
    )
    return Table("Differences between methods", columns, rows, caption)


def tabulate_verdicts(comparison: Comparison) -> Table:
    """Return which results are not called good, the worst first."""
    found = [
        (pair, method, outcome.last.measures.trust)
        for pair in comparison.pairs
        for method in comparison.methods
        if method.name != BEFORE and (outcome := comparison.outcome(pair, method)) is not None
    ]
    doubted = [row for row in found if row[2].verdict in WORDS[1:]]
    doubted.sort(key=lambda row: (-WORDS.index(row[2].verdict), -np.nan_to_num(row[2].expected, nan=math.inf)))
    rows: list[list[Cell]] = [
        [pair.name, method.name, trust.verdict, trust.expected, trust.reasons] for pair, method, trust in doubted
    ]
    columns = [
        Column("Pair"),
        Column("Method"),
        Column("Verdict"),
        Column("Expected error", "mm", digits=2),
        Column("Why"),
    ]
    return Table("Not called good", columns, rows, f"Of {len(found)} results; the worst come first.")


def tabulate_failures(comparison: Comparison) -> Table:
    """Return what failed, and why."""
    rows = [[pair.name, method.name, reason] for pair, method, reason in comparison.failures]
    return Table("Failed", [Column("Pair"), Column("Method"), Column("Reason")], rows)


def format_errors_csv(comparison: Comparison) -> str:
    """Return Table 1 as CSV, a number a cell, in mm; shares go from 0 to 1."""
    axes = ("", "_x", "_y", "_z")
    header = ["evaluation", "method", "data", *(f"{what}{axis}_mm" for axis in axes for what in ("mean", "sd"))]
    header += ["median_mm", "p95_mm", "share_above_2mm", "share_above_5mm", "count", "pairs"]
    rows = []
    for row in collect_error_rows(comparison):
        numbers = [value for both in zip(row.means, row.sds, strict=True) for value in both]
        numbers += [row.median, row.p95, row.above_2mm, row.above_5mm]
        rows.append([row.measure, row.method, row.data, *map(format_number, numbers), row.count, row.pairs])
    return format_rows([header, *rows])


def format_measures_csv(comparison: Comparison) -> str:
    """Return every measure of every pair and method as CSV, the metrics as records hold them."""
    header = [
        "pair", "data", "method", "tre_mm", "tre_capture_range_mm", "landmarks", "landmarks_in_capture_range", "epe_mm",
        "mae_mm", *(metric.column for metric in comparison.metrics), "seconds", "seconds_of_stages", "peak_mb",
        "verdict", "verdict_reasons", "expected_error_mm", "expected_error_off_mm", "share_within_radius", "transform",
        "error",
    ]  # fmt: skip
    rows = [header]
    for pair in comparison.pairs:
        for method in comparison.methods:
            outcome = comparison.outcome(pair, method)
            if outcome is None:
                error = comparison.outcomes[pair.name, method.name].error
                measured = [""] * (len(header) - 4) + [error]
            else:
                measured = [*_landmark_cells(comparison, pair, method), *_outcome_cells(comparison, outcome)]
            rows.append([pair.name, pair.group, method.name, *measured])
    return format_rows(rows)


def _landmark_cells(comparison: Comparison, pair: Pair, method: Method) -> list[str]:
    limits = None, comparison.capture_range
    means = [format_number(_mean_distance(comparison, limit, pair, method)) for limit in limits]
    return [*means, *(str(len(comparison.differences(pair, method, limit))) for limit in limits)]


def _outcome_cells(comparison: Comparison, outcome: Outcome) -> list[str]:
    found = outcome.last.measures.metrics
    numbers = [_field_length(outcome), _field_sum(outcome)]
    numbers += [mean_of(found.get(metric.name)) for metric in comparison.metrics]
    trust = outcome.last.measures.trust
    return [
        *map(format_number, [*numbers, outcome.seconds]),
        " + ".join(f"{record.label} {record.seconds:.2f}" for record in outcome.records),
        format_number(outcome.peak_mb),
        trust.verdict,
        trust.reasons,
        *map(format_number, [trust.expected, trust.off, trust.coverage]),
        str(outcome.transform or ""),
        "",
    ]
