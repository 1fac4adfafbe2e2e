"""ManiSkill 3 tasks behind the common interface: `ee_delta` or joint commands, cameras, privileged poses.

`ee_delta` does not use ManiSkill's own `pd_ee_delta_pose`, whose rotation sign is inverted and whose deltas start from
the measured pose: we keep the commanded pose ourselves, solve for joint angles and command those.
"""

import functools
import hashlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor

from simulators.arms import Arm
from simulators.batch import SceneBatch, require_counts
from simulators.drawing import Views, chosen, describe, place, sensor_configs, views_of
from simulators.maniskill_make import make
from simulators.maniskill_native import NativeController, restore
from simulators.maniskill_tasks import TASKS, parts
from simulators.meshes import simplify_visuals
from simulators.rendering import require_vulkan
from simulators.subprocess import SubprocessEnv
from simulators.tally import Tally
from vla import geometry
from vla.types import ChunkEnv, Command, CommandKind, EnvSpec, Observation, Step

SCENERY = ("ground", "table-workspace", "canvas", "camera_mount", "dot_")  # no place in `privileged`: names begin so
LEASH = (0.1, 0.8)  # how far the commanded pose may lead the measured one: metres, radians


def maniskill(task: str, num_envs: int, workers: int = 0, backend: str = "auto", **options: Any) -> ChunkEnv:
    """`num_envs` copies of a ManiSkill task, on the GPU in one batch or on the CPU in `workers` processes.

    `workers=0` keeps every CPU scene in this process. Where there is a GPU it draws, if it can, also what the CPU
    simulates. `options` are those of `ManiSkillEnv`. Raises ValueError for a task that is not there or would start a
    download, RuntimeError where nothing can render.
    """
    if backend not in ("auto", "cpu", "gpu"):
        raise ValueError(f"backend must be auto, cpu or gpu, got {backend!r}")
    require_counts(num_envs, workers)
    if backend == "gpu" or (backend == "auto" and torch.cuda.is_available()):
        require_vulkan()
        return ManiSkillEnv(task, num_envs=num_envs, backend="gpu", **options)
    renderer = require_vulkan() if torch.cuda.is_available() else "cpu"
    scene = functools.partial(ManiSkillEnv, task, **{"renderer": renderer, **options})
    if workers == 0:
        require_vulkan()
        return SceneBatch(scene, num_envs)
    try:
        return SubprocessEnv(scene, num_envs, min(workers, num_envs))
    except RuntimeError:  # a driver that does not work may have killed the worker
        require_vulkan()
        raise


