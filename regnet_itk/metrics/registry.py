"""The metrics that there are: those of this package, of other packages, and of one's own.

A package makes its `Metric` known as an entry point of the group ``regnet_itk.metrics``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from regnet_itk.entry_points import list_entry_points, load_entry_point
from regnet_itk.errors import ParameterError
from regnet_itk.metrics.measures import dice, folding_share, log_jacobian_sd, normalised_correlation
from regnet_itk.metrics.metric import Metric
from regnet_itk.metrics.registered_pair import RegisteredPair

ENTRY_POINTS = "regnet_itk.metrics"
"""The group of entry points through which other packages add theirs."""


def _correlation(pair: RegisteredPair) -> float:
    return normalised_correlation(pair.fixed, pair.warped, pair.fixed_mask)


def _dice(pair: RegisteredPair) -> dict[str, float]:
    return {name: dice(fixed, warped) for name, fixed, warped in pair.structures()}


def _folding(pair: RegisteredPair) -> float:
    return folding_share(pair.determinant, pair.determinant_mask)


def _log_jacobian_sd(pair: RegisteredPair) -> float:
    return log_jacobian_sd(pair.determinant, pair.determinant_mask)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("correlation", "correlation", _correlation, better="higher", of_runs=True),
        Metric("dice", "Dice", _dice, better="higher", needs=("structures",)),
        Metric("folding", "det J <= 0", _folding, "%", digits=4, factor=100.0, compared=False, before=False,
               of_runs=True, column="share_det_jacobian_not_positive"),
        Metric("log_jacobian_sd", "SD log det J", _log_jacobian_sd, compared=False, before=False,
               column="sd_log_det_jacobian"),
    )
}  # fmt: skip
"""The metrics of this package by their names, in the order of the tables; `register_metric` adds others."""


def register_metric(metric: Metric) -> None:
    """Make a metric known: comparisons and reports then show it as they show those of this package.

    Parameters
    ----------
    metric : Metric

    Raises
    ------
    ParameterError
        If another metric has its name or its column.

    Examples
    --------
    >>> import regnet_itk
    >>> from regnet_itk.metrics.registry import known_metrics, unregister_metric
    >>> def noise(pair):
    ...     return pair.warped.array.std()
    >>> regnet_itk.register_metric(regnet_itk.Metric("noise", "SD of the warped image", noise, "HU"))
    >>> [metric.name for metric in known_metrics()]
    ['correlation', 'dice', 'folding', 'log_jacobian_sd', 'noise']
    >>> unregister_metric("noise")
    """
    _check_free(metric, known_metrics())
    METRICS[metric.name] = metric


def unregister_metric(name: str) -> None:
    """Forget a metric that `register_metric` made known."""
    METRICS.pop(name, None)


def known_metrics() -> tuple[Metric, ...]:
    """Return all metrics, in the order of the tables.

    Raises
    ------
    ParameterError
        If an entry point cannot be loaded, is no `Metric`, or takes a name that another one has.
    """
    added = _from_entry_points()
    for number, metric in enumerate(added):
        _check_free(metric, (*METRICS.values(), *added[:number]))
    return (*METRICS.values(), *added)


def _from_entry_points() -> tuple[Metric, ...]:
    points = list_entry_points(ENTRY_POINTS).values()
    return tuple(load_entry_point(p, "metric", lambda m: isinstance(m, Metric), ParameterError) for p in points)


def _check_free(metric: Metric, others: Sequence[Metric]) -> None:
    for other in others:
        if metric.name == other.name or metric.column == other.column:
            raise ParameterError(f"there is a metric '{other.name}' already; give yours another name and column")


def check_portable(metrics: Sequence[Metric]) -> None:
    """Refuse metrics that another process could not compute.

    Raises
    ------
    ParameterError
        If a metric's function is a lambda, or a function within a function.
    """
    for metric in metrics:
        try:
            pickle.dumps(metric)
        except Exception:
            raise ParameterError(
                f"the metric '{metric.name}' cannot be handed to another process; make its function one of a module"
            ) from None
