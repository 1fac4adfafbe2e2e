"""Whatever is asked, the limiter lets nothing through that is larger than it may be, and nothing larger than asked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from real import fr3
from real.safety import Fault, Limiter, Limits, Measured

PERIOD = 1 / 15
HOME = np.array(fr3.HOME)
number = st.floats(-0.3, 0.3)
commands = st.lists(st.tuples(*[number] * 6, st.floats(-1, 2)), min_size=1, max_size=40)


def pose_of(q):
    tool = fr3.frames(q)[7]
    return np.concatenate([tool[:3, 3], Rotation.from_matrix(tool[:3, :3]).as_quat(canonical=True)])


def here(q=HOME, force=(0.0, 0.0, 0.0)):
    return Measured(q, pose_of(q), np.array(force))


def limiter(q=HOME, **limits):
    made = Limiter(Limits(**limits), PERIOD, 0.02, 0.1)
    made.begin(pose_of(q), 1.0)
    return made


def followed(start, limited):
    """A robot that is where it was sent."""
    turned = Rotation.from_quat(limited.target[3:]).as_matrix()
    wanted, q = limited.target[:3], start.q.copy()
    for _ in range(30):
        tool = fr3.frames(q)[7]
        turn = Rotation.from_matrix(turned @ tool[:3, :3].T).as_rotvec()
        q = q + np.linalg.pinv(fr3.jacobian(q), rcond=0.01) @ np.concatenate([wanted - tool[:3, 3], turn])
    return Measured(q, pose_of(q), np.zeros(3))


@given(commands)
def test_no_pose_is_out_of_bounds_and_no_step_too_long(asked):
    made, measured = limiter(low=(0.28, -0.05, 0.44), high=(0.35, 0.05, 0.52)), here()
    speed = np.zeros(3)
    for command in np.array(asked):
        before = made.target.copy()
        limited = made.pose(command, measured)
        move = limited.target[:3] - before[:3]
        turn = (Rotation.from_quat(limited.target[3:]) * Rotation.from_quat(before[3:]).inv()).as_rotvec()
        assert np.linalg.norm(move) <= min(0.02, np.linalg.norm(command[:3])) + 1e-9
        assert np.linalg.norm(turn) <= min(0.1, np.linalg.norm(command[3:6])) + 1e-9
        assert np.linalg.norm(move) / PERIOD <= np.linalg.norm(speed) + 6.0 * PERIOD + 1e-9
        assert (limited.target[:3] >= np.array([0.28, -0.05, 0.44]) - 1e-9).all()
        assert (limited.target[:3] <= np.array([0.35, 0.05, 0.52]) + 1e-9).all()
        assert np.linalg.norm(limited.target[:3] - measured.pose[:3]) <= 0.06 + 1e-9  # it has not moved
        assert 0 <= limited.gripper <= 1
        np.testing.assert_allclose(limited.executed[:6], np.concatenate([move, turn]), atol=1e-9)
        whole = np.allclose(limited.executed[:6], command[:6], atol=1e-8)
        assert whole == (not [x for x in limited.cut if x != "gripper"]) or np.abs(command[:6]).max() < 1e-8
        speed = move / PERIOD


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 7, st.floats(-1, 2)), min_size=1, max_size=30), st.booleans())
def test_no_joint_comes_near_its_limit_or_goes_too_fast(asked, delta):
    made = Limiter(Limits(low=(-1, -1, -1), high=(1, 1, 2)), PERIOD, 0.02, 0.1)
    made.begin(HOME, 1.0)
    q = HOME
    for command in np.array(asked):
        limited = made.joints(command, here(q), delta=delta)
        moved = np.abs(limited.target - q)
        assert (moved <= 0.25 * fr3.VELOCITY * PERIOD + 1e-9).all()
        assert (moved <= 0.1 + 1e-9).all() or not delta
        assert (limited.target >= fr3.LOW + 0.1 - 1e-9).all()
        assert (limited.target <= fr3.HIGH - 0.1 + 1e-9).all()
        q = limited.target


def test_a_tool_that_is_led_towards_a_joint_limit_stops_before_it():
    made, measured = limiter(low=(-1, -1, -1), high=(1, 1, 2)), here()
    cut = set()
    for _ in range(60):
        limited = made.pose(np.array([0.0, 0, 0.02, 0, 0, 0, 1]), measured)
        measured = followed(measured, limited)
        cut |= set(limited.cut)
        assert (measured.q > fr3.LOW + 0.095).all()
        assert (measured.q < fr3.HIGH - 0.095).all()
    assert "joint limit" in cut
    back = made.pose(np.array([0.0, 0, -0.01, 0, 0, 0, 1]), measured)
    assert "joint limit" not in back.cut


def test_a_step_within_all_limits_is_taken_as_it_is():
    limited = limiter().pose(np.array([0.01, -0.01, 0.005, 0.02, 0, -0.03, 0.0]), here())
    np.testing.assert_allclose(limited.executed, [0.01, -0.01, 0.005, 0.02, 0, -0.03, 0.0], atol=1e-12)
    assert limited.cut == ()


def test_to_stop_is_never_held_up_and_to_speed_up_is():
    made = limiter(acceleration=1.5)
    speeds = []
    measured = here()
    for _ in range(4):
        limited = made.pose(np.array([0, 0.02, 0, 0, 0, 0, 1]), measured)
        measured = followed(measured, limited)
        speeds.append(float(np.linalg.norm(limited.executed[:3])) / PERIOD)
    np.testing.assert_allclose(speeds, [0.1, 0.2, 0.3, 0.3], atol=1e-9)
    halted = made.pose(np.array([0, 0, 0, 0, 0, 0, 1.0]), measured)
    assert np.abs(halted.executed[:6]).max() == 0
    assert halted.cut == ()


def test_who_is_outside_the_box_may_only_come_back():
    made = limiter(low=(0.4, -0.4, 0.0), high=(0.7, 0.4, 0.7))
    assert made.target[0] < 0.4
    assert made.pose(np.array([-0.01, 0, 0, 0, 0, 0, 1]), here()).executed[0] == 0
    assert made.pose(np.array([0.01, 0, 0, 0, 0, 0, 1]), here()).executed[0] == pytest.approx(0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_a_fault(bad):
    with pytest.raises(Fault, match="not finite"):
        limiter().pose(np.array([0, 0, bad, 0, 0, 0, 1]), here())
    with pytest.raises(Fault, match="not finite"):
        limiter().joints(np.array([bad, 0, 0, 0, 0, 0, 0, 1]), here(), delta=True)


def test_a_force_that_is_too_large_or_not_a_number_is_a_fault():
    still = np.array([0, 0, 0, 0, 0, 0, 1.0])
    limiter().pose(still, here(force=(0, 0, 39.0)))
    with pytest.raises(Fault, match="41 N press on the tool, more than 40"):
        limiter().pose(still, here(force=(0, 0, 41.0)))
    with pytest.raises(Fault, match="nan N"):
        limiter().pose(still, here(force=(0, 0, math.nan)))


def test_the_gripper_is_not_moved_for_little():
    made = limiter()
    openings = [made.pose(np.array([0, 0, 0, 0, 0, 0, x]), here()).gripper for x in (0.95, 0.5, 0.45, 0.0, 0.05)]
    assert openings == [1.0, 0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrong", [{"low": (0.5, 0, 0), "high": (0.4, 1, 1)}, {"force": -1.0}, {"lead": math.inf}, {"low": (0, 0)}]
)
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=r"workspace|finite"):
        Limits(**wrong)
