"""What an operator can do to the twin: lay out its scene, see what is so, and make things go wrong.

Requests and answers are single datagrams of JSON on the loopback, so that cameras, tests and programs can ask side by
side, and nothing they do holds up the thousand ticks a second.
"""

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from real.twin.scenes import Scene
from real.twin.server import Twin

CONTROL_PORT = 1339
LARGEST = 60_000
FAULTS: dict[str, tuple[str, Any]] = {  # what each is told, and what it is if nothing is said
    "reflex": ("reason", "cartesian_reflex"),
    "user_stop": ("pressed", True),
    "guide": ("on", True),
    "drop": ("states", 50),
    "stall": ("seconds", 2.0),
}


@dataclass(frozen=True)
class Planned:
    """A fault that happens once clients have moved the robot for so many seconds."""

    do: str
    how: dict[str, Any]
    after: float

    @classmethod
    def read(cls, text: str) -> "Planned":
        """`FAULT[=VALUE]@SECONDS`. ValueError for what is none."""
        what, at, after = text.partition("@")
        do, _, value = what.partition("=")
        if not at or do not in (*FAULTS, "die"):
            raise ValueError(f"a fault is one of {', '.join(FAULTS)} or die, with a time: reflex@5; got {text!r}")
        if do == "die":
            return cls(do, {}, float(after))
        name, usual = FAULTS[do]
        return cls(do, {name: type(usual)(value) if value else usual}, float(after))


class Control:
    """The twin's side: `serve` answers what came in since it was called last."""

    def __init__(
        self,
        twin: Twin,
        scene: Scene,
        host: str = "127.0.0.1",
        port: int = CONTROL_PORT,
        planned: Sequence[Planned] = (),
    ):
        self.twin, self.scene = twin, scene
        self.planned = sorted(planned, key=lambda x: x.after)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((host, port))
        self.udp.settimeout(0)
        self.port: int = self.udp.getsockname()[1]

    def serve(self) -> None:
        while self.planned and self.twin.moved >= self.planned[0].after:
            fault = self.planned.pop(0)
            self._do(fault.do, **fault.how)
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data, client = self.udp.recvfrom(LARGEST)
                self.udp.sendto(self._answer(data), client)

    def close(self) -> None:
        self.udp.close()

    def _answer(self, data: bytes) -> bytes:
        try:
            asked = json.loads(data)
            answer = {"number": asked.pop("number"), **self._do(**asked)}
        except Exception as error:  # a stranger's datagram must not end the twin
            answer = {"number": None, "error": f"{type(error).__name__}: {error}"}
        return json.dumps(answer).encode()

    def _do(self, do: str, **how: Any) -> dict[str, Any]:
        twin, faults = self.twin, self.twin.faults
        if do == "arrange":
            self.scene.arrange(twin.arm.model, twin.arm.data, how["seed"])
        elif do == "reflex":
            twin.fail(how.get("reason", "cartesian_reflex"))
        elif do == "user_stop":
            twin.user_stop(pressed=how["pressed"])
        elif do == "guide":
            twin.guide(on=how["on"])
        elif do == "drop":
            faults.drop = int(how["states"])
        elif do == "stall":
            faults.stall = float(how["seconds"])
        elif do == "die":
            os._exit(9)
        elif do != "look":
            raise ValueError(f"do must be arrange, look, reflex, user_stop, guide, drop, stall or die, got {do!r}")
        return self._seen()

    def _seen(self) -> dict[str, Any]:
        arm, poses = self.twin.arm, self.scene.poses(self.twin.arm.model, self.twin.arm.data)
        return {
            "scene": self.scene.name,
            "instruction": self.scene.instruction,
            "time": self.twin.message_id / 1000,
            "mode": self.twin.mode.name,
            "fastest": float(np.abs(arm.dq).max()),
            "success": self.scene.solved(poses),
            "poses": {name: pose.tolist() for name, pose in poses.items()},
            "qpos": arm.data.qpos.tolist(),
        }


class Operator:
    """The other side: hands, eyes and mischief of whoever stands beside the twin."""

    def __init__(self, host: str = "127.0.0.1", port: int = CONTROL_PORT, patience: float = 5.0):
        self.address, self.patience = (host, port), patience
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.connect(self.address)
        self.udp.settimeout(0.5)
        self.numbers = itertools.count()

    def look(self) -> dict[str, Any]:
        """`success`, `poses` of objects (metres, x y z w), the robot's `mode`, `fastest` joint in rad/s, `qpos`."""
        return self.tell("look")

    def arrange(self, seed: int) -> dict[str, Any]:
        return self.tell("arrange", seed=seed)

    def tell(self, do: str, **how: Any) -> dict[str, Any]:
        """TimeoutError if the twin does not answer, ValueError for what it does not know."""
        request = json.dumps({"number": (number := next(self.numbers)), "do": do, **how}).encode()
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            answer = self._ask(request)
            if answer is not None and "error" in answer:
                raise ValueError(f"the twin refused {do}: {answer['error']}")
            if answer is not None and answer["number"] == number:
                return answer
        host, port = self.address
        raise TimeoutError(f"no twin answers at {host}:{port}: start one with `python -m real.twin --host {host}`")

    def _ask(self, request: bytes) -> dict[str, Any] | None:
        """The next answer; None if there is none for a while, or nobody to give one: it may be about to start."""
        try:
            self.udp.send(request)
            return json.loads(self.udp.recv(LARGEST))
        except TimeoutError:
            return None
        except ConnectionRefusedError:
            time.sleep(0.1)
            return None

    def close(self) -> None:
        self.udp.close()
