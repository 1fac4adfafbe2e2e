"""The simulated arm behind the twin: torques or motion targets in, a thousand times a second, states out."""

from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float

from real import fr3
from real.twin import model
from real.wire import Controller, Generator

DT = 0.001
STIFFNESS = np.array([3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0])  # Nm/rad of the robot's own controller
DAMPING = 2 * np.sqrt(STIFFNESS * np.array([1.6, 1.6, 1.0, 0.8, 0.2, 0.15, 0.12]))
FILTER = 0.05  # share of the newest external torque in the filtered one

Vector7 = Float[np.ndarray, "7"]


@dataclass
class Target:
    """What the robot follows and tells of: joints, and the pose that goes with them."""

    q: Vector7
    dq: Vector7 = field(default_factory=lambda: np.zeros(7))
    ddq: Vector7 = field(default_factory=lambda: np.zeros(7))

    def goes_to(self, q: Vector7) -> None:
        dq = (q - self.q) / DT
        self.ddq, self.dq, self.q = (dq - self.dq) / DT, dq, q

    def rests(self, q: Vector7) -> None:
        self.q, self.dq, self.ddq = q.copy(), np.zeros(7), np.zeros(7)


class Arm:
    """`world` is MJCF of what else there is; MuJoCo's state is `model` and `data`."""

    def __init__(self, world: str = ""):
        self.model = mujoco.MjModel.from_xml_string(model.mjcf(world))
        self.data = mujoco.MjData(self.model)
        self.tcp = self.model.site("tcp").id
        self.data.qpos[:7] = fr3.HOME
        self.target = Target(np.array(fr3.HOME))
        self.tau: np.ndarray = np.zeros(7)  # commanded last, without gravity
        self.tau_before = np.zeros(7)
        self.tau_external = np.zeros(7)  # filtered; what the robot exerts on its surroundings
        self.force: np.ndarray = np.zeros(6)  # at the tool, of that torque
        mujoco.mj_forward(self.model, self.data)
        self.pose_c: np.ndarray = self.pose()  # commanded, and its velocities
        self.twist_c: np.ndarray = np.zeros(6)
        self.acceleration_c: np.ndarray = np.zeros(6)

    @property
    def q(self) -> Vector7:
        return self.data.qpos[:7].copy()

    @property
    def dq(self) -> Vector7:
        return self.data.qvel[:7].copy()

    def pose(self) -> Float[np.ndarray, "4 4"]:
        """Of the point between the finger tips, in the frame of the base."""
        pose = np.eye(4)
        pose[:3, :3] = self.data.site_xmat[self.tcp].reshape(3, 3)
        pose[:3, 3] = self.data.site_xpos[self.tcp]
        return pose

    def jacobian(self) -> Float[np.ndarray, "6 7"]:
        linear, turning = np.zeros((3, self.model.nv)), np.zeros((3, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, linear, turning, self.tcp)
        return np.concatenate([linear[:, :7], turning[:, :7]])

    def hold(self) -> None:
        """Stay where it is now: the robot's own brake."""
        self.target.rests(self.q)
        self.pose_c, self.twist_c, self.acceleration_c = self.pose(), np.zeros(6), np.zeros(6)

    def follow(self, generator: Generator, command: Any) -> None:
        """Take up the motion that a client wants next."""
        if generator == Generator.JOINT_POSITION:
            self.target.goes_to(command["q_c"].copy())
        elif generator == Generator.JOINT_VELOCITY:
            self.target.goes_to(self.target.q + DT * command["dq_c"])
        elif generator == Generator.CARTESIAN_POSITION:
            wanted = command["O_T_EE_c"].reshape(4, 4, order="F").copy()
            self._lead(wanted, _difference(self.pose_c, wanted) / DT)
        elif generator == Generator.CARTESIAN_VELOCITY:
            self._drive(command["O_dP_EE_c"].copy())
        else:
            self.target.rests(self.q)

    def coast(self, generator: Generator) -> None:
        """A command was lost: go on with the acceleration that there was, as the robot does."""
        if generator in (Generator.JOINT_POSITION, Generator.JOINT_VELOCITY):
            self.target.goes_to(self.target.q + DT * (self.target.dq + DT * self.target.ddq))
        elif generator in (Generator.CARTESIAN_POSITION, Generator.CARTESIAN_VELOCITY):
            self._drive(self.twist_c + DT * self.acceleration_c)

    def step(self, controller: Controller, torque: Vector7 | None = None) -> None:
        """One millisecond: a client's torque, or the robot's own spring towards its target."""
        if torque is None or controller != Controller.EXTERNAL:
            torque = STIFFNESS * (self.target.q - self.q) + DAMPING * (self.target.dq - self.dq)
            torque = np.clip(torque, -fr3.EFFORT, fr3.EFFORT)
        self.tau_before, self.tau = self.tau, np.asarray(torque, float).copy()
        self.data.qfrc_applied[:7] = self.tau
        mujoco.mj_step(self.model, self.data)
        self.tau_external += FILTER * (-self.data.qfrc_constraint[:7] - self.tau_external)
        self.force = np.linalg.pinv(self.jacobian().T, rcond=0.05) @ self.tau_external

    def gravity(self) -> Vector7:
        """The torque that holds the arm against gravity, which clients leave to the robot."""
        return self.data.qfrc_gravcomp[:7].copy()

    def _drive(self, twist: Float[np.ndarray, "6"]) -> None:
        wanted = self.pose_c.copy()
        wanted[:3, 3] += DT * twist[:3]
        wanted[:3, :3] = _turn(DT * twist[3:]) @ wanted[:3, :3]
        self._lead(wanted, twist)

    def _lead(self, wanted: Float[np.ndarray, "4 4"], twist: Float[np.ndarray, "6"]) -> None:
        """Turn the joints of the target so that its tool is where it is wanted now."""
        self.acceleration_c, self.twist_c, self.pose_c = (twist - self.twist_c) / DT, twist, wanted
        q = self.target.q
        jacobian = fr3.jacobian(q)
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-6 * np.eye(6))
        self.target.goes_to(q + inverse @ _difference(fr3.frames(q)[7], wanted))


def _turn(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    quaternion, matrix = np.zeros(4), np.zeros(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle if angle > 0 else np.array([1.0, 0, 0]), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _difference(start: Float[np.ndarray, "4 4"], end: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "6"]:
    """Metres, and a rotation vector in the frame of the base."""
    quaternion, turned = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, (end[:3, :3] @ start[:3, :3].T).flatten())
    mujoco.mju_quat2Vel(turned, quaternion, 1.0)
    return np.concatenate([end[:3, 3] - start[:3, 3], turned])
