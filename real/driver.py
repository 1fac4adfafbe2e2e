"""The process that moves a robot: it alone talks to it, limits every command, and stops it when nobody speaks.

It is a process of its own because client libraries raise their threads to the highest priority, hold the interpreter
while they wait, and cannot be used again after a connection is lost; a new process can.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from real.backends import BACKENDS, Backend, Hand
from real.safety import Fault, Limited, Limiter, Measured, Vector
from real.settings import Settings, Told

LOOK = 0.002  # seconds between looks at the robot
STOPPED = {"reflex": "Reflex", "user_stopped": "User stopped", "guiding": "Guiding"}  # modes in which no motion begins
PATIENCE = 30.0  # seconds that a connection, or a motion to joint angles, may take


class Driver:
    """The robot's side. `watch` must be called every few milliseconds."""

    def __init__(self, settings: Settings, backend: Backend, hand: Hand | None):
        self.settings, self.backend, self.hand = settings, backend, hand
        self.limiter = Limiter(settings.limits, 1 / settings.hz, settings.max_translation, settings.max_rotation)
        self.fault = ""
        self.tracking = self.unsettled = False
        self.homing_until: float | None = None
        self.state = backend.state()
        self.commanded = self.paced = False  # once since `start`: a policy may be slow to begin
        self.due = 0.0  # when, in the robot's time, the next observation is to be taken
        self.way = (np.zeros(7), np.zeros(7), 0.0)  # from one target to the next, and since when
        self.executed = np.zeros(7 if settings.kind == "ee_delta" else 8)
        self.cut: tuple[str, ...] = ()
        self.late = False

    def home(self) -> None:
        """Come to rest, open the hand, and begin to go to the joints that episodes begin from."""
        self._require_no_fault()
        self.rest()
        with self._stopping():
            self._require_able()
            if self.hand is not None:
                self.hand.open_to(1.0)
            self.homing_until = time.monotonic() + PATIENCE
            self.backend.go(np.asarray(self.settings.home, float), self.settings.home_speed)

    def start(self) -> None:
        """Follow commands from now on, from where it stands."""
        self._require_no_fault()
        ee = self.settings.kind == "ee_delta"
        with self._stopping():
            self._require_able()
            self.backend.track("pose" if ee else "joints")
        self._look()
        self.limiter.begin(self.state.pose if ee else self.state.q, self._opening())
        self.tracking, self.commanded = not self.fault, False
        self.way = (self.limiter.target, self.limiter.target, self.state.time)

    def command(self, command: Vector) -> None:
        """Take a command up at once; the time to observe what came of it is a period after the one before.

        After a fault nothing is executed, and what is told has the fault.
        """
        self.paced = True
        self._take_up(command, 1 / self.settings.hz)

    def aim(self, command: Vector) -> None:
        """Joint positions for who keeps time by another clock: answered at once, however often they come.

        Speeds keep to their limits all the same. Who is silent has it rest, without a fault, and go on from there.
        """
        if self.settings.kind != "joint_position":
            raise ValueError(f"only joint positions can be aimed at, not {self.settings.kind}")
        if not self.fault and not self.tracking:
            self.start()
        self._look()
        self.paced = False
        self._take_up(command, min(1 / self.settings.hz, self.state.time - self.way[2]))

    @property
    def busy(self) -> bool:
        """Whether what was asked last is still going on: a way home, or the time until the next observation."""
        waiting = self.tracking and self.commanded and self.paced and self.state.time < self.due
        return not self.fault and (self.homing_until is not None or waiting)

    def rest(self) -> None:
        """Come to rest where it is."""
        self.tracking, self.homing_until = False, None
        with self._stopping():
            self.backend.halt()

    def recover(self) -> None:
        """What an operator does once they have looked."""
        self.tracking, self.homing_until = False, None
        with contextlib.suppress(Fault):
            self.backend.halt()
        self.backend.recover()
        self.fault = ""

    def stop(self, why: str) -> None:
        """End the episode as a fault: no further motion until `recover`, and rest as soon as `settle` is called.

        Whoever waits is told first, as to rest may take seconds where a connection is lost.
        """
        self.fault, self.tracking, self.homing_until, self.unsettled = self.fault or why, False, None, True

    def settle(self) -> None:
        """Have a robot that is to stop come to rest."""
        if not self.unsettled:
            return
        self.unsettled = False
        with contextlib.suppress(Fault):
            self.backend.halt()
            self.state = self.backend.state()

    def watch(self) -> None:
        """Look at the robot, and at how long nobody has spoken."""
        if self.homing_until is not None:
            self._watch_homing(self.homing_until)
        elif self.tracking:
            self._look()
            self._watch_tracking()
            self._lead(self.state.time)

    def _watch_homing(self, until: float) -> None:
        with self._stopping():
            if not self.backend.moving() and not (self.hand is not None and self.hand.busy):
                self.homing_until = None
            elif time.monotonic() > until:
                raise Fault(f"going home took more than {PATIENCE:.0f} s")

    def _watch_tracking(self) -> None:
        with self._stopping():
            silence = self.state.time - self.due
            if not self.backend.moving():
                raise Fault(f"the robot does not follow any more, its mode is {self.backend.state().mode}")
            if self.commanded and silence > self.settings.silence / self.settings.hz:
                if self.paced:
                    raise Fault(f"no command came for {silence:.2f} s")
                self.rest()

    def told(self) -> Told:
        if not self.fault and not self.tracking:
            self._look()
        ee = self.settings.kind == "ee_delta"
        commanded = self.limiter.target if ee and self.tracking else self.state.pose
        error = self.hand.error if self.hand is not None else ""
        command = self.executed, self.cut, self.late
        return Told(self.state, self._opening(), commanded.copy(), *command, self.fault, error)

    def _take_up(self, command: Vector, since: float) -> None:
        """A command that may move the robot as far as it can in so many seconds."""
        self.executed, self.cut, self.late = np.zeros(len(command)), (), False
        if self.fault:
            return
        if not self.tracking:
            raise ValueError("commands are taken after `start` only")
        self._look()
        now, period = self.state.time, 1 / self.settings.hz
        self.late = self.commanded and now > self.due + period
        self.due = now if self.late else min(now, self.due if self.commanded else now) + period
        self.commanded = True
        self.limiter.period = since
        with self._stopping():
            limited = self._limited(command)
            self.way = (self._led(now), limited.target, now)
            if self.settings.kind == "ee_delta":
                self.backend.aim(limited.target)
            if self.hand is not None:
                self.hand.open_to(limited.gripper)
            self.executed, self.cut = limited.executed, limited.cut

    def _led(self, now: float) -> Vector:
        """Joints are led to a target over a period: a step that large at once makes a spring this stiff swing."""
        before, after, begun = self.way
        return before + min(1.0, (now - begun) * self.settings.hz) * (after - before)

    def _lead(self, now: float) -> None:
        if self.tracking and self.settings.kind != "ee_delta":
            with self._stopping():
                self.backend.aim(self._led(now))

    def _limited(self, command: Vector) -> Limited:
        measured = Measured(self.state.q, self.state.pose, self.state.force[:3])
        if self.settings.kind == "ee_delta":
            return self.limiter.pose(command, measured)
        return self.limiter.joints(command, measured, delta=self.settings.kind == "joint_delta")

    def _look(self) -> None:
        """The newest state; if it is old, the robot is not there any more."""
        with self._stopping():
            state = self.backend.state()
            new = state.time != self.state.time
            if not new and (age := state.heard - self.state.heard) > self.settings.stale:
                raise Fault(f"no word from the robot for {age:.2f} s")
            self.state = state if new else self.state

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """A fault within stops the robot and stays."""
        try:
            yield
        except Fault as fault:
            self.stop(str(fault))

    def _require_no_fault(self) -> None:
        if self.fault:
            raise Fault(self.fault)

    def _require_able(self) -> None:
        """A robot that has stopped says so, but a client library may pass it on only after the motion began."""
        state = self.backend.state()
        if state.mode in STOPPED:
            raise Fault(f"the robot cannot move, its mode is {STOPPED[state.mode]}: {', '.join(state.errors)}")

    def _opening(self) -> float:
        return self.hand.measured if self.hand is not None else 0.0


