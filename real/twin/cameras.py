"""Pictures of the twin, drawn in a process of their own and served as MJPEG: `http://127.0.0.1:1340/base_camera`.

`python -m real.twin` starts it; alone it needs MUJOCO_GL=egl where there is no screen.
"""

import argparse
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import mujoco
import numpy as np
from jaxtyping import UInt8

from real.twin.control import CONTROL_PORT, Operator
from real.twin.model import mjcf
from real.twin.scenes import SCENES

CAMERA_PORT = 1340
NAMES = ("base_camera", "hand_camera")
QUALITY = 95  # of the JPEGs
NICE = 5  # the robot comes first
BOUNDARY = "frame"


class Pictures:
    """The newest JPEG of each camera, and word of when there is a newer one."""

    def __init__(self) -> None:
        self.newest: dict[str, bytes] = {}
        self.drawn = threading.Condition()
        self.number = 0

    def put(self, pictures: dict[str, UInt8[np.ndarray, "height width 3"]]) -> None:
        options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        newest = {name: cv2.imencode(".jpg", x[..., ::-1], options)[1].tobytes() for name, x in pictures.items()}
        with self.drawn:
            self.newest, self.number = newest, self.number + 1
            self.drawn.notify_all()

    def after(self, number: int, name: str) -> tuple[int, bytes]:
        with self.drawn:
            self.drawn.wait_for(lambda: self.number > number)
            return self.number, self.newest[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="of the twin, and where to serve")
    parser.add_argument("--port", type=int, default=CAMERA_PORT)
    parser.add_argument("--port-control", type=int, default=CONTROL_PORT)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--fps", type=float, default=30.0)
    asked = parser.parse_args()
    os.nice(NICE)
    pictures = Pictures()
    server = ThreadingHTTPServer((asked.host, asked.port), _handler(pictures))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stderr.write(f"real.twin.cameras: serving {', '.join(NAMES)} at http://{asked.host}:{asked.port}\n")
    draw(Operator(asked.host, asked.port_control, patience=2.0), pictures, asked.height, asked.width, asked.fps)


def draw(operator: Operator, pictures: Pictures, height: int, width: int, fps: float) -> None:
    """Ask how things are and draw them, so many times a second, until the twin is gone."""
    model = mujoco.MjModel.from_xml_string(mjcf(SCENES[operator.look()["scene"]].world))
    data, due = mujoco.MjData(model), time.monotonic()
    with mujoco.Renderer(model, height, width) as renderer:
        while True:
            try:
                data.qpos[:] = operator.look()["qpos"]
            except TimeoutError:
                return
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            drawn = {}
            for name in NAMES:
                renderer.update_scene(data, camera=name)
                drawn[name] = renderer.render()
            pictures.put(drawn)
            due = max(due + 1 / fps, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def _handler(pictures: Pictures) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            if name not in NAMES:
                self.send_error(404, f"there are {', '.join(NAMES)}")
                return
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            number = -1
            try:
                while True:
                    number, jpeg = pictures.after(max(number, 0), name)
                    self.wfile.write(f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n".encode())
                    self.wfile.write(f"Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg + b"\r\n")
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: one line per picture would be no help."""

    return Handler


if __name__ == "__main__":
    main()
