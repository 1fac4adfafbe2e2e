"""Making ManiSkill's simulators: without questions, without downloads, every copy's episode by its own seed."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from simulators.maniskill_tasks import TASKS, Task


def make(
    task: str, num_envs: int, where: tuple[str, str], robot: str | None, sensors: dict[str, Any], reward: str
) -> tuple[int, Any]:
    """The task's registered time limit and the bare simulator; ValueError for what is not on this machine.

    `where` (cpu, gpu) it simulates and where it draws, if it simulates on the CPU.
    """
    from unittest import mock

    import gymnasium as gym
    from mani_skill.utils import download_asset
    from mani_skill.utils.logging_utils import logger
    from mani_skill.utils.registration import REGISTERED_ENVS

    backend, renderer = where
    check_task(task)
    logger.setLevel(logging.ERROR)  # it warns of every robot its authors did not list
    known = TASKS.get(task, Task(task, ""))
    _check_robot(robot)
    chosen: dict[str, Any] = {"robot_uids": robot or known.robot} if robot or known.robot else {}
    with mock.patch.object(download_asset, "prompt_yes_no", _refuse_download), _own_robot(task, robot):
        env = gym.make(
            task,
            num_envs=num_envs,
            obs_mode="none",  # we observe ourselves, only when asked
            control_mode="pd_joint_pos",
            reward_mode=_reward_mode(task, reward),
            sim_backend="physx_cpu" if backend == "cpu" else "physx_cuda",
            render_backend=renderer if backend == "cpu" else "gpu",
            sensor_configs=sensors,
            **chosen,
            **known.options,
        )
    if num_envs > 1:
        draw_one_by_one(env.unwrapped)
    return REGISTERED_ENVS[task].max_episode_steps, env.unwrapped


@contextmanager
def _own_robot(task: str, robot: str | None) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        if "robot_uids" not in str(error):
            raise
        raise ValueError(f"task {task} is made for its own robot and takes no other; leave out robot={robot}") from None


def _reward_mode(task: str, reward: str) -> str:
    """ManiSkill's name for a reward; a task without success has none where `sparse` is asked for."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    supported = REGISTERED_ENVS[task].cls.SUPPORTED_REWARD_MODES
    if reward in supported:
        return reward
    if reward == "sparse" and "none" in supported:
        return "none"
    raise ValueError(f"task {task} has no reward {reward!r}, only {', '.join(supported)}")


def _check_robot(robot: str | None) -> None:
    from mani_skill.agents.registration import REGISTERED_AGENTS

    if robot is not None and robot not in REGISTERED_AGENTS:
        raise ValueError(f"ManiSkill has no robot {robot!r}, only {', '.join(sorted(REGISTERED_AGENTS))}")


def draw_one_by_one(sim: Any) -> None:
    """Let every copy of a batched simulator draw its episode from its own seed, as if it were alone.

    ManiSkill draws a whole batch from its first seed, so an episode would depend on how many are played beside it.
    """
    draw_batch = sim._initialize_episode

    def draw_each(env_idx: Tensor, options: dict[str, Any]) -> None:
        for i in env_idx.tolist():
            sim.scene._reset_mask[:] = False
            sim.scene._reset_mask[i] = True
            sim._episode_rng = sim._batched_episode_rng[i]
            torch.manual_seed(int(sim._episode_seed[i]))  # the simulator's `reset` restores the state
            draw_batch(torch.tensor([i], device=env_idx.device), options)
        sim.scene._reset_mask[env_idx] = True

    sim._initialize_episode = draw_each


def _refuse_download(question: str) -> bool:
    """In place of the simulator's own question, which a program cannot answer."""
    what = question.partition(" Would")[0]
    raise ValueError(f"{what} They are not on this machine; `python -m mani_skill.utils.download_asset` gets them")


def check_task(task: str) -> None:
    """Raise ValueError unless `task` is registered and all it needs is on this machine; never asks or downloads."""
    import mani_skill.envs  # noqa: F401 -- registers the tasks
    from mani_skill.utils.registration import REGISTERED_ENVS

    if task not in REGISTERED_ENVS:
        known = ", ".join(sorted(TASKS))
        raise ValueError(f"ManiSkill has no task {task!r}; tasks that need no download: {known}")
    if missing := _missing(REGISTERED_ENVS[task].asset_download_ids or []):
        raise ValueError(
            f"task {task} needs {', '.join(missing)}, which is not on this machine; get it with "
            f"`python -m mani_skill.utils.download_asset {task}`"
        )


def _missing(names: Sequence[str]) -> list[str]:
    """Those of the data sources, or of what groups of them stand for, that are not on this machine."""
    from mani_skill.utils.assets import data

    groups = [
        x for name in names for x in ([name] if name in data.DATA_SOURCES else data.DATA_GROUPS.get(name, [name]))
    ]
    return [x for x in groups if x not in data.DATA_SOURCES or not data.is_data_source_downloaded(x)]