class ManiSkillEnv:
    """One CPU scene, or `num_envs` GPU ones, of a ManiSkill task.

    Cameras are the task's own (with `robot="panda_wristcam"` also one in the hand) or those of them named in `cameras`,
    `image_size` pixels square; a mapping says for each what to change (`drawing.View`). `drawing="light"` leaves out
    shadows, gloss and most of the robot's triangles, which makes CPU rendering several times faster. With
    `images=False` nothing is rendered.

    Proprio: measured position (m), first two columns of the rotation matrix, gripper opening, then how far the
    commanded pose is ahead of the measured one (m, rotation vector); a goal that cameras are not shown is told as
    `goal_offset`, from the tool. With `poses_told` so is every thing there is: `cube_offset` (m) and `cube_rotation`,
    say, two columns of its matrix. All poses are in the robot's base frame. Success is the task's own; with
    `ends_on_success` it ends the episode, as the task's own failure always does.
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        backend: str = "cpu",
        renderer: str = "cpu",
        command: CommandKind = "ee_delta",
        robot: str | None = None,
        image_size: int = 128,
        images: bool = True,
        cameras: Views = None,
        drawing: str = "full",
        reward: str = "sparse",
        max_steps: int | None = None,
        max_translation: float = 0.05,
        max_rotation: float = 0.2,
        ends_on_success: bool = True,
        poses_told: bool = False,
    ):
        self.task, self.drawing, self.ends_on_success = task, drawing, ends_on_success
        self.poses_told = poses_told
        self.lighter = drawing == "light" and images and backend == "cpu"
        self.instruction = TASKS[task].instruction if task in TASKS else task.removesuffix("-v1")
        views = views_of(cameras)
        seen_by = sensor_configs(drawing, image_size, views)
        registered_steps, self.sim = make(task, num_envs, (backend, renderer), robot, seen_by, reward)
        ink = getattr(self.sim, "MAX_DOTS", None)
        if ink is not None and (max_steps or 0) > ink:
            raise ValueError(f"task {task} has ink for {ink} steps, got max_steps={max_steps}")
        self.device = self.sim.device
        self.cameras = chosen(self.sim._sensors, views) if images else {}
        self.arm = Arm(self.sim, task, command)
        self.sim.reset(seed=0 if num_envs == 1 else list(range(num_envs)))
        self.base = _pose_xyzw(self.sim.agent.robot.pose)
        self._draw_as_wanted()
        self.over = torch.ones(num_envs, dtype=torch.bool)  # nothing moves before the first reset
        self.native: NativeController | None
        self.last: Observation
        self.seed = 0
        self.measured: Float[Tensor, "env 7"]  # since the last control step
        self.commanded: Float[Tensor, "env 7"]
        self.joints: Float[Tensor, "env joints"]
        self.spec = EnvSpec(
            num_envs=num_envs,
            control_hz=float(self.sim.control_freq),
            max_steps=max_steps or registered_steps,
            cameras=tuple(describe(name, self.sim._sensors[name], self.base) for name in self.cameras),
            proprio=self._proprio_layout(command),
            command=self._meaning(command, max_translation, max_rotation),
        )

    def reset(self, seed: int) -> Observation:
        """Start episode i from `seed + i`; on the GPU, shapes that a task draws while it builds its scene stay."""
        n, self.seed = self.spec.num_envs, seed
        self.sim.reset(seed=seed if n == 1 else [seed + i for i in range(n)])
        return self._begin()

    def get_state(self) -> dict[str, Any]:
        """The physical state, to go back to with `set_state`: ManiSkill's own plus what we command.

        What PhysX remembers of contacts is not in it: after a touch an episode goes on within a millimetre only.
        """
        return {
            "seed": self.seed,  # some tasks build things of another shape for each episode
            "sim": self.sim.get_state().cpu().clone(),
            "commanded": self.commanded.clone(),
            "joints": self.joints.clone(),
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Start an episode from a state of `get_state`; the step count begins at zero."""
        if self.sim.reconfiguration_freq and self.seed != state["seed"]:
            self.reset(state["seed"])
        self.sim.set_state(state["sim"].to(self.device))
        obs = self._begin()
        self.commanded, self.joints = state["commanded"].clone(), state["joints"].clone()
        return obs.replace(proprio=self._proprio()) if obs.proprio is not None else obs

    def restore(self, state: Mapping[str, Any]) -> Observation:
        restore(self.sim, state)
        return self._begin()

    def translate(
        self, action: Float[Tensor, "env native"], controller: str, settings: Mapping[str, Any]
    ) -> Float[Tensor, "env action"]:
        """The command that goes from here to where ManiSkill's `controller` would; ask once per step."""
        self.native = self.native or NativeController(self, controller)
        return self.native.command(action)

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        step = self.play(command[:, None])
        return step.replace(executed=step.executed[:, 0])

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        """Play a chunk and render once at its end; an episode that is over stays as it ended."""
        tally = Tally(chunk)
        for t, command in enumerate(chunk.unbind(1)):
            alive = ~self.over
            if not alive.any():
                break
            self.steps += 1
            tally.add(alive, *self._advance(command), out_of_time=self.steps >= self.spec.max_steps)
            self.over = self.over | tally.over
            self._remember(alive, last=t + 1 == chunk.shape[1])
        return tally.step(self.last.clone())

    def fingerprint(self) -> dict[str, str]:
        """What results depend on besides the options: versions, physics and its settings, who draws and how."""
        versions = [f"{name} {metadata.version(name)}" for name in ("mani-skill", "sapien")]
        backend, settings = self.sim.backend, repr(self.sim.sim_config)
        return {
            "task": self.task,
            "simulator": ", ".join(versions),
            "physics": f"{backend.sim_backend}, settings {hashlib.sha256(settings.encode()).hexdigest()[:12]}",
            "drawing": f"{self.drawing}, by the {backend.render_backend}" if self.cameras else "none",
        }

    def close(self) -> None:
        self.sim.close()

    def _begin(self) -> Observation:
        self._draw_as_wanted()
        self.base = _pose_xyzw(self.sim.agent.robot.pose)
        self.over = torch.zeros(self.spec.num_envs, dtype=torch.bool)
        self.steps = 0
        self.native = None
        self.measured = self._measure()
        self.commanded = self.measured
        self.joints = self.arm.angles().clone()
        self.last = self._observe()
        return self.last.clone()

    def _draw_as_wanted(self) -> None:
        """Again at every reset, since a task may rebuild its scene."""
        for scene in self.sim.scene.sub_scenes if self.lighter else ():
            simplify_visuals(scene)
        for name, view in self.cameras.items():
            place(self.sim._sensors[name].camera, view, self.sim.agent.robot.pose)

    def _remember(self, alive: Bool[Tensor, " env"], *, last: bool) -> None:
        """Observe where an episode just ended, and all that go on at the end of the chunk."""
        fresh = alive if last else alive & self.over
        if fresh.any():
            seen = self._observe()
            self.last = seen if fresh.all() else seen.where(fresh, self.last)

    def _advance(self, command: Float[Tensor, "env action"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One control step; returns the command really applied, the reward, success and termination."""
        gripper = command[:, -1:].clamp(0, 1)
        if self.spec.command.kind == "ee_delta":
            applied = self._aim(geometry.limit_ee_delta(command, self.spec.command), gripper)
        else:
            applied = self._turn_joints(command[:, :-1], gripper)
        _, reward, terminated, _, info = self.sim.step(self.arm.native(self.joints, gripper))
        self.measured = self._measure()
        success = info.get("success", torch.zeros_like(terminated))
        terminated = terminated if self.ends_on_success else info.get("fail", torch.zeros_like(terminated))
        return applied, reward.float().cpu(), success.bool().cpu(), terminated.bool().cpu()

    def _aim(self, command: Float[Tensor, "env 7"], gripper: Float[Tensor, "env 1"]) -> Float[Tensor, "env 7"]:
        """Move the commanded pose and find joint angles for it; where there are none, stay."""
        wanted = geometry.advance(self.commanded, self.measured, command, LEASH)
        joints, found = self.arm.solve(wanted)
        applied = geometry.delta_between(self.commanded, wanted, gripper)
        self.joints = torch.where(found[:, None].to(self.device), joints, self.joints)
        self.commanded = torch.where(found[:, None], wanted, self.commanded)
        return torch.cat([applied[:, :6] * found[:, None], gripper], -1)

    def _turn_joints(self, command: Float[Tensor, "env joints"], gripper: Tensor) -> Float[Tensor, "env action"]:
        command = command.to(self.device)
        if self.spec.command.kind == "joint_delta":
            limit = self.spec.command.max_rotation or 0.0
            command = command.clamp(-limit, limit)
            self.joints = self.joints + command
        else:
            self.joints = command
        self.commanded = self.measured
        return torch.cat([command.cpu(), gripper], -1)

    def _observe(self) -> Observation:
        n = self.spec.num_envs
        objects = self._objects()
        poses = self._in_base(*objects.values())
        privileged = dict(zip(objects, poses, strict=True))
        return Observation(
            images=TensorDict(self._render() if self.cameras else {}, [n]),
            proprio=self._proprio(),
            instruction=[self.instruction] * n,
            privileged=TensorDict(
                {
                    **privileged,
                    "tcp": self.measured.clone(),
                    "commanded": self.commanded.clone(),
                    "gripper": self.arm.opening(),
                },
                [n],
            ),
            batch_size=[n],
        )

    def _render(self) -> dict[str, Tensor]:
        for hidden in self.sim._hidden_objects:
            hidden.hide_visual()
        self.sim.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        pictures = {}
        for name in self.cameras:
            sensor = self.sim._sensors[name]
            sensor.capture()
            seen = sensor.get_obs(rgb=True, depth=False, segmentation=False, position=False)
            pictures[name] = seen["rgb"].to("cpu", torch.uint8, copy=True)
        return pictures

    def _proprio(self) -> Float[Tensor, "env proprio"]:
        measured = self.measured
        opening = self.arm.opening()
        ahead = geometry.delta_between(measured, self.commanded, opening)[:, :6]
        parts = [measured[:, :3], *_axes(measured), opening, ahead]
        if self.spec.command.kind != "ee_delta":
            parts.append(self.arm.angles().cpu())
        if self.goal is not None:
            parts.append(self._in_base(self.goal.pose)[0][:, :3] - measured[:, :3])
        for pose in self._in_base(*self._objects().values()) if self.poses_told else ():
            parts += [pose[:, :3] - measured[:, :3], *_axes(pose)]
        return torch.cat(parts, -1)

    def _meaning(self, kind: CommandKind, max_translation: float, max_rotation: float) -> Command:
        if kind == "ee_delta":
            return Command(kind, 7, max_translation, max_rotation)
        return Command(kind, self.arm.num_joints + 1, max_rotation=max_rotation if kind == "joint_delta" else None)

    def _proprio_layout(self, command: CommandKind) -> tuple[tuple[str, int], ...]:
        layout = [("position", 3), ("rotation", 6), ("gripper", 1), ("lead_position", 3), ("lead_rotation", 3)]
        if command != "ee_delta":
            layout.append(("joint_position", self.arm.num_joints))
        if self.goal is not None:
            layout.append(("goal_offset", 3))
        for name in self._objects() if self.poses_told else ():
            layout += [(f"{name}_offset", 3), (f"{name}_rotation", 6)]
        return tuple(layout)

    @property
    def goal(self) -> Any:
        """What cameras are not shown but a policy must know, if there is such a thing."""
        return next((x for x in self.sim._hidden_objects if "goal" in x.name), None)

    def _objects(self) -> dict[str, Any]:
        """Poses by name; things that differ in shape from copy to copy count as one (`scene.actors` has them apart)."""
        actors = self.sim.scene.state_dict_registry.actors
        things = {name: actor.pose for name, actor in actors.items() if not name.startswith(SCENERY)}
        return things | parts(self.sim)

    def _measure(self) -> Float[Tensor, "env 7"]:
        return self._in_base(self.arm.tool)[0]

    def _in_base(self, *poses: Any) -> Float[Tensor, "pose env 7"]:
        """Poses of the simulator in the base frame, in one go: many small operations cost more than the physics."""
        if not poses:
            return torch.zeros(0, self.sim.num_envs, 7)
        native = torch.stack([pose.raw_pose for pose in poses]).cpu()
        return geometry.to_frame(
            self.base.expand_as(native), torch.cat([native[..., :3], geometry.wxyz_to_xyzw(native[..., 3:])], -1)
        )


def _axes(pose: Float[Tensor, "env 7"]) -> Float[Tensor, "2 env 3"]:
    """The first two columns of its rotation matrix."""
    x, y = torch.eye(3)[:2, None].expand(2, len(pose), 3)
    return geometry.rotate(pose[:, 3:].expand(2, -1, 4), torch.stack([x, y]))


def _pose_xyzw(pose: Any) -> Float[Tensor, "env 7"]:
    raw = pose.raw_pose.detach().cpu().clone()
    return torch.cat([raw[:, :3], geometry.wxyz_to_xyzw(raw[:, 3:])], -1)
