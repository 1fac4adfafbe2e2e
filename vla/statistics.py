"""Rates and means with their uncertainty: no figure is reported without its n and an interval."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np


class Rate(TypedDict):
    """k of n, with the 95 % Wilson interval: how every success rate is reported."""

    k: int
    n: int
    low: float
    high: float


def rate(k: int, n: int) -> Rate:
    """k successes of n tries; with n = 0 nothing is known, and the interval is all of 0 to 1."""
    low, high = wilson(k, n)
    return {"k": k, "n": n, "low": low, "high": high}


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927). ValueError unless 0 <= k <= n and 0 < level < 1."""
    if not 0 <= k <= n:
        raise ValueError(f"k successes of n tries need 0 <= k <= n, got k={k}, n={n}")
    _require_level(level)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two policies are alike, given how many of the same episodes only one solved.

    Episodes that both solved or both failed say nothing about the difference (McNemar 1947).
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts of episodes cannot be negative, got {only_first} and {only_second}")
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


class Sequential(TypedDict):
    """What a test that was read after every pair has found."""

    max_e: float  # the largest evidence so far that the two differ, at most 1e300
    rejected_at: int | None  # after so many pairs it was clear that they do; None if it never was


def sequential(outcomes: Sequence[int], alpha: float = 0.05) -> Sequential:
    """Whether two policies differ, in a way that may be read after every pair, as often as one likes.

    `outcomes` are those of the pairs in the order they were played: 1 if only the first policy succeeded, -1 if only
    the second, 0 if they did alike, which says nothing. If the policies are alike, the evidence `exp(log_e)` ever
    reaches 1 / alpha with a probability of at most alpha (Ville 1939), however many pairs there are.
    """
    _require_level(alpha)
    wins = losses = 0
    largest, rejected_at = 0.0, None
    for pair, outcome in enumerate(outcomes, 1):
        wins, losses = wins + (outcome > 0), losses + (outcome < 0)
        largest = max(largest, log_e(wins, losses)) if outcome else largest
        if rejected_at is None and largest >= -math.log(alpha):
            rejected_at = pair
    return {"max_e": math.exp(min(largest, 300 * math.log(10))), "rejected_at": rejected_at}


def log_e(wins: int, losses: int) -> float:
    """The logarithm of the evidence against a fair coin: the likelihood ratio to a coin drawn from Beta(1/2, 1/2)."""
    beta = math.lgamma(wins + 0.5) + math.lgamma(losses + 0.5) - math.lgamma(wins + losses + 1)
    return beta - math.log(math.pi) + (wins + losses) * math.log(2)  # B(1/2, 1/2) is pi


def better(first: tuple[int, int], second: tuple[int, int], draws: int = 100_000, seed: int = 0) -> float:
    """The probability that the first success rate is the higher one, each known by k of n.

    Bayesian: both rates are thought to be any number alike beforehand (Beta(1, 1)), and are drawn from what k of n
    leave of that.
    """
    chance = np.random.default_rng(seed)
    one, other = (chance.beta(k + 1, n - k + 1, draws) for k, n in (first, second))
    return float((one > other).mean())


def bootstrap(
    values: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """An interval of the mean from resampled means (percentiles); for returns and times, which are not normal."""
    _require_level(level)
    if not len(values):
        raise ValueError("an interval of a mean needs at least one value, got none")
    x = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    low, high = np.quantile(x[rows].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
