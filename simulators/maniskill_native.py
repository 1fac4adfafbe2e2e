"""ManiSkill's own states and controllers: what a recorded trajectory starts from, and what its actions aim at."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vla import geometry


def restore(sim: Any, state: Mapping[str, Any]) -> None:
    """Put `sim` into a state of ManiSkill's recorder: `seed` (what its scene is built from), `actors`, `articulations`.

    ValueError names what the scene and the state do not have in common.
    """
    if not isinstance(state, Mapping):
        raise ValueError("recorded episodes are played again one by one on the CPU: set env.backend=cpu")
    sim.reset(seed=state.get("seed"))
    parts = {kind: dict(state.get(kind, {})) for kind in ("actors", "articulations")}
    ours = sim.get_state_dict()
    for kind, things in parts.items():
        if lacking := things.keys() ^ ours.get(kind, {}).keys():
            raise ValueError(
                f"{sorted(lacking)} is in only one of the recorded state and this scene: is env.task right?"
            )
        for name, values in things.items():
            if len(values) != (size := ours[kind][name].shape[-1]):
                raise ValueError(
                    f"{name} has {len(values)} numbers in the recorded state, {size} here: env.robot differs"
                )
    sim.set_state_dict({kind: {k: torch.as_tensor(v)[None] for k, v in x.items()} for kind, x in parts.items()})


class NativeController:
    """One of the arm's own controllers, asked only where it would go; it never moves the arm.

    It is the simulator's code that says what an action means: its scale, signs, frame and rotation code. Made at the
    start of an episode and asked once per step, since a `target` controller counts from where it last aimed.
    """

    def __init__(self, env: Any, mode: str):
        self.env, agent = env, env.sim.agent
        if mode not in agent.supported_control_modes:
            raise ValueError(f"the robot has no controller {mode!r}, only {', '.join(agent.supported_control_modes)}")
        present = agent.control_mode
        agent.set_control_mode(mode)
        self.controller = agent.controller
        self.controller.reset()
        agent.set_control_mode(present)
        self.arm = self.controller.controllers["arm"]
        if not getattr(self.arm, "sets_target_qpos", False) or getattr(self.arm, "sets_target_qvel", False):
            raise ValueError(f"{mode} commands speeds, which none of our commands is: convert the file to positions")

    def command(self, action: Float[Tensor, "env native"]) -> Float[Tensor, "env action"]:
        """The environment's command that goes where `action` would from here."""
        if action.shape[-1] != (size := self.controller.action_space.shape[-1]):
            raise ValueError(f"an action of this controller has {size} numbers, got {action.shape[-1]}")
        env = self.env
        self.controller.set_action(action.to(env.device))
        joints = self.arm._target_qpos.clone()
        gripper = (action[:, -1:] / 2 + 0.5).clamp(0, 1) if env.arm.has_gripper else torch.zeros(len(action), 1)
        if env.spec.command.kind == "ee_delta":
            return geometry.delta_between(env.commanded, self._pose(joints), gripper)
        start = env.joints if env.spec.command.kind == "joint_delta" else torch.zeros_like(joints)
        return torch.cat([(joints - start).cpu(), gripper], -1)

    def _pose(self, joints: Float[Tensor, "env joints"]) -> Float[Tensor, "env 7"]:
        """The tool's pose that the controller aims at, in the base frame; where the joints put it if it has none."""
        pose = getattr(self.arm, "_target_pose", None)
        if pose is None:
            return forward(self.env.arm.solver, self.env.sim.agent.robot.get_qpos(), joints)
        raw = pose.raw_pose.cpu()
        return torch.cat([raw[:, :3], geometry.wxyz_to_xyzw(raw[:, 3:])], -1)


def forward(kinematics: Any, qpos: Float[Tensor, "1 all"], joints: Float[Tensor, "1 joints"]) -> Float[Tensor, "1 7"]:
    """Where the tool is, in the base frame, with the arm's joints at `joints` (radians); of one CPU scene."""
    qpos = qpos.clone()
    qpos[:, kinematics.active_joint_indices] = joints
    kinematics.pmodel.compute_forward_kinematics(qpos[0, kinematics.pmodel_active_joint_indices].double().numpy())
    pose = kinematics.pmodel.get_link_pose(kinematics.end_link_idx)
    return torch.cat([torch.tensor(pose.p).float(), geometry.wxyz_to_xyzw(torch.tensor(pose.q).float())])[None]
