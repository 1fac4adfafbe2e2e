"""Commands per second of our loop against the bare simulator: `python -m benchmarks.rollout [maniskill ...]`.

The bare simulator is stepped as its authors would, with its own controller and observations, one copy in each of
`--workers` (1, 2 and 4) processes that run free. Ours is told to stay, as they are, in as many workers in lockstep.
Arms: state, one 128-pixel camera in full, the same in chunks of 8 commands (drawn once), and in chunks of 8 with light
drawing. All in one run; ratios are to the bare simulator with the same number of processes. Both run by turns, and
medians are compared, since others may use the machine.
"""

import argparse
import json
import multiprocessing as mp
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from simulators.libero import libero
from simulators.maniskill import maniskill
from simulators.robosuite import robosuite
from vla.rollout import rollout
from vla.sanity import Stay
from vla.types import ChunkEnv

REPEATS, STEPS, PIXELS = 5, 32, 128
OURS: dict[str, dict[str, Any]] = {
    "state": {"chunk": 1, "images": False},
    "pictures": {"chunk": 1},
    "pictures, chunks of 8": {"chunk": 8},
    "pictures, chunks of 8, light drawing": {"chunk": 8, "drawing": "light"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("simulators", nargs="*", default=list(SIMULATORS), metavar="simulator")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    figures = {name: _compare(name, asked.workers) for name in asked.simulators}
    print(json.dumps({"program": "benchmarks.rollout", **figures}))  # noqa: T201


def _compare(name: str, counts: list[int]) -> dict[str, Any]:
    bare, make = SIMULATORS[name]
    figures: dict[str, Any] = {}
    for workers in counts:
        for kind in ("state", "pictures"):
            with _bare_speed(bare, kind == "pictures", workers) as base:
                for arm, options in OURS.items():
                    if arm.startswith(kind):
                        figure = _ratio(make, base, workers, **options)
                        figures[f"{arm}, {workers} workers"] = figure
                        said = "ours {ours:7.1f}  bare {bare:7.1f}  x {ratio:5.2f}".format_map(figure)
                        print(f"{name:10s} {workers} {arm:40s} {said}", file=sys.stderr)  # noqa: T201
    return figures


def _ratio(
    make: Callable[..., ChunkEnv], bare: Callable[[], float], workers: int, chunk: int, **options: Any
) -> dict[str, float]:
    """Commands per second of both, by turns: the medians."""
    env = make(num_envs=workers, workers=workers, max_steps=STEPS, image_size=PIXELS, **options)
    actor = Stay(env.spec, chunk)
    rollout(env, actor, seed=0)  # the first pictures compile shaders
    commands = actor.act(env.reset(0)).commands
    speeds = []
    for repeat in range(REPEATS):
        env.reset(repeat)
        start = time.perf_counter()
        for _ in range(STEPS // chunk):
            env.play(commands)
        speeds.append((workers * STEPS / (time.perf_counter() - start), bare()))
    env.close()
    ours, base = np.median(speeds, axis=0).tolist()
    return {"ours": round(ours, 1), "bare": round(base, 1), "ratio": round(ours / base, 2)}


@contextmanager
def _bare_speed(bare: Callable[[bool], Callable[[], Any]], images: bool, workers: int) -> Iterator[Callable[[], float]]:
    """A function that runs the bare simulator in `workers` processes for a while: commands per second of all."""
    context = mp.get_context("spawn")
    pipes = [context.Pipe() for _ in range(workers)]
    processes = [context.Process(target=_step_raw, args=(bare, images, theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()

    def speed() -> float:
        for ours, _ in pipes:
            ours.send("go")
        return sum(ours.recv() for ours, _ in pipes)

    speed()
    yield speed
    for ours, _ in pipes:
        ours.send("stop")
    for process in processes:
        process.join()


def _step_raw(bare: Callable[[bool], Callable[[], Any]], images: bool, pipe: Any) -> None:
    torch.set_num_threads(1)
    step = bare(images)
    while pipe.recv() == "go":
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        pipe.send(STEPS / (time.perf_counter() - start))


def bare_maniskill(images: bool) -> Callable[[], Any]:
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401 -- registers the tasks

    env = gym.make(
        "PickCube-v1",
        obs_mode="rgb" if images else "state",
        control_mode="pd_ee_delta_pose",
        sim_backend="physx_cpu",
        render_backend="cpu",
        sensor_configs={"width": PIXELS, "height": PIXELS},
    )
    env.reset(seed=0)
    action = 0 * env.action_space.sample()
    return lambda: env.step(action)


def bare_robosuite(images: bool) -> Callable[[], Any]:
    import robosuite as suite

    env = suite.make(
        "Lift",
        robots="Panda",
        controller_configs=suite.load_controller_config(default_controller="OSC_POSE"),
        has_renderer=False,
        has_offscreen_renderer=images,
        use_camera_obs=images,
        camera_names="agentview",
        camera_heights=PIXELS,
        camera_widths=PIXELS,
        ignore_done=True,
    )
    env.reset()
    return lambda: env.step(np.zeros(7))


def bare_libero(images: bool) -> Callable[[], Any]:
    from simulators.libero_files import libero_assets, prepare, tasks_of

    prepare(str(libero_assets()))
    from libero.libero.envs import env_wrapper

    make = env_wrapper.OffScreenRenderEnv if images else env_wrapper.ControlEnv
    options = {} if images else {"use_camera_obs": False, "has_offscreen_renderer": False}
    task = tasks_of("libero_spatial", 0)[0]
    env = make(
        bddl_file_name=str(task.file),
        camera_names=["agentview"],
        camera_heights=PIXELS,
        camera_widths=PIXELS,
        ignore_done=True,
        **options,
    )
    env.reset()
    return lambda: env.step(np.zeros(7))


def _our_maniskill(**options: Any) -> ChunkEnv:
    return maniskill("PickCube-v1", backend="cpu", **options)


def _our_robosuite(**options: Any) -> ChunkEnv:
    return robosuite("Lift", cameras=["agentview"], **options)


def _our_libero(**options: Any) -> ChunkEnv:
    return libero("libero_spatial", task=0, cameras=["agentview"], **options)


SIMULATORS = {
    "maniskill": (bare_maniskill, _our_maniskill),
    "robosuite": (bare_robosuite, _our_robosuite),
    "libero": (bare_libero, _our_libero),
}

if __name__ == "__main__":
    main()
