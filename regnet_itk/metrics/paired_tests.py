"""Whether two methods differ: paired tests and intervals over pairs of images.

The unit is the pair of images, not the landmark: the landmarks of one pair share its images and its motion, and are no
independent observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from regnet_itk.data.grid import FloatArray
from regnet_itk.errors import ParameterError

RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """How a measure of one method differs from that of another, over the same pairs of images.

    Parameters
    ----------
    count : int
        Pairs of images.
    mean : float
        Mean of first minus second.
    low, high : float
        Bootstrap interval of that mean; NaN for a single pair.
    p_value : float
        Of Wilcoxon's signed-rank test, two-sided; NaN for a single pair.
    """

    count: int
    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, *, level: float = 0.95, seed: int = 0
) -> PairedDifference:
    """Compare two methods over the same pairs.

    Parameters
    ----------
    first, second : array_like, shape (n,)
        A measure of each method, a number a pair, in the same order.
    level : float
        Of the interval, 0 to 1.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ParameterError
        If the numbers of pairs differ, there are none, or a value is not finite.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ParameterError(f"methods are compared over the same pairs, not over {a.shape} and {b.shape} values")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ParameterError("a measure that is compared is not finite; leave that pair out")
    differences = a - b
    low, high = bootstrap_interval(differences, level=level, seed=seed)
    return PairedDifference(len(a), float(differences.mean()), low, high, wilcoxon_p_value(differences))


def wilcoxon_p_value(differences: npt.ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test.

    Exact for up to 50 differences without ties and zeros, as scipy chooses. Differences that are all zero give 1, a
    single one NaN.

    Parameters
    ----------
    differences : array_like, shape (n,)
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return float("nan")
    return float(stats.wilcoxon(values).pvalue) if values.any() else 1.0


def bootstrap_interval(
    values: npt.ArrayLike, *, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean; NaN for a single value.

    Parameters
    ----------
    values : array_like, shape (n,)
        One a pair.
    level : float
        0 to 1.
    seed : int
        The same seed gives the same interval.
    resamples : int
        How often the pairs are drawn, with replacement.
    """
    given: FloatArray = np.asarray(values, dtype=float)
    if len(given) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        (given,), np.mean, method="percentile", n_resamples=resamples, confidence_level=level,
        random_state=np.random.default_rng(seed),  # called rng since scipy 1.15
    )  # fmt: skip
    low, high = found.confidence_interval
    return float(low), float(high)


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method; NaN stays NaN and is not counted.

    Parameters
    ----------
    p_values : sequence of float
        Of the tests that are looked at together.
    """
    values = np.asarray(p_values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]
