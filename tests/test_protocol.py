"""Unmodified clients on the twin, in each of their modes and in trouble: pylibfranka, franky and franka-rs."""

import json

import clients
import libraries
import numpy as np
import pytest
from clients import client
from twins import running

from real import wire
from real.twin.control import Planned

HOST, OTHER = "127.0.0.16", "127.0.0.17"
LIBRARIES = list(libraries.LIBRARIES)
LOST = {"pylibfranka": "NetworkException", "franky": "NetworkException", "franka_rs": "FrankaError"}


@pytest.fixture
def operator():
    """Of a new twin, whose arm is where it begins."""
    with running(HOST, "--rate", "5") as operator:
        yield operator


@pytest.fixture
def strict():
    """Stops at the limits of the data sheet."""
    with running(OTHER, "--limits", "--rate", "5"):
        yield


@pytest.fixture
def slow():
    """Not in lock-step, but slower than a busy machine."""
    with running(OTHER, "--free-run", "--rate", "0.2"):
        yield


@pytest.mark.parametrize("mode", ["joint_position", "joint_velocity", "torque"])
def test_joints_go_where_they_are_sent_and_no_command_is_late(strict, mode):
    seen = client(clients.control_mode, OTHER, mode)
    np.testing.assert_allclose(seen["turned"], [0, 0, 0, 0.1, 0, 0, 0], atol=5e-4)
    assert (seen["success_rate"], seen["mode"]) == (1.0, "Idle")
    assert seen["seconds"] == pytest.approx(1.501, abs=1e-6)


