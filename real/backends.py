"""The client libraries that can move the robot, behind the few things the driver needs of them."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from real import fr3
from real.safety import Fault, Pose, Vector
from vla.priority import ordinary

TRIES = 5  # to recover, a tenth of a second apart
BRAKE = (40.0, 40.0, 40.0, 40.0, 15.0, 15.0, 10.0)  # Nms/rad: joints come to rest in a tenth of a second
Tracking = Literal["pose", "joints"]


@dataclass(frozen=True)
class RobotState:
    """What the robot says of itself; `time` is its own in seconds, `heard` the host's (monotonic) when it was read."""

    time: float
    heard: float
    q: Float[np.ndarray, "7"]  # rad
    dq: Float[np.ndarray, "7"]  # rad/s
    pose: Pose  # of the point between the finger tips, base frame
    force: Float[np.ndarray, "6"]  # N and Nm at the tool, from outside
    mode: str  # idle, move, guiding, reflex, user_stopped, ...
    errors: tuple[str, ...]
    success_rate: float  # of the last hundred commands


@dataclass(frozen=True)
class Gains:
    """Stiffness of the springs that pull the arm to its target, and when the robot gives up by itself."""

    translation: float | int = 2000.0  # N/m
    rotation: float | int = 100.0  # Nm/rad
    joints: Sequence[float | int] = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)  # Nm/rad
    posture: float | int = 5.0  # Nm/rad towards the joints it began with, in what freedom a pose leaves
    collision_torque: float | int = 40.0  # Nm, of any joint
    collision_force: float | int = 60.0  # N at the tool
    grasp_force: float | int = 40.0  # N
    finger_speed: float | int = 0.1  # m/s


@runtime_checkable
class Backend(Protocol):
    """A robot that is connected. Fault says in the robot's own words why it does not move any more."""

    def state(self) -> RobotState: ...
    def go(self, q: Vector, share: float) -> None:
        """Begin to move to joint angles (rad) with a share of the highest speeds; returns at once."""
        ...

    def track(self, what: Tracking) -> None:
        """Begin to follow targets, from where it stands."""
        ...

    def aim(self, target: Vector) -> None: ...
    def moving(self) -> bool:
        """Whether a motion is under way. Fault if it ended otherwise than it should."""
        ...

    def halt(self) -> None:
        """Come to rest and end whatever motion there is. Fault as for `moving`."""
        ...

    def recover(self) -> None:
        """After a fault, once an operator has looked. Fault if the robot cannot move yet."""
        ...


