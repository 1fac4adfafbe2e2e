"""Playing given episodes and counting what came of them, the same way in training and in evaluation."""

import csv
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from vla.rollout import complete, rollout
from vla.statistics import Rate, rate
from vla.types import Action, Actor, Env, LazyEnv, Metrics, Observation, Rollout

EPISODES = "episodes.csv"


@dataclass(frozen=True)
class Episode:
    """What is kept of an episode played for evaluation; `steps` are commands executed."""

    seed: int
    instruction: str
    success: bool
    decisions: int
    steps: int
    total_reward: float


def play(
    env: Env, actor: Actor, *, seed: int, episodes: int, lost: Counter[int] | None = None
) -> Iterator[tuple[int, Rollout]]:
    """Exactly the episodes `seed .. seed + episodes - 1`, a batch at a time, each with its first seed.

    Copies that no episode needs are not made. An episode whose simulator failed is played again: `lost` counts how
    often that was, by seed.
    """
    lost = Counter() if lost is None else lost
    for first in range(seed, seed + episodes, env.spec.num_envs):
        batch = functools.partial(_batch, env, actor, first, seed + episodes - first)
        yield first, complete(batch(), batch, seed=first, lost=lost)


def _batch(env: Env, actor: Actor, seed: int, most: int) -> Rollout:
    enough = env.first(most) if isinstance(env, LazyEnv) and most < env.spec.num_envs else env
    return rollout(enough, actor, seed=seed)[:, :most]


class OnDevice:
    """An actor whose network is on another device than the environment."""

    def __init__(self, actor: Actor, device: torch.device):
        self.actor = actor
        self.device = device

    def act(self, obs: Observation) -> Action:
        return self.actor.act(obs.to(self.device)).cpu()


def outcomes(batch: Rollout, first_seed: int) -> list[Episode]:
    """One line per column; column i is the episode `first_seed + i`. Those that were lost have none."""
    kept = [i for i in range(batch.shape[1]) if i not in batch.lost()]
    batch = batch[:, kept]
    steps = batch.valid if batch.num_steps is None else batch.num_steps
    figures = (batch.success.any(0), batch.valid.sum(0), steps.sum(0), batch.reward.sum(0))
    columns = zip(batch.obs[0].instruction, *(x.tolist() for x in figures), strict=True)
    return [Episode(first_seed + i, *column) for i, column in zip(kept, columns, strict=True)]


def summarise(episodes: Sequence[Episode], prefix: str) -> Metrics:
    """The figures of a log: the rate with its number of episodes, and means over episodes."""
    n = len(episodes)
    return {
        f"{prefix}/success": sum(x.success for x in episodes) / n,
        f"{prefix}/episodes": float(n),
        f"{prefix}/return": sum(x.total_reward for x in episodes) / n,
        f"{prefix}/steps": sum(x.steps for x in episodes) / n,
        f"{prefix}/decisions": sum(x.decisions for x in episodes) / n,
    }


def success_rate(episodes: Sequence[Episode]) -> Rate:
    return rate(sum(x.success for x in episodes), len(episodes))


def per_task(episodes: Sequence[Episode]) -> dict[str, Rate]:
    """The success rate for each instruction."""
    tasks = sorted({x.instruction for x in episodes})
    return {task: success_rate([x for x in episodes if x.instruction == task]) for task in tasks}


def write_episodes(directory: Path, episodes: Sequence[Episode]) -> None:
    """Write `episodes.csv`; it is replaced as a whole, so an interruption leaves the old or the new one."""
    part = directory / f".{EPISODES}.part"
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, [x.name for x in fields(Episode)])
        writer.writeheader()
        writer.writerows(asdict(x) for x in episodes)
    part.replace(directory / EPISODES)


def read_episodes(directory: Path) -> list[Episode]:
    """What `write_episodes` wrote; nothing if there is none."""
    if not (directory / EPISODES).exists():
        return []
    with open(directory / EPISODES, newline="") as file:
        return [_episode(**row) for row in csv.DictReader(file)]


def _episode(seed: str, instruction: str, success: str, decisions: str, steps: str, total_reward: str) -> Episode:
    return Episode(int(seed), instruction, success == "True", int(decisions), int(steps), float(total_reward))
