"""The arm of a robosuite environment in metres, radians and our tool frame: reading it, aiming it, stepping it.

robosuite's own action is relative to the measured pose and its gripper's only has a sign. We set the goal of the same
controllers directly, so that commands accumulate on the commanded pose, and step the physics as robosuite does, without
the observations that nobody reads.
"""

import math
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float
from torch import Tensor

from simulators import mujoco_poses as poses
from simulators.mujoco_poses import Native
from vla.types import Command, CommandKind

LEASH = (0.05, 0.87)  # as far as robosuite's own actions reach ahead of the measured pose: metres per axis, radians
CONTROLLERS = {"ee_delta": "OSC_POSE", "joint_position": "JOINT_POSITION", "joint_delta": "JOINT_POSITION"}
TRAVEL = {  # of a gripper's joints, where it is shut and where it is open
    "PandaGripper": (((0.0, 0.0), (0.04, -0.04))),
    "Robotiq85Gripper": ((0.42,), (-0.05,)),
    "Robotiq140Gripper": ((0.5,), (0.02,)),
    "JacoThreeFingerGripper": ((0.0,), (1.51,)),
}
TO_TOOL = np.array([0.0, 0, 0, 0.5**0.5, 0, 0, 0.5**0.5])  # robosuite's fingers close along x, ours along y
FROM_TOOL = poses.inverse(TO_TOOL)


