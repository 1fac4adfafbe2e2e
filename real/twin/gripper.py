"""The hand of the twin: what its fingers are told, and when that is done."""

from dataclasses import dataclass

import mujoco
import numpy as np

from real import fr3
from real.wire import GRASP, GRIPPER_MOVE, GRIPPER_STATE, GripperStatus

STILL = 0.001  # m/s
PATIENCE = 0.3  # seconds without motion after which fingers have met what they close on


@dataclass
class Errand:
    """A command that is still being carried out: until when nothing moves any more."""

    kind: str
    number: int  # of the command, and of its name
    command: int
    width: float
    inner: float = 0.0
    outer: float = 0.0
    speed: float = 0.1
    still: float = 0.0
    age: float = 0.0


class Gripper:
    """Told `begin` for commands, and `tick` for every millisecond, after which `answers` may have some."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData):
        self.model, self.data = model, data
        self.fingers = [model.joint(f"finger{i}") for i in (1, 2)]
        self.actuator = model.actuator("fingers").id
        self.errand: Errand | None = None
        self.is_grasped = False
        self.wanted = self.width
        self.answers: list[tuple[int, int, GripperStatus]] = []
        data.ctrl[self.actuator] = self.wanted / 2

    @property
    def width(self) -> float:
        return float(sum(self.data.qpos[x.qposadr[0]] for x in self.fingers))

    def begin(self, kind: str, command: int, number: int, body: bytes) -> None:
        """A new command ends the one before."""
        if self.errand is not None:
            self._end(GripperStatus.ABORTED)
        if kind == "Stop":
            self.wanted = self.width
            self.answers.append((command, number, GripperStatus.SUCCESS))
            return
        if kind == "Grasp":
            width, inner, outer, speed, _force = GRASP.unpack(body)
            self.errand = Errand(kind, number, command, width, inner, outer, speed)
        elif kind == "Move":
            width, speed = GRIPPER_MOVE.unpack(body)
            self.errand = Errand(kind, number, command, width, speed=speed)
        else:
            self.errand = Errand("Move", number, command, fr3.MAX_WIDTH, speed=0.1)
        if not 0 <= self.errand.width <= fr3.MAX_WIDTH + 1e-6 or not self.errand.speed > 0:
            self._end(GripperStatus.FAIL)
            return
        self.is_grasped = False

    def tick(self, dt: float) -> None:
        errand = self.errand
        if errand is not None:
            goal = -0.01 if errand.kind == "Grasp" else errand.width  # to press on what is held
            step = errand.speed * dt
            self.wanted += float(np.clip(goal - self.wanted, -step, step))
            moving = max(abs(float(self.data.qvel[x.dofadr[0]])) for x in self.fingers) > STILL
            errand.still = 0.0 if moving or (abs(goal - self.wanted) > step and self._free()) else errand.still + dt
            errand.age += dt
            if errand.still > PATIENCE or errand.age > 10:
                self._finish(errand)
        self.data.ctrl[self.actuator] = max(self.wanted, -0.01) / 2

    def state(self, number: int) -> bytes:
        state = np.zeros((), GRIPPER_STATE)
        state["message_id"], state["width"], state["max_width"] = number, self.width, fr3.MAX_WIDTH
        state["is_grasped"], state["temperature"] = self.is_grasped, 30
        return state.tobytes()

    def _free(self) -> bool:
        """Whether the fingers are where they are led, so that nothing is between them."""
        return abs(self.width - max(self.wanted, 0)) < 0.004

    def _finish(self, errand: Errand) -> None:
        if errand.kind == "Move":
            reached = abs(self.width - errand.width) < 0.005
            self._end(GripperStatus.SUCCESS if reached else GripperStatus.UNSUCCESSFUL)
            return
        self.is_grasped = errand.width - errand.inner <= self.width <= errand.width + errand.outer
        self._end(GripperStatus.SUCCESS if self.is_grasped else GripperStatus.UNSUCCESSFUL)

    def _end(self, status: GripperStatus) -> None:
        errand, self.errand = self.errand, None
        if errand is not None:
            self.answers.append((errand.command, errand.number, status))
