"""MuJoCo scenes with one arm (robosuite's, LIBERO's) behind the common interface."""

import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from simulators.batch import SceneBatch
from simulators.drawing import View, Views, views_of
from simulators.mujoco_arm import Arm
from simulators.mujoco_cameras import Cameras
from simulators.mujoco_poses import Native, delta_between, inverse, rotate, to_tensor
from simulators.subprocess import SubprocessEnv
from vla.types import ChunkEnv, Command, CommandKind, EnvSpec, Observation, Step

Poses = Callable[[Arm], dict[str, Tensor]]
FITTED = "armature"  # the attribute of a simulator that holds our arm and cameras, since a stage may have several


@dataclass(frozen=True)
class Start:
    """An episode about to begin: the simulator in its first state, and what an expert may know.

    `privileged` reads what is where, in the base frame, from the arm's simulator as it is then.
    """

    env: Any
    instruction: str
    privileged: Poses


@runtime_checkable
class Stage(Protocol):
    """What `MujocoScene` needs of a suite of tasks."""

    control_hz: float
    max_steps: int

    def start(self, seed: int) -> Start: ...
    def restore(self, state: Any) -> Start: ...
    def fingerprint(self) -> dict[str, str]: ...
    def close(self) -> None: ...


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Without what robosuite and LIBERO say when they are imported, of files that only their authors have."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shut(env: Any) -> None:
    """Close a simulator and our cameras on it."""
    if hasattr(env, FITTED):
        getattr(env, FITTED)[1].close()
        delattr(env, FITTED)
    env.close()


def copies(stage: Callable[[], Stage], num_envs: int, workers: int, **options: Any) -> ChunkEnv:
    """`num_envs` scenes, each with a stage of its own, in this process or in `workers` others."""
    make = functools.partial(_scene, stage, **options)
    return SubprocessEnv(make, num_envs, min(workers, num_envs)) if workers else SceneBatch(make, num_envs)


def _scene(stage: Callable[[], Stage], **options: Any) -> "MujocoScene":
    return MujocoScene(stage(), **options)


