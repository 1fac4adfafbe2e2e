"""A teleoperator without a person: slow swings about a pose."""

import math
import time
from typing import Any

from lerobot.teleoperators.teleoperator import Teleoperator

from lerobot_robot_armature.config import ArmatureWaveConfig
from lerobot_robot_armature.franka import JOINTS, NUMBERS


class ArmatureWave(Teleoperator):
    config_class = ArmatureWaveConfig
    name = "armature_wave"

    def __init__(self, config: ArmatureWaveConfig):
        super().__init__(config)
        self.config = config
        self.begun: float | None = None

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(NUMBERS, float)

    @property
    def feedback_features(self) -> dict[str, Any]:
        return {}

    @property
    def is_connected(self) -> bool:
        return self.begun is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self.begun = time.monotonic()

    def calibrate(self) -> None:
        """There is nothing to calibrate."""

    def configure(self) -> None:
        """All is said when it is made."""

    def get_action(self) -> dict[str, Any]:
        if self.begun is None:
            raise ConnectionError("the wave is not connected")
        swing = math.sin(2 * math.pi * (time.monotonic() - self.begun) / self.config.seconds)
        joints = [x + self.config.amplitude * swing for x in self.config.centre]
        return {**dict(zip(JOINTS, joints, strict=True)), "gripper.pos": 1.0}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """It feels nothing."""

    def disconnect(self) -> None:
        self.begun = None
