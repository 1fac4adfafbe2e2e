"""How a driver leads joints that are aimed at, on an arm of arithmetic: it is at once where it is sent."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from real import fr3
from real.backends import RobotState
from real.driver import Driver
from real.safety import Fault, Limits
from real.settings import Settings

HZ = 15.0
LIMIT = Limits.joint_speed * fr3.VELOCITY[0]  # rad/s
TICK = 0.002  # seconds between looks


@dataclass
class Arithmetic:
    """An arm whose clock is told; `sent` is where its first joint was sent at each time."""

    now: float = 1.0
    q: np.ndarray = field(default_factory=lambda: np.array(fr3.HOME, float))
    tracking: bool = False
    sent: list[tuple[float, float]] = field(default_factory=list)

    def state(self) -> RobotState:
        tool = np.array([0.5, 0, 0.4, 1, 0, 0, 0])
        return RobotState(self.now, self.now, self.q.copy(), np.zeros(7), tool, np.zeros(6), "move", (), 1.0)

    def go(self, q, share) -> None:
        self.q = np.array(q)

    def track(self, what) -> None:
        self.tracking = True

    def aim(self, target) -> None:
        self.q = np.array(target)
        self.sent.append((self.now, self.q[0]))

    def moving(self) -> bool:
        return self.tracking

    def halt(self) -> None:
        self.tracking = False

    def recover(self) -> None: ...


@pytest.fixture
def arm():
    return Arithmetic()


@pytest.fixture
def driver(arm):
    return Driver(
        Settings("", "joint_position", HZ, limits=Limits(low=(-1.0, -1.0, 0.0), high=(1.0, 1.0, 1.0))), arm, None
    )


def wait(driver, arm, seconds):
    for _ in range(round(seconds / TICK)):
        arm.now += TICK
        driver.watch()


def aim_far(driver, arm, times, every):
    """At a joint angle far away, again and again."""
    wanted = np.array([*fr3.HOME, 1.0])
    wanted[0] += 2.0
    for _ in range(times):
        driver.aim(wanted)
        wait(driver, arm, every)


@pytest.mark.parametrize("rate", [500.0, 50.0, HZ, 5.0])
def test_a_joint_is_led_at_its_highest_speed_and_no_faster_at_any_rate(driver, arm, rate):
    num_commands = round(rate)
    aim_far(driver, arm, num_commands, 1 / rate)
    wait(driver, arm, 1 / HZ)
    times, angles = np.array(arm.sent).T
    assert (np.diff(angles) <= LIMIT * np.diff(times) + 1e-9).all()
    allowed = LIMIT * min(1 / rate, 1 / HZ)  # of one command; the first comes when no time has passed
    assert angles[-1] - fr3.HOME[0] == pytest.approx((num_commands - 1) * allowed, rel=0.02)


@pytest.mark.parametrize("rate", [500.0, 50.0, HZ])
def test_silence_after_any_rate_is_noticed_after_as_many_periods(driver, arm, rate):
    aim_far(driver, arm, round(rate), 1 / rate)
    wait(driver, arm, 5 / HZ)
    assert driver.tracking
    wait(driver, arm, 2 / HZ)
    assert not driver.tracking
    assert not arm.tracking
    assert driver.told().fault == ""


def test_after_a_pause_it_goes_on_from_where_it_stands(driver, arm):
    aim_far(driver, arm, 5, 1 / HZ)
    wait(driver, arm, 1.0)
    arm.q[0] -= 0.3  # led by hand meanwhile
    aim_far(driver, arm, 2, 1 / HZ)
    assert arm.q[0] == pytest.approx(arm.sent[-1][1])
    assert arm.q[0] - fr3.HOME[0] < 0


def test_nothing_is_aimed_at_after_a_fault_until_it_is_recovered(driver, arm):
    aim_far(driver, arm, 2, 1 / HZ)
    driver.stop("the operator pressed the key")
    driver.settle()
    before = len(arm.sent)
    aim_far(driver, arm, 2, 1 / HZ)
    assert driver.told().fault == "the operator pressed the key"
    assert (len(arm.sent), arm.tracking) == (before, False)
    driver.recover()
    aim_far(driver, arm, 2, 1 / HZ)
    assert len(arm.sent) > before


def test_commands_in_the_robots_time_end_as_a_fault_when_none_comes(driver, arm):
    driver.start()
    driver.command(np.array([*fr3.HOME, 1.0]))
    wait(driver, arm, 1.0)
    assert driver.told().fault.startswith("no command came for")
    with pytest.raises(Fault, match="no command came for"):
        driver.start()
