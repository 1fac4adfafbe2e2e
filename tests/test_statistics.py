"""Intervals against scipy, and against what can be worked out on paper."""

import numpy as np
import pytest
from scipy import stats

from vla.statistics import bootstrap, mcnemar, rate, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (18, 20), (45, 50), (7, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_scipys(k, n, level):
    theirs = stats.binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_rate_carries_its_counts_and_a_95_percent_interval():
    figures = rate(45, 50)
    assert (figures["k"], figures["n"]) == (45, 50)
    assert round(figures["low"], 3) == 0.786
    assert round(figures["high"], 3) == 0.957


def test_without_tries_anything_is_possible():
    assert rate(0, 0) == {"k": 0, "n": 0, "low": 0.0, "high": 1.0}


def test_certain_ends_are_exact():
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match=f"k={k}, n={n}"):
        wilson(k, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level)


def test_mcnemar_counts_only_the_episodes_that_differ():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(4, 4) == 1.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


def test_bootstrap_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(3).normal(5, 2, size=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap(values.tolist()) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap([3.0, 3.0, 3.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