@pytest.mark.parametrize("mode", ["cartesian_pose", "cartesian_velocity"])
def test_the_tool_goes_where_it_is_sent_and_no_command_is_late(strict, mode):
    """Five centimetres along (0, 0.6, -0.8), turning by 0.2 rad about the vertical."""
    seen = client(clients.control_mode, OTHER, mode)
    before, after = (np.array(seen[x]).reshape(4, 4, order="F") for x in ("before", "after"))
    np.testing.assert_allclose(after[:3, 3] - before[:3, 3], [0, 0.03, -0.04], atol=5e-4)
    c, s = np.cos(0.2), np.sin(0.2)
    np.testing.assert_allclose(after[:3, :3] @ before[:3, :3].T, [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=2e-3)
    assert (seen["success_rate"], seen["mode"]) == (1.0, "Idle")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("do", "how", "words", "mode"),
    [
        ("reflex", {"reason": "joint_reflex"}, 'aborted by reflex! ["joint_reflex"]', "Reflex"),
        ("reflex", {"reason": "power_limit_violation"}, '["power_limit_violation"]', "Reflex"),
        ("user_stop", {"pressed": True}, "User Stop pressed!", "UserStopped"),
        ("guide", {"on": True}, "preempted", "Guiding"),
    ],
    ids=["reflex", "power", "user stop", "guiding"],
)
def test_a_client_is_told_what_ended_its_motion_and_moves_again_after_recovery(operator, library, do, how, words, mode):
    seen = client(clients.fault, HOST, library, do, json.dumps(how))
    assert (seen["exception"], seen["mode"], seen["again"]) == ("ControlException", mode, "Idle")
    assert words in seen["words"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_error_has_the_name_that_clients_know_it_by(operator, library):
    called = client(clients.error_names, HOST, library)
    renamed = {  # by franka-rs
        "tau_J_range_violation": "tau_j_range_violation",
        "cartesian_position_motion_generator_invalid_frame_flag": "cartesian_position_motion_generator_invalid_frame",
    }
    assert [[renamed.get(x, x) for x in names] for names in called] == [[name] for name in wire.ERRORS]


def test_the_cube_is_grasped_lifted_and_put_down_and_air_is_not(operator):
    seen = client(clients.grasp, HOST)
    assert (seen["held"], seen["told_held"], seen["opened"]) == (True, True, True)
    assert seen["width"] == pytest.approx(0.04, abs=3e-3)
    assert seen["height"] == pytest.approx(0.15, abs=0.01)
    assert seen["left"] == pytest.approx(0.02, abs=2e-3)
    assert (seen["air"], seen["told_air"]) == (False, False)


@pytest.mark.parametrize("library", ["pylibfranka", "franka_rs"])
def test_the_hand_alone_moves_and_finds_nothing_in_the_air(operator, library):
    seen = client(clients.grasp_air, HOST, library)
    assert seen["width"] == pytest.approx(0.06, abs=1e-3)
    assert (seen["moved"], seen["air"], seen["told_air"]) == (True, False, False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_later_client_takes_the_place_of_one_that_is_told_so(library):
    with running(OTHER):
        seen = client(clients.fault, OTHER, library, "displace", "{}")
    assert seen["exception"] == LOST[library]
    assert seen["other"]["turned"][3] == pytest.approx(0.1, abs=5e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_robot_that_is_gone_is_an_error_of_the_network_within_seconds(library):
    with running(OTHER):
        seen = client(clients.fault, OTHER, library, "die", "{}")
    assert seen["exception"] == LOST[library]
    assert "UDP receive: Timeout" in seen["words"] or "server closed connection" in seen["words"]
    assert seen["after"] < 10


@pytest.mark.parametrize("library", LIBRARIES)
def test_on_the_clock_fifty_lost_states_end_a_motion(slow, library):
    seen = client(clients.fault, OTHER, library, "drop", json.dumps({"states": 50}))
    assert (seen["exception"], seen["mode"], seen["again"]) == ("ControlException", "Reflex", "Idle")
    assert "communication_constraints_violation" in seen["words"]


def test_on_the_clock_a_stall_of_ten_milliseconds_is_survived(slow):
    """Time goes at a fifth: 50 ms without a state are ten of the robot's."""
    seen = client(clients.fault, OTHER, "pylibfranka", "stall", json.dumps({"seconds": 0.05}))
    assert (seen["exception"], seen["mode"]) == ("", "Idle")


@pytest.mark.parametrize(
    ("mode", "jump", "wrong"),
    [
        ("joint_position", 2e-5, ("acceleration", "velocity")),  # 20 rad/s2 > 10, 20000 rad/s3 > 5000
        ("joint_position", 8e-6, ("acceleration",)),
        ("joint_velocity", 0.02, ("acceleration", "velocity")),
        ("joint_velocity", 0.008, ("acceleration",)),
        ("cartesian_pose", 1.2e-5, ("acceleration", "velocity")),  # 12 m/s2 > 9, 12000 m/s3 > 4500
        ("cartesian_pose", 6e-6, ("acceleration",)),
        ("cartesian_velocity", 0.012, ("acceleration", "velocity")),
        ("cartesian_velocity", 0.006, ("acceleration",)),
    ],
)
def test_a_jump_of_what_is_commanded_is_a_reflex_named_after_what_jumped(strict, mode, jump, wrong):
    """Smooth motion before it is let through; in how far joints jump with the tool depends on the arm."""
    seen = client(clients.control_mode, OTHER, mode, str(jump))
    generator = f"{mode.partition('_')[0]}_motion_generator"
    assert [x for x in seen["errors"] if "_joint_" not in x] == [f"{generator}_{x}_discontinuity" for x in wrong]
    assert seen["mode"] == "Reflex"


def test_what_came_before_a_recovery_is_no_jump_for_what_comes_after_it(strict):
    for jump, reflex in ((2e-5, "Reflex"), (0.0, "Idle")):
        assert client(clients.control_mode, OTHER, "joint_position", str(jump))["mode"] == reflex


def test_motion_goes_on_smoothly_where_three_answers_are_lost(strict):
    seen = client(clients.fault, OTHER, "franky", "drop", json.dumps({"states": 3}))
    assert (seen["exception"], seen["mode"]) == ("", "Idle")


def test_a_jump_of_torque_is_a_reflex(strict):
    seen = client(clients.control_mode, OTHER, "torque", "1.2")  # 1200 Nm/s > 1000
    assert (seen["errors"], seen["mode"]) == (["controller_torque_discontinuity"], "Reflex")


def test_motions_that_franky_plans_keep_to_the_limits(strict):
    """At this share: the whole is of the limits of the older robot, whose last joints may turn twice as fast up."""
    seen = client(clients.joint_motion, OTHER, "0.4")
    assert seen["away"] < 2e-3
    assert seen["errors"] == []


def test_without_limits_a_jump_is_followed(operator):
    seen = client(clients.control_mode, HOST, "joint_position", "2e-5")
    assert (seen["exception"], seen["errors"]) == ("", [])


def test_what_is_planned_goes_wrong_once_the_robot_was_moved_for_so_long():
    """Three clients, one after the other: what the first is spared the second is not, and it happens once."""
    with running(OTHER, "--rate", "5", "--fault", "reflex=joint_reflex@2"):
        modes = [client(clients.control_mode, OTHER, "torque")["mode"] for _ in range(3)]
    assert modes == ["Idle", "Reflex", "Idle"]


@pytest.mark.parametrize(
    ("text", "why"), [("fire@2", "one of reflex, .* got 'fire@2'"), ("reflex", "with a time"), ("drop=many@2", "many")]
)
def test_a_fault_that_cannot_be_planned_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        Planned.read(text)


def test_what_a_planned_fault_is_told():
    assert Planned.read("drop=7@2.5") == Planned("drop", {"states": 7}, 2.5)
    assert Planned.read("die@1") == Planned("die", {}, 1.0)
    assert Planned.read("stall@1").how == {"seconds": 2.0}
