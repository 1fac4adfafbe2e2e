"""One scene of each simulator, for tests that measure the arm; and LIBERO's assets, where a test may use them."""

import functools
import os
import tarfile
from pathlib import Path

import pytest
import torch
from twins import ROOM, standing

from simulators.libero import libero
from simulators.libero_files import ASSETS, CHECKOUT, libero_assets
from simulators.maniskill import ManiSkillEnv
from simulators.robosuite import robosuite

ARCHIVES = (CHECKOUT / "data/libero_assets.tar.xz", CHECKOUT.parent / "shared/data/libero_assets.tar.xz")
# So that a robot does in a step what simulators do, where a command is measured.
WIDE = {"limits": {**ROOM, "acceleration": 100.0, "angular_acceleration": 1000.0, "lead": 0.2, "angular_lead": 1.0}}
SHORT = {"libero": "libero_spatial"}


@functools.cache
def assets() -> str:
    """LIBERO's assets: those that are found, or an archive unpacked into `data/`; without any, the test is skipped."""
    try:
        return str(libero_assets())
    except ValueError as error:
        archive = next((path for path in ARCHIVES if path.is_file()), None)
        if archive is None or os.environ.get(ASSETS):
            pytest.skip(f"LIBERO's assets are not on this machine: {error}")
    target = CHECKOUT / "data"
    target.mkdir(exist_ok=True)
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    return str(libero_assets(Path(target) / "libero_assets"))


def scene(simulator: str, task: str, **options):
    """One copy; `task` of LIBERO is `suite:number`, a robot's is the scene of its twin."""
    if simulator == "franka":
        return standing("127.0.0.18", max_translation=0.05, max_rotation=0.2, **WIDE, **{**options, "images": False})
    if simulator == "maniskill":
        return ManiSkillEnv(task, **options)
    if simulator == "robosuite":
        return robosuite(task, 1, **options).scenes[0]
    suite, _, number = task.partition(":")
    return libero(suite, 1, task=int(number), assets=assets(), **options).scenes[0]


def settle(env, gripper: float = 1.0, steps: int = 20):
    """The observation after a second of rest."""
    rest = torch.tensor([[0.0] * 6 + [gripper]])
    return [env.step(rest) for _ in range(steps)][-1].obs


def settled_pose(env, seed: int = 0):
    env.reset(seed)
    return settle(env).privileged["tcp"]


def project(camera, point):
    """Row and column of a point in the robot's base frame, by the pinhole camera of the spec."""
    from vla import geometry

    pose = torch.tensor(camera.pose)
    seen = geometry.rotate(geometry.conjugate(pose[3:]), point - pose[:3])
    u, v, w = torch.tensor(camera.intrinsics) @ seen
    return torch.stack([v / w, u / w])


def move_object(env, name: str, offset):
    """Put a thing elsewhere (metres, base frame, which no simulator here turns against its world)."""
    if isinstance(env, ManiSkillEnv):
        from mani_skill.utils.structs import Pose

        actor = env.sim.scene.actors[name]
        pose = actor.pose.raw_pose.clone()
        pose[:, :3] += torch.tensor(offset)
        actor.set_pose(Pose.create(pose))
        return
    things = {thing.name: thing for thing in env.env.model.mujoco_objects}
    joint = env.arm.model.joint(things[name].joints[-1]).qposadr[0]
    env.arm.data.qpos[joint : joint + 3] += torch.tensor(offset).numpy()
    env.env.sim.forward()
