"""The twin's side of the Franka Control Interface: one client at a time, commands by TCP, states by UDP.

Every millisecond of simulated time a state goes out and, while the client moves the robot, its answer is taken. Clients
tell time by the number of a state alone, so in lock-step the next millisecond waits for the answer and no command is
ever late; without it the clock of the machine runs on, as a robot's does.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from real import wire
from real.twin import model
from real.twin.arm import DT, Arm
from real.twin.connection import Connection
from real.twin.hand import Hand, datagrams, post
from real.twin.limits import Watch
from real.twin.state import told
from real.wire import Controller, Generator, Mode

LOST_IN_A_ROW = 20  # answers, after which the robot gives up
ANSWER = 0.05  # seconds that lock-step waits
GIVES_WAY = 20.0  # Nms/rad: how slowly the arm goes where it is guided
HEARD = 100  # answers that the success rate is of
RECOVERY = 50  # milliseconds that it takes the robot to recover


@dataclass
class Motion:
    """A Move command that has begun."""

    number: int
    controller: Controller
    generator: Generator
    answered: bool = False  # the client has sent the first command of it
    lost: int = 0


@dataclass
class Faults:
    """What is made to go wrong."""

    drop: int = 0  # states that are not sent
    stall: float = 0.0  # seconds without a state


class Twin:
    """A robot and its gripper on two ports (0: any that is free); `tick` is one millisecond of it."""

    def __init__(
        self,
        arm: Arm,
        *,
        host: str = "127.0.0.1",
        ports: tuple[int, int] = (wire.ROBOT_PORT, wire.GRIPPER_PORT),
        version: int = 10,
        lock_step: bool = True,
        limits: bool = False,
    ):
        if version not in wire.VERSIONS:
            raise ValueError(f"version must be one of {wire.VERSIONS}, got {version}")
        self.arm, self.version, self.lock_step, self.watch = arm, version, lock_step, Watch(limits)
        self.robot_tcp = Connection(host, ports[0], wire.HEADER)
        self.robot_udp = datagrams(host)
        self.hand = Hand(arm, host, ports[1])
        self.robot_to: tuple[str, int] | None = None
        self.mode = Mode.IDLE
        self.motion: Motion | None = None
        self.errors = np.zeros(len(wire.ERRORS), bool)
        self.reflex = np.zeros(len(wire.ERRORS), bool)
        self.recovery = (0, 0)  # number of the command, and the last state before it is answered
        self.heard: deque[bool] = deque(maxlen=HEARD)
        self.message_id = 0
        self.command: Any = np.zeros((), wire.COMMAND[version])
        self.faults = Faults()
        self.moved = 0.0  # seconds that clients have moved it

    def tick(self) -> None:
        for command, number, body in self.robot_tcp.messages():
            self._robot_command(command, number, body)
        if self.robot_tcp.client is None:
            self._abandoned()
        self._recovered()
        self._send()
        self._hear()
        moves = self.motion is not None and self.motion.answered
        self.moved += DT if moves else 0.0
        controller = self.motion.controller if self.motion is not None and moves else Controller.JOINT_IMPEDANCE
        torque = self.command["tau_J_d"] if moves and controller == Controller.EXTERNAL else None
        if self.mode == Mode.GUIDING:
            controller, torque = Controller.EXTERNAL, -GIVES_WAY * self.arm.dq
        self.arm.step(controller, torque)
        self.hand.tick(self.message_id)
        if self.mode == Mode.MOVE:
            self.fail(*self.watch.moved(self.arm))

    def fail(self, *reasons: str) -> None:
        """Stop at once, as a reflex does, for these reasons, if there are any."""
        if not reasons:
            return
        for flags in (self.errors, self.reflex):
            flags[[wire.ERRORS.index(x) for x in reasons]] = True
        self.mode = Mode.REFLEX
        self._end("REFLEX_ABORTED")

    def user_stop(self, *, pressed: bool) -> None:
        if pressed:
            self.mode = Mode.USER_STOPPED
            self._end("EMERGENCY_ABORTED")
        elif self.mode == Mode.USER_STOPPED:
            self.mode = Mode.IDLE

    def guide(self, *, on: bool) -> None:
        """An operator moves the arm by hand; it gives way."""
        if on:
            self._end("PREEMPTED")
            self.mode = Mode.GUIDING
        elif self.mode == Mode.GUIDING:
            self.mode = Mode.IDLE
            self.arm.hold()

    def close(self) -> None:
        for x in (self.robot_tcp, self.robot_udp, self.hand):
            x.close()

    # -------- what a client says

    def _robot_command(self, command: int, number: int, body: bytes) -> None:
        names = wire.COMMANDS[self.version]
        name = names[command] if command < len(names) else ""
        replies: dict[str, Callable[[int, bytes], bytes | None]] = {
            "Connect": self._connect,
            "Move": self._move,
            "StopMove": self._stop_move,
            "AutomaticErrorRecovery": self._recover,
            "GetRobotModel": lambda *_: bytes([wire.SUCCESS]) + model.urdf().encode(),
            "SetCollisionBehavior": self._set_collision_behavior,
        }
        reply = replies.get(name, self._set)(number, body)
        if reply is not None:
            self.robot_tcp.reply(command, number, reply)

    def _connect(self, _: int, body: bytes) -> bytes:
        version, port = wire.CONNECT.unpack(body)
        right = version == self.version
        if right:
            self._abandoned()
            self.robot_to = (self.robot_tcp.address, port)
            self.message_id, self.recovery = 0, (0, 0)
            self.command = np.zeros((), self.command.dtype)
        return wire.CONNECTED.pack(0 if right else 1, self.version)

    def _move(self, number: int, body: bytes) -> bytes:
        status = wire.MOVE_STATUS[self.version]
        controller, generator = wire.MOVE[self.version].unpack(body)[:2]
        if self.mode != Mode.IDLE:
            return bytes([status["NOT_POSSIBLE"]])
        if controller > Controller.EXTERNAL or generator + 1 > Generator.NONE:
            return bytes([status["INVALID_ARGUMENT"]])
        self.motion = Motion(number, Controller(controller), Generator(generator + 1))
        self.mode = Mode.MOVE
        self.errors[:] = False
        self.heard.clear()
        self.watch.begin()
        self.arm.hold()
        return bytes([status["MOTION_STARTED"]])

    def _stop_move(self, *_: object) -> bytes:
        self._end("PREEMPTED")
        self.mode = Mode.IDLE if self.mode == Mode.MOVE else self.mode
        return bytes([wire.SUCCESS])

    def _recover(self, number: int, _: bytes) -> bytes | None:
        """Takes a moment, after which it is answered."""
        if self.mode not in (Mode.REFLEX, Mode.IDLE):
            return bytes([wire.NOT_POSSIBLE])
        self.errors[:] = self.reflex[:] = False
        self.mode, self.recovery = Mode.RECOVERY, (number, self.message_id + RECOVERY)
        return None

    def _recovered(self) -> None:
        number, last = self.recovery
        if number and self.message_id >= last:
            done, self.recovery = self.mode == Mode.RECOVERY, (0, 0)
            self.mode = Mode.IDLE if done else self.mode
            command = wire.COMMANDS[self.version].index("AutomaticErrorRecovery")
            self.robot_tcp.reply(command, number, bytes([wire.SUCCESS if done else wire.NOT_POSSIBLE]))

    def _set_collision_behavior(self, _: int, body: bytes) -> bytes:
        if self.mode == Mode.MOVE:
            return bytes([wire.NOT_POSSIBLE])
        self.watch.set_collision_behavior(body)
        return bytes([wire.SUCCESS])

    def _set(self, *_: object) -> bytes:
        return bytes([wire.NOT_POSSIBLE if self.mode == Mode.MOVE else wire.SUCCESS])

    # -------- a millisecond

    def _send(self) -> None:
        self.message_id += 1
        if self.faults.drop > 0:
            self.faults.drop -= 1
        elif self.robot_to is not None and self.robot_tcp.client is not None:
            post(self.robot_udp, told(self).tobytes(), self.robot_to)

    def _hear(self) -> None:
        motion = self.motion
        deadline = time.perf_counter() + (ANSWER if self.lock_step and motion is not None else 0.0)
        heard = self._newest()
        while not heard and motion is not None and time.perf_counter() < deadline:
            time.sleep(2e-5)
            heard = self._newest()
        if motion is None:
            return
        motion.answered |= heard
        if not motion.answered:
            return
        self.heard.append(heard)
        motion.lost = 0 if heard else motion.lost + 1
        if motion.lost >= LOST_IN_A_ROW:
            self.fail("communication_constraints_violation")
            return
        finished = bool(self.command["motion_finished"])
        if self.version >= 10:
            finished |= bool(self.command["torque_finished"])
        if finished:
            self.mode = Mode.IDLE
            self._end("SUCCESS")
        elif heard:
            self.arm.follow(motion.generator, self.command)
            torque = self.command["tau_J_d"] if motion.controller == Controller.EXTERNAL else None
            self.fail(*self.watch.commanded(motion.generator, self.arm, torque))
        else:
            self.arm.coast(motion.generator)

    def _newest(self) -> bool:
        """Whether the client answered the state that was sent last, or in free run any newer one than before."""
        before = int(self.command["message_id"])
        while True:
            try:
                data = self.robot_udp.recv(2048)
            except (BlockingIOError, ConnectionRefusedError):
                break
            if len(data) == self.command.dtype.itemsize:
                command = np.frombuffer(data, self.command.dtype)[0]
                if self._sound(command) and command["message_id"] >= self.command["message_id"]:
                    self.command = command
        newest = int(self.command["message_id"])
        return newest == self.message_id if self.lock_step else newest > before

    def _sound(self, command: np.void) -> bool:
        return all(np.isfinite(command[x]).all() for x in ("q_c", "dq_c", "O_T_EE_c", "O_dP_EE_c", "tau_J_d"))

    def _end(self, status: str) -> None:
        """The second answer to the Move command, if one is under way; the arm brakes and stays."""
        motion, self.motion = self.motion, None
        self.arm.hold()
        if motion is not None:
            known = wire.MOVE_STATUS[self.version]
            self.robot_tcp.reply(wire.COMMANDS[self.version].index("Move"), motion.number, bytes([known[status]]))

    def _abandoned(self) -> None:
        """Nobody is there any more who could move it."""
        if self.motion is not None:
            self.motion = None
            self.arm.hold()
        self.mode = Mode.IDLE if self.mode in (Mode.MOVE, Mode.RECOVERY) else self.mode
        self.robot_to = None
