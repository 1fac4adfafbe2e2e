"""Episodes per second of evaluation: ours against lerobot-eval's own loop, on the same LIBERO tasks and states.

`python -m benchmarks.evaluate`: two tasks of libero_spatial, two 256-pixel cameras, episodes cut at 64 commands, a
policy that costs nothing. lerobot's loop steps its own environments with gymnasium's vector classes; ours asks for
chunks of 1 and of 8 commands. One process and two. All in one run, as ratios to lerobot in one process; building the
simulators is not counted, resets are.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import nn

from simulators.libero import libero
from simulators.libero_files import libero_assets, prepare
from vla.evaluation import play
from vla.rollout import TEST_SEEDS
from vla.sanity import Stay

SUITE, TASKS, STEPS, PIXELS, REPEATS = "libero_spatial", 2, 64, 256, 3


def main() -> None:
    torch.set_num_threads(1)
    prepare(str(libero_assets()))
    arms: dict[str, Callable[[], float]] = {
        "lerobot, 1 process": partial(_theirs, 1),
        "lerobot, 2 processes": partial(_theirs, 2),
        "ours, 1 process": partial(_ours, 1, 1),
        "ours, 2 processes": partial(_ours, 2, 1),
        "ours, 2 processes, chunks of 8": partial(_ours, 2, 8),
        "ours, 2 processes, light drawing": partial(_ours, 2, 1, drawing="light"),
        "ours, 2 processes, chunks of 8, light drawing": partial(_ours, 2, 8, drawing="light"),
    }
    speeds = {name: arm() for name, arm in arms.items()}
    slowest = speeds["lerobot, 1 process"]
    for name, speed in speeds.items():
        said = f"{name:48s} {60 * speed:6.1f} episodes/min   x {speed / slowest:5.2f}"
        print(said, file=sys.stderr)  # noqa: T201
    figures = {
        name: {"episodes_per_minute": round(60 * s, 2), "ratio": round(s / slowest, 2)} for name, s in speeds.items()
    }
    print(json.dumps({"program": "benchmarks.evaluate", "suite": SUITE, "arms": figures}))  # noqa: T201


def _ours(workers: int, chunk: int, **options: Any) -> float:
    env = libero(SUITE, num_envs=TASKS, workers=workers, max_steps=STEPS, image_size=PIXELS, **options)
    actor = Stay(env.spec, chunk)

    def once(first: int) -> None:
        for _ in play(env, actor, seed=TEST_SEEDS.start + first, episodes=TASKS):
            pass

    best = _fastest(lambda repeat: once(10 * repeat))  # ten tasks on, the same two come again in their next state
    env.close()
    return best


def _theirs(processes: int) -> float:
    from lerobot.envs.libero import create_libero_envs
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
    from lerobot.scripts.lerobot_eval import rollout

    envs = create_libero_envs(
        SUITE,
        n_envs=processes,
        env_cls=gymnasium.vector.SyncVectorEnv if processes == 1 else _in_processes,
        gym_kwargs={"task_ids": list(range(TASKS)), "observation_width": PIXELS, "observation_height": PIXELS},
        episode_length=STEPS,
    )[SUITE]
    nothing: Any = PolicyProcessorPipeline(steps=[])
    nor_this: Any = PolicyProcessorPipeline(
        steps=[], to_transition=policy_action_to_transition, to_output=transition_to_policy_action
    )
    policy: Any = _Still()

    def once(_: int) -> None:
        for env in envs.values():
            rollout(env, policy, nothing, nothing, nothing, nor_this)

    best = _fastest(once, episodes=TASKS * processes)
    for env in envs.values():
        env.close()
    return best


def _in_processes(makers: Sequence[Callable[[], gymnasium.Env]]) -> gymnasium.vector.VectorEnv:
    """As lerobot does, in processes of a fork server; each must be told where LIBERO's assets are."""
    assets = str(libero_assets())

    def told(make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
        prepare(assets)
        return make()

    return gymnasium.vector.AsyncVectorEnv([partial(told, make) for make in makers], context="forkserver")


def _fastest(once: Callable[[int], None], episodes: int = TASKS) -> float:
    """Episodes per second of the best of some repeats, the first not counted."""
    once(0)
    best = 0.0
    for repeat in range(1, REPEATS + 1):
        start = time.perf_counter()
        once(repeat)
        best = max(best, episodes / (time.perf_counter() - start))
    return best


class _Still(nn.Module):
    """A policy of lerobot's kind that does nothing, with the gripper open."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def reset(self) -> None:
        pass

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        pictures = next(value for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim == 4)
        action = torch.zeros(len(pictures), 7)
        action[:, -1] = -1
        return action


if __name__ == "__main__":
    main()
