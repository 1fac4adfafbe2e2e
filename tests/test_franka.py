"""The robot's environment, driver and stops, on twins: the whole way to the wire is what a real robot would get."""

import numpy as np
import pytest
import torch
from twins import BUSY, franka, running

from policies.scripted import ScriptedExpert
from real.robot import Robot
from real.safety import Fault
from real.settings import Settings
from vla.rollout import rollout

HOST, OTHER = "127.0.0.11", "127.0.0.12"
PERIODS = 2 / 15  # seconds of two control periods
STILL = 0.02  # rad/s
DOWN = torch.tensor([[0.0, 0, -0.01, 0, 0, 0, 1]])


@pytest.fixture(scope="module")
def operator():
    with running(HOST) as operator:
        yield operator


@pytest.fixture(scope="module", params=["franky", "franka_rs"])
def driven(operator, request):
    robot = Robot(Settings(HOST, backend=request.param, stale=BUSY / 2))
    yield robot
    robot.close()


@pytest.fixture
def robot(operator, driven):
    """As an operator leaves it after whatever came before."""
    operator.tell("user_stop", pressed=False)
    operator.tell("guide", on=False)
    driven.recover()
    return driven


def following(robot, steps: int = 8):
    """On its way down at its highest speed."""
    robot.ask("home")
    robot.ask("start")
    for _ in range(steps):
        told = robot.ask("command", np.array([0.0, 0, -0.02, 0, 0, 0, 1]))
    return told


def stops(operator, since: float) -> float:
    """Seconds of the robot's from `since` on until no joint moves any more."""
    while (seen := operator.look())["fastest"] > STILL:
        assert seen["time"] - since < 5
    return seen["time"] - since


def test_commands_are_followed_at_the_pace_of_the_robots_clock(robot):
    told = following(robot)
    times, heights = [told.state.time], [told.commanded[2]]
    for _ in range(10):
        told = robot.ask("command", np.array([0.0, 0, -0.005, 0, 0, 0, 1]))
        times.append(told.state.time)
        heights.append(told.commanded[2])
        assert not told.fault
    on_time = np.diff(times)[[not told.late] * 10]
    assert on_time.min() > 0.05
    np.testing.assert_allclose(np.diff(heights), -0.005, atol=1e-9)
    assert told.state.pose[2] == pytest.approx(told.commanded[2], abs=0.02)
    assert told.state.success_rate == pytest.approx(1.0)  # in lock-step no command of a thousand a second is late


def test_silence_brings_it_to_rest_and_it_stays_until_an_operator_has_looked(operator, robot):
    following(robot)
    begun = operator.look()["time"]
    while not (told := robot.ask("look")).fault:
        assert told.state.time - begun < 3
    assert "no command came for" in told.fault
    assert stops(operator, begun) < 5 / 15 + 1.0
    assert robot.ask("command", np.zeros(7)).fault == told.fault
    with pytest.raises(Fault, match="no command came"):
        robot.ask("home")
    assert robot.recover().fault == ""
    assert not following(robot, 1).fault


@pytest.mark.parametrize(
    ("mischief", "word"),
    [
        (("reflex", {"reason": "joint_reflex"}), "joint_reflex"),
        (("user_stop", {"pressed": True}), "User Stop"),
        (("guide", {"on": True}), "guiding"),
    ],
    ids=["reflex", "user stop", "guiding"],
)
def test_a_fault_of_the_robot_ends_motion_in_two_periods_and_is_told_in_its_words(operator, robot, mischief, word):
    following(robot)
    what, how = mischief
    begun = operator.tell(what, **how)["time"]
    told = robot.ask("command", np.array([0.0, 0, -0.02, 0, 0, 0, 1]))
    assert word in told.fault
    assert stops(operator, begun) < (0.5 if what == "guide" else PERIODS)  # a guided arm goes on where it is led
    operator.tell("user_stop", pressed=False)
    operator.tell("guide", on=False)
    assert robot.recover().fault == ""


def test_a_lost_connection_is_noticed_at_once_and_a_new_one_is_made(operator, robot):
    following(robot)
    operator.tell("stall", seconds=1.5)
    told = robot.ask("command", np.array([0.0, 0, -0.02, 0, 0, 0, 1]))
    assert "no word from the robot" in told.fault  # not the words of the client library, which takes a second
    assert stops(operator, operator.look()["time"]) < PERIODS
    assert robot.recover().fault == ""
    assert not following(robot, 1).fault


def test_a_driver_that_dies_leaves_the_robot_at_rest(operator, robot):
    following(robot)
    robot.process.kill()
    begun = operator.look()["time"]
    assert stops(operator, begun) < PERIODS
    with pytest.raises(Fault, match="driver"):
        robot.ask("command", np.zeros(7))
    assert robot.recover().fault == ""


