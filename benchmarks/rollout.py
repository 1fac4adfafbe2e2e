"""Steps per second of an environment: state or pictures, single commands or chunks, full or light drawing.

`python -m benchmarks.rollout [task]`: all arms in one run, as ratios to pictures at every command in full.
"""

import json
import sys
import time

import torch

from simulators.maniskill import maniskill
from vla.types import ChunkEnv

ARMS = {
    "pictures, 1 command": {"chunk": 1, "drawing": "full"},
    "pictures, 1 command, light drawing": {"chunk": 1, "drawing": "light"},
    "pictures, 8 commands": {"chunk": 8, "drawing": "full"},
    "pictures, 8 commands, light drawing": {"chunk": 8, "drawing": "light"},
    "state, 1 command": {"chunk": 1, "images": False},
    "state, 8 commands": {"chunk": 8, "images": False},
    "pictures, 8 commands, light drawing, 2 workers": {"chunk": 8, "drawing": "light", "workers": 2},
    "state, 8 commands, 2 workers": {"chunk": 8, "images": False, "workers": 2},
}
REPEATS = 3


def main() -> None:
    torch.set_num_threads(1)
    task = sys.argv[1] if len(sys.argv) > 1 else "PickCube-v1"
    envs = {name: _make(task, **arm) for name, arm in ARMS.items()}
    speeds = {name: max(_speed(env, ARMS[name]["chunk"]) for _ in range(REPEATS)) for name, env in envs.items()}
    slowest = speeds["pictures, 1 command"]
    for name, speed in speeds.items():
        print(f"{name:48s} {speed:8.1f} commands/s   x {speed / slowest:5.1f}", file=sys.stderr)  # noqa: T201
    figures = {name: {"steps_per_second": round(s, 1), "ratio": round(s / slowest, 2)} for name, s in speeds.items()}
    print(json.dumps({"program": "benchmarks.rollout", "task": task, "arms": figures}))  # noqa: T201


def _make(task: str, *, chunk: int, workers: int = 0, **options: object) -> ChunkEnv:
    return maniskill(task, num_envs=2, workers=workers, image_size=128, max_steps=10_000, **options)


def _speed(env: ChunkEnv, chunk: int, commands: int = 48) -> float:
    """Commands per second over all copies, the first picture not counted."""
    env.reset(0)
    rest = torch.tensor([0.0] * 6 + [1.0]).expand(env.spec.num_envs, chunk, 7)
    env.play(rest)
    start = time.perf_counter()
    for _ in range(commands // chunk):
        env.play(rest)
    return env.spec.num_envs * commands / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
