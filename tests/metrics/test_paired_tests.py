"""Paired statistics against scipy, and an example worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regnet_itk.errors import ParameterError
from regnet_itk.metrics.paired_tests import adjust_by_holm, bootstrap_interval, paired_difference, wilcoxon_p_value

A = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
B = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])


def test_wilcoxon_by_hand():
    # five pairs, all better: of 2^5 = 32 equally likely signs, two are as extreme
    assert wilcoxon_p_value([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)
    # ranks of -1, 2, 3, 4: the negative ones sum to 1; sums of 0 and 1 come from 2 of 2^4 = 16 choices, two-sided 4/16
    assert wilcoxon_p_value([-1.0, 2.0, 3.0, 4.0]) == pytest.approx(4 / 16)


def test_wilcoxon_is_scipys():
    assert paired_difference(A, B).p_value == pytest.approx(stats.wilcoxon(A, B).pvalue)
    # Hollander & Wolfe's depression scores, as R's wilcox.test(x, y, paired = TRUE) gives them
    assert paired_difference(A, B).p_value == pytest.approx(0.03906, abs=1e-5)


def test_wilcoxon_of_what_does_not_differ():
    assert wilcoxon_p_value([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon_p_value([1.0]))


def test_interval_is_that_of_the_means_of_resamples():
    ours = bootstrap_interval(A - B, seed=1)
    drawn = np.random.default_rng(2).choice(A - B, (20_000, len(A)))
    assert ours == pytest.approx(np.percentile(drawn.mean(axis=1), [2.5, 97.5]), abs=0.02)
    wide = bootstrap_interval(A - B, level=0.99)
    assert wide[0] < ours[0] < np.mean(A - B) < ours[1] < wide[1]


def test_interval_by_hand():
    # of two pairs 0 and 1 the mean of a resample is 0, 1/2 or 1 with 1/4, 1/2, 1/4
    assert bootstrap_interval([0.0, 1.0], level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert all(map(math.isnan, bootstrap_interval([1.0])))


def test_the_seed_makes_the_interval():
    assert bootstrap_interval(A, seed=3) == bootstrap_interval(A, seed=3)
    assert bootstrap_interval(A, seed=3) != bootstrap_interval(A, seed=4)


def test_difference_of_two_methods():
    found = paired_difference(A, B)
    assert found.count == 9
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))
    assert found.low < found.mean < found.high
    back = paired_difference(B, A)
    assert (back.mean, back.p_value) == pytest.approx((-found.mean, found.p_value))


def test_what_cannot_be_compared_is_refused():
    for first, second, told in ((A, B[:3], "same pairs"), ([], [], "same pairs"), ([1, np.nan], [1, 2], "not finite")):
        with pytest.raises(ParameterError, match=told):
            paired_difference(first, second)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1, none below the one before
    assert adjust_by_holm([0.02, 0.04, 0.01]) == pytest.approx([0.04, 0.04, 0.03])
    assert adjust_by_holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert adjust_by_holm([0.7, 0.6]) == pytest.approx([1.0, 1.0])
    adjusted = adjust_by_holm([math.nan, 0.01])
    assert math.isnan(adjusted[0]) and adjusted[1] == 0.01
    assert adjust_by_holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    adjusted = adjust_by_holm(p_values)
    assert all(a >= p and a <= 1 for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
