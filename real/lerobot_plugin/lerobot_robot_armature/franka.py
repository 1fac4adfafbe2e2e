"""The robot: joints and gripper as numbers that end in `.pos`, which is what lerobot-rollout passes on."""

import contextlib
from typing import Any

import numpy as np
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.robots.robot import Robot

from lerobot_robot_armature.config import ArmatureFrankaConfig
from real.robot import Robot as Driven
from real.safety import Fault, Limits
from real.settings import Settings, Told

JOINTS = [f"joint_{i}.pos" for i in range(1, 8)]
NUMBERS = [*JOINTS, "gripper.pos"]  # rad; 0 closed to 1 open


class ArmatureFranka(Robot):
    """Absolute joint angles in, what the limiter let through back.

    While LeRobot saves an episode the arm comes to rest, and goes on from there. Fault, in the robot's own words, for
    whatever else stops it: nothing here lets it move again.
    """

    config_class = ArmatureFrankaConfig
    name = "armature_franka"

    def __init__(self, config: ArmatureFrankaConfig):
        super().__init__(config)
        self.config = config
        self.settings = _settings(config)
        self.cameras = make_cameras_from_configs(config.cameras)
        self.driven: Driven | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        pictures = {name: (x.height, x.width, 3) for name, x in self.config.cameras.items()}
        return {**dict.fromkeys(NUMBERS, float), **pictures}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(NUMBERS, float)

    @property
    def is_connected(self) -> bool:
        return self.driven is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        """All or nothing: what was opened before an error is closed again."""
        with contextlib.ExitStack() as opened:
            for camera in self.cameras.values():
                camera.connect()
                opened.callback(camera.disconnect)
            driven = Driven(self.settings)
            opened.callback(driven.close)
            if self.config.recover:
                driven.recover()
            if self.config.home:
                driven.ask("home", patience=40.0)
            opened.pop_all()
        self.driven = driven

    def calibrate(self) -> None:
        """The robot knows its joints."""

    def configure(self) -> None:
        """All is said when connecting."""

    def get_observation(self) -> dict[str, Any]:
        told = _sound(self._spoken().ask("look"))
        numbers = [*told.state.q.tolist(), told.opening]
        pictures = {name: camera.read_latest() for name, camera in self.cameras.items()}
        return {**dict(zip(NUMBERS, numbers, strict=True)), **pictures}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """What else is named than joints and gripper is left aside; ValueError if one of them is missing."""
        if missing := [name for name in NUMBERS if name not in action]:
            raise ValueError(f"an action needs {', '.join(missing)} too, got {', '.join(action)}")
        told = _sound(self._spoken().ask("aim", np.array([float(action[name]) for name in NUMBERS])))
        return dict(zip(NUMBERS, told.executed.tolist(), strict=True))

    def disconnect(self) -> None:
        if self.driven is not None:
            self.driven.close()
        for camera in self.cameras.values():
            camera.disconnect()
        self.driven = None

    def _spoken(self) -> Driven:
        if self.driven is None:
            raise ConnectionError(f"{self} is not connected")
        return self.driven


def _settings(config: ArmatureFrankaConfig) -> Settings:
    limits = Limits(low=config.low, high=config.high, joint_speed=config.joint_speed, force=config.force)
    return Settings(
        config.address,
        "joint_position",
        config.hz,
        backend=config.backend,
        limits=limits,
        home_speed=config.home_speed,
        stale=config.stale,
    )


def _sound(told: Told) -> Told:
    if told.fault:
        raise Fault(told.fault)
    return told
