"""Ways to learn from a teacher, on the toy `point`: `python -m benchmarks.toy_distill --jobs 2`.

A token student of true positions imitates DEMONSTRATIONS episodes. Then every arm plays as many episodes per update:
the student itself in all but `SFT`, where the teacher (the expert as a distribution over tokens) plays and is imitated;
`GRPO` has success alone. Every third update the same held-out episodes are played greedily, and the entropy of the
student's tokens is taken in its own episodes. Rows go to `docs/toy_distill.csv`.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from policies.teacher import TokenTeacher
from policies.token import TokenPolicy
from simulators.point import Homing, PointEnv
from vla.algorithms.distill import Distill
from vla.algorithms.grpo import GRPO
from vla.algorithms.sft import SFT
from vla.data.chunks import ChunkBatch
from vla.data.normalise import Statistics
from vla.models.state_mlp import StateMLP
from vla.models.token_decoders import ParallelDecoder
from vla.rollout import Greedy, join, rollout
from vla.statistics import rate
from vla.types import Actor, Rollout

TABLE = Path(__file__).parents[1] / "docs" / "toy_distill.csv"
DIVERGENCES = {
    "OPD, sampled": "reverse_sampled",
    "OPD, exact": "reverse_exact",
    "forward KL (DAgger, soft labels)": "forward_exact",
    "cross-entropy (DAgger, hard labels)": "hard",
}
ARMS = (*DIVERGENCES, "SFT", "GRPO", "OPD, then GRPO")
DEMONSTRATIONS, STEPS = 5, 60
UPDATES, EVERY, EPISODES, GROUP, TESTED = 30, 3, 64, 8, 100
HELD_OUT = 10**6
GOAL = 0.9


@dataclass(frozen=True)
class Row:
    arm: str
    seed: int
    updates: int
    entropy: float  # nats per token
    k: int
    n: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    there = rows()
    known = {(x.arm, x.seed) for x in there}
    wanted = [(arm, seed) for seed in range(asked.seeds) for arm in ARMS if (arm, seed) not in known]
    with ProcessPoolExecutor(asked.jobs) as pool:
        for found in pool.map(_measured, wanted):
            there += found
            table.write(TABLE, there, Row)
    print(json.dumps({"program": "benchmarks.toy_distill", "arms": list(pooled())}))  # noqa: T201


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled() -> Iterator[dict[str, Any]]:
    """Per arm: success before and at the end, entropy at the end, and when the median seed first got to the goal."""
    for arm in dict.fromkeys(x.arm for x in rows()):
        mine = [x for x in rows() if x.arm == arm]
        first, last = ([x for x in mine if x.updates == u] for u in (0, UPDATES))
        got = [
            min((x.updates for x in mine if x.seed == seed and x.k >= GOAL * x.n), default=2 * UPDATES)
            for seed in sorted({x.seed for x in mine})
        ]
        yield {
            "arm": arm,
            "start": sum(x.k for x in first),
            **rate(sum(x.k for x in last), sum(x.n for x in last)),
            "entropy": round(statistics.mean(x.entropy for x in last), 2),
            "median_updates_to_goal": statistics.median(got),
            "never": sum(x > UPDATES for x in got),
        }


def _measured(which: tuple[str, int]) -> list[Row]:
    arm, seed = which
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    student = TokenPolicy(PointEnv().spec, StateMLP, 2, partial(ParallelDecoder, width=64), bins=16)
    many = _shown(200, HELD_OUT * 40)  # what its tokens can say is not left to the few that it imitates
    student.set_statistics(Statistics.of(many.obs.proprio), Statistics.of(many.action.commands.flatten(0, 1)))
    _imitate(student, _shown(DEMONSTRATIONS, HELD_OUT * (seed + 2)), STEPS)
    learn, found = _learner(arm, student), []
    for update in range(UPDATES + 1):
        seeds = (1000 * seed + update) * EPISODES
        if update % EVERY == 0:
            k = rollout(PointEnv(num_envs=TESTED), Greedy(student), seed=HELD_OUT).success.any(0).sum()
            found.append(Row(arm, seed, update, round(_entropy(student, seeds), 4), int(k), TESTED))
        if update < UPDATES:
            learn(update, seeds)
    return found


def _learner(arm: str, student: TokenPolicy) -> Callable[[int, int], Any]:
    """What an update does, given its number and the first of its seeds."""
    teacher = partial(TokenTeacher, actor=Homing(2))
    options: dict[str, Any] = {"lr": 3e-3, "epochs": 2, "minibatch": 128}
    every, few = PointEnv(num_envs=EPISODES), PointEnv(num_envs=EPISODES // GROUP)
    if arm == "SFT":
        return lambda _, seed: _imitate(student, _shown(EPISODES, seed), 8)
    distill = Distill(student, teacher, divergence=DIVERGENCES.get(arm, "reverse_sampled"), **options)
    grpo = GRPO(student, group=GROUP, keep=None, granularity="factor", **options)

    def reinforce(seed: int) -> None:
        played = join([rollout(few, student, seed=seed, draw=draw) for draw in range(GROUP)])
        grpo.update(played.replace(reward=played.success.float(), rewards=None))

    def learn(update: int, seed: int) -> None:
        if arm == "GRPO" or (arm == "OPD, then GRPO" and update >= UPDATES // 2):
            reinforce(seed)
        else:
            distill.update(rollout(every, student, seed=seed))

    return learn


def _shown(episodes: int, seed: int) -> Rollout:
    shown = rollout(PointEnv(num_envs=episodes), Homing(2), seed=seed)
    return shown[shown.valid]


def _imitate(student: TokenPolicy, shown: Rollout, steps: int) -> None:
    algorithm = SFT(student, total_steps=steps, lr=2e-3, warmup_steps=min(20, steps // 4))
    for _ in range(steps):
        some = torch.randint(len(shown), (64,))
        chunk = shown.action.commands[some]
        padded = torch.zeros(chunk.shape[:2], dtype=torch.bool)
        algorithm.update(ChunkBatch(obs=shown.obs[some], chunk=chunk, padded=padded, batch_size=[64]))


@torch.no_grad()
def _entropy(student: TokenPolicy, seed: int) -> float:
    played: Actor = student
    seen = rollout(PointEnv(num_envs=EPISODES), played, seed=seed)
    seen = seen[seen.valid]
    log_p = student.distribution(seen.obs, seen.action.latent["tokens"])
    return float(-(log_p.exp() * log_p).sum(-1).mean())


if __name__ == "__main__":
    main()
