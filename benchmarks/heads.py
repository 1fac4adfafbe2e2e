"""What each policy head reaches by imitation with the same budget: `python -m benchmarks.heads --jobs 2`.

Per task 100 demonstrations of the scripted expert under disturbances, seen by two 64-pixel cameras; per seed and head
the same SFT, then greedy test episodes that nothing learned from, the same for all. Seed 0 also plays blind and with a
wrong instruction. Rows go to `docs/heads.csv` as they finish; what stands there is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from tqdm import tqdm

from benchmarks import table
from vla.checkpoint import build_policy
from vla.program import CONFIGS
from vla.run import load_policy
from vla.statistics import rate
from vla.types import Camera, Command, EnvSpec, Observation

TABLE = Path(__file__).parents[1] / "docs" / "heads.csv"
RUNS = Path("runs/heads")
TASKS = {
    "PickCube-v1": ["experiment=pickcube"],
    "PushCube-v1": ["experiment=pickcube", "env.task=PushCube-v1"],
    "Lift": ["experiment=lift", "++env.max_steps=150"],
    "Stack": ["experiment=lift", "env.task=Stack", "++env.max_steps=150"],
}
SEES = ["policy.encoder._target_=vla.models.film_cnn.FilmCNN"]
HEADS = {
    "token": ["policy=token", "policy.bins=32", "policy.soft_label_std=1.0"],
    "gaussian": ["policy=gaussian", *SEES],
    "flow": ["policy=flow"],
    "diffusion": ["policy=diffusion"],
}
BUDGET = ["policy.horizon=2", "steps=1000", "batch_size=64", "shift=3", "label=action.requested", "save_every=1000"]
PLAYED = ["env.num_envs=10", "env.workers=0"]
LOCK = Lock()


@dataclass(frozen=True)
class Row:
    task: str
    head: str
    seed: int
    k: int
    n: int
    blind: str  # k/n, of seed 0
    wrong_instruction: str
    sft_seconds: float
    parameters: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--latency", action="store_true", help="only how long a decision takes")
    asked = parser.parse_args()
    if asked.latency:
        print(json.dumps({"program": "benchmarks.heads", "chunk_ms": latencies()}))  # noqa: T201
        return
    there = {(x.task, x.head, x.seed) for x in rows()}
    wanted = [(t, h, s) for s in asked.seeds for t in asked.tasks for h in asked.heads if (t, h, s) not in there]
    for task in dict.fromkeys(task for task, _, _ in wanted):
        demonstrations(task)
    with ThreadPoolExecutor(asked.jobs) as pool:
        done = pool.map(lambda x: measure(x[0], x[1], x[2], asked.episodes), wanted)
        for row in tqdm(done, total=len(wanted), desc="heads"):
            sys.stderr.write(f"{row}\n")
    print(json.dumps({"program": "benchmarks.heads", "heads": pooled()}))  # noqa: T201


def demonstrations(task: str) -> Path:
    data = RUNS / task / "data"
    recipe("demonstrate", RUNS / task / "demonstrate", [*TASKS[task], "episodes=100", "noise=0.3", f"out={data}"])
    return data


def measure(task: str, head: str, seed: int, episodes: int) -> Row:
    place = RUNS / task / f"{head}_{seed}"
    learned = imitated(task, head, seed)
    checks = ["sanity=true"] if seed == 0 else []
    test = [
        *TASKS[task],
        *PLAYED,
        f"policy={place / 'sft'}",
        f"episodes={episodes}",
        "seed=10_000",
        "videos=1",
        *checks,
    ]
    played = recipe("evaluate", place / "test", test)
    sanity = played.get("sanity", {})
    policy = load_policy(place / "sft")
    row = Row(
        task=task,
        head=head,
        seed=seed,
        k=played["k"],
        n=played["n"],
        blind=_of(sanity.get("blind")),
        wrong_instruction=_of(sanity.get("wrong_instruction")),
        sft_seconds=round(learned["seconds"], 1),
        parameters=sum(x.numel() for x in policy.parameters()),
    )
    with LOCK:
        _write([*rows(), row])
    return row


def imitated(task: str, head: str, seed: int) -> dict[str, Any]:
    """The summary of a policy that has learned by imitation, now if it had not; it is in `run_dir`."""
    told = [f"data={demonstrations(task)}", *HEADS[head], *BUDGET, f"seed={seed}"]
    return recipe("sft", RUNS / task / f"{head}_{seed}" / "sft", told)


def latencies() -> dict[str, float]:
    """Milliseconds from one observation to a chunk, on one thread: of turns of all heads the median."""
    torch.set_num_threads(1)
    cameras = (Camera("hand_camera", 64, 64), Camera("base_camera", 64, 64))
    spec = EnvSpec(1, 20.0, 50, cameras, (("state", 22),), Command("ee_delta", 7, 0.05, 0.2))
    pictures = {c.name: torch.zeros(1, c.height, c.width, 3, dtype=torch.uint8) for c in cameras}
    obs = Observation(
        images=TensorDict(pictures, [1]), proprio=torch.zeros(1, 22), instruction=["do it"], batch_size=[1]
    )
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        asked = {head: [*settings, *BUDGET, "data=none"] for head, settings in HEADS.items()}
        full = {head: [f"++{x}" if "." in x.partition("=")[0] else x for x in told] for head, told in asked.items()}
        told = {head: compose("sft", x).policy for head, x in full.items()}
    policies = {head: build_policy(config, spec).eval() for head, config in told.items()}
    seconds: dict[str, list[float]] = {head: [] for head in HEADS}
    with torch.no_grad():
        for _ in range(40):
            for head, policy in policies.items():
                start = time.perf_counter()
                policy.mode(obs)
                seconds[head].append(time.perf_counter() - start)
    return {head: round(1000 * sorted(x)[len(x) // 2], 1) for head, x in seconds.items()}


def recipe(name: str, directory: Path, overrides: list[str]) -> dict[str, Any]:
    """Run a program on one thread unless it has finished, and give its summary."""
    summary = directory / "summary.json"
    if not summary.exists():
        begun = (directory / "config.yaml").exists() and name != "demonstrate"
        command = [sys.executable, "-m", f"vla.recipes.{name}", *overrides, f"run_dir={directory}"]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "log.txt", "a") as out:
            resume = [f"resume={directory}"] if begun else []
            subprocess.run([*command, *resume], env=threads, stdout=out, stderr=out, check=True)
    return json.loads(summary.read_text())


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled() -> list[dict[str, Any]]:
    """Per task and head over all seeds."""

    def each() -> Iterator[dict[str, Any]]:
        for task, head in dict.fromkeys((x.task, x.head) for x in rows()):
            some = [x for x in rows() if (x.task, x.head) == (task, head)]
            yield {
                "task": task,
                "head": head,
                "seeds": len(some),
                **rate(sum(x.k for x in some), sum(x.n for x in some)),
            }

    return list(each())


def _write(some: list[Row]) -> None:
    table.write(TABLE, sorted(some, key=lambda x: (x.task, x.head, x.seed)), Row)


def _of(known: dict[str, Any] | None) -> str:
    return f"{known['k']}/{known['n']}" if known else ""


if __name__ == "__main__":
    main()
