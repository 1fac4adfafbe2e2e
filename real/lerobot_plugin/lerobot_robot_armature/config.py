"""What can be said of the robot, the camera and the teleoperator on LeRobot's command lines."""

from dataclasses import dataclass, field

from lerobot.cameras import CameraConfig
from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig

from real import fr3


@RobotConfig.register_subclass("armature_franka")
@dataclass(kw_only=True)
class ArmatureFrankaConfig(RobotConfig):
    """`hz` is LeRobot's own rate (`--dataset.fps`, `--fps`): targets are approached over a period of it.

    Speeds keep to `joint_speed` at whatever rate actions come.
    """

    address: str
    hz: float = 30.0
    backend: str = "franky"
    recover: bool = False  # what stopped it the last time is cleared when connecting: somebody has looked
    home: bool = False  # move to where episodes begin when connecting
    home_speed: float = 0.2  # share of the highest, on that way
    joint_speed: float = 0.25  # share of the highest that actions may ask for
    low: list[float] = field(default_factory=lambda: [0.25, -0.45, 0.005])  # corners of the workspace, metres
    high: list[float] = field(default_factory=lambda: [0.75, 0.45, 0.70])
    force: float = 40.0  # N at the tool that stop it
    stale: float = 0.1  # seconds without a word from the robot that stop it
    cameras: dict[str, CameraConfig] = field(default_factory=dict)


@CameraConfig.register_subclass("armature_stream")
@dataclass(kw_only=True)
class ArmatureStreamConfig(CameraConfig):
    """A device's number, a file or the address of a stream; pictures are cut and shrunk to height and width."""

    source: str


@TeleoperatorConfig.register_subclass("armature_wave")
@dataclass(kw_only=True)
class ArmatureWaveConfig(TeleoperatorConfig):
    """Nobody: joints swing about `centre` (rad) in sines. To try a set-up, and to test."""

    centre: list[float] = field(default_factory=lambda: list(fr3.HOME))
    amplitude: float = 0.1  # rad
    seconds: float = 4.0  # of one swing