def test_a_program_that_dies_leaves_the_robot_at_rest(operator, robot):
    following(robot)
    robot.pipe.close()  # what its death would do
    begun = operator.look()["time"]
    assert stops(operator, begun) < PERIODS + 0.5
    robot.process.wait(10)


def test_stop_from_another_thread_reaches_whoever_waits(robot):
    following(robot)
    robot.stop("the operator pressed the key")
    assert robot.ask("command", np.zeros(7)).fault == "the operator pressed the key"
    robot.recover()


def test_a_command_that_is_not_a_number_stops_it(robot):
    following(robot)
    assert "not finite" in robot.ask("command", np.full(7, np.nan)).fault
    robot.recover()


def test_nobody_at_the_address_is_said_so():
    with pytest.raises(Fault, match=r"connecting, robot at 127\.0\.0\.99: .*"):
        Robot(Settings("127.0.0.99"))


@pytest.mark.parametrize(
    "wrong", [{"backend": "rosbot"}, {"home": (0.0,) * 7}, {"home": (0.0,) * 6}, {"home_speed": 0.0}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(HOST, **wrong)


@pytest.mark.parametrize("backend", ["franky", "franka_rs"])
def test_the_expert_picks_up_the_cube_through_the_whole_path(operator, backend):
    env = franka(HOST, driver={"backend": backend})
    try:
        played = rollout(env, ScriptedExpert("Lift", 1, 0.02, 0.1), seed=3)
        assert played.success.any()
        assert played.terminated.any()
        assert env.faults == [""]
        record = env.records[0]
        assert record.success_rate == pytest.approx(1.0)
        np.testing.assert_allclose(record.executed, played.executed[played.valid][-1, 0], atol=1e-6)
        assert operator.look()["poses"]["cube"][2] > 0.06
    finally:
        env.close()


def test_a_fault_of_one_robot_ends_its_episode_and_not_that_of_the_other(operator):
    with running(OTHER) as other:
        env = franka(HOST, OTHER, max_steps=5)
        try:
            obs = env.reset(20)
            assert not torch.equal(obs.privileged["cube"][0], obs.privileged["cube"][1])
            env.step(DOWN.repeat(2, 1))
            other.tell("reflex")
            step = env.step(DOWN.repeat(2, 1))
            assert step.terminated.tolist() == [False, True]
            assert not step.success.any()
            assert env.faults[0] == ""
            assert "cartesian_reflex" in env.faults[1]
            still = step.obs.proprio[1]
            for _ in range(3):
                step = env.step(DOWN.repeat(2, 1))
            assert step.truncated.tolist() == [True, False]
            assert step.executed[1].eq(0).all()
            assert step.obs.proprio[1, 2] == pytest.approx(still[2].item(), abs=2e-3)
            again = env.reset(21)
            torch.testing.assert_close(again.privileged["cube"][:1], obs.privileged["cube"][1:], atol=2e-3, rtol=0)
            assert env.faults == ["", ""]
        finally:
            env.close()


def test_joint_commands_turn_the_joints(operator):
    for kind in ("joint_delta", "joint_position"):
        env = franka(HOST, command=kind, max_steps=50)
        try:
            start = env.reset(0).proprio[0, env.spec.proprio_slice("joint_position")]
            for k in range(1, 13):
                wanted = torch.zeros(7)
                wanted[3] = 0.02 * (k if kind == "joint_position" else 1)
                wanted = start + wanted if kind == "joint_position" else wanted
                step = env.step(torch.cat([wanted, torch.ones(1)])[None])
            for _ in range(10):
                step = env.step(torch.cat([wanted if kind == "joint_position" else wanted * 0, torch.ones(1)])[None])
            end = step.obs.proprio[0, env.spec.proprio_slice("joint_position")]
            assert (end - start)[3].item() == pytest.approx(0.24, abs=0.02)
            assert (end - start)[[0, 1, 2, 4, 5, 6]].abs().max() < 0.02
        finally:
            env.close()


def test_the_older_robot_is_followed_stopped_and_recovered_too():
    with running(OTHER, "--version", "5") as operator:
        robot = Robot(Settings(OTHER, backend="franka_rs", stale=BUSY))
        try:
            start = robot.ask("home").state
            np.testing.assert_allclose(start.q, Settings.home, atol=0.01)
            told = following(robot, 12)
            assert not told.fault
            assert told.state.pose[2] == pytest.approx(told.commanded[2], abs=0.05)
            assert told.state.pose[2] < start.pose[2] - 0.12
            begun = operator.tell("reflex", reason="joint_reflex")["time"]
            assert "joint_reflex" in robot.ask("command", np.array([0.0, 0, -0.02, 0, 0, 0, 1])).fault
            assert stops(operator, begun) < PERIODS
            assert robot.recover().fault == ""
            assert not following(robot, 1).fault
        finally:
            robot.close()
