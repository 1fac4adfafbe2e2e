"""What advice is worth on the toy `point`, where only success is rewarded: `python -m benchmarks.toy_advice --jobs 2`.

A Gaussian student of true positions learns by PPO alone, by RPD with a steady pull or one that fades over the first
half, or imitates the adviser's own episodes first (BC) and goes on by PPO. Advisers go towards the target turned by so
many degrees, so that they succeed always, sometimes or never. Every fifth update the same held-out episodes are played
greedily; rows go to `docs/toy_advice.csv`.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.toys import HELD_OUT, TESTED, fill, first_at, imitate, shown, succeeded
from policies.critic import Critic
from policies.gaussian import GaussianPolicy
from simulators.point import Homing, PointEnv
from vla.algorithms.ppo import PPO
from vla.algorithms.rpd import RPD
from vla.models.state_mlp import StateMLP
from vla.rollout import Greedy, rollout
from vla.statistics import rate
from vla.types import Action, Observation

TABLE = Path(__file__).parents[1] / "docs" / "toy_advice.csv"
ARMS = ("PPO", "RPD", "RPD, fading", "BC, then PPO")
DEGREES = (30, 38, 45)
ENV: dict[str, Any] = {"max_steps": 10}
UPDATES, EVERY, EPISODES = 40, 5, 64
IMITATED = 200  # episodes and steps of BC
GOAL = 0.8


@dataclass(frozen=True)
class Row:
    arm: str
    degrees: int  # by which the adviser errs
    adviser_k: int
    seed: int
    updates: int
    k: int
    n: int


class Astray(Homing):
    """Goes towards the target, turned by so many degrees."""

    def __init__(self, degrees: float):
        super().__init__(2)
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        self.turn = torch.tensor([[c, s], [-s, c]])

    def act(self, obs: Observation) -> Action:
        action = super().act(obs)
        return action.replace(commands=action.commands @ self.turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    known = {(x.arm, x.degrees, x.seed) for x in rows()}
    wanted = [(a, d, s) for s in range(asked.seeds) for a in ARMS for d in DEGREES if (a, d, s) not in known]
    fill(TABLE, Row, wanted, _measured, asked.jobs)
    print(json.dumps({"program": "benchmarks.toy_advice", "arms": list(pooled())}))  # noqa: T201


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled() -> Iterator[dict[str, Any]]:
    """Per arm and adviser: success at the end, and after how many updates the median seed first got to the goal."""
    there = rows()
    for degrees in DEGREES:
        for arm in ARMS:
            mine = [x for x in there if (x.arm, x.degrees) == (arm, degrees)]
            if not mine:
                continue
            last = [x for x in mine if x.updates == UPDATES]
            first = first_at(mine, GOAL, never=2 * UPDATES)
            yield {
                "adviser": f"{mine[0].adviser_k}/{TESTED}",
                "arm": arm,
                **rate(sum(x.k for x in last), sum(x.n for x in last)),
                "median_updates_to_goal": statistics.median(first),
                "never": sum(x > UPDATES for x in first),
            }


def _measured(which: tuple[str, int, int]) -> list[Row]:
    arm, degrees, seed = which
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    adviser, policy = Astray(degrees), GaussianPolicy(PointEnv().spec, StateMLP, 2)
    if arm == "BC, then PPO":
        imitate(policy, shown(adviser, IMITATED, HELD_OUT + 1000 * (seed + 1), **ENV), IMITATED)
    critic = partial(Critic, encoder=StateMLP)
    options: dict[str, Any] = {"lr": 3e-3, "epochs": 4, "minibatch": 128}
    fades = UPDATES // 2 if arm == "RPD, fading" else None
    algorithm: PPO = (
        RPD(policy, critic, lambda _: adviser, weight=0.3, until=fades, **options)
        if arm.startswith("RPD")
        else PPO(policy, critic, **options)
    )
    env, adviser_k, found = PointEnv(num_envs=EPISODES, **ENV), succeeded(adviser, **ENV), []
    for update in range(UPDATES + 1):
        if update % EVERY == 0:
            k = succeeded(Greedy(policy), **ENV)
            found.append(Row(arm, degrees, adviser_k, seed, update, k, TESTED))
        if update < UPDATES:
            episodes = rollout(env, policy, seed=(1000 * seed + update) * EPISODES)
            algorithm.update(episodes.replace(reward=episodes.success.float(), rewards=None))
    return found


if __name__ == "__main__":
    main()