class MujocoScene:
    """One copy of a robosuite or LIBERO task, of whichever its stage starts.

    Cameras are those named in `cameras`, `image_size` pixels square, drawn once at the end of a chunk; with
    `images=False` nothing is drawn. Proprio is that of the other simulators: measured position (m), first two columns
    of the rotation matrix, gripper opening, then how far the commanded pose is ahead of the measured one (m, rotation
    vector); `padding` adds named parts of so many zeros, for policies from where there was more to tell, `base` where
    the robot's base stands in the simulator's world (m). Success is the simulator's own verdict and ends an episode
    unless `ends_on_success=False`.
    """

    def __init__(
        self,
        stage: Stage,
        command: CommandKind = "ee_delta",
        image_size: int = 128,
        images: bool = True,
        cameras: Views = None,
        drawing: str = "full",
        padding: Mapping[str, int] | None = None,
        base: bool = False,
        max_steps: int | None = None,
        max_translation: float = 0.05,
        max_rotation: float = 0.2,
        ends_on_success: bool = True,
    ):
        self.stage, self.kind = stage, command
        self.views: dict[str, View] = (views_of(cameras) or {}) if images else {}
        self.image_size, self.drawing = image_size, drawing
        self.ends_on_success = ends_on_success
        self.padding, self.base = dict(padding or {}), base
        self._enter(stage.start(0))
        self.over = True  # nothing moves before the first reset
        self.last: Observation
        self.spec = EnvSpec(
            num_envs=1,
            control_hz=stage.control_hz,
            max_steps=max_steps or stage.max_steps,
            cameras=self.cameras.describe(),
            proprio=self._proprio_layout(),
            command=self._meaning(max_translation, max_rotation),
        )

    def reset(self, seed: int) -> Observation:
        self._enter(self.stage.start(seed))
        return self._begin()

    def restore(self, state: Any) -> Observation:
        """Start an episode from a recorded state: `state`, MuJoCo's flattened one, and `model`, its XML or None."""
        self._enter(self.stage.restore(state))
        self.arm.rest_here()
        return self._begin()

    def translate(
        self, action: Float[Tensor, "env native"], controller: str, settings: Mapping[str, Any]
    ) -> Float[Tensor, "env action"]:
        """An action of robosuite's OSC_POSE ([-1, 1], from the measured pose) at this moment as `ee_delta`.

        ValueError for another controller, or one set up differently from this arm's.
        """
        if controller != "OSC_POSE" or self.kind != "ee_delta":
            raise ValueError(
                f"only actions of OSC_POSE can be played again, as ee_delta, not of {controller} as {self.kind}"
            )
        self.arm.require_controller(settings)
        return torch.from_numpy(self.arm.translate(action[0].double().numpy())).float()[None]

    def get_state(self) -> dict[str, Any]:
        """The physical state, to go back to with `set_state`: MuJoCo's own plus the controller's goal and gripper."""
        size = mujoco.mj_stateSize(self.arm.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        physics = np.empty(size)
        mujoco.mj_getState(self.arm.model, self.arm.data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        bodies = self.arm.model.body_pos.copy(), self.arm.model.body_quat.copy()
        return {"physics": physics, "bodies": bodies, "arm": self.arm.get_state(), "start": self.start}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Start an episode from a state of `get_state`; the step count begins at zero."""
        self._enter(state["start"])
        self.arm.model.body_pos[:], self.arm.model.body_quat[:] = state["bodies"]
        mujoco.mj_setState(self.arm.model, self.arm.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        self.env.sim.forward()
        obs = self._begin()
        self.arm.set_state(state["arm"])
        mujoco.mj_setState(self.arm.model, self.arm.data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        return obs.replace(proprio=self._proprio(self.arm.measured(), self.arm.opening()))

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        step = self.play(command[:, None])
        return step.replace(executed=step.executed[:, 0])

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        """Play a chunk and draw once at its end; an episode that is over stays as it ended."""
        commands = chunk[0].detach().double().numpy()
        executed, rewards, ended = np.zeros_like(commands), torch.zeros(1, len(commands)), False
        successes: list[bool] = []  # of each command executed
        while not self.over and len(successes) < len(commands):
            executed[len(successes)] = self._apply(commands[len(successes)])
            rewards[0, len(successes)], success, ended = self._judge()
            successes.append(success)
            ended = ended or (success and self.ends_on_success)
            self.over = ended or self.steps + len(successes) >= self.spec.max_steps
        self.steps += len(successes)
        if successes:
            self.last = self._observe()
        return Step(
            obs=self.last.clone(),
            reward=rewards.sum(-1),
            rewards=rewards,
            success=torch.tensor([True in successes]),
            terminated=torch.tensor([ended]),
            truncated=torch.tensor([bool(successes) and self.over and not ended]),
            executed=torch.from_numpy(executed).float()[None],
            success_at_end=torch.tensor([successes[-1:] == [True]]),
            steps_to_success=torch.tensor([successes.index(True) + 1 if True in successes else 0]),
            num_steps=torch.tensor([len(successes)]),
            batch_size=[1],
        )

    def fingerprint(self) -> dict[str, str]:
        """What results depend on besides the configuration: the simulator's version, its assets, how it draws."""
        return {**self.stage.fingerprint(), "drawing": self.drawing}

    def close(self) -> None:
        self.stage.close()

    def _enter(self, start: Start) -> None:
        self.start, self.env = start, start.env
        if not hasattr(start.env, FITTED):
            arm = Arm(start.env, self.kind)
            cameras = Cameras(start.env, self.views, self.image_size, self.drawing, arm.base)
            setattr(start.env, FITTED, (arm, cameras))
        self.arm, self.cameras = getattr(start.env, FITTED)
        self.arm.begin()

    def _begin(self) -> Observation:
        self.over, self.steps = False, 0
        self.joints = self.arm.joints()
        self.last = self._observe()
        return self.last.clone()

    def _apply(self, command: Native) -> Native:
        """Play one command; returns what was really applied."""
        applied = self.arm.aim(command, self.spec.command) if self.kind == "ee_delta" else self._turn(command)
        self.action = self.arm.advance(applied[-1])
        return applied

    def _turn(self, command: Native) -> Native:
        joints, gripper = command[:-1], np.clip(command[-1:], 0, 1)
        if self.kind == "joint_delta":
            limit = self.spec.command.max_rotation or 0.0
            joints = np.clip(joints, -limit, limit)
            self.joints = self.joints + joints
        else:
            self.joints = joints
        self.arm.turn(self.joints)
        return np.concatenate([joints, gripper])

    def _judge(self) -> tuple[float, bool, bool]:
        """Reward, success, and whether the task ended for another reason than success."""
        reward, done, _ = self.env._post_action(self.action)
        verdict = float(reward), bool(self.env._check_success()), bool(done)
        self.env.sim.forward()  # a step leaves poses as they were before its last two milliseconds
        return verdict

    def _observe(self) -> Observation:
        measured, opening = self.arm.measured(), self.arm.opening()
        own = {"tcp": measured, "commanded": self.arm.commanded}
        privileged = {**self.start.privileged(self.arm), **{name: to_tensor(pose) for name, pose in own.items()}}
        return Observation(
            images=TensorDict(self.cameras.draw() if self.views else {}, [1]),
            proprio=self._proprio(measured, opening),
            instruction=[self.start.instruction],
            privileged=TensorDict({**privileged, "gripper": torch.tensor([[opening]])}, [1]),
            batch_size=[1],
        )

    def _proprio(self, measured: Native, opening: float) -> Float[Tensor, "1 proprio"]:
        x, y = (rotate(measured[3:], axis) for axis in np.eye(3)[:2])
        parts = [measured[:3], x, y, np.array([opening]), delta_between(measured, self.arm.commanded)]
        if self.kind != "ee_delta":
            parts.append(self.arm.joints())
        if self.base:
            parts.append(inverse(self.arm.to_base)[:3])
        parts.append(np.zeros(sum(self.padding.values())))
        return torch.from_numpy(np.concatenate(parts)).float()[None]

    def _proprio_layout(self) -> tuple[tuple[str, int], ...]:
        layout = [("position", 3), ("rotation", 6), ("gripper", 1), ("lead_position", 3), ("lead_rotation", 3)]
        joints = [("joint_position", self.arm.num_joints)] if self.kind != "ee_delta" else []
        base = [("base_position", 3)] if self.base else []
        return (*layout, *joints, *base, *self.padding.items())

    def _meaning(self, max_translation: float, max_rotation: float) -> Command:
        if self.kind == "ee_delta":
            return Command(self.kind, 7, max_translation, max_rotation)
        return Command(
            self.kind, self.arm.num_joints + 1, max_rotation=max_rotation if self.kind == "joint_delta" else None
        )
