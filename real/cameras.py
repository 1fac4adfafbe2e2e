"""Cameras of a robot: the newest picture, when it was taken, and no picture at all rather than an old one."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from real.calibration import Calibration, Fit, Image
from vla.types import Camera

PATIENCE = 5.0  # seconds until the first picture


class StaleCamera(TimeoutError):
    """A camera has no picture that is new enough."""


@dataclass(frozen=True)
class Frame:
    """`captured` is when the picture was got, in seconds of the host's monotonic clock; `number` counts from 1."""

    image: Image  # RGB, upright
    captured: float
    number: int


@runtime_checkable
class Source(Protocol):
    """Where pictures come from, one after the other."""

    def read(self) -> Image | None:
        """Waits for the next picture; None where there is none any more."""
        ...

    def close(self) -> None: ...


class LiveCamera:
    """Reads a source on a thread of its own and keeps the newest picture, fitted.

    Raises ValueError if there is no first one. `name` is for messages.
    """

    def __init__(self, name: str, open_source: Callable[[], Source], fit: Fit, calibration: Calibration | None = None):
        self.name, self.fit, self.calibration = name, fit, calibration
        self.newest: Frame | None = None
        self.ended = ""  # why there are no more pictures
        self.open = True
        self.come = threading.Condition()
        self.thread = threading.Thread(target=self._read, args=(open_source,), daemon=True, name=f"camera {name}")
        self.thread.start()
        with self.come:
            self.come.wait_for(lambda: self.newest is not None or self.ended, PATIENCE)
        if self.newest is None:
            self.close()
            raise ValueError(f"camera {name} gave no picture: {self.ended or f'silent for {PATIENCE:.0f} s'}")

    def latest(self, max_age: float | int) -> Frame:
        """The newest picture. StaleCamera if it is older than so many seconds."""
        frame = self.newest
        assert frame is not None  # there is one since the constructor
        age = time.monotonic() - frame.captured
        if age > max_age:
            why = self.ended or "it is silent: look at its cable, and at what else uses the same bus"
            raise StaleCamera(
                f"camera {self.name}: the newest picture is {age:.2f} s old, more than {max_age} s; {why}"
            )
        return frame

    def after(self, number: int, patience: float | int) -> Frame:
        """The first picture seen after picture `number`. StaleCamera if none comes in so many seconds."""
        with self.come:
            self.come.wait_for(lambda: self._number() > number or self.ended, patience)
        if self._number() <= number:
            raise StaleCamera(f"camera {self.name}: no new picture for {patience} s; {self.ended}")
        return self.latest(float("inf"))

    def spec(self, name: str) -> Camera:
        """As an environment describes it, with intrinsics and pose where they are known."""
        known = self.calibration
        if known is None:
            return Camera(name, self.fit.height, self.fit.width)
        fitted = known.fitted(self.fit)
        return Camera(name, self.fit.height, self.fit.width, fitted.intrinsics, fitted.pose)

    def close(self) -> None:
        self.open = False
        self.thread.join(1.0)

    def _number(self) -> int:
        return 0 if self.newest is None else self.newest.number

    def _read(self, open_source: Callable[[], Source]) -> None:
        try:
            source = open_source()
        except Exception as error:
            return self._end(str(error))
        try:
            while self.open and (image := source.read()) is not None:
                with self.come:
                    self.newest = Frame(self.fit(image), time.monotonic(), self._number() + 1)
                    self.come.notify_all()
            self._end("its stream has ended")
        except Exception as error:
            self._end(str(error))
        finally:
            source.close()

    def _end(self, why: str) -> None:
        with self.come:
            self.ended = why
            self.come.notify_all()


class OpenCVSource:
    """A device (its number), a file or a stream (its address), by OpenCV. ValueError if it cannot be opened.

    Size and rate are asked of devices only: files and streams come as they are, which LeRobot's camera refuses.
    """

    def __init__(
        self, source: int | str, height: int | None = None, width: int | None = None, fps: float | int | None = None
    ):
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "timeout;3000000")  # microseconds
        self.capture = cv2.VideoCapture(source)
        if not self.capture.isOpened():
            raise ValueError(f"OpenCV cannot open the camera {source!r}: look at its number, path or address")
        if isinstance(source, int):
            self.capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            asked = {cv2.CAP_PROP_FRAME_HEIGHT: height, cv2.CAP_PROP_FRAME_WIDTH: width, cv2.CAP_PROP_FPS: fps}
            for what, value in asked.items():
                if value is not None:
                    self.capture.set(what, value)

    def read(self) -> Image | None:
        there, image = self.capture.read()
        return image[..., ::-1] if there else None

    def close(self) -> None:
        self.capture.release()


class RealSenseSource:
    """The colour of an Intel RealSense: of the device with this serial number, the only one, or a recording."""

    def __init__(
        self, serial: str | None = None, file: str | None = None, height: int = 480, width: int = 640, fps: int = 30
    ):
        import pyrealsense2 as rs

        self.pipeline: Any = rs.pipeline()
        config = rs.config()
        if file is not None:
            config.enable_device_from_file(file, repeat_playback=False)
        elif serial is not None:
            config.enable_device(serial)
        if file is None:
            config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, fps)
        try:
            self.profile = self.pipeline.start(config)
        except RuntimeError as error:
            raise ValueError(f"no RealSense {serial or file or ''}: {error}") from error

    def read(self) -> Image | None:
        there, frames = self.pipeline.try_wait_for_frames(2000)
        colour = frames.get_color_frame() if there else None
        return np.asanyarray(colour.get_data()).copy() if colour else None

    def intrinsics(self) -> tuple[tuple[float, ...], ...]:
        """As the maker measured them."""
        import pyrealsense2 as rs

        x = self.profile.get_stream(rs.stream.color).as_video_stream_profile().get_intrinsics()
        return ((x.fx, 0.0, x.ppx), (0.0, x.fy, x.ppy), (0.0, 0.0, 1.0))

    def close(self) -> None:
        self.pipeline.stop()


def opencv(
    source: int | str,
    image_size: int | Sequence[int] = 128,
    upside_down: bool = False,
    calibration: str | None = None,
    **asked: Any,
) -> LiveCamera:
    """An opened camera for a configuration; `asked` is height, width and fps of a device."""
    return LiveCamera(
        str(source), lambda: OpenCVSource(source, **asked), _fit(image_size, upside_down), _known(calibration)
    )


def realsense(
    serial: str | None = None,
    image_size: int | Sequence[int] = 128,
    upside_down: bool = False,
    calibration: str | None = None,
    **asked: Any,
) -> LiveCamera:
    """An opened camera for a configuration; `asked` is height, width and fps, or the file of a recording."""
    name = serial or str(asked.get("file", "RealSense"))
    return LiveCamera(
        name, lambda: RealSenseSource(serial, **asked), _fit(image_size, upside_down), _known(calibration)
    )


def _fit(image_size: int | Sequence[int], upside_down: bool) -> Fit:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    return Fit(height, width, upside_down)


def _known(calibration: str | None) -> Calibration | None:
    return None if calibration is None else Calibration.load(calibration)
