"""franka-rs (Apache-2.0) as a backend: a Rust implementation that also speaks to the older Panda (server version 5)."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from real.backends import Gains, Hand, RobotState, Tracking, is_realtime, realtime
from real.safety import Fault, Vector
from vla.priority import ordinary

ARRIVED, STILL = 0.003, 0.02  # rad, rad/s: when a way to joint angles is at its end
FAR = 10.0  # metres or radians from the start, at which it would stop by itself: the limiter is stricter
SPEED, ACCELERATION, JERK = 1.0, 6.0, 200.0  # m/s, m/s2, m/s3 that it smooths targets to


class FrankaRsBackend:
    """Impedance controllers at 1 kHz in Rust."""

    def __init__(self, address: str, gains: Gains):
        import franka

        self.franka, self.gains = franka, gains
        with ordinary():
            self.robot: Any = franka.Robot(address, realtime="enforce" if is_realtime() else "ignore")
        torque, force = [gains.collision_torque] * 7, [gains.collision_force] * 6
        self.robot.set_collision_behavior_simple(torque, torque, force, force)
        self.session: Any = None
        self.goal: Vector | None = None  # joint angles it is on its way to

    def state(self) -> RobotState:
        source = self.robot.read_once if self.session is None else self.session.state
        state = self._translated(source)
        pose = np.asarray(state.O_T_EE)
        return RobotState(
            time=float(state.time),
            heard=time.monotonic(),
            q=np.asarray(state.q, float),
            dq=np.asarray(state.dq, float),
            pose=np.concatenate([pose[:3, 3], Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)]),
            force=np.asarray(state.O_F_ext_hat_K, float),
            mode=state.robot_mode,
            errors=tuple(state.current_errors),
            success_rate=float(state.control_command_success_rate),
        )

    def go(self, q: Vector, share: float) -> None:
        self.goal = np.asarray(q, float)
        self._begin(lambda: self.robot.joint_targets(fraction=share, max_deviation=FAR))
        self.session.move_to(self.goal.tolist())

    def track(self, what: Tracking) -> None:
        gains = self.gains
        if what == "joints":
            stiffness = list(gains.joints)
            self._begin(lambda: self.robot.joint_targets(fraction=1.0, max_deviation=FAR, joint_stiffness=stiffness))
        else:
            stiffness = [gains.translation] * 3 + [gains.rotation] * 3
            budget = {"max_velocity": SPEED, "max_acceleration": ACCELERATION, "max_jerk": JERK}
            far = {"max_deviation": FAR, "max_angular_deviation": FAR, "leash": (0.1, 0.6)}
            self._begin(lambda: self.robot.cartesian_targets(**budget, **far, cartesian_stiffness=stiffness))

    def aim(self, target: Vector) -> None:
        try:
            self.session.move_to([float(x) for x in target])
        except self.franka.FrankaError as error:
            self._end()  # which says why it does not follow any more
            raise Fault(str(error)) from error

    def moving(self) -> bool:
        if self.session is None:
            return False
        if not self.session.running:
            self._end()
            return False
        if self.goal is not None:
            state = self.session.state()
            away, speed = np.abs(np.asarray(state.q) - self.goal).max(), np.abs(np.asarray(state.dq)).max()
            if away < ARRIVED and speed < STILL:
                self._end()
        return self.session is not None

    def halt(self) -> None:
        """By the robot's own brake: the library itself would settle on its last target first, which takes longer."""
        if self.session is None or not self.session.running:
            self._end()
            return
        with contextlib.suppress(self.franka.FrankaError):  # of a lost connection the session tells, too
            self.robot.stop()
        try:
            self._end()
        except Fault as fault:
            if "preempted" not in str(fault):
                raise

    def recover(self) -> None:
        self._translated(self.robot.automatic_error_recovery)

    def _begin(self, start: Callable[[], Any]) -> None:
        with realtime():
            self.session = self._translated(start)

    def _end(self) -> None:
        session, self.session, self.goal = self.session, None, None
        if session is None:
            return
        try:
            self._translated(session.stop)
        except Fault as fault:
            mode = self._translated(self.robot.read_once).robot_mode
            raise Fault(f"{fault} Its mode is {mode}.") from fault

    def _translated[T](self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (self.franka.FrankaError, RuntimeError, ValueError) as error:
            raise Fault(" ".join(str(error).split())) from error


def franka_rs(address: str, gains: Gains) -> tuple[FrankaRsBackend, Hand]:
    backend = FrankaRsBackend(address, gains)
    return backend, Hand(backend.robot.gripper(), lambda hand: hand.read_once().width, gains)
