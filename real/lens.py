"""What a camera's lens does and where the camera is, from corners of a board that it saw and the robot's poses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import RigidTransform, Rotation

from real.charuco import Corners
from real.safety import Pose

VIEWS = 8  # that a calibration needs
TURNED = 0.1  # rad: how far the hand has turned about its second axis, as a root mean square


@dataclass(frozen=True)
class Lens:
    """`errors` are of each view: root mean square distance in pixels of where corners are from where they should be."""

    matrix: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, "5"]
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        return float(np.sqrt(np.square(self.errors).mean()))

    def project(self, board: RigidTransform, there: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Where points of a board are seen that is at this pose in the camera's frame."""
        turn, place = board.rotation.as_rotvec(), board.translation
        return cv2.projectPoints(there, turn, place, self.matrix, self.distortion)[0].reshape(-1, 2)


def lens(views: Sequence[Corners], height: int, width: int) -> Lens:
    """Focal lengths, middle and five coefficients of distortion (Zhang 2000). ValueError for too few views."""
    _require(views)
    points = [x.there.astype(np.float32) for x in views], [x.seen.astype(np.float32) for x in views]
    found = cv2.calibrateCameraExtended(*points, (width, height), np.eye(3), np.zeros(5))
    matrix, distortion, errors = found[1], found[2], found[-1]
    return Lens(matrix, distortion.ravel(), tuple(errors.ravel().tolist()))


def hand_eye(views: Sequence[Corners], tools: Sequence[Pose], known: Lens, on_hand: bool) -> tuple[Pose, Lens]:
    """The camera's pose, and its lens as the robot's motion has it, which knows lengths that a flat board does not.

    On the hand, in the tool's frame, with a board that lies still; otherwise in the base's, with a board in the hand.
    Begins with Park and Martin (1994) and ends where all corners are nearest to where they should be.
    """
    _require(views)
    hands = RigidTransform.concatenate([_transform(x) for x in tools])
    hands = hands if on_hand else hands.inv()  # of a hand to what the board stands still in
    turned = (hands.rotation.mean().inv() * hands.rotation).as_rotvec()
    if np.linalg.svd(turned, compute_uv=False)[1] / np.sqrt(len(turned)) < TURNED:
        raise ValueError("the hand was turned about one axis at most: take views with it tilted by 20 degrees and more")
    boards = [_seen(x, known) for x in views]
    turn, place = cv2.calibrateHandEye(
        list(hands.rotation.as_matrix()),
        list(hands.translation),
        [x.rotation.as_matrix() for x in boards],
        [x.translation for x in boards],
        method=cv2.CALIB_HAND_EYE_PARK,
    )
    first = RigidTransform.from_components(place.ravel(), Rotation.from_matrix(turn))
    lies = hands[0] * first * boards[0]

    def moved(numbers: Float[np.ndarray, "21"]) -> tuple[Lens, RigidTransform, RigidTransform]:
        matrix = np.array([[numbers[0], 0, numbers[2]], [0, numbers[1], numbers[3]], [0, 0, 1]])
        camera, board = (RigidTransform.from_exp_coords(x) for x in (numbers[9:15], numbers[15:]))
        return Lens(matrix, numbers[4:9], ()), camera * first, board * lies

    def away(numbers: Float[np.ndarray, "21"]) -> Float[np.ndarray, " residuals"]:
        eye, camera, board = moved(numbers)
        there = camera.inv() * hands.inv() * board
        return np.concatenate([(eye.project(p, x.there) - x.seen).ravel() for p, x in zip(there, views, strict=True)])

    lens_numbers = [*known.matrix[[0, 1, 0, 1], [0, 1, 2, 2]], *known.distortion]
    best = least_squares(away, np.array([*lens_numbers, *np.zeros(12)]), x_scale="jac").x
    parts = np.split(away(best).reshape(-1, 2), np.cumsum([len(x.seen) for x in views])[:-1])
    errors = tuple(float(np.sqrt(np.square(x).sum(-1).mean())) for x in parts)
    eye, camera, _ = moved(best)
    return np.array([*camera.translation, *camera.rotation.as_quat(canonical=True)]), replace(eye, errors=errors)


def _require(views: Sequence[Corners]) -> None:
    if len(views) < VIEWS:
        raise ValueError(f"the board is seen in {len(views)} views, and {VIEWS} are needed: take more")


def _seen(view: Corners, known: Lens) -> RigidTransform:
    """The board in the camera's frame."""
    _, turn, place = cv2.solvePnP(view.there, view.seen, known.matrix, known.distortion)
    return RigidTransform.from_components(place.ravel(), Rotation.from_rotvec(turn.ravel()))


def _transform(pose: Pose) -> RigidTransform:
    return RigidTransform.from_components(pose[:3], Rotation.from_quat(pose[3:]))
