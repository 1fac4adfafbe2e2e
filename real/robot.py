"""A robot as the rest of the program has it: a driver in a process of its own, spoken to through a socket."""

import contextlib
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from real.driver import PATIENCE
from real.safety import Fault
from real.settings import Settings, Told


class Robot:
    """Starts a driver and speaks with it. Whatever happens to this process, the driver stops the robot."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.speaking = threading.Lock()
        self._start()

    def ask(self, what: str, *arguments: Any, patience: float = PATIENCE) -> Told:
        """`home`, `start`, `command`, `rest` or `look`, and what the robot is told to be after it.

        Fault if the driver refuses, or does not answer in `patience` seconds, or the way home ends in one.
        """
        self.send(what, *arguments)
        told = self.answer(what, patience)
        if told.fault and what in ("home", "start"):
            raise Fault(told.fault)
        return told

    def send(self, what: str, *arguments: Any) -> None:
        try:
            with self.speaking:
                self.pipe.send((what, arguments))
        except OSError as error:
            raise Fault(f"the driver of {self.settings.address} is gone") from error

    def answer(self, what: str, patience: float = PATIENCE) -> Told:
        """What is told of the request `what`, whose turn it is."""
        what = f"{what}, robot at {self.settings.address}"
        try:
            if not self.pipe.poll(patience):
                raise Fault(f"{what}: no answer within {patience:.0f} s")
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise Fault(f"{what}: its driver is gone") from error
        if isinstance(answer, Told):
            return answer
        raise Fault(f"{what}: {answer}")

    def stop(self, why: str) -> None:
        """At once, from any thread; whoever waits for an answer gets it with this fault."""
        self.send("stop", why)

    def recover(self) -> Told:
        """What an operator does once they have looked; with a new connection if the old one is lost."""
        try:
            return self.ask("recover", patience=5.0)
        except Fault:
            self.close()
            self._start()
            return self.ask("recover", patience=5.0)

    def close(self) -> None:
        with contextlib.suppress(Fault):
            self.send("close")
        try:
            self.process.wait(3.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.pipe.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", "from real.driver import main; main()", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
            )
        self.pipe = Connection(ours.detach())
        self.send("begin", self.settings)
        try:
            self.answer("connecting")
        except BaseException:
            self.close()
            raise