class FrankyBackend:
    """franky-control 2 (MIT): impedance controllers at 1 kHz in C++, for a Franka Research 3."""

    def __init__(self, address: str, gains: Gains):
        import franky

        self.franky, self.gains = franky, gains
        enforce = is_realtime()
        config = franky.RealtimeConfig.Enforce if enforce else franky.RealtimeConfig.Ignore
        with ordinary():
            self.robot: Any = franky.Robot(address, realtime_config=config)
        self.robot.set_collision_behavior(gains.collision_torque, gains.collision_force)
        self.tracker: Any = None

    def state(self) -> RobotState:
        state = self._translated(lambda: self.robot.state)
        pose = state.O_T_EE
        flags = state.current_errors
        return RobotState(
            time=state.time.to_sec(),
            heard=time.monotonic(),
            q=np.array(state.q),
            dq=np.array(state.dq),
            pose=np.concatenate([pose.translation, _positive(np.array(pose.quaternion))]),
            force=np.array(state.O_F_ext_hat_K),
            mode=_MODES.get(state.robot_mode.name, state.robot_mode.name.lower()),
            errors=tuple(x for x in dir(flags) if not x.startswith("_") and getattr(flags, x) is True),
            success_rate=state.control_command_success_rate,
        )

    def go(self, q: Vector, share: float) -> None:
        self.robot.relative_dynamics_factor = share
        motion = self.franky.JointMotion([float(x) for x in q])
        with realtime():
            self._translated(lambda: self.robot.move(motion, asynchronous=True))

    def track(self, what: Tracking) -> None:
        make = self._joint_tracker if what == "joints" else self._pose_tracker
        with realtime():
            self.tracker = self._translated(make)
        self.what = what

    def aim(self, target: Vector) -> None:
        if self.what == "joints":
            self.tracker.set_target(np.asarray(target, float))
        else:
            self.tracker.set_target(self.franky.Affine(target[:3], target[3:]))

    def moving(self) -> bool:
        if self.tracker is None:
            self._translated(self.robot.poll_motion)  # raises what ended the motion; what it returns is not reliable
            return bool(self.robot.is_in_control)
        if not self.tracker.is_running:
            self.halt()
        return self.tracker is not None

    def halt(self) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            stop = self.franky.TorqueStopMotion(damping=np.array(BRAKE), ramp_duration=0.02)
            self._translated(lambda: tracker.stop(stop))
        elif self.robot.is_in_control:
            with contextlib.suppress(self.franky.ControlException):  # says that the motion was cut short, as it was
                self.robot.stop()
                self.robot.join_motion()

    def recover(self) -> None:
        self.tracker = None
        with contextlib.suppress(self.franky.Exception):  # what ended the last motion is kept, to be raised by the next
            self.robot.join_motion()
        for _ in range(TRIES):  # it may tell of a state from before
            if self._translated(self.robot.recover_from_errors) or not self._translated(lambda: self.robot.has_errors):
                return
            time.sleep(0.1)
        raise Fault("the robot did not recover: release the user stop, or unlock it, and try again")

    def _joint_tracker(self) -> Any:
        return self.franky.JointImpedanceTracker(self.robot, stiffness=np.array(self.gains.joints))

    def _pose_tracker(self) -> Any:
        return self.franky.CartesianImpedanceTracker(
            self.robot,
            translational_stiffness=self.gains.translation,
            rotational_stiffness=self.gains.rotation,
            posture_task=self.franky.PostureTask(np.array(self.robot.state.q), self.gains.posture),
        )

    def _translated[T](self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (self.franky.Exception, RuntimeError) as error:
            raise Fault(" ".join(str(error).split())) from error


_MODES = {"UserStopped": "user_stopped", "AutomaticErrorRecovery": "recovery"}


@dataclass
class Hand:
    """The Franka Hand on a thread of its own: told how far to open, and never waited for.

    A smaller opening closes with force on whatever is between the fingers, a larger one moves.
    """

    gripper: Any  # with `move`, `grasp`, `stop` and a state, as franky and franka-rs have them
    width: Callable[[Any], float]  # metres, waits for the hand's next word
    gains: Gains
    wanted: float = 1.0
    measured: float = 1.0
    error: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)
    errands: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "hand"))
    errand: Future[bool] | None = None
    done: float = 1.0  # the opening that was sent last

    def __post_init__(self) -> None:
        self.wanted = self.measured = self.done = self._opening()
        self.watching = threading.Thread(target=self._watch, daemon=True)
        self.watching.start()

    @property
    def busy(self) -> bool:
        return self.wanted != self.done or self.errand is not None

    def open_to(self, opening: float) -> None:
        self.wanted = opening

    def close(self) -> None:
        self.stopping.set()
        self.watching.join(1.0)
        self.errands.shutdown(wait=False)

    def _opening(self) -> float:
        return float(np.clip(self.width(self.gripper) / fr3.MAX_WIDTH, 0, 1))

    def _watch(self) -> None:
        while not self.stopping.is_set():
            try:
                self.measured = self._opening()
            except Exception as error:  # the robot's own connection says why
                self.error = str(error)
                self.stopping.wait(0.2)
            if self.errand is not None and self.errand.done():
                self._ended(self.errand)
            if self.wanted != self.done:
                self._send()

    def _ended(self, errand: Future[bool]) -> None:
        self.errand = None
        if (error := errand.exception()) is not None:
            self.error = str(error)

    def _send(self) -> None:
        """The newest wish; one that is still being carried out is stopped first."""
        if self.errand is not None:
            with contextlib.suppress(Exception):
                self.gripper.stop()
            return
        carry_out = self._grasp if self.wanted < self.done else self._move
        self.done = self.wanted
        self.errand = self.errands.submit(carry_out, self.wanted * fr3.MAX_WIDTH)

    def _grasp(self, width: float) -> bool:
        tolerance = fr3.MAX_WIDTH  # whatever it meets is what it was to hold
        force, speed = self.gains.grasp_force, self.gains.finger_speed
        return self.gripper.grasp(width, speed, force, epsilon_inner=tolerance, epsilon_outer=tolerance)

    def _move(self, width: float) -> bool:
        return self.gripper.move(width, self.gains.finger_speed)


def franky(address: str, gains: Gains) -> tuple[Backend, Hand]:
    import franky as library

    return FrankyBackend(address, gains), Hand(library.Gripper(address), lambda x: x.state.width, gains)


def franka_rs(address: str, gains: Gains) -> tuple[Backend, Hand]:
    from real.franka_rs import franka_rs as connected

    return connected(address, gains)


BACKENDS: dict[str, Callable[[str, Gains], tuple[Backend, Hand | None]]] = {"franky": franky, "franka_rs": franka_rs}


def _positive(quaternion: Vector) -> Vector:
    return quaternion * (1.0 if quaternion[3] >= 0 else -1.0)


def is_realtime() -> bool:
    """Whether this kernel is one that libfranka accepts."""
    told = Path("/sys/kernel/realtime")
    return told.exists() and told.read_text().strip() == "1"


@contextlib.contextmanager
def realtime() -> Iterator[None]:
    """Threads begun within get the highest priority, which they take over from this one, where that is allowed."""
    with ordinary():
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
        yield