class Arm:
    """One environment's arm. The tool frame: z out of the hand, the fingers close along y.

    Poses (`mujoco_poses`) are in the base frame.

    Raises ValueError where there is not exactly one arm.
    """

    def __init__(self, env: Any, kind: CommandKind):
        if len(env.robots) != 1 or type(env.robots[0]).__name__ != "SingleArm":
            raise ValueError(f"{type(env).__name__} is not for one arm")
        self.env, self.kind, self.robot = env, kind, env.robots[0]
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.site = self.model.site(self.robot.gripper.important_sites["grip_site"]).id
        base = self.data.body(self.robot.robot_model.root_body)
        self.base = poses.pose_of(base.xpos, base.xquat)
        self.to_base = poses.inverse(self.base)
        self.num_joints = len(self.robot.robot_joints)
        self.substeps = round(env.control_timestep / env.model_timestep)
        gripper = self.robot.gripper
        self.has_gripper = gripper.dof > 0
        self.motors = self.robot._ref_joint_actuator_indexes
        self.finger_motors = [self.model.actuator(x).id for x in gripper.actuators]
        self.sense = self._sense_of_closing()
        self.speed = getattr(gripper, "speed", 1.0)  # of the gripper's command from -1, open, to 1, per substep
        self.fingers = [self.model.joint(x).qposadr[0] for x in gripper.joints]
        shut, wide = TRAVEL.get(type(gripper).__name__, ((0.0,), (1.0,)))
        self.shut, self.wide = np.array(shut), np.array(wide)
        self.begin()

    @property
    def controller(self) -> Any:
        """The part that differs in robosuite 1.5, whose robots have one controller per part."""
        return self.robot.controller if hasattr(self.robot, "controller") else self.robot.part_controllers["right"]

    def begin(self) -> None:
        """As after a reset: the commanded pose is where the arm is, the gripper's command where robosuite has it."""
        self.env.sim.forward()  # a step leaves poses as they were before its last two milliseconds
        fingers = self.robot.gripper.current_action if self.has_gripper else np.zeros(1)
        self.closing = self.sense * float(np.ravel(fingers)[0])  # the gripper's command: -1 open, 1 closed
        self.hold()

    def hold(self) -> None:
        """Command the arm to stay where it is."""
        self.commanded = self.measured()
        self.controller.update(force=True)
        if self.kind == "ee_delta":
            self._aim_at(self.commanded)
        else:
            self._turn_to(self.joints())

    def rest_here(self) -> None:
        """As if long so: the spare freedom tends to these joint angles, the gripper was sent to where it is."""
        self.controller.initial_joint = self.joints()
        target = round(1 - 2 * self.opening())  # a reset leaves it half open: 0
        for _ in range(round(abs(target - self.closing) / self.speed) if self.has_gripper else 0):
            self.robot.gripper.format_action(np.sign(np.full(1, target - self.closing)))
        self.closing = float(target) if self.has_gripper else self.closing

    def get_state(self) -> dict[str, Any]:
        goal = {x: np.copy(v) for x in GOALS if (v := getattr(self.controller, x, None)) is not None}
        fingers = np.copy(self.robot.gripper.current_action) if self.has_gripper else None
        return {"commanded": self.commanded.copy(), "closing": self.closing, "goal": goal, "fingers": fingers}

    def set_state(self, state: dict[str, Any]) -> None:
        self.commanded, self.closing = state["commanded"].copy(), state["closing"]
        self.controller.update(force=True)
        for name, value in state["goal"].items():
            setattr(self.controller, name, np.copy(value))
        if self.has_gripper:
            self.robot.gripper.current_action = np.copy(state["fingers"])

    def measured(self) -> Native:
        """Where the tool is."""
        site = poses.pose_of(self.data.site_xpos[self.site], self.data.site_xmat[self.site])
        return poses.compose(self.to_base, poses.compose(site, TO_TOOL))

    def joints(self) -> Native:
        return self.data.qpos[self.robot._ref_joint_pos_indexes].copy()

    def opening(self) -> float:
        """How far the gripper is open, measured, from 0 to 1."""
        if not self.has_gripper:
            return 0.0
        fingers = self.data.qpos[self.fingers[: len(self.shut)]]
        return float(np.clip(np.mean((fingers - self.shut) / (self.wide - self.shut)), 0, 1))

    def in_base(self, position: Native, rotation: Native) -> Float[Tensor, "1 7"]:
        """A pose of the simulator's world (`mujoco_poses.pose_of`) in the base frame, as observations have it."""
        return poses.to_tensor(poses.compose(self.to_base, poses.pose_of(position, rotation)))

    def aim(self, command: Native, meaning: Command) -> Native:
        """Move the commanded pose by an `ee_delta` command within its limits; returns what was really applied."""
        delta = poses.limit_ee_delta(command, meaning)
        wanted = poses.advance(self.commanded, self.measured(), delta, LEASH)
        applied = np.append(poses.delta_between(self.commanded, wanted), delta[6])
        self.commanded = wanted
        self._aim_at(wanted)
        return applied

    def turn(self, joints: Native) -> None:
        """Command joint angles (radians)."""
        self._turn_to(joints)
        self.commanded = self.measured()

    def advance(self, gripper: float) -> Native:
        """One control step towards the goal, the gripper towards `gripper` from 0 closed to 1; returns the action."""
        target = 1 - 2 * min(max(float(gripper), 0.0), 1.0)
        action = np.zeros(self.env.action_dim)
        low, high = self.robot.torque_limits
        for substep in range(self.substeps):
            torques = self.controller.run_controller()
            self.data.ctrl[self.motors] = np.minimum(np.maximum(torques, low), high)
            missing = target - self.closing
            sign = math.copysign(1.0, missing) if abs(missing) > self.speed / 2 else 0.0
            if self.has_gripper and (sign or substep == 0):
                action[-1] = sign
                self._pull_fingers(action[-1:])
            mujoco.mj_step2(self.model, self.data)  # the controller has computed all that comes first in a step
        self.robot.recent_ee_forcetorques.push(np.concatenate([self.robot.ee_force, self.robot.ee_torque]))
        self.env.timestep += 1
        self.env.cur_time += self.env.control_timestep
        return action

    def require_controller(self, settings: Mapping[str, Any]) -> None:
        """ValueError unless `settings`, as robosuite writes them, are those of this arm's controller."""
        for name in ("output_max", "output_min", "input_max", "input_min", "kp", "damping_ratio", "control_delta"):
            ours = self.robot.controller_config.get(name)
            if name in settings and not np.allclose(settings[name], ours):
                raise ValueError(f"the recording's controller has {name} {settings[name]}, this one {ours}")

    def translate(self, action: Native) -> Native:
        """robosuite's own action (OSC_POSE, from the measured pose) at this moment as our `ee_delta` command."""
        reach = self.controller.scale_action(action[:6])
        tool = self.measured()
        way, axis = (poses.rotate(self.to_base[3:], x) for x in (reach[:3], reach[3:]))
        turned = bool(np.any(reach[3:] != 0))  # exactly as robosuite: without a turn the goal's rotation stays
        goal = poses.pose_of(tool[:3] + way, poses.turn(axis, tool) if turned else self.commanded[3:])
        sign = float(np.sign(action[-1]))
        gripper = (1 - sign) / 2 if sign else (1 - self.closing) / 2
        return np.append(poses.delta_between(self.commanded, goal), gripper)

    def _sense_of_closing(self) -> float:
        """The sign with which the first number of the gripper's own command grows as it closes."""
        if not self.has_gripper:
            return 1.0
        before = np.copy(self.robot.gripper.current_action)
        after = self.robot.gripper.format_action(np.ones(1))
        grown = np.sign(np.ravel(after)[0] - np.ravel(before)[0])
        self.robot.gripper.current_action = before
        return float(grown) or 1.0

    def _pull_fingers(self, action: Native) -> None:
        """robosuite's own action for its gripper, for a step of the physics: the sign in which its command moves."""
        self.closing = min(max(self.closing + self.speed * float(action[0]), -1.0), 1.0)
        low, high = self.model.actuator_ctrlrange[self.finger_motors].T
        self.data.ctrl[self.finger_motors] = (low + high) / 2 + (high - low) / 2 * self.robot.gripper.format_action(
            action
        )

    def _aim_at(self, pose: Native) -> None:
        world = poses.compose(self.base, poses.compose(pose, FROM_TOOL))
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, world[3:])
        self.controller.set_goal(np.zeros(6), set_pos=world[:3], set_ori=matrix.reshape(3, 3))

    def _turn_to(self, joints: Native) -> None:
        self.controller.set_goal(np.zeros(self.num_joints), set_qpos=joints)


GOALS = ("goal_pos", "goal_ori", "goal_qpos", "initial_joint")  # the last: where the arm's spare freedom tends to
