"""What stands around a robot: its cameras, the scene before it, and whoever looks after both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from real.safety import Pose
from vla.types import Camera


@runtime_checkable
class Seen(Protocol):
    """A picture, and when it was taken: seconds of the host's monotonic clock."""

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]: ...
    @property
    def captured(self) -> float: ...


@runtime_checkable
class Eye(Protocol):
    """A camera, already opened; `latest` raises an error that names it if its newest picture is older than that."""

    def spec(self, name: str) -> Camera: ...
    def latest(self, max_age: float | int) -> Seen: ...
    def close(self) -> None: ...


@runtime_checkable
class Scene(Protocol):
    """What is before a robot, and whoever looks after it."""

    instruction: str

    def prepare(self, seed: int) -> None:
        """Have things lie as the episode of this seed begins; the robot is out of the way."""
        ...

    def verdict(self) -> bool | None:
        """Whether the task is done now; None where only a person can say."""
        ...

    def objects(self) -> Mapping[str, Pose]:
        """Where things are, where that is known: metres and quaternion x y z w, base frame."""
        ...

    def attend(self, fault: str) -> bool:
        """Whether somebody has looked at a robot that stopped, and says that it may move again."""
        ...

    def close(self) -> None: ...


@dataclass
class Table:
    """A table that people lay out and judge. A robot that has stopped waits for them (`Franka.recover`)."""

    instruction: str

    def prepare(self, seed: int) -> None:
        """The runner has asked for it before."""

    def verdict(self) -> bool | None:
        return None

    def objects(self) -> Mapping[str, Pose]:
        return {}

    def attend(self, fault: str) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to put away."""


@dataclass(frozen=True)
class Station:
    """One robot with its cameras and its scene."""

    address: str
    cameras: Mapping[str, Eye]
    scene: Scene
