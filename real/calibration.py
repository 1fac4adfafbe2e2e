"""What is known of a camera's lens and place, and what becomes of it when pictures are cut and shrunk."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Image = UInt8[np.ndarray, "_ _ 3"]  # RGB, height x width


@dataclass(frozen=True)
class Calibration:
    """Of a camera with pictures of this size. Poses (x y z in metres, quaternion) are of the optical frame.

    `pose` is in the robot's base frame, of a camera that stands still; `hand_pose` in the tool's, of one on the hand.
    """

    intrinsics: tuple[tuple[float, ...], ...]
    height: int
    width: int
    distortion: tuple[float, ...] = ()
    pose: tuple[float, ...] | None = None
    hand_pose: tuple[float, ...] | None = None
    error: float | None = None  # pixels between where points are and where they should be
    date: str = ""

    def __post_init__(self) -> None:
        matrix = np.array(self.intrinsics, float)
        if matrix.shape != (3, 3) or not (matrix[[0, 1], [0, 1]] > 0).all() or matrix[2].tolist() != [0, 0, 1]:
            raise ValueError(f"intrinsics must be 3 x 3 with positive focal lengths and last row 0 0 1, got {matrix}")
        for name, pose in (("pose", self.pose), ("hand_pose", self.hand_pose)):
            if pose is not None and (len(pose) != 7 or abs(np.linalg.norm(pose[3:]) - 1) > 1e-3):
                raise ValueError(f"{name} must be x y z and a unit quaternion, got {pose}")

    def fitted(self, fit: "Fit") -> "Calibration":
        """Of the pictures that `fit` makes of these; lenses are taken to be straight."""
        matrix = fit.intrinsics(np.array(self.intrinsics), self.height, self.width)
        pose, hand_pose = (_turned(x) if x is not None and fit.upside_down else x for x in (self.pose, self.hand_pose))
        made = replace(self, intrinsics=_tuples(matrix.tolist()), height=fit.height, width=fit.width, distortion=())
        return replace(made, pose=pose, hand_pose=hand_pose)

    @classmethod
    def load(cls, path: Path | str) -> "Calibration":
        """ValueError, naming the file, for what is none."""
        try:
            return cls(**{k: _tuples(v) for k, v in json.loads(Path(path).read_text()).items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a camera's calibration: {error}") from error


@dataclass(frozen=True)
class Fit:
    """From a source's picture to the one that a policy sees: turned, cut to its shape about the middle, shrunk."""

    height: int
    width: int
    upside_down: bool = False

    def __call__(self, image: Image) -> Image:
        image = image[::-1, ::-1] if self.upside_down else image
        top, left, rows, columns = self._cut(*image.shape[:2])
        kept = image[top : top + rows, left : left + columns]
        if kept.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(kept)
        smaller = rows > self.height
        return cv2.resize(
            kept, (self.width, self.height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        )

    def intrinsics(self, matrix: Float[np.ndarray, "3 3"], height: int, width: int) -> Float[np.ndarray, "3 3"]:
        """Those of the fitted picture, from those of one of this height and width; pixels are at whole numbers."""
        made = matrix.astype(float).copy()
        if self.upside_down:
            made[:2, 2] = np.array([width, height]) - 1 - made[:2, 2]
        top, left, rows, columns = self._cut(height, width)
        scale = np.array([self.width / columns, self.height / rows])
        made[:2, 2] = (made[:2, 2] - np.array([left, top]) + 0.5) * scale - 0.5
        made[[0, 1], [0, 1]] *= scale
        return made

    def _cut(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, rows and columns of the largest part in the middle that has the shape wanted."""
        rows = min(height, round(width * self.height / self.width))
        columns = min(width, round(height * self.width / self.height))
        return (height - rows) // 2, (width - columns) // 2, rows, columns


def _turned(pose: tuple[float, ...]) -> tuple[float, ...]:
    """The pose of an optical frame that is turned by half about its axis."""
    x, y, z, w = pose[3:]
    turned = np.array([y, -x, w, -z])  # times the quaternion 0 0 1 0
    return (*pose[:3], *(turned * (1 if turned[3] >= 0 else -1)).tolist())


def _tuples(value: Any) -> Any:
    return tuple(float(x) if isinstance(x, int) else _tuples(x) for x in value) if isinstance(value, list) else value
