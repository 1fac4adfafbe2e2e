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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.toys import HELD_OUT, TESTED, fill, first_at, imitate, shown, succeeded
from policies.teacher import TokenTeacher
from policies.token import TokenPolicy
from simulators.point import Homing, PointEnv
from vla.algorithms.distill import Distill
from vla.algorithms.grpo import GRPO
from vla.data.normalise import Statistics
from vla.models.state_mlp import StateMLP
from vla.models.token_decoders import ParallelDecoder
from vla.rollout import Greedy, join, rollout
from vla.statistics import rate

TABLE = Path(__file__).parents[1] / "docs" / "toy_distill.csv"
DIVERGENCES = {
    "OPD, sampled": "reverse_sampled",
    "OPD, exact": "reverse_exact",
    "forward KL (DAgger, soft labels)": "forward_exact",
    "cross-entropy (DAgger, hard labels)": "hard",
}
ARMS = (*DIVERGENCES, "SFT", "GRPO", "OPD, then GRPO")
DEMONSTRATIONS, STEPS = 5, 60
UPDATES, EVERY, EPISODES, GROUP = 30, 3, 64, 8
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
    known = {(x.arm, x.seed) for x in rows()}
    wanted = [(arm, seed) for seed in range(asked.seeds) for arm in ARMS if (arm, seed) not in known]
    fill(TABLE, Row, wanted, _measured, asked.jobs)
    print(json.dumps({"program": "benchmarks.toy_distill", "arms": list(pooled())}))  # noqa: T201


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled() -> Iterator[dict[str, Any]]:
    """Per arm: success before and at the end, entropy at the end, and when the median seed first got to the goal."""
    for arm in dict.fromkeys(x.arm for x in rows()):
        mine = [x for x in rows() if x.arm == arm]
        first, last = ([x for x in mine if x.updates == u] for u in (0, UPDATES))
        got = first_at(mine, GOAL, never=2 * UPDATES)
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
    many = shown(Homing(2), 200, HELD_OUT * 40)  # what its tokens can say is not left to the few that it imitates
    student.set_statistics(Statistics.of(many.obs.proprio), Statistics.of(many.action.commands.flatten(0, 1)))
    imitate(student, shown(Homing(2), DEMONSTRATIONS, HELD_OUT * (seed + 2)), STEPS)
    learn, found = _learner(arm, student), []
    for update in range(UPDATES + 1):
        seeds = (1000 * seed + update) * EPISODES
        if update % EVERY == 0:
            k = succeeded(Greedy(student))
            found.append(Row(arm, seed, update, round(_entropy(student, seeds), 4), k, TESTED))
        if update < UPDATES:
            learn(update, seeds)
    return found


def _learner(arm: str, student: TokenPolicy) -> Callable[[int, int], Any]:
    """What an update does, given its number and the first of its seeds."""
    teacher = partial(TokenTeacher, actor=Homing(2))
    options: dict[str, Any] = {"lr": 3e-3, "epochs": 2, "minibatch": 128}
    every, few = PointEnv(num_envs=EPISODES), PointEnv(num_envs=EPISODES // GROUP)
    if arm == "SFT":
        return lambda _, seed: imitate(student, shown(Homing(2), EPISODES, seed), 8)
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


@torch.no_grad()
def _entropy(student: TokenPolicy, seed: int) -> float:
    seen = shown(student, EPISODES, seed)
    log_p = student.distribution(seen.obs, seen.action.latent["tokens"])
    return float(-(log_p.exp() * log_p).sum(-1).mean())


if __name__ == "__main__":
    main()
