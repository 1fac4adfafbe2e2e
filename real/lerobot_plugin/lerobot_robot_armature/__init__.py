"""A Franka as a robot of LeRobot, with lerobot-record, lerobot-teleoperate and lerobot-rollout unchanged."""

from lerobot_robot_armature.config import ArmatureFrankaConfig, ArmatureStreamConfig, ArmatureWaveConfig
from lerobot_robot_armature.franka import ArmatureFranka
from lerobot_robot_armature.stream import ArmatureStream
from lerobot_robot_armature.wave import ArmatureWave

__all__ = [
    "ArmatureFranka",
    "ArmatureFrankaConfig",
    "ArmatureStream",
    "ArmatureStreamConfig",
    "ArmatureWave",
    "ArmatureWaveConfig",
]
