"""Intervals against scipy, and against what can be worked out on paper."""

import numpy as np
import pytest
from scipy import special, stats

from vla.statistics import bootstrap, log_e, mcnemar, rate, sequential, wilson


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


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 9), (12, 12), (3, 40), (900, 800)])
def test_mcnemar_and_the_evidence_are_scipys(wins, losses):
    if wins + losses:
        assert mcnemar(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    theirs = special.betaln(wins + 0.5, losses + 0.5) - special.betaln(0.5, 0.5) + (wins + losses) * np.log(2)
    assert log_e(wins, losses) == pytest.approx(theirs, abs=1e-9)


def test_the_evidence_is_a_fair_bet():
    """Under a fair coin the expected evidence after any number of pairs is one."""
    for pairs in (1, 2, 7, 30):
        weights = [special.comb(pairs, wins) / 2**pairs for wins in range(pairs + 1)]
        evidence = [np.exp(log_e(wins, pairs - wins)) for wins in range(pairs + 1)]
        assert np.dot(weights, evidence) == pytest.approx(1)


def test_the_first_pair_at_which_the_evidence_sufficed():
    assert sequential([]) == {"max_e": 1.0, "rejected_at": None}
    assert sequential([0, 0, 0]) == {"max_e": 1.0, "rejected_at": None}
    assert sequential([1] * 6)["rejected_at"] is None  # 14.4
    assert sequential([1] * 7)["rejected_at"] == 7  # 26.8
    assert sequential([-1, 0] * 7)["rejected_at"] == 13
    assert sequential([1] * 7, alpha=0.01)["rejected_at"] is None
    later = sequential([1] * 7 + [-1] * 7)  # what was found is not taken back
    assert later["rejected_at"] == 7
    assert later["max_e"] == pytest.approx(special.beta(7.5, 0.5) / np.pi * 2**7)
    assert np.isfinite(sequential([1] * 3000)["max_e"])
    with pytest.raises(ValueError, match="level"):
        sequential([1], alpha=5.0)


def rejections(first: float, second: float, sequences: int, pairs: int) -> np.ndarray:
    """At which pair each sequence of independent successes was rejected; 0 for never."""
    rng = np.random.default_rng(11)
    outcomes = (rng.random((sequences, pairs)) < first).astype(int) - (rng.random((sequences, pairs)) < second)
    return np.array([sequential(row)["rejected_at"] or 0 for row in outcomes.tolist()])


@pytest.mark.parametrize("success", [0.5, 0.9])
def test_looking_after_every_pair_finds_a_difference_that_is_not_there_in_at_most_5_percent(success):
    alarms = (rejections(success, success, sequences=1500, pairs=200) > 0).mean()
    assert 0.005 < alarms <= 0.05


def test_a_difference_that_is_there_is_found_early():
    at = rejections(0.5, 0.8, sequences=300, pairs=250)
    assert (at > 0).mean() > 0.99
    assert 35 < at[at > 0].mean() < 60
    assert 0.4 < (rejections(0.5, 0.6, sequences=150, pairs=500) > 0).mean() < 0.7


def test_bootstrap_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(3).normal(5, 2, size=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap(values.tolist()) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap([3.0, 3.0, 3.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
