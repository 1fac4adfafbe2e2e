"""A Franka Research 3 in simulation that speaks the real one's protocol: `python -m real.twin --scene pick`.

Clients (pylibfranka, franky, franka-rs) connect to this machine as they would to a robot. In lock-step, the default,
time goes on when they have answered; `--free-run` keeps to the clock as a robot does, on an idle machine. Cameras are
drawn by a process beside it (`--cameras 0` for none), and `real.twin.control` is how an operator lays out the scene.
"""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, closing, suppress

from real import wire
from real.twin.arm import Arm
from real.twin.cameras import CAMERA_PORT
from real.twin.clock import run
from real.twin.control import CONTROL_PORT, FAULTS, Control, Planned
from real.twin.scenes import SCENES
from real.twin.server import Twin


def main() -> None:
    asked = arguments()
    scene = SCENES[asked.scene]
    ports = asked.port_robot, asked.port_gripper
    how = {"version": asked.version, "lock_step": not asked.free_run, "limits": asked.limits}
    with ExitStack() as stack:
        try:
            twin = stack.enter_context(closing(Twin(Arm(scene.world), host=asked.host, ports=ports, **how)))
            control = stack.enter_context(closing(Control(twin, scene, asked.host, asked.port_control, asked.fault)))
        except OSError as error:
            taken = (*ports, asked.port_control)
            sys.exit(f"real.twin: cannot listen on ports {taken} of {asked.host}: {error}; is another twin running?")
        scene.arrange(twin.arm.model, twin.arm.data, 0)
        if asked.cameras:
            stack.callback(cameras(asked).terminate)
        sys.stderr.write(
            f"real.twin: listening on {asked.host}, robot {twin.robot_tcp.port}, gripper {twin.hand.tcp.port}, "
            f"control {control.port}\n"
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        stack.enter_context(suppress(KeyboardInterrupt))
        run(twin, control=control, rate=asked.rate)


FAULT = f"FAULT[=VALUE]@SECONDS of motion, as often as you like: {', '.join(FAULTS)} or die; `reflex=joint_reflex@5`"


def _fault(text: str) -> Planned:
    try:
        return Planned.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="where to listen: others than this machine only if asked")
    parser.add_argument("--port-robot", type=int, default=wire.ROBOT_PORT)
    parser.add_argument("--port-gripper", type=int, default=wire.GRIPPER_PORT)
    parser.add_argument("--port-control", type=int, default=CONTROL_PORT)
    parser.add_argument("--scene", choices=SCENES, default="pick")
    parser.add_argument("--cameras", type=int, default=CAMERA_PORT, help="port to serve pictures at; 0: none")
    parser.add_argument("--image-size", type=int, default=128, help="height and width of pictures")
    parser.add_argument("--fps", type=float, default=30.0, help="of the cameras, at most")
    parser.add_argument("--version", type=int, choices=wire.VERSIONS, default=10, help="10: FR3, 5: Panda")
    parser.add_argument("--free-run", action="store_true", help="keep to the clock, however late clients answer")
    parser.add_argument("--rate", type=float, default=1.0, help="seconds of the robot's in a second, at most")
    parser.add_argument("--limits", action="store_true", help="stop at limits of joints and of their velocities")
    parser.add_argument("--fault", type=_fault, action="append", default=[], help=FAULT)
    asked = parser.parse_args()
    if not asked.rate > 0:
        parser.error(f"--rate must be positive, got {asked.rate}")
    return asked


def cameras(asked: argparse.Namespace) -> subprocess.Popen[bytes]:
    size = str(asked.image_size)
    options = ["--port", str(asked.cameras), "--port-control", str(asked.port_control), "--fps", str(asked.fps)]
    options += ["--height", size, "--width", size]
    command = [sys.executable, "-m", "real.twin.cameras", "--host", asked.host, *options]
    return subprocess.Popen(command, env={"MUJOCO_GL": "egl", **os.environ})


if __name__ == "__main__":
    main()
