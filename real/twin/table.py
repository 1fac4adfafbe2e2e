"""Twins as an environment, with tables that are laid out, judged and looked after without a person."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from real.calibration import Calibration, Fit
from real.cameras import LiveCamera, OpenCVSource
from real.franka import Franka
from real.safety import Pose
from real.station import Station
from real.twin.cameras import CAMERA_PORT, NAMES
from real.twin.control import CONTROL_PORT, Operator
from real.twin.model import mjcf
from real.twin.scenes import SCENES

FREE = 0.5  # seconds that the arm gives way


def twin(hosts: Sequence[str] = ("127.0.0.1",), image_size: int = 64, images: bool = True, **options: Any) -> Franka:
    """Robots of `python -m real.twin --host ...`, through the same driver and wire as real ones; options of Franka."""
    tables = [TwinTable(host) for host in hosts]
    names = NAMES if images else ()
    eyes = [{name: camera(name, host, image_size=image_size) for name in names} for host in hosts]
    return Franka([Station(*parts) for parts in zip(hosts, eyes, tables, strict=True)], **options)


def camera(name: str, host: str = "127.0.0.1", port: int = CAMERA_PORT, image_size: int = 64) -> LiveCamera:
    """A camera of a twin, opened; its lens and, where it stands still, its place are known."""
    if name not in NAMES:
        raise ValueError(f"a twin has the cameras {', '.join(NAMES)}, not {name!r}")
    _wait_for(host, port)
    address = f"http://{host}:{port}/{name}"
    return LiveCamera(
        address, lambda: OpenCVSource(address), Fit(image_size, image_size), calibration(name, image_size)
    )


def _wait_for(host: str, port: int, patience: float = 30.0) -> None:
    """Until the process that draws has begun to serve. ValueError if it does not."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no cameras of a twin at {host}:{port} ({error}): is it without --cameras?"
                ) from error
            time.sleep(0.2)


def calibration(name: str, size: int) -> Calibration:
    """Of pictures so many pixels square."""
    model = mujoco.MjModel.from_xml_string(mjcf(SCENES["empty"].world))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    focal = size / 2 / np.tan(np.radians(model.cam_fovy[model.camera(name).id]) / 2)
    middle = (size - 1) / 2
    intrinsics = ((focal, 0.0, middle), (0.0, focal, middle), (0.0, 0.0, 1.0))
    seen = data.camera(name)
    optical = Rotation.from_matrix(seen.xmat.reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])).as_quat(canonical=True)
    still = name == "base_camera"
    return Calibration(intrinsics, size, size, pose=(*seen.xpos.tolist(), *optical.tolist()) if still else None)


class TwinTable:
    """ValueError if no twin is there. A twin that has stopped may move again at once: nobody can be hurt."""

    def __init__(self, host: str = "127.0.0.1", port: int = CONTROL_PORT, patience: float = 20.0):
        try:
            self.operator = Operator(host, port, patience)
            self.instruction: str = self.operator.look()["instruction"]
        except TimeoutError as error:
            raise ValueError(str(error)) from error

    def prepare(self, seed: int) -> None:
        self.operator.arrange(seed)

    def verdict(self) -> bool | None:
        return self.operator.look()["success"]

    def objects(self) -> Mapping[str, Pose]:
        return {name: np.array(pose) for name, pose in self.operator.look()["poses"].items()}

    def attend(self, fault: str) -> bool:
        """As a person would: release the stop, and take the arm by the hand so that it presses on nothing any more."""
        self.operator.tell("user_stop", pressed=False)
        until = self.operator.tell("guide", on=True)["time"] + FREE
        while self.operator.look()["time"] < until:
            time.sleep(0.02)
        self.operator.tell("guide", on=False)
        return True

    def close(self) -> None:
        self.operator.close()
