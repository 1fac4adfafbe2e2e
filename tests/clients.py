"""Programs that move a robot with one client library each: `python clients.py PROGRAM HOST [WORD...]`, each on its own.

The libraries cannot share a process. A program prints what it saw as JSON; mischief it does itself, as an operator of
the twin, so that it happens in the middle of a motion.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from libraries import LIBRARIES, flags, loop
from scipy.spatial.transform import Rotation

from real import wire
from real.twin.control import Operator


def client(program: Callable[..., Any], host: str, *words: str, patience: float = 120.0) -> Any:
    """What a program of this file says, run in a process of its own."""
    command = [sys.executable, __file__, program.__name__, host, *words]
    found = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False, env=found)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


def control_mode(host: str, mode: str, jump: str = "0") -> dict[str, Any]:
    """A second of motion in one of the modes of control that the maker's library has, and where it led.

    After it what is commanded makes a jump (of joint 4, or of the tool along z).
    """
    import pylibfranka as lib

    robot = lib.Robot(host, lib.RealtimeConfig.kIgnore)
    step = float(jump)

    def joint_position(t: float, _: Any) -> Any:
        return lib.JointPositions((q + (0.1 * _way(t) + step * (t > 1.1)) * _one(7, 3)).tolist())

    def joint_velocity(t: float, _: Any) -> Any:
        return lib.JointVelocities(((0.1 * _speed(t) + step * (t > 1.1)) * _one(7, 3)).tolist())

    def cartesian_pose(t: float, _: Any) -> Any:
        wanted = pose.reshape(4, 4, order="F").copy()
        wanted[:3, 3] += _way(t) * np.array([0, 0.03, -0.04]) + step * (t > 1.1) * _one(3, 2)
        wanted[:3, :3] = _about_z(0.2 * _way(t)) @ wanted[:3, :3]
        return lib.CartesianPose(wanted.flatten(order="F").tolist())

    def cartesian_velocity(t: float, _: Any) -> Any:
        twist = _speed(t) * np.array([0, 0.03, -0.04, 0, 0, 0.2]) + step * (t > 1.1) * _one(6, 2)
        return lib.CartesianVelocities(twist.tolist())

    def torque(t: float, state: Any) -> Any:
        away = q + 0.1 * _way(t) * _one(7, 3) - np.array(state.q)
        return lib.Torques((600 * away - 50 * np.array(state.dq) + step * (t > 1.1) * _one(7, 3)).tolist())

    start, command = {
        "joint_position": (robot.start_joint_position_control, joint_position),
        "joint_velocity": (robot.start_joint_velocity_control, joint_velocity),
        "cartesian_pose": (robot.start_cartesian_pose_control, cartesian_pose),
        "cartesian_velocity": (robot.start_cartesian_velocity_control, cartesian_velocity),
        "torque": (robot.start_torque_control, torque),
    }[mode]
    control = start() if mode == "torque" else start(lib.ControllerMode.JointImpedance)
    first, _ = control.readOnce()
    q, pose = np.array(first.q_d), np.array(first.O_T_EE_c)
    seen: dict[str, Any] = {"exception": ""}
    try:
        seen["seconds"], seen["success_rate"] = loop(control, command, until=1.5)
    except lib.ControlException as error:
        seen["exception"] = str(error)
    after = robot.read_once()
    seen |= {"turned": (np.array(after.q) - q).tolist(), "before": pose.tolist(), "after": list(after.O_T_EE)}
    seen |= {"mode": after.robot_mode.name, "errors": flags(after.last_motion_errors)}
    if seen["exception"]:
        robot.automatic_error_recovery()
    return seen


def joint_motion(host: str, dynamics: str) -> dict[str, Any]:
    """A motion that franky plans, at a share of the dynamics that the robot has, to there and back."""
    import franky as lib

    robot = lib.Robot(host, realtime_config=lib.RealtimeConfig.Ignore)
    robot.relative_dynamics_factor = float(dynamics)
    start = np.array(robot.state.q)
    goal = start + np.array([0.3, 0.2, -0.3, 0.3, 0.4, 0.3, -0.4])
    robot.move(lib.JointMotion(goal))
    away = np.abs(np.array(robot.state.q) - goal).max()
    robot.move(lib.JointMotion(start))
    return {"away": float(away), "errors": flags(robot.state.last_motion_errors)}


def error_names(host: str, library: str) -> list[list[str]]:
    """What a client calls each of the twin's errors, in their order there."""
    robot, operator = LIBRARIES[library](host), Operator(host, patience=20.0)
    called = []
    for name in wire.ERRORS:
        operator.tell("reflex", reason=name)
        while not (errors := robot.errors()):
            pass
        called.append(errors)
        robot.recover()
    return called


