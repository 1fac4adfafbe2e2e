"""A real Franka, or several side by side, as an environment like any other."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tensordict import TensorDict
from torch import Tensor

from real.backends import Gains
from real.robot import Robot
from real.safety import Fault, Limits
from real.settings import Settings, Told
from real.station import Seen, Station
from vla import geometry
from vla.types import Command, CommandKind, EnvSpec, Observation, Step

LAYOUT = (("position", 3), ("rotation", 6), ("gripper", 1), ("lead_position", 3), ("lead_rotation", 3))
SETTLE = 0.3  # seconds after a scene is laid out, in which cameras and things come to rest


@dataclass(frozen=True)
class StepRecord:
    """What is kept of a step beside what a policy sees. Times: seconds of the robot, monotonic, and of the day."""

    robot_time: float
    host_time: float
    wall_time: float
    requested: tuple[float, ...]
    executed: tuple[float, ...]
    cut: tuple[str, ...]  # limits that made the command smaller
    late: bool  # the command came after its time
    success_rate: float  # of the commands that the client library sends a thousand times a second
    force: tuple[float, ...]  # N and Nm at the tool
    captured: Mapping[str, float]  # when each camera's picture was taken, host's monotonic
    fault: str


class Franka:
    """`num_envs` robots that step together, each at the pace of its own clock.

    A command goes to a driver, which limits it, and one period later it is observed what came of it. Proprio is that of
    the simulators. Success is the scene's verdict, where it has one. A fault ends an episode, as a failure: `faults`
    says why, and no further episode begins before `recover`. Raises Fault; ValueError for
    settings, and robots that are not there.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        command: CommandKind = "ee_delta",
        control_hz: float = 15.0,
        max_steps: int = 300,
        max_translation: float = 0.02,
        max_rotation: float = 0.1,
        max_age: float = 0.25,
        ends_on_success: bool = True,
        limits: Mapping[str, Any] | None = None,
        gains: Mapping[str, Any] | None = None,
        driver: Mapping[str, Any] | None = None,
    ):
        self.stations, self.kind, self.max_age, self.ends_on_success = list(stations), command, max_age, ends_on_success
        if not self.stations:
            raise ValueError("a Franka environment needs at least one station: an address, cameras and a scene")
        own = {"limits": Limits(**(limits or {})), "gains": Gains(**(gains or {})), **(driver or {})}
        settings = Settings("", command, control_hz, max_translation, max_rotation, **own)
        self.spec = EnvSpec(
            num_envs=len(self.stations),
            control_hz=control_hz,
            max_steps=max_steps,
            cameras=tuple(eye.spec(name) for name, eye in self.stations[0].cameras.items()),
            proprio=LAYOUT if command == "ee_delta" else (*LAYOUT, ("joint_position", 7)),
            command=_meaning(command, max_translation, max_rotation),
        )
        self.records: list[StepRecord | None] = [None] * len(self.stations)
        self.steps = [0] * len(self.stations)
        self.over = [True] * len(self.stations)
        self.threads = ThreadPoolExecutor(len(self.stations), "station")
        self.robots: list[Robot] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            try:
                for x in self.stations:
                    self.robots.append(Robot(replace(settings, address=x.address)))
                self.told = [x.ask("look") for x in self.robots]
            except Fault as fault:
                raise ValueError(str(fault)) from fault
            stack.pop_all()

    @property
    def faults(self) -> list[str]:
        """Why each robot has stopped, in its own words; empty if it has not."""
        return [x.fault for x in self.told]

    def reset(self, seed: int) -> Observation:
        self._each(lambda i: self._begin(i, seed + i))
        return self._observe()

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        asked = command.detach().double().numpy()
        alive = [not x for x in self.over]
        self._each(lambda i: self._play(i, asked[i]) if alive[i] else None)
        judged = [self.stations[i].scene.verdict() if alive[i] else False for i in range(len(alive))]
        success = torch.tensor([x is True for x in judged])
        obs = self._observe()
        stopped = torch.tensor([bool(x) for x in self.faults])
        terminated = (stopped | success if self.ends_on_success else stopped) & torch.tensor(alive)
        truncated = torch.tensor([x >= self.spec.max_steps for x in self.steps]) & torch.tensor(alive) & ~terminated
        executed = [
            x.executed if going else np.zeros(self.spec.action_dim) for x, going in zip(self.told, alive, strict=True)
        ]
        self._record(asked, alive)
        for i, over in enumerate((terminated | truncated).tolist()):
            if over:
                self._end(i)
        return Step(
            obs=obs,
            reward=success.float(),
            success=success & ~stopped,
            terminated=terminated,
            truncated=truncated,
            executed=torch.from_numpy(np.stack(executed)).float(),
            batch_size=[len(alive)],
        )

    def home(self) -> None:
        """To where episodes begin, with an open hand, out of the way of whoever lays out the scene."""
        self.rest()
        self._each(lambda i: self._go_home(i))

    def pictures(self) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """What the first robot's cameras see now, between episodes."""
        return {name: eye.latest(float("inf")).image for name, eye in self.stations[0].cameras.items()}

    @property
    def instruction(self) -> str:
        return self.stations[0].scene.instruction

    @property
    def judges(self) -> bool:
        """Whether the scene can say what came of an episode; otherwise a person must."""
        return self.stations[0].scene.verdict() is not None

    def stop(self, why: str) -> None:
        """Stop every robot at once; from any thread."""
        for robot in self.robots:
            with contextlib.suppress(Fault):
                robot.stop(why)

    def rest(self) -> None:
        """End episodes that are under way."""
        for i, over in enumerate(self.over):
            if not over:
                self._end(i)

    def recover(self) -> None:
        """Let robots that have stopped move again: somebody has looked."""
        for i, fault in enumerate(self.faults):
            if fault:
                self.told[i] = self.robots[i].recover()

    def fingerprint(self) -> dict[str, str]:
        return {"robots": ", ".join(x.address for x in self.stations), "task": self.stations[0].scene.instruction}

    def close(self) -> None:
        for robot in self.robots:
            robot.close()
        for station in self.stations:
            for eye in station.cameras.values():
                eye.close()
            station.scene.close()
        self.threads.shutdown()

    def _each(self, call: Callable[[int], None]) -> None:
        """For every robot at the same time."""
        list(self.threads.map(call, range(len(self.stations))))

    def _begin(self, i: int, seed: int) -> None:
        robot, scene = self.robots[i], self.stations[i].scene
        if fault := self.told[i].fault:
            if not scene.attend(fault):
                raise Fault(
                    f"the robot at {self.stations[i].address} has stopped ({fault}): look at it, then recover it"
                )
            self.told[i] = robot.recover()
        self._go_home(i)
        scene.prepare(seed)
        self._wait_for_pictures(i, time.monotonic() + SETTLE)
        self.told[i] = robot.ask("start")
        self.steps[i], self.over[i], self.records[i] = 0, False, None

    def _go_home(self, i: int) -> None:
        try:
            self.told[i] = self.robots[i].ask("home", patience=40.0)
        except Fault as fault:
            self.told[i] = replace(self.told[i], fault=self.told[i].fault or str(fault))
            raise

    def _wait_for_pictures(self, i: int, since: float) -> None:
        for eye in self.stations[i].cameras.values():
            while eye.latest(self.max_age + SETTLE).captured < since:
                time.sleep(0.01)

    def _play(self, i: int, command: Float[np.ndarray, " action"]) -> None:
        self.steps[i] += 1
        try:
            self.told[i] = self.robots[i].ask("command", command, patience=5.0)
        except Fault as fault:  # the driver itself is gone, and with it the robot's motion
            self.told[i] = replace(self.told[i], fault=str(fault), executed=np.zeros_like(command))

    def _end(self, i: int) -> None:
        self.over[i] = True
        if not self.told[i].fault:
            self.told[i] = replace(self.robots[i].ask("rest"), executed=self.told[i].executed)

    def _observe(self) -> Observation:
        seen = [self._look(i) for i in range(len(self.stations))]
        self.captured = [{name: x.captured for name, x in pictures.items()} for pictures in seen]
        images = {
            c.name: torch.from_numpy(np.stack([pictures[c.name].image for pictures in seen])) for c in self.spec.cameras
        }
        known = [{**x.scene.objects(), **_own(told)} for x, told in zip(self.stations, self.told, strict=True)]
        privileged = {name: torch.from_numpy(np.stack([x[name] for x in known])).float() for name in known[0]}
        n = len(self.stations)
        return Observation(
            images=TensorDict(images, [n]),
            proprio=self._proprio(privileged),
            instruction=[x.scene.instruction for x in self.stations],
            privileged=TensorDict(privileged, [n]),
            batch_size=[n],
        )

    def _look(self, i: int) -> dict[str, Seen]:
        """The newest pictures; a camera that has none stops the robot, and the last one that it had is shown."""
        pictures: dict[str, Seen] = {}
        for name, eye in self.stations[i].cameras.items():
            try:
                pictures[name] = eye.latest(self.max_age)
            except (TimeoutError, OSError) as error:
                if self.over[i]:
                    raise
                self.robots[i].stop(str(error))
                self.told[i] = replace(self.told[i], fault=self.told[i].fault or str(error))
                pictures[name] = eye.latest(float("inf"))
        return pictures

    def _proprio(self, known: Mapping[str, Tensor]) -> Float[Tensor, "env proprio"]:
        tool, commanded = known["tcp"], known["commanded"]
        x, y = (geometry.rotate(tool[:, 3:], torch.eye(3)[i].expand(len(tool), 3)) for i in (0, 1))
        lead = geometry.delta_between(tool, commanded, known["gripper"])[:, :6]
        parts = [tool[:, :3], x, y, known["gripper"], lead]
        if self.kind != "ee_delta":
            parts.append(torch.from_numpy(np.stack([t.state.q for t in self.told])).float())
        return torch.cat(parts, -1)

    def _record(self, asked: Float[np.ndarray, "env action"], alive: Sequence[bool]) -> None:
        for i, told in enumerate(self.told):
            if alive[i]:
                self.records[i] = StepRecord(
                    robot_time=told.state.time,
                    host_time=told.state.heard,
                    wall_time=time.time(),
                    requested=tuple(asked[i].tolist()),
                    executed=tuple(told.executed.tolist()),
                    cut=told.cut,
                    late=told.late,
                    success_rate=told.state.success_rate,
                    force=tuple(told.state.force.tolist()),
                    captured=self.captured[i],
                    fault=told.fault,
                )


def _own(told: Told) -> dict[str, np.ndarray]:
    """What the robot knows of itself, as simulators tell it."""
    return {"tcp": told.state.pose, "commanded": told.commanded, "gripper": np.array([told.opening])}


def _meaning(kind: CommandKind, translation: float, rotation: float) -> Command:
    if kind == "ee_delta":
        return Command(kind, 7, translation, rotation)
    return Command(kind, 8, max_rotation=rotation if kind == "joint_delta" else None)
