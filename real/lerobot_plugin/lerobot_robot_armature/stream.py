"""Cameras that LeRobot's own refuses inside robots: streams and files, with the newest picture or none."""

from typing import Any

from lerobot.cameras.camera import Camera

from lerobot_robot_armature.config import ArmatureStreamConfig
from real.cameras import LiveCamera, opencv


class ArmatureStream(Camera):
    """TimeoutError if the newest picture is too old."""

    def __init__(self, config: ArmatureStreamConfig):
        super().__init__(config)
        self.config = config
        self.camera: LiveCamera | None = None
        self.seen = 0

    @property
    def is_connected(self) -> bool:
        return self.camera is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """Addresses cannot be searched for."""
        return []

    def connect(self, warmup: bool = True) -> None:
        source = int(self.config.source) if self.config.source.isdigit() else self.config.source
        self.camera = opencv(source, image_size=[self.height, self.width], fps=self.fps)  # the rate is a device's

    def read(self) -> Any:
        return self.async_read(timeout_ms=2000)

    def async_read(self, timeout_ms: float = 200) -> Any:
        frame = self._opened().after(self.seen, timeout_ms / 1000)
        self.seen = frame.number
        return frame.image

    def read_latest(self, max_age_ms: int = 500) -> Any:
        return self._opened().latest(max_age_ms / 1000).image

    def disconnect(self) -> None:
        if self.camera is not None:
            self.camera.close()
        self.camera = None

    def _opened(self) -> LiveCamera:
        if self.camera is None:
            raise ConnectionError(f"{self.config.source} is not connected")
        return self.camera