def grasp(host: str) -> dict[str, Any]:
    """Franky takes the cube, lifts it, puts it down, and closes on air."""
    import franky as lib

    robot, gripper = lib.Robot(host, realtime_config=lib.RealtimeConfig.Ignore), lib.Gripper(host)
    robot.relative_dynamics_factor = 0.3
    operator = Operator(host, patience=20.0)
    cube = np.array(operator.arrange(3)["poses"]["cube"])
    turn = (Rotation.from_quat(cube[3:]) * Rotation.from_rotvec([math.pi, 0, 0])).as_quat()
    tolerance = {"epsilon_inner": 0.005, "epsilon_outer": 0.005}

    def go(height: float) -> None:
        robot.move(lib.CartesianMotion(lib.Affine(np.array([*cube[:2], height]), turn)))

    gripper.move(0.08, 0.2)
    go(0.15)
    go(0.02)
    seen = {"held": gripper.grasp(0.04, 0.1, 20.0, **tolerance), "told_held": gripper.state.is_grasped}
    go(0.15)
    seen |= {"width": gripper.state.width, "height": operator.look()["poses"]["cube"][2]}
    go(0.021)
    seen["opened"] = gripper.open(0.2)
    go(0.15)
    seen["left"] = operator.look()["poses"]["cube"][2]
    return seen | {"air": gripper.grasp(0.04, 0.1, 20.0, **tolerance), "told_air": gripper.state.is_grasped}


def grasp_air(host: str, library: str) -> dict[str, Any]:
    """The hand alone, by the other libraries."""
    if library == "pylibfranka":
        import pylibfranka as lib

        hand = lib.Gripper(host)
    else:
        import franka as lib

        hand = lib.Robot(host, realtime="ignore").gripper()
    moved, width = hand.move(0.06, 0.1), hand.read_once().width
    return {"moved": moved, "width": width, "air": hand.grasp(0.03, 0.1, 20.0, 0.005, 0.005)} | {
        "told_air": hand.read_once().is_grasped
    }


def fault(host: str, library: str, do: str, how: str) -> dict[str, Any]:
    """What a client is told when something happens in the middle of its motion, and whether it moves again after."""
    robot = LIBRARIES[library](host)
    operator = Operator(host, patience=0.3 if do == "die" else 20.0)
    seen: dict[str, Any] = {"exception": "", "words": ""}
    happened = [0.0]

    def happen() -> None:
        if do == "displace":
            seen["other"] = client(control_mode, host, "torque")
        else:
            with contextlib.suppress(TimeoutError):
                operator.tell(do, **json.loads(how))
        happened[0] = time.monotonic()

    try:
        robot.move(8.0 if do == "displace" else 1.0, happen)  # another client takes a while to start
    except Exception as error:
        seen |= {"exception": type(error).__name__, "words": str(error), "after": time.monotonic() - happened[0]}
    if do not in ("die", "displace"):
        seen["mode"] = robot.mode()
        operator.tell("user_stop", pressed=False)
        operator.tell("guide", on=False)
        robot.recover()
        robot.move(0.3)
        seen["again"] = robot.mode()
    return seen


def _way(t: float) -> float:
    """From 0 to 1 in a second, smoothly."""
    return (1 - math.cos(math.pi * min(t, 1.0))) / 2


def _speed(t: float) -> float:
    """What `_way` gains a second."""
    return math.pi / 2 * math.sin(math.pi * min(t, 1.0))


def _one(n: int, i: int) -> np.ndarray:
    return np.eye(n)[i]


def _about_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[name](*words)) + "\n")
