"""Three client libraries alike: each holds or moves a robot, says how it is, and recovers."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

MIDDLE = 0.5  # seconds of the robot's into a motion, when something may happen
GIVEN_UP = 1.0  # seconds of the robot's after which a motion should have ended, if it is to end


class Pylibfranka:
    def __init__(self, host: str):
        import pylibfranka as lib

        self.lib = lib
        self.robot = lib.Robot(host, lib.RealtimeConfig.kIgnore)

    def move(self, seconds: float, middle: Callable[[], None] | None = None) -> None:
        """Hold still by torques; in its middle something may happen."""
        middles = [middle] if middle is not None else []

        def command(t: float, state: Any) -> Any:
            if t > MIDDLE and middles:
                middles.pop()()
            return self.lib.Torques((-10 * np.array(state.dq)).tolist())

        loop(self.robot.start_torque_control(), command, until=seconds)

    def mode(self) -> str:
        return self.robot.read_once().robot_mode.name

    def errors(self) -> list[str]:
        return flags(self.robot.read_once().current_errors)

    def recover(self) -> None:
        self.robot.automatic_error_recovery()


class Franky:
    def __init__(self, host: str):
        import franky as lib

        self.lib = lib
        self.robot = lib.Robot(host, realtime_config=lib.RealtimeConfig.Ignore)
        self.robot.relative_dynamics_factor = 0.1

    def move(self, seconds: float, middle: Callable[[], None] | None = None) -> None:
        """Turn a joint; in its middle something may happen."""
        goal = np.array(self.robot.state.q)
        goal[0] += 0.2 * seconds
        self.robot.move(self.lib.JointMotion(goal), asynchronous=True)
        if middle is not None:
            _until(lambda: self.robot.state, lambda: not self.robot.is_in_control, MIDDLE)
            middle()
        self.robot.join_motion()

    def mode(self) -> str:
        return self.robot.state.robot_mode.name

    def errors(self) -> list[str]:
        return flags(self.robot.state.current_errors)

    def recover(self) -> None:
        assert self.robot.recover_from_errors()


class FrankaRs:
    def __init__(self, host: str):
        import franka as lib

        self.robot = lib.Robot(host, realtime="ignore")

    def move(self, seconds: float, middle: Callable[[], None] | None = None) -> None:
        """Turn a joint; in its middle something may happen."""
        session = self.robot.joint_targets(fraction=0.1)
        session.move_by([0.2 * seconds, *[0.0] * 6])
        if middle is not None:
            _until(session.state, lambda: not session.running, MIDDLE)
            middle()
            _until(session.state, lambda: not session.running, GIVEN_UP)
        session.stop()

    def mode(self) -> str:
        return "".join(x.capitalize() for x in self.robot.read_once().robot_mode.split("_"))

    def errors(self) -> list[str]:
        return self.robot.read_once().current_errors

    def recover(self) -> None:
        self.robot.automatic_error_recovery()


LIBRARIES: dict[str, Callable[[str], Any]] = {"pylibfranka": Pylibfranka, "franky": Franky, "franka_rs": FrankaRs}


def loop(control: Any, command: Callable[[float, Any], Any], until: float) -> tuple[float, float]:
    """Commands for as long as that; seconds it took, and the least success rate once there was one."""
    passed, least = 0.0, 1.0
    while True:
        state, step = control.readOnce()
        passed += step.to_sec()
        least = min(least, state.control_command_success_rate) if passed > 0.1 else least
        wanted = command(passed, state)
        wanted.motion_finished = passed > until
        control.writeOnce(wanted)
        if wanted.motion_finished:
            return passed, least


def flags(errors: Any) -> list[str]:
    """The names that are set, of errors as libfranka has them."""
    return [x for x in dir(errors) if not x.startswith("_") and getattr(errors, x) is True]


def _until(state: Callable[[], Any], over: Callable[[], bool], seconds: float) -> None:
    """So many seconds of the robot's, or until it is over."""
    begun, host = _seconds(state()), time.monotonic()
    while not over() and _seconds(state()) < begun + seconds and time.monotonic() < host + 20:
        time.sleep(0.005)


def _seconds(state: Any) -> float:
    return state.time if isinstance(state.time, float) else state.time.to_sec()
