"""A ChArUco board: a chessboard with markers in its white squares, so that each corner is known wherever it is seen."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from real.calibration import Image

CORNERS = 8  # of a view that counts
HALF_A_PIXEL = 0.5  # by which OpenCV's detector of corners is off, measured on drawn boards: its pixels begin at whole


@dataclass(frozen=True)
class Chart:
    """`columns` x `rows` squares with sides of `square` metres, and markers (DICT_4X4_50) with sides of `marker`."""

    columns: int = 5
    rows: int = 7
    square: float = 0.03
    marker: float = 0.0225

    def __post_init__(self) -> None:
        if min(self.columns, self.rows) < 3 or not 0 < self.marker < self.square:
            raise ValueError(f"a board has at least 3 x 3 squares and markers smaller than they are, got {self}")
        if self.columns * self.rows // 2 > 50:
            raise ValueError(f"{self.columns} x {self.rows} squares need more markers than there are: 50")

    def board(self) -> cv2.aruco.CharucoBoard:
        markers = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square, self.marker, markers)

    def drawn(self, pixels: int = 200) -> Image:
        """To be printed; a square is so many pixels wide."""
        grey = self.board().generateImage((self.columns * pixels, self.rows * pixels))
        return np.repeat(grey[..., None], 3, axis=-1)

    def find(self, image: Image) -> "Corners | None":
        """Its corners in a picture; None if too few are seen."""
        board = self.board()
        corners, numbers, _, _ = cv2.aruco.CharucoDetector(board).detectBoard(image[..., ::-1])
        if numbers is None or len(numbers) < CORNERS or board.checkCharucoCornersCollinear(numbers):
            return None
        there, seen = board.matchImagePoints(list(corners), numbers)
        return Corners(there.reshape(-1, 3).astype(float), seen.reshape(-1, 2).astype(float) - HALF_A_PIXEL)


@dataclass(frozen=True)
class Corners:
    """Points of the board (metres) and where they are in a picture (pixels)."""

    there: Float[np.ndarray, "n 3"]
    seen: Float[np.ndarray, "n 2"]
