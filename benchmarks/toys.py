"""What the benchmarks on the toy `point` share: rows of many seeds, episodes that are shown, and imitation of them."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from simulators.point import PointEnv
from vla.algorithms.sft import SFT
from vla.data.chunks import ChunkBatch
from vla.rollout import rollout
from vla.types import Actor, Imitator, Rollout

HELD_OUT = 10**6  # episodes nothing learns from begin here
TESTED = 100


def fill[Row](
    path: Path, kind: type[Row], wanted: Iterable[Any], measure: Callable[[Any], list[Row]], jobs: int
) -> None:
    """Add what is measured of each to the table, as it comes; `jobs` processes measure."""
    there = table.read(path, kind)
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(measure, wanted):
            there += found
            table.write(path, there, kind)


def first_at(rows: Sequence[Any], goal: float, never: int) -> list[int]:
    """After how many updates each seed first succeeded in that share of its episodes; `never` where it did not."""
    seeds = sorted({x.seed for x in rows})
    return [min((x.updates for x in rows if x.seed == seed and x.k >= goal * x.n), default=never) for seed in seeds]


def succeeded(actor: Actor, **env: Any) -> int:
    """Of the TESTED held-out episodes."""
    return int(rollout(PointEnv(num_envs=TESTED, **env), actor, seed=HELD_OUT).success.any(0).sum())


def shown(actor: Actor, episodes: int, seed: int, **env: Any) -> Rollout:
    """The decisions of so many episodes."""
    played = rollout(PointEnv(num_envs=episodes, **env), actor, seed=seed)
    return played[played.valid]


def imitate(policy: Imitator, decisions: Rollout, steps: int) -> None:
    algorithm = SFT(policy, total_steps=steps, lr=2e-3, warmup_steps=min(20, steps // 4))
    for _ in range(steps):
        some = torch.randint(len(decisions), (64,))
        chunk = decisions.action.commands[some]
        padded = torch.zeros(chunk.shape[:2], dtype=torch.bool)
        algorithm.update(ChunkBatch(obs=decisions.obs[some], chunk=chunk, padded=padded, batch_size=[64]))
