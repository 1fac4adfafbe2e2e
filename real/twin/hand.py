"""The hand's own port, through which a client tells it what to do and hears how far open it is."""

import contextlib
import socket
import struct

from real import wire
from real.twin.arm import DT, Arm
from real.twin.connection import Connection
from real.twin.gripper import Gripper
from real.wire import GripperStatus

EVERY = 20  # milliseconds


class Hand:
    """`tick` is one millisecond, the `number`-th."""

    def __init__(self, arm: Arm, host: str, port: int):
        self.gripper = Gripper(arm.model, arm.data)
        self.tcp = Connection(host, port, wire.GRIPPER_HEADER)
        self.udp = datagrams(host)
        self.to: tuple[str, int] | None = None

    def tick(self, number: int) -> None:
        for message in self.tcp.messages():
            self._command(*message)
        self.gripper.tick(DT)
        for command, request, status in self.gripper.answers:
            self.tcp.reply(command, request, struct.pack("<H", status))
        self.gripper.answers.clear()
        if number % EVERY == 0 and self.to is not None and self.tcp.client is not None:
            post(self.udp, self.gripper.state(number), self.to)

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()

    def _command(self, command: int, request: int, body: bytes) -> None:
        name = wire.GRIPPER_COMMANDS[command] if command < len(wire.GRIPPER_COMMANDS) else ""
        if name == "Connect":
            version, port = wire.CONNECT.unpack(body)
            self.to = (self.tcp.address, port)
            wrong = version != wire.GRIPPER_VERSION
            self.tcp.reply(command, request, wire.GRIPPER_CONNECTED.pack(int(wrong), wire.GRIPPER_VERSION))
        elif name:
            self.gripper.begin(name, command, request, body)
        else:
            self.tcp.reply(command, request, struct.pack("<H", GripperStatus.FAIL))


def datagrams(host: str) -> socket.socket:
    """That never makes one wait, at any free port."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((host, 0))
    udp.settimeout(0)
    return udp


def post(udp: socket.socket, data: bytes, to: tuple[str, int]) -> None:
    """If it cannot be sent now, or nobody is there, it is lost."""
    with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
        udp.sendto(data, to)
