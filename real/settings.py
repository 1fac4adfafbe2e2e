"""What a driver is told once, and what it tells after each command."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from real import fr3
from real.backends import BACKENDS, Gains, RobotState
from real.safety import Limits, Vector


@dataclass(frozen=True)
class Settings:
    """Of one robot. `silence` is how many periods without a command it holds still before it comes to rest.

    A command is of a `kind`, and one step of it moves by at most so many metres and radians.
    """

    address: str
    kind: Literal["ee_delta", "joint_position", "joint_delta"] = "ee_delta"
    hz: float = 15.0
    max_translation: float = 0.02
    max_rotation: float = 0.1
    backend: str = "franky"
    gains: Gains = field(default_factory=Gains)
    limits: Limits = field(default_factory=Limits)
    home: Sequence[float | int] = fr3.HOME  # rad
    home_speed: float = 0.2  # share of the highest
    silence: int = 5
    stale: float = 0.1  # seconds of the host's without a word from the robot

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        margin = self.limits.joint_margin
        home = np.asarray(self.home, float)
        if home.shape != (7,) or (home < fr3.LOW + margin).any() or (home > fr3.HIGH - margin).any():
            raise ValueError(f"home must be seven angles within the joints' limits less {margin} rad, got {self.home}")
        if not 0 < self.home_speed <= 1:
            raise ValueError(f"home_speed must be a share up to 1, got {self.home_speed}")


@dataclass(frozen=True)
class Told:
    """What the driver says after each command: how the robot is, and what became of the command."""

    state: RobotState
    opening: float  # of the gripper, measured
    commanded: Vector  # the pose that it is sent to
    executed: Vector
    cut: tuple[str, ...] = ()
    late: bool = False  # the command came after its time
    fault: str = ""  # why the robot has stopped
    gripper_error: str = ""
