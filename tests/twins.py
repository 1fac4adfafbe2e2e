"""A twin of a robot in a process of its own, for tests that move it by the real clients over the real wire."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from real.franka import Franka
from real.twin.control import Operator
from real.twin.table import twin

BUSY = 1.0  # seconds for which a robot may say nothing: machines that test are busy
ROOM = {"low": (0.2, -0.6, -0.05), "high": (0.8, 0.6, 0.9)}


@contextmanager
def running(host: str, *options: str) -> Iterator[Operator]:
    """At the usual ports of an address of the loopback that no other test file uses; no cameras unless asked for."""
    command = [sys.executable, "-m", "real.twin", "--host", host, *options]
    command += [] if "--cameras" in options else ["--cameras", "0"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"})
    operator = Operator(host, patience=60.0)
    try:
        operator.look()
        yield operator
    finally:
        operator.close()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def franka(*hosts: str, **options) -> Franka:
    """Robots that are twins already running, with room to move; without cameras unless asked for."""
    driver = {"stale": BUSY, **options.pop("driver", {})}
    return twin(hosts, **{"images": False, "limits": ROOM, **options}, driver=driver)


def standing(host: str, camera_port: int | None = None, **options) -> Franka:
    """A robot that starts with its twin and ends with it; patient with a busy machine."""
    cameras = () if camera_port is None else ("--cameras", str(camera_port))
    with ExitStack() as stack:
        stack.enter_context(running(host, *cameras))
        patient = {"silence": 60, "stale": BUSY}
        env = twin([host], **{"images": bool(cameras), "limits": ROOM, "driver": patient, **options})
        ends, env_close = stack.pop_all(), env.close

    def close() -> None:
        env_close()
        ends.close()

    env.close = close  # type: ignore[method-assign]
    return env
