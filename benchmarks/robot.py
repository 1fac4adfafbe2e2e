"""Whether a robot is moved in time, and stops whatever goes wrong: `python -m benchmarks.robot --faults 200 --pace`.

On a twin at its own address, through driver, client library and wire. `--pace` plays commands at 15 Hz by the machine's
clock (free run), alone and beside programs that use every core, once with ordinary and once with real-time priority; it
goes to `docs/robot.json`. `--faults` breaks something at a random moment of a motion, so many times in all, and looks
at how long the arm still moves; rows go to `docs/robot_faults.csv` as they come, and what stands there is not repeated.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import table
from real.robot import Robot
from real.safety import Fault
from real.settings import Settings, Told
from real.twin.control import Operator
from real.twin.table import TwinTable
from vla.run import write_atomically
from vla.statistics import rate

HOST = "127.0.0.19"
DOCS = Path(__file__).parents[1] / "docs"
TABLE, PACE = DOCS / "robot_faults.csv", DOCS / "robot.json"
STILL = 0.02  # rad/s
HZ = 15.0
FASTEST = np.array([0.0, 0.0, -0.02, 0, 0, 0, 1])


@dataclass(frozen=True)
class Row:
    number: int
    kind: str
    after: int  # commands
    seconds: float  # of the robot's time until no joint moves any more; -1: it still does after five
    told: str  # what the driver said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=0, help="how many in all")
    parser.add_argument("--pace", action="store_true")
    parser.add_argument("--steps", type=int, default=1000, help="commands per condition of --pace")
    asked = parser.parse_args()
    if asked.faults:
        break_things(asked.faults)
    if asked.pace:
        conditions = {
            "alone": (0, False),
            "busy": (os.cpu_count() or 1, False),
            "busy, real time": (os.cpu_count() or 1, True),
        }
        found = {name: paced(asked.steps, hogs, realtime=fast) for name, (hogs, fast) in conditions.items()}
        write_atomically(PACE, json.dumps(found, indent=1) + "\n")
    rows = table.read(TABLE, Row)
    left = sum(x.seconds < 0 for x in rows)
    paced_before = json.loads(PACE.read_text()) if PACE.exists() else {}
    figures = {"faults": len(rows), "still_moving": rate(left, len(rows)), "kinds": by_kind(rows), "pace": paced_before}
    print(json.dumps({"program": "benchmarks.robot", **figures}))  # noqa: T201


def by_kind(rows: Sequence[Row]) -> dict[str, Any]:
    """How many of each, and the longest time until the arm was at rest."""
    kinds = sorted({x.kind for x in rows})
    return {
        k: {"n": sum(x.kind == k for x in rows), "slowest": max(x.seconds for x in rows if x.kind == k)} for k in kinds
    }


# -------- pace


def paced(steps: int, hogs: int, *, realtime: bool) -> dict[str, Any]:
    """Deadlines met and commands in time while the arm goes up and down."""
    priority = (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))) if realtime else None
    with busy(hogs), twin("--free-run", before=priority), robot() as arm:
        arm.ask("home")
        arm.ask("start")
        told = []
        for k in tqdm(range(steps), desc=f"{hogs} programs beside it, {'real time' if realtime else 'ordinary'}"):
            told.append(arm.ask("command", FASTEST * [0, 0, np.cos(k / HZ), 0, 0, 0, 1]))
            if told[-1].fault:
                break
    return _pace_of(told, steps)


def _pace_of(told: Sequence[Told], steps: int) -> dict[str, Any]:
    played = [x for x in told if not x.fault]
    rates = [x.state.success_rate for x in played[10:]] or [0.0]
    between = np.diff([x.state.time for x in played]) * 1000
    return {
        "in_time": rate(sum(not x.late for x in played), steps),
        "command_success_rate": {"mean": round(float(np.mean(rates)), 5), "min": round(float(np.min(rates)), 3)},
        "period_ms": {f"p{q}": round(float(np.percentile(between, q)), 1) for q in (1, 50, 99)} if len(between) else {},
        "fault": next((x.fault for x in told if x.fault), ""),
    }


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Beside programs that never rest."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


# -------- faults


def break_things(count: int) -> None:
    """Every kind in turn, each after a random number of commands."""
    rows = table.read(TABLE, Row)
    chance = random.Random(len(rows))
    with twin() as operator, robot() as arm, contextlib.closing(TwinTable(HOST)) as hands:
        for number in tqdm(range(len(rows), count), desc="faults"):
            kind = list(MISCHIEF)[number % len(MISCHIEF)]
            row = broken(number, kind, chance.randint(1, 15), operator, arm)
            rows.append(row)
            table.write(TABLE, rows, Row)
            hands.attend(row.told)
            arm.recover()


def broken(number: int, kind: str, after: int, operator: Operator, arm: Robot) -> Row:
    arm.ask("home")
    arm.ask("start")
    for _ in range(after):
        arm.ask("command", FASTEST)
    begun = operator.look()["time"]
    MISCHIEF[kind](operator, arm)
    told = ""
    with contextlib.suppress(Fault):  # a driver that is gone says nothing
        told = _after(arm, silent=kind == "policy silent")
    return Row(number, kind, after, _rest(operator, begun), told)


def _after(arm: Robot, *, silent: bool) -> str:
    """What the driver says next: a policy goes on unless it is silent."""
    if silent:
        deadline = time.monotonic() + 5
        while not (told := arm.ask("look")).fault and time.monotonic() < deadline:
            time.sleep(0.05)
        return told.fault
    for _ in range(8):
        told = arm.ask("command", FASTEST)
        if told.fault:
            return told.fault
    return ""


def _rest(operator: Operator, begun: float) -> float:
    while (seen := operator.look())["fastest"] > STILL:
        if seen["time"] - begun > 5:
            return -1.0
    return round(seen["time"] - begun, 3)


MISCHIEF: dict[str, Callable[[Operator, Robot], object]] = {
    "reflex of joints": lambda operator, _: operator.tell("reflex", reason="joint_reflex"),
    "reflex of the tool": lambda operator, _: operator.tell("reflex"),
    "user stop": lambda operator, _: operator.tell("user_stop", pressed=True),
    "taken by the hand": lambda operator, _: operator.tell("guide", on=True),
    "robot silent for 1.5 s": lambda operator, _: operator.tell("stall", seconds=1.5),
    "states lost": lambda operator, _: operator.tell("drop", states=30),
    "policy silent": lambda *_: None,
    "command not a number": lambda _, arm: arm.ask("command", np.full(7, np.nan)),
    "operator's stop": lambda _, arm: arm.stop("the operator stopped it"),
    "driver killed": lambda _, arm: arm.process.kill(),
    "program gone": lambda _, arm: arm.pipe.close(),
}


# -------- the twin


@contextmanager
def twin(*options: str, before: Callable[[], object] | None = None) -> Iterator[Operator]:
    command = [sys.executable, "-m", "real.twin", "--host", HOST, "--cameras", "0", *options]
    process = subprocess.Popen(command, preexec_fn=before)
    try:
        with contextlib.closing(Operator(HOST, patience=30.0)) as operator:
            operator.look()
            yield operator
    finally:
        process.terminate()
        process.wait()


@contextmanager
def robot() -> Iterator[Robot]:
    with contextlib.closing(Robot(Settings(HOST, hz=HZ))) as arm:
        yield arm


if __name__ == "__main__":
    main()