def main() -> None:
    """The life of a driver process, whose parent speaks through the socket of this number."""
    pipe, status = Connection(int(sys.argv[1])), 0
    try:
        _, (settings,) = pipe.recv()
        backend, hand = BACKENDS[settings.backend](settings.address, settings.gains)
        driver = Driver(settings, backend, hand)
        pipe.send(driver.told())
        _listen(pipe, driver)
    except (EOFError, OSError, KeyboardInterrupt):
        status = 1  # whoever asked is gone; the robot has stopped
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send(f"{type(error).__name__}: {error}")
        status = 1
    os._exit(status)  # clients leave threads behind that a usual end would wait for, or die of


def _listen(pipe: Connection, driver: Driver) -> None:
    """Answer what is asked, and watch. The robot rests when this ends, however it ends."""
    asked: Mapping[str, Callable[..., None]] = {
        x.__name__: x for x in (driver.home, driver.start, driver.command, driver.aim, driver.rest, driver.recover)
    }
    waiting = False
    try:
        while True:
            if pipe.poll(LOOK):
                what, arguments = pipe.recv()
                if what == "close":
                    return
                if what == "stop":
                    driver.stop(*arguments)
                else:
                    waiting = _carried_out(pipe, asked.get(what), arguments)
            driver.watch()
            if waiting and not driver.busy:
                pipe.send(driver.told())
                waiting = False
            driver.settle()
    finally:
        driver.stop("the driver ended")
        driver.settle()
        if driver.hand is not None:
            driver.hand.close()


def _carried_out(pipe: Connection, what: Callable[..., None] | None, arguments: Any) -> bool:
    """Whether it was begun, so that an answer follows; a refusal is an answer."""
    try:
        if what is not None:
            what(*arguments)
    except (Fault, ValueError) as error:
        pipe.send(str(error))
        return False
    return True
