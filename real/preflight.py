"""What is looked at before a policy moves a robot."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from real.franka import Franka
from vla.types import Env

SECONDS = 2.0  # that the robot holds still under command, and that cameras are watched
SUCCESS_RATE = 0.95  # of commands that must reach it in time
AWAY = 0.03  # metres of the dry run, along each axis
FOLLOWS = 0.015  # metres that it may be off at the end of it


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    figure: str


def preflight(env: Env) -> list[Check]:
    """Of a simulator: that it plays. Of robots: their mode, connection, motion, hands and cameras.

    They move by a few centimetres about where episodes begin, and open and close their hands.
    """
    if not isinstance(env, Franka):
        obs = env.reset(0)
        return [Check("environment", passed=True, figure=f"{len(obs)} x {', '.join(c.name for c in env.spec.cameras)}")]
    found = [x for i in range(env.spec.num_envs) for x in _connected(env, i)]
    if not all(x.passed for x in found):
        return found
    env.reset(0)
    found += _cameras(env)
    found += _moves(env)
    env.rest()
    return found


def _connected(env: Franka, i: int) -> list[Check]:
    state = env.robots[i].ask("look").state
    name = f"robot {env.stations[i].address}"
    ready = state.mode == "idle" and not state.errors
    return [Check(name, ready, f"mode {state.mode}, errors {', '.join(state.errors) or 'none'}")]


def _cameras(env: Franka) -> list[Check]:
    """How many pictures a second, and how old the oldest was."""
    found = []
    for station in env.stations:
        for name, eye in station.cameras.items():
            times, ages, until = set[float](), list[float](), time.monotonic() + SECONDS
            while (now := time.monotonic()) < until:
                captured = eye.latest(float("inf")).captured
                times.add(captured)
                ages.append(now - captured)
                time.sleep(0.005)
            oldest = max(ages)
            told = f"{len(times) / SECONDS:.0f} pictures a second, up to {oldest * 1000:.0f} ms old"
            found.append(Check(f"camera {name} of {station.address}", oldest < env.max_age, told))
    return found


def _moves(env: Franka) -> list[Check]:
    """Hold still, then a few centimetres up and back along each axis, with the hand closing and opening."""
    n, hz = env.spec.num_envs, env.spec.control_hz
    still = torch.zeros(n, env.spec.action_dim)
    start = env.reset(0)
    rates = []
    for _ in range(round(SECONDS * hz)):
        _hold(env, still, start, 1.0)
        rates.append([x.state.success_rate for x in env.told])
    rate = np.min(rates[len(rates) // 2 :])
    found = [Check("commands in time", bool(rate >= SUCCESS_RATE), f"at least {rate:.3f} of a thousand a second")]
    if env.kind == "ee_delta" and not any(env.faults):
        found.append(_dry_run(env, env.reset(0)))
    start = env.reset(0)
    openings = []
    for gripper in (0.0, 1.0):
        for _ in range(round(1.5 * hz)):
            obs = _hold(env, still, start, gripper)
        openings.append(obs.proprio[:, env.spec.proprio_slice("gripper")].flatten().tolist())
    works = max(openings[0]) < 0.2 and min(openings[1]) > 0.8
    found.append(Check("hand", works, f"closed {openings[0]}, open {openings[1]}"))
    faults = [x for x in env.faults if x]
    return [*found, Check("no fault", not faults, "; ".join(faults) or "none")]


def _dry_run(env: Franka, start: Any) -> Check:
    steps = round(AWAY / 0.005)
    for axis in (2, 0, 1):
        for sign in (1, -1):
            command = torch.zeros(env.spec.num_envs, 7)
            command[:, axis], command[:, 6] = sign * 0.005, 1
            for _ in range(steps):
                obs = env.step(command).obs
    off = float((obs.proprio[:, :3] - start.proprio[:, :3]).norm(dim=-1).max())
    return Check(
        "dry run", off < FOLLOWS, f"{off * 1000:.1f} mm off after {AWAY * 100:.0f} cm along each axis and back"
    )


def _hold(env: Franka, still: torch.Tensor, start: Any, gripper: float) -> Any:
    """A step without motion; of joint positions, those that it began with."""
    command = still.clone()
    if env.kind == "joint_position":
        command[:, :-1] = start.proprio[:, env.spec.proprio_slice("joint_position")]
    command[:, -1] = gripper
    return env.step(command).obs
