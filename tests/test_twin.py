"""The twin speaks the Franka Control Interface: bytes are pinned here, and a client of the maker's own moves it."""

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import mujoco
import numpy as np
import pytest

from real import fr3, wire
from real.twin.arm import Arm
from real.twin.clock import run
from real.twin.server import Twin


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (wire.STATE[10], 1377),
        (wire.STATE[5], 2373),
        (wire.COMMAND[10], 371),
        (wire.COMMAND[5], 370),
        (wire.GRIPPER_STATE, 23),
    ],
)
def test_datagrams_have_the_sizes_of_the_interface(kind, size):
    assert kind.itemsize == size


def test_fields_are_where_the_interface_has_them():
    number = wire.STATE[10].fields
    assert number is not None
    assert [number[x][1] for x in ("O_T_EE", "q", "robot_mode", "control_command_success_rate")] == [8, 596, 1372, 1373]
    assert wire.ERRORS[25] == "communication_constraints_violation"
    assert len(wire.ERRORS) == len(set(wire.ERRORS)) == 41
    assert (wire.MOVE[10].size, wire.MOVE[5].size, wire.COLLISION_BEHAVIOR.size) == (113, 56, 416)


def test_the_arm_is_where_the_data_sheet_has_it():
    pose = Arm().pose()
    np.testing.assert_allclose(pose[:3, 3], [0.30689, 0.0, 0.48688], atol=1e-4)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-4)


def test_our_kinematics_are_those_of_the_model():
    arm = Arm()
    for q in np.random.default_rng(0).uniform(fr3.LOW, fr3.HIGH, (20, 7)):
        arm.data.qpos[:7] = q
        mujoco.mj_forward(arm.model, arm.data)
        np.testing.assert_allclose(fr3.frames(q)[7], arm.pose(), atol=1e-9)
        np.testing.assert_allclose(fr3.jacobian(q), arm.jacobian(), atol=1e-9)


def test_left_alone_it_stays_and_pushed_by_its_spring_it_comes_back():
    arm = Arm()
    for _ in range(500):
        arm.step(wire.Controller.JOINT_IMPEDANCE)
    np.testing.assert_allclose(arm.q, fr3.HOME, atol=1e-4)


def test_where_a_command_is_lost_motion_goes_on_with_its_acceleration():
    """Ten steps of 1, 2, ... 10 parts, and an eleventh that nobody asks for: 66 parts."""
    command = np.zeros((), wire.COMMAND[10])
    turned, moved = Arm(), Arm()
    for k in range(1, 11):
        command["q_c"] = turned.target.q + 5e-6 * k * np.eye(7)[0]
        turned.follow(wire.Generator.JOINT_POSITION, command)
        command["O_dP_EE_c"] = -1e-3 * k * np.eye(6)[2]
        moved.follow(wire.Generator.CARTESIAN_VELOCITY, command)
    turned.coast(wire.Generator.JOINT_POSITION)
    moved.coast(wire.Generator.CARTESIAN_VELOCITY)
    assert turned.target.q[0] == pytest.approx(5e-6 * 66)
    assert turned.target.dq[0] == pytest.approx(5e-3 * 11)
    assert moved.pose_c[2, 3] - moved.pose()[2, 3] == pytest.approx(-1e-6 * 66)
    np.testing.assert_allclose(fr3.frames(moved.target.q)[7], moved.pose_c, atol=1e-7)


MOVES = """
import numpy as np, pylibfranka
robot = pylibfranka.Robot("127.0.0.1", pylibfranka.RealtimeConfig.kIgnore)
start = np.array(robot.read_once().q)
control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)
seconds, least = 0.0, 1.0
while True:
    state, passed = control.readOnce()
    seconds += passed.to_sec()
    if seconds > 0.2:
        least = min(least, state.control_command_success_rate)
    wanted = start.copy()
    wanted[3] += 0.05 * (1 - np.cos(np.pi * min(seconds, 1.0)))
    command = pylibfranka.JointPositions(wanted.tolist())
    command.motion_finished = seconds > 1.2
    control.writeOnce(command)
    if command.motion_finished:
        break
print(robot.read_once().q[3] - start[3], least)
"""

