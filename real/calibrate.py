"""Where a camera is and what its lens does, from pictures of a printed board: `python -m real.calibrate`.

`chart FILE` draws the board; print it, glue it to something flat, and measure a square. `take DIR` keeps a view each
time you press enter: of the lens alone, or with `--robot ADDRESS` with where the hand is, which you guide by hand in
between. `solve DIR FILE` computes, and writes what `calibration:` of a camera in your station reads. Nothing of this
moves a robot.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from real.calibration import Calibration, Fit
from real.cameras import LiveCamera, OpenCVSource, RealSenseSource, Source, StaleCamera
from real.charuco import Chart
from real.lens import VIEWS, hand_eye, lens
from real.robot import Robot
from real.safety import Fault, Pose
from real.settings import Settings
from vla.run import write_atomically

VIEWS_FILE = "views.json"
STILL = 0.02  # rad/s: a hand that is faster is not where its picture shows it


def main() -> None:
    asked = arguments()
    try:
        asked.program(asked)
    except (ValueError, Fault, OSError) as error:
        sys.exit(f"real.calibrate: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    programs = parser.add_subparsers(required=True)
    chart = programs.add_parser("chart", help="draw the board")
    chart.add_argument("to", type=Path, help="a picture, to be printed")
    chart.set_defaults(program=lambda asked: _write_picture(asked.to, _chart(asked).drawn()))
    taking = programs.add_parser("take", help="keep views of it")
    taking.add_argument("views", type=Path, help="directory of the views; more are added to those that it has")
    taking.add_argument("--camera", default="0", help="number of a device, or a file, or the address of a stream")
    taking.add_argument("--realsense", help="serial number of a RealSense instead")
    taking.add_argument("--height", type=int, default=480)
    taking.add_argument("--width", type=int, default=640)
    taking.add_argument("--robot", help="address of the robot, to keep where its hand is as well")
    taking.add_argument("--backend", default="franky", help="franka_rs for a Panda")
    taking.set_defaults(program=_take)
    solving = programs.add_parser("solve", help="compute from the views")
    solving.add_argument("views", type=Path)
    solving.add_argument("to", type=Path, help="where the calibration is written (JSON)")
    solving.add_argument("--mount", choices=["lens", "hand", "still"], default="lens", help=MOUNTS)
    solving.set_defaults(program=_solve)
    for program in (chart, taking):
        for name, value in asdict(Chart()).items():
            program.add_argument(f"--{name}", type=type(value), default=value, help="of the board; lengths in metres")
    return parser.parse_args()


MOUNTS = "the camera's place too: on the hand with the board lying still, or standing still with the board in the hand"


def take(
    views: Path, chart: Chart, camera: LiveCamera, tool: Callable[[], Pose | None], lines: Iterable[str], say: Any
) -> None:
    """A view for each line, until one says `q`. A view without enough of the board is not kept, nor one in motion."""
    views.mkdir(parents=True, exist_ok=True)
    kept = _read(views)[1] if (views / VIEWS_FILE).exists() else []
    say(f"{len(kept)} views. [enter] takes one, q ends: near and far, tilted, in every corner of the picture\n")
    for line in lines:
        if line.strip() == "q":
            return
        try:
            frame = camera.after(camera.latest(float("inf")).number + 1, patience=2.0)  # whole after the line
            pose = tool()
        except (StaleCamera, ValueError) as error:
            say(f"not kept: {error}\n")
            continue
        found = chart.find(frame.image)
        if found is None:
            say("not kept: too little of the board is seen; more light, nearer, no glare?\n")
            continue
        name = f"{len(kept):03d}.png"
        _write_picture(views / name, frame.image)
        kept.append({"image": name, "tool": None if pose is None else pose.tolist()})
        write_atomically(views / VIEWS_FILE, json.dumps({"chart": asdict(chart), "views": kept}, indent=1) + "\n")
        say(f"{len(kept)} views, {len(found.seen)} corners in this one{'' if len(kept) < VIEWS else ': enough'}\n")


def solve(views: Path, mount: str = "lens", say: Any = sys.stderr.write) -> Calibration:
    """ValueError for views that do not do, with what to do about it."""
    chart, taken = _read(views)
    shots = [_picture(views / x["image"]) for x in taken]
    seen = [(x, found) for x, shot in zip(taken, shots, strict=True) if (found := chart.find(shot)) is not None]
    if len(shapes := {shot.shape[:2] for shot in shots}) > 1:
        raise ValueError(f"pictures in {views} have several sizes, {sorted(shapes)}; a lens is of one")
    corners = [x for _, x in seen]
    height, width = next(iter(shapes), (1, 1))
    known, pose = lens(corners, height, width), None
    if mount != "lens":
        without = [x["image"] for x, _ in seen if x["tool"] is None]
        if without:
            raise ValueError(f"views {', '.join(without)} were taken without a robot: its poses are needed")
        place, known = hand_eye(corners, [np.array(x["tool"]) for x, _ in seen], known, on_hand=mount == "hand")
        pose = tuple(place.tolist())
    for (view, points), error in zip(seen, known.errors, strict=True):
        say(f"{view['image']}: {len(points.seen)} corners, {error:.2f} pixels away\n")
    say(f"{len(seen)} of {len(taken)} views, {known.error:.2f} pixels in all: from 1 on, remove the worst views\n")
    return Calibration(
        tuple(tuple(row) for row in known.matrix.tolist()),
        height,
        width,
        distortion=tuple(known.distortion.tolist()),
        pose=pose if mount == "still" else None,
        hand_pose=pose if mount == "hand" else None,
        error=known.error,
        date=str(date.today()),
    )


def _take(asked: argparse.Namespace) -> None:
    with ExitStack() as stack:
        robot = None
        if asked.robot is not None:
            robot = stack.enter_context(closing(Robot(Settings(asked.robot, backend=asked.backend))))
        camera = stack.enter_context(closing(_camera(asked)))
        take(asked.views, _chart(asked), camera, lambda: tool_of(robot), sys.stdin, sys.stderr.write)


def tool_of(robot: Robot | None) -> Pose | None:
    """Where the hand is. ValueError if it moves."""
    if robot is None:
        return None
    state = robot.ask("look").state
    fastest = float(np.abs(state.dq).max())
    if fastest > STILL:
        raise ValueError(f"the arm moves, by {fastest:.2f} rad/s: let it stand still")
    return state.pose


def _solve(asked: argparse.Namespace) -> None:
    made = solve(asked.views, asked.mount)
    write_atomically(asked.to, json.dumps({k: v for k, v in asdict(made).items() if v is not None}, indent=1) + "\n")


def _chart(asked: argparse.Namespace) -> Chart:
    return Chart(asked.columns, asked.rows, asked.square, asked.marker)


def _camera(asked: argparse.Namespace) -> LiveCamera:
    """Pictures as they come, whatever was asked for."""
    source: Source
    if asked.realsense is not None:
        source = RealSenseSource(asked.realsense, height=asked.height, width=asked.width)
    else:
        where = int(asked.camera) if asked.camera.isdigit() else asked.camera
        source = OpenCVSource(where, asked.height, asked.width)
    first = source.read()
    if first is None:
        raise ValueError(f"the camera {asked.realsense or asked.camera} gives no picture")
    return LiveCamera("to calibrate", lambda: source, Fit(*first.shape[:2]))


def _read(views: Path) -> tuple[Chart, list[dict[str, Any]]]:
    try:
        read = json.loads((views / VIEWS_FILE).read_text())
        return Chart(**read["chart"]), [{"image": x["image"], "tool": x["tool"]} for x in read["views"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{views} has no views: take some with `python -m real.calibrate take` ({error})") from error


def _write_picture(path: Path, image: np.ndarray) -> None:
    if not cv2.haveImageWriter(str(path)):
        raise ValueError(f"{path}: no kind of picture that can be written; say .png")
    _, data = cv2.imencode(path.suffix, image[..., ::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.tobytes())


def _picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path} is no picture")
    return image[..., ::-1]


if __name__ == "__main__":
    main()
