"""A SpaceMouse pushes as it is pushed: reports as the device sends them, through the library that reads real ones."""

import time
from contextlib import closing

import pyspacemouse
import pytest
from test_teleop import STILL

from real.person import SILENCE, Person
from real.spacemouse import SpaceMouse
from simulators.point import PointEnv
from vla.types import Command

FULL = 350  # what the device says at the end of its way


class Wire:
    """The system's side of the device: reports, oldest first, then nothing."""

    def __init__(self):
        self.reports = []

    def read(self, _size):
        return self.reports.pop(0) if self.reports else b""

    def close(self): ...


def report(number, *values):
    """A report's number, and values of 16 bits, as HID has them: low byte first."""
    return bytes([number]) + b"".join(x.to_bytes(2, "little", signed=True) for x in values)


def buttons(pressed):
    return bytes([3, pressed, 0])


@pytest.fixture(params=["SpaceNavigator", "SpaceMouseCompact"])
def mouse(request):
    """The older ones tell turns in a report of their own, and so do newer ones at a cable."""
    wire = Wire()
    spec = pyspacemouse.get_device_specs()[request.param]
    spec = pyspacemouse.apply_axis_convention(spec, pyspacemouse.AxisConvention.ROS)
    from dataclasses import replace

    toy = PointEnv(num_envs=1).spec
    arm = replace(toy, command=Command("ee_delta", 7, max_translation=0.02, max_rotation=0.1))
    person = Person(arm)
    person.hear(STILL)
    with closing(SpaceMouse(person, pyspacemouse.SpaceMouseDevice(spec, wire))):
        yield wire, person


def until(said):
    deadline = time.monotonic() + 10
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pushed(person):
    person.hear(STILL)  # the page is there
    return person.act(PointEnv(num_envs=1).reset(0)).commands[0, 0]


@pytest.mark.parametrize(
    ("report_of", "axis", "sign"),
    [
        (report(1, 0, -FULL, 0), 0, 1),  # away from the person: forward
        (report(1, -FULL, 0, 0), 1, 1),  # to the left
        (report(1, 0, 0, -FULL), 2, 1),  # lifted
        (report(2, 0, 0, -FULL), 5, 1),  # turned to the left, seen from above
        (report(2, 0, -FULL, 0), 3, 1),  # tilted to the right: about what points forward
        (report(2, -FULL, 0, 0), 4, 1),  # tilted forward: about what points left
    ],
)
def test_each_axis_goes_where_the_hand_goes(mouse, report_of, axis, sign):
    wire, person = mouse
    wire.reports.append(report_of)
    until(lambda: any(person.held.axes))
    command = pushed(person)
    expected = [0.0] * 6
    expected[axis] = sign * (0.02 if axis < 3 else 0.1)
    assert command[:6].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_left_button_grips_once_a_press_and_the_right_one_is_a_clutch(mouse):
    wire, person = mouse
    for pressed, opening in ((1, 0.0), (1, 0.0), (0, 0.0), (1, 1.0)):
        wire.reports.append(buttons(pressed))
        until(lambda: not wire.reports)
        time.sleep(0.05)
        assert person.opening == opening
    wire.reports += [buttons(2), report(1, 0, -FULL, 0)]
    until(lambda: person.held.clutch and any(person.held.axes))
    assert pushed(person)[:6].tolist() == [0.0] * 6


def test_a_device_that_falls_silent_or_a_page_that_is_gone_pushes_nothing(mouse):
    wire, person = mouse
    wire.reports.append(report(1, 0, -FULL, 0))
    until(lambda: any(person.held.axes))
    assert pushed(person)[0] > 0
    time.sleep(SILENCE + 0.05)
    assert pushed(person)[:6].tolist() == [0.0] * 6
    wire.reports.append(report(1, 0, -FULL, 0))
    until(lambda: pushed(person)[0] > 0)
    person.silence()
    wire.reports += [report(1, 0, -FULL, 0)] * 3
    until(lambda: not wire.reports)
    assert person.act(PointEnv(num_envs=1).reset(0)).commands[0, 0, :6].tolist() == [0.0] * 6


def test_a_hand_that_rests_on_it_is_none(mouse):
    wire, person = mouse
    wire.reports.append(report(1, 10, -10, 10))
    until(lambda: not wire.reports)
    assert pushed(person)[:6].tolist() == [0.0] * 6


def test_where_there_is_none_it_is_said_what_to_do(monkeypatch):
    def none(**_):
        raise RuntimeError("No connected or supported devices found.")

    monkeypatch.setattr(pyspacemouse, "open", none)
    with pytest.raises(ValueError, match=r"none can be opened \(No connected .* libhidapi-hidraw0"):
        SpaceMouse(Person(PointEnv(num_envs=1).spec))