FRANKY = """
import numpy as np
from franky import Affine, CartesianImpedanceTracker, Gripper, JointMotion, RealtimeConfig, Robot
robot = Robot("127.0.0.1", realtime_config=RealtimeConfig.Ignore)
robot.relative_dynamics_factor = 0.5
goal = np.array(robot.state.q)
goal[0] += 0.1
robot.move(JointMotion(goal))
reached = np.abs(np.array(robot.state.q) - goal).max()
tracker = CartesianImpedanceTracker(robot, translational_stiffness=2000.0, rotational_stiffness=100.0, period=1 / 15)
start = robot.current_pose.end_effector_pose
place, turn = np.array(start.translation), start.quaternion
for step in range(25):
    assert tracker.tick()
    tracker.set_target(Affine(place + np.array([0, 0, -0.003 * min(step, 10)]), turn))
tracker.stop()
sunk = np.array(robot.current_pose.end_effector_pose.translation)[2] - place[2]
gripper = Gripper("127.0.0.1")
half = gripper.move(0.04, 0.1), gripper.state.width
air = gripper.grasp(0.03, 0.1, 20.0, epsilon_inner=0.005, epsilon_outer=0.005)
print(reached, sunk, int(half[0]), half[1], int(air))
"""

FRANKA_RS = """
import time
import franka
robot = franka.Robot("127.0.0.1", realtime="ignore")
with robot.cartesian_targets(max_velocity=0.3, max_acceleration=1.0, max_jerk=20.0) as arm:
    before = arm.state().O_T_EE[2][3]
    arm.move_by([0, 0, -0.05])
    time.sleep(1.5)
    print(arm.state().O_T_EE[2][3] - before)
"""


@contextmanager
def twin(**how):
    """At the ports of the interface, which clients do not let one choose."""
    there = Twin(Arm(), **how)
    stop = threading.Event()

    def live() -> None:
        while not stop.is_set():
            run(there, until=0.2)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield there
    finally:
        stop.set()
        thread.join()
        there.close()


def client(program: str, timeout: float = 120.0) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_three_clients_in_turn_move_it_and_no_command_is_late_in_lock_step():
    """The maker's own, franky and franka-rs, each in its own process; a later is not taken for an earlier one."""
    with twin(lock_step=True):
        reached, sunk, moved, width, grasped_air = (float(x) for x in client(FRANKY).split())
        assert reached < 2e-3
        assert sunk == pytest.approx(-0.03, abs=2e-3)
        assert (moved, grasped_air) == (1, 0)
        assert width == pytest.approx(0.04, abs=1e-3)
        turned, least = (float(x) for x in client(MOVES).split())
        assert turned == pytest.approx(0.1, abs=2e-3)
        assert least == 1.0
        assert float(client(FRANKA_RS)) == pytest.approx(-0.05, abs=5e-3)


def test_a_client_of_another_version_is_told_so():
    with twin(version=5) as there, socket.create_connection(("127.0.0.1", there.robot_tcp.port)) as tcp:
        tcp.settimeout(10)
        tcp.sendall(wire.HEADER.pack(wire.CONNECT_ID, 1, 16) + wire.CONNECT.pack(10, 4000))
        answer = tcp.recv(64)
    assert wire.HEADER.unpack(answer[:12]) == (wire.CONNECT_ID, 1, 15)
    assert wire.CONNECTED.unpack(answer[12:]) == (1, 5)


def test_user_stop_and_reflex_refuse_motion_until_they_are_over():
    there = Twin(Arm(), ports=(0, 0))
    move = wire.MOVE[10].pack(0, 0, *[0.0] * 14)
    refused, begun = (bytes([wire.MOVE_STATUS[10][x]]) for x in ("NOT_POSSIBLE", "MOTION_STARTED"))
    there.user_stop(pressed=True)
    assert there._move(1, move) == refused
    there.user_stop(pressed=False)
    assert there._move(2, move) == begun
    there.fail("cartesian_reflex")
    assert there.mode == wire.Mode.REFLEX
    assert there._move(3, move) == refused
    assert there._recover(4, b"") is None  # is answered when it is done
    for _ in range(60):
        there.tick()
    assert there._move(5, move) == begun
    there.close()
