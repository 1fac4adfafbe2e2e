"""How often the scripted experts succeed: `python -m benchmarks.experts maniskill PickCube-v1 --episodes 100`.

Plays the episodes `seed .. seed + episodes - 1` of one or more tasks and puts one row each into `docs/experts.csv`, in
place of an older one; from these `python -m benchmarks.tasks` prints its table. More arguments are settings, as those
of the programs: `env.workers=2`.
"""

import argparse
import csv
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from vla.evaluation import Episode, outcomes, per_task, play, success_rate
from vla.program import CONFIGS
from vla.run import write_atomically

TABLE = Path(__file__).parents[1] / "docs" / "experts.csv"


@dataclass(frozen=True)
class Measured:
    """k successes in n episodes of one task from `seed` on, and the command that gives them again."""

    simulator: str
    task: str
    k: int
    n: int
    seed: int
    command: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("simulator", help="a file of configs/env and configs/expert")
    parser.add_argument("names", nargs="+", metavar="task or setting=value")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=500)
    asked = parser.parse_args()
    if asked.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {asked.episodes}")
    torch.set_num_threads(1)
    settings = [x for x in asked.names if "=" in x]
    for task in [x for x in asked.names if "=" not in x]:
        played = measure(configured(asked.simulator, task, settings), episodes=asked.episodes, seed=asked.seed)
        rate = success_rate(played)
        again = [f"python -m benchmarks.experts {asked.simulator} {task}", *settings]
        command = " ".join([*again, f"--episodes {asked.episodes} --seed {asked.seed}"])
        record(TABLE, Measured(asked.simulator, task, rate["k"], rate["n"], asked.seed, command))
        told = {name: f"{x['k']}/{x['n']}" for name, x in per_task(played).items()}
        sys.stdout.write(json.dumps({"simulator": asked.simulator, "task": task, **rate, "tasks": told}) + "\n")
        sys.stdout.flush()


def configured(simulator: str, task: str, settings: list[str]) -> DictConfig:
    """The configuration of an evaluation of the expert: ten copies, no pictures, unless `settings` say otherwise."""
    unit = "suite" if simulator == "libero" else "task"
    usual = [f"env={simulator}", f"env.{unit}={task}", "env.num_envs=10", "++env.images=false"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose("evaluate", [*usual, *(f"++{x}" if "." in x.partition("=")[0] else x for x in settings)])


def measure(cfg: DictConfig, *, episodes: int, seed: int) -> list[Episode]:
    """What came of the episodes of a configuration's expert."""
    if "expert" not in cfg:
        raise ValueError("this environment has no scripted expert (configs/expert)")
    expert = instantiate(cfg.expert)
    env = instantiate(cfg.env)
    hz = env.spec.control_hz
    played = [x for first, batch in play(env, expert, seed=seed, episodes=episodes) for x in outcomes(batch, first, hz)]
    env.close()
    return played


def record(table: Path, row: Measured) -> None:
    """Put a row into the table in place of the one of the same task, sorted by simulator and task."""
    kept = {(x.simulator, x.task): x for x in read(table)} | {(row.simulator, row.task): row}
    lines = [",".join(x.name for x in fields(Measured))]
    lines += [",".join(map(str, asdict(kept[key]).values())) for key in sorted(kept)]
    table.parent.mkdir(exist_ok=True)
    write_atomically(table, "\n".join(lines) + "\n")


def read(table: Path = TABLE) -> list[Measured]:
    """What was measured so far; nothing if there is no table."""
    if not table.exists():
        return []
    with open(table, newline="") as file:
        return [
            Measured(x["simulator"], x["task"], int(x["k"]), int(x["n"]), int(x["seed"]), x["command"])
            for x in csv.DictReader(file)
        ]


if __name__ == "__main__":
    main()
