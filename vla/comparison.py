"""Comparing two evaluations on the episodes that both played."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from vla.evaluation import EPISODES, Episode, read_episodes
from vla.statistics import mcnemar, sequential

HOW_FAST = {"num_envs", "workers"}  # what of an environment changes nothing in an episode
ALPHA = 0.05


def compare(first: Sequence[Episode], second: Sequence[Episode], alpha: float = ALPHA) -> dict[str, Any]:
    """How often both, one or none of the two succeeded, and whether that is more than chance.

    `p` is McNemar's, to be read once, after a number of episodes fixed beforehand. `max_e` and `rejected_at` (pairs
    played until then, in the order of seeds; None if never) are of a test that may be read after every pair.
    """
    both, only_first, only_second, neither = discordant(first, second)
    other = {x.seed: x.success for x in second}
    pairs = sorted((x.seed, x.success - other[x.seed]) for x in first if x.seed in other)
    found = sequential([outcome for _, outcome in pairs], alpha)
    at = found["rejected_at"]
    return {
        "pairs": len(pairs),
        "both": both,
        "only_first": only_first,
        "only_second": only_second,
        "neither": neither,
        "p": mcnemar(only_first, only_second),
        "alpha": alpha,
        **found,
        "rejected_at_seed": None if at is None else pairs[at - 1][0],
    }


def discordant(first: Sequence[Episode], second: Sequence[Episode]) -> tuple[int, int, int, int]:
    """Of the episodes both played: solved by both, only by the first, only by the second, by neither."""
    other = {x.seed: x.success for x in second}
    both = [(x.success, other[x.seed]) for x in first if x.seed in other]
    return both.count((True, True)), both.count((True, False)), both.count((False, True)), both.count((False, False))


def earlier_episodes(directory: Path, env: Mapping[str, Any], seeds: range) -> list[Episode]:
    """What an earlier evaluation played, to be compared with one of the episodes `seeds` in `env`.

    FileNotFoundError where there is none; ValueError if its environment was another one or it shares no episode.
    """
    if not (directory / EPISODES).exists() or not (directory / "config.yaml").exists():
        raise FileNotFoundError(
            f"against={directory}: there is no evaluation (config.yaml, {EPISODES}) to compare with"
        )
    if differences := differing(environment_of(directory), env):
        raise ValueError(
            f"against={directory}: its episodes were played in another environment, so there is nothing to compare: "
            f"{'; '.join(differences)}. Evaluate both with the same env"
        )
    episodes = read_episodes(directory)
    if not any(x.seed in seeds for x in episodes):
        played = f"{min(x.seed for x in episodes)} to {max(x.seed for x in episodes)}" if episodes else "none"
        raise ValueError(f"against={directory} shares no episode with {seeds[0]} to {seeds[-1]}: it played {played}")
    return episodes


def environment_of(directory: Path) -> dict[str, Any]:
    """The configuration of the environment that a run was in; nothing where it does not say."""
    path = directory / "config.yaml"
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else {}
    return config.get("env") or {}


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two configurations of an environment, but for what only makes it faster."""
    keys = sorted((then.keys() | now.keys()) - HOW_FAST)
    return [f"{key} was {then.get(key)}, now {now.get(key)}" for key in keys if then.get(key) != now.get(key)]
