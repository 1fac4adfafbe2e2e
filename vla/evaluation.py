"""Playing given episodes and counting what came of them, the same way in training and in evaluation."""

import csv
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from vla.rollout import complete, rollout
from vla.statistics import Rate, rate
from vla.types import Action, Actor, Env, LazyEnv, Metrics, Observation, Rollout, Seeded

EPISODES = "episodes.csv"


@dataclass(frozen=True)
class Episode:
    """What is kept of an episode played for evaluation; `steps` are commands executed, `success` is at any time.

    `time_to_success` is in seconds of the environment's time, up to and including the command that first succeeded;
    None without a success. Where an environment plays on after it and does not tell at which command of a chunk it
    was, the time is to the end of that chunk, and not exact.
    """

    seed: int
    instruction: str
    success: bool
    decisions: int
    steps: int
    total_reward: float
    success_at_end: bool | None = None  # None: the same as `success`, in files older than this column
    time_to_success: float | None = None
    time_is_exact: bool = True
    task: str = ""  # its name, where the environment has one

    @property
    def solved_at_end(self) -> bool:
        return self.success if self.success_at_end is None else self.success_at_end


Watcher = Callable[[Rollout, list[Episode], list[Episode]], None]  # a batch, what was played before, and in it


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
        if isinstance(actor, Seeded):
            self.begin = actor.begin

    def act(self, obs: Observation) -> Action:
        return self.actor.act(obs.to(self.device)).cpu()


def record(
    directory: Path,
    env: Env,
    actor: Actor,
    seeds: range,
    *,
    task: str = "",
    name: str,
    watch: Watcher | None = None,
    lost: Counter[int] | None = None,
) -> list[Episode]:
    """Play the episodes `seeds`, except those that `episodes.csv` in `directory` has, and add them to it.

    `task` and `name` are for the reader: what is played, and what the progress bar says. `lost` counts, by seed, how
    often an episode's simulator failed and it was played again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    done = read_episodes(directory)[: len(seeds)]
    left = seeds[len(done) :]
    with tqdm(total=len(seeds), initial=len(done), desc=name, unit="episode") as bar:
        for first, batch in play(env, actor, seed=left.start, episodes=len(left), lost=lost):
            new = outcomes(batch, first, env.spec.control_hz, task)
            if watch is not None:
                watch(batch, done, new)
            done += new
            write_episodes(directory, done)
            bar.update(len(new))
            bar.set_postfix(success=f"{sum(x.success for x in done)}/{len(done)}")
    return done


def outcomes(batch: Rollout, first_seed: int, control_hz: float, task: str = "") -> list[Episode]:
    """One line per column; column i is the episode `first_seed + i`. Those that were lost have none."""
    kept = [i for i in range(batch.shape[1]) if i not in batch.lost()]
    batch = batch[:, kept]
    steps = batch.valid.long() if batch.num_steps is None else batch.num_steps
    success = batch.success.any(0)
    at_end = batch.success if batch.success_at_end is None else batch.success_at_end
    last = at_end.gather(0, batch.valid.sum(0, keepdim=True) - 1)[0]
    until, known = _steps_to_success(batch, steps)
    exact = known | ~success
    times = [n / control_hz if solved else None for n, solved in zip(until.tolist(), success.tolist(), strict=True)]
    figures = (success, batch.valid.sum(0), steps.sum(0), batch.reward.sum(0), last)
    lists = [batch.obs[0].instruction, *(x.tolist() for x in figures), times, exact.tolist(), [task] * len(times)]
    columns = zip(*lists, strict=True)
    return [Episode(first_seed + i, *column) for i, column in zip(kept, columns, strict=True)]


def _steps_to_success(
    batch: Rollout, steps: Int[Tensor, "time env"]
) -> tuple[Int[Tensor, " env"], Bool[Tensor, " env"]]:
    """The commands up to the first success of each column, and whether that is known or is the end of its chunk."""
    row = batch.success.long().argmax(0, keepdim=True)
    before = (steps.cumsum(0) - steps).gather(0, row)[0]
    played = steps.gather(0, row)[0]
    if batch.steps_to_success is not None:
        return before + batch.steps_to_success.gather(0, row)[0], torch.ones_like(played, dtype=torch.bool)
    return before + played, batch.terminated.gather(0, row)[0] | (played == 1)  # what ended there played no further


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


def success_rates(episodes: Sequence[Episode]) -> dict[str, Any]:
    """The rate of success at any time and, as `at_end`, after the last command."""
    return {**success_rate(episodes), "at_end": rate(sum(x.solved_at_end for x in episodes), len(episodes))}


def success_rate(episodes: Sequence[Episode]) -> Rate:
    return rate(sum(x.success for x in episodes), len(episodes))


def per_task(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """The success rates for each instruction, with the task's name before it where there is one."""
    names = [f"{x.task}: {x.instruction}" if x.task else x.instruction for x in episodes]
    pairs = list(zip(names, episodes, strict=True))
    return {task: success_rates([x for name, x in pairs if name == task]) for task in sorted(set(names))}


def times_to_success(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Mean and median in seconds over the episodes that succeeded, and whether each time is exact."""
    timed = [x for x in episodes if x.time_to_success is not None]
    times = [x.time_to_success for x in timed if x.time_to_success is not None]
    return {
        "mean_time_to_success": mean(times) if times else None,
        "median_time_to_success": median(times) if times else None,
        "time_is_exact": all(x.time_is_exact for x in timed),
    }


def write_episodes(directory: Path, episodes: Sequence[Episode]) -> None:
    """Write `episodes.csv`; it is replaced as a whole, so an interruption leaves the old or the new one."""
    part = directory / f".{EPISODES}.part"
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, [x.name for x in fields(Episode)])
        writer.writeheader()
        writer.writerows(asdict(x) for x in episodes)
    part.replace(directory / EPISODES)


def read_episodes(directory: Path) -> list[Episode]:
    """What `write_episodes` wrote, now or before it had all columns; nothing if there is none.

    ValueError for a file that is something else.
    """
    if not (directory / EPISODES).exists():
        return []
    with open(directory / EPISODES, newline="") as file:
        table = csv.DictReader(file)
        needed = {x.name for x in fields(Episode) if x.default is MISSING}
        if missing := needed - set(table.fieldnames or ()):
            raise ValueError(f"{directory / EPISODES} is not of an evaluation: it lacks {sorted(missing)}")
        return [Episode(**{name: READ[name](text) for name, text in row.items() if name in READ}) for row in table]


def _truth(text: str) -> bool:
    return text == "True"


READ: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "instruction": str,
    "success": _truth,
    "decisions": int,
    "steps": int,
    "total_reward": float,
    "success_at_end": lambda text: _truth(text) if text else None,
    "time_to_success": lambda text: float(text) if text else None,
    "time_is_exact": _truth,
    "task": str,
}
