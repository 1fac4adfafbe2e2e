"""What reinforcement learning reaches with equal budgets: `python -m benchmarks.rl --arms pushcube_state`.

An arm is `vla.recipes.online` with some settings, for each seed in `runs/rl/ARM_SEED`. Before the first update and
after the last the same held-out episodes are played greedily; nothing in between is looked at. Rows go to `docs/rl.csv`
as they finish; what stands there is not run again, and what was interrupted goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from benchmarks import table
from benchmarks.heads import imitated, recipe
from vla.run import read_metrics
from vla.statistics import rate

TABLE = Path(__file__).parents[1] / "docs" / "rl.csv"
RUNS = Path("runs/rl")
BY_COMMAND = ("+algorithm.critic.per_command=true", "++algorithm.granularity=command")


@dataclass(frozen=True)
class Arm:
    """Overrides of the recipe, and the task and head of `benchmarks.heads` that it begins from, with the same seed."""

    overrides: tuple[str, ...]
    begins: tuple[str, str] | None = None


PICK = "PickCube-v1"
ARMS = {
    "pushcube_state": Arm(("experiment=pushcube_state",)),
    "pick_token_ppo": Arm(("experiment=pickcube_ppo",), (PICK, "token")),
    "pick_token_ppo_by_command": Arm(("experiment=pickcube_ppo", *BY_COMMAND), (PICK, "token")),
    "pick_token_grpo": Arm(("experiment=pickcube_grpo",), (PICK, "token")),
    "pick_token_grpo_all": Arm(("experiment=pickcube_grpo", "++algorithm.keep=null"), (PICK, "token")),
    "pick_flow_ppo": Arm(("experiment=pickcube_ppo", "+init_with.chain=sde", "algorithm.lr=2e-5"), (PICK, "flow")),
    "pick_diffusion_ppo": Arm(("experiment=pickcube_ppo", "+init_with.eta=1"), (PICK, "diffusion")),
    "lift_flow_ppo": Arm(("experiment=lift_ppo", "+init_with.chain=sde"), ("Lift", "flow")),
}
ENDS_ONLY = 1_000_000  # updates from test to test: more than any arm has
LOCK = Lock()


@dataclass(frozen=True)
class Row:
    arm: str
    seed: int
    env_steps: int  # commands played
    kept: float  # share of the episodes that was learned from
    start_k: int
    k: int
    n: int
    seconds: float  # on a clock, tests included, since the program was last started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=100, help="held-out ones of each test")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    there = {(x.arm, x.seed) for x in rows()}
    wanted = [(arm, seed) for seed in asked.seeds for arm in asked.arms if (arm, seed) not in there]
    with ThreadPoolExecutor(asked.jobs) as pool:
        done = pool.map(lambda x: measure(x[0], x[1], asked.episodes), wanted)
        for row in tqdm(done, total=len(wanted), desc="rl"):
            sys.stderr.write(f"{row}\n")
    print(json.dumps({"program": "benchmarks.rl", "arms": pooled(rows())}))  # noqa: T201


def measure(arm: str, seed: int, episodes: int) -> Row:
    begins = ARMS[arm].begins
    init = [f"init={imitated(*begins, seed)['run_dir']}"] if begins else []
    tests = [f"test_episodes={episodes}", f"test_every={ENDS_ONLY}", "videos=0", "workers=0", "env.workers=0"]
    learned = recipe("online", RUNS / f"{arm}_{seed}", [*ARMS[arm].overrides, *init, *tests, f"seed={seed}"])
    kept = [x["kept"] for x in read_metrics(RUNS / f"{arm}_{seed}") if "kept" in x]
    row = row_of(arm, seed, learned, sum(kept) / len(kept) if kept else 1.0)
    with LOCK:
        _write([*rows(), row])
    return row


def row_of(arm: str, seed: int, summary: dict[str, Any], kept: float = 1.0) -> Row:
    """From what the program says of its first and its last test."""
    start, final = summary["test"][0], summary["test"][-1]
    return Row(
        arm=arm,
        seed=seed,
        env_steps=summary["env_steps"],
        kept=round(kept, 3),
        start_k=start["k"],
        k=final["k"],
        n=final["n"],
        seconds=round(summary["seconds"], 1),
    )


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled(some: Sequence[Row]) -> list[dict[str, Any]]:
    """Per arm over all seeds."""
    by_arm = {arm: [x for x in some if x.arm == arm] for arm in dict.fromkeys(x.arm for x in some)}
    return [
        {
            "arm": arm,
            "seeds": len(its),
            "start": sum(x.start_k for x in its),
            **rate(sum(x.k for x in its), sum(x.n for x in its)),
        }
        for arm, its in by_arm.items()
    ]


def _write(some: Sequence[Row]) -> None:
    table.write(TABLE, sorted(some, key=lambda x: (x.arm, x.seed)), Row)


if __name__ == "__main__":
    main()
