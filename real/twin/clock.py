"""Time for the twin."""

import time

from real.twin.arm import DT
from real.twin.control import Control
from real.twin.server import Twin


def run(twin: Twin, *, control: Control | None = None, rate: float = 1.0, until: float | None = None) -> None:
    """Tick for ever, or for `until` seconds of the machine's clock.

    A second lets `rate` seconds pass for the robot; fewer in lock-step where its client is slower than that, and in
    free run where this machine holds the twin up by more than a tick.
    """
    begun = due = time.perf_counter()
    while until is None or time.perf_counter() - begun < until:
        if control is not None:
            control.serve()
        twin.tick()
        due += DT / rate
        now = time.perf_counter()
        if twin.faults.stall > 0:
            time.sleep(twin.faults.stall)
            twin.faults.stall = 0.0
        elif due > now:
            time.sleep(due - now)
        elif twin.lock_step or now > due + DT / rate:
            due = now  # a robot would not have been held up: clients are not to be hurried for it
