"""What is wrong with a dataset, seen in its numbers: shifted or inverted commands, frozen pictures, idle episodes.

Each check is a function of episodes and says what it found; what a dataset does not have is skipped.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from vla import geometry
from vla.types import EnvSpec

LAGS = range(-3, 9)  # steps by which motion is looked for after its command
MOVES = 1e-4  # metres or radians a step
SHORT = 5  # steps
FINGERS = 6  # steps that they take


@dataclass(frozen=True)
class Episode:
    """What was asked, done and measured, a row per step; `times` in seconds, `pictures` by camera."""

    action: Float[np.ndarray, "time action"]
    requested: Float[np.ndarray, "time action"] | None
    state: Float[np.ndarray, "time state"]
    times: Float[np.ndarray, " time"] | None
    success: Bool[np.ndarray, " time"]
    instruction: str
    pictures: dict[str, UInt8[np.ndarray, "time _ _ 3"]]


@dataclass(frozen=True)
class Check:
    """`figure` is what was found, `remedy` what to do where it is not ok."""

    name: str
    verdict: Literal["ok", "warn", "FAIL", "skipped"]
    figure: str
    remedy: str = ""


Data = Sequence[Episode]
BAD = ("warn", "FAIL")


def check(episodes: Data, spec: EnvSpec) -> list[Check]:
    """All of them."""
    checks: list[Callable[[Data, EnvSpec], Check]] = [
        *(numbers, lengths, twice, labels, rate, motion_follows_commands, axes, turns, gripper),
        *(rotation, held_back, idle, pictures),
    ]
    return [each(episodes, spec) for each in checks]


def flags(episodes: Data, spec: EnvSpec) -> list[list[str]]:
    """What is odd about each episode by itself, or as a copy of another: nothing for most of them, one hopes."""
    of_one: list[Callable[[Data, EnvSpec], Check]] = [numbers, lengths, rate, rotation, held_back, idle, pictures]
    found = [[f"{x.name}: {x.figure}" for f in of_one if (x := f([e], spec)).verdict in BAD] for e in episodes]
    for first, second in copies(episodes):
        found[second].append(f"duplicates: the same commands as episode {first}")
    return found


def copies(episodes: Data) -> list[tuple[int, int]]:
    """Episodes that have the same commands as an earlier one: (earlier, this)."""
    seen: dict[str, int] = {}
    double = []
    for i, x in enumerate(episodes):
        name = hashlib.sha256(np.ascontiguousarray(x.action).tobytes()).hexdigest()
        if name in seen:
            double.append((seen[name], i))
        seen.setdefault(name, i)
    return double


def numbers(episodes: Data, _: EnvSpec) -> Check:
    wrong = [i for i, x in enumerate(episodes) if not (np.isfinite(x.action).all() and np.isfinite(x.state).all())]
    said = f"episodes {wrong[:5]} hold numbers that are not finite" if wrong else "all are finite"
    return Check("numbers", "FAIL" if wrong else "ok", said, "leave these episodes out")


def lengths(episodes: Data, _: EnvSpec) -> Check:
    steps = np.array([len(x.action) for x in episodes])
    odd = np.flatnonzero((steps < SHORT) | (steps > 5 * np.median(steps)))
    said = f"{steps.min()} to {steps.max()} steps, median {np.median(steps):.0f}"
    said += f"; odd: episodes {odd[:5].tolist()}" if len(odd) else ""
    return Check("lengths", "warn" if len(odd) else "ok", said, "look at these episodes")


def twice(episodes: Data, _: EnvSpec) -> Check:
    """Episodes with the same commands."""
    double = copies(episodes)
    said = f"episodes {double[:5]} have the same commands" if double else "no two episodes have the same commands"
    return Check(
        "duplicates", "FAIL" if double else "ok", said, "leave one of each out: it may be in both training and test"
    )


def labels(episodes: Data, _: EnvSpec) -> Check:
    solved, silent = sum(bool(x.success.any()) for x in episodes), sum(not x.instruction.strip() for x in episodes)
    said = f"{solved} of {len(episodes)} episodes succeed" + (f", {silent} without an instruction" if silent else "")
    verdict: Literal["ok", "warn", "FAIL"] = "FAIL" if silent else "ok" if solved else "warn"
    return Check("labels", verdict, said, "a policy that reads needs instructions; imitation needs successes")


def rate(episodes: Data, spec: EnvSpec) -> Check:
    """Whether steps were as far apart as the rate says."""
    between = [np.diff(x.times) * spec.control_hz for x in episodes if x.times is not None and len(x.times) > 1]
    if not between:
        return Check("rate", "skipped", "no times were kept")
    periods = np.concatenate(between)
    gaps = float((periods > 2).mean())
    said = f"{spec.control_hz / np.median(periods):.1f} Hz of {spec.control_hz:g}, {100 * gaps:.1f} % of steps late"
    ok = 0.9 < np.median(periods) < 1.1 and gaps < 0.02
    return Check("rate", "ok" if ok else "warn", said, "record on a machine that keeps up, or with lighter pictures")


def motion_follows_commands(episodes: Data, spec: EnvSpec) -> Check:
    """By how many steps measured motion is best shifted to be what was commanded."""
    if (made := _velocities(episodes, spec)) is None:
        return Check("lag", "skipped", NO_MOTION)
    found = {lag: _alike(made, lag) for lag in LAGS}
    best = max(found, key=lambda lag: found[lag])
    said = f"motion is most like its commands {best} steps later (correlation {found[best]:.2f})"
    if found[best] < 0.3:
        return Check("lag", "warn", said, "commands and motion are hardly alike: are they of the same robot and frame?")
    verdict: Literal["ok", "warn", "FAIL"] = "ok" if 0 <= best <= 2 else "FAIL" if best < 0 else "warn"
    return Check("lag", verdict, said, "commands and observations are shifted against each other: align them")


def axes(episodes: Data, spec: EnvSpec) -> Check:
    """Whether what is commanded along an axis moves the tool along it, and not backwards or along another."""
    if (made := _velocities(episodes, spec)) is None:
        return Check("axes", "skipped", NO_MOTION)
    return _axes("axes", made)


def turns(episodes: Data, spec: EnvSpec) -> Check:
    made = _turns(episodes, spec)
    return Check("turns", "skipped", NO_MOTION) if made is None else _axes("turns", made)


def gripper(episodes: Data, spec: EnvSpec) -> Check:
    """Whether it opens when it is told to: 1 is open."""
    opening = _part(episodes, spec, "gripper")
    if opening is None or spec.action_dim < 7:
        return Check("gripper", "skipped", "it is not measured")
    followed = []
    for x, measured in zip(episodes, opening, strict=True):
        asked = np.diff(x.action[:, -1])
        for t in np.flatnonzero(np.abs(asked) > 0.3):
            moved = measured[min(t + 1 + FINGERS, len(measured) - 1), 0] - measured[t, 0]
            followed.append(asked[t] * moved)
    clear = [x for x in followed if abs(x) > 0.01]
    if not clear:
        return Check("gripper", "skipped", "it is never told to open or close, or never does")
    share = float(np.mean([x > 0 for x in clear]))
    said = f"it opened or closed as it was told {100 * share:.0f} % of {len(clear)} times"
    verdict: Literal["ok", "warn", "FAIL"] = "ok" if share > 0.8 else "FAIL" if share < 0.2 else "warn"
    return Check("gripper", verdict, said, "1 is open, 0 closed, in commands and in what is measured: invert one")


def rotation(episodes: Data, spec: EnvSpec) -> Check:
    columns = _part(episodes, spec, "rotation")
    if columns is None:
        return Check("rotation", "skipped", "no rotation of six numbers is in the state")
    every = np.concatenate(columns)
    norms = np.linalg.norm(every.reshape(-1, 2, 3), axis=-1)
    jump = max(float(np.abs(np.diff(x, axis=0)).max(initial=0.0)) for x in columns)
    ok = np.abs(norms - 1).max() < 0.01 and jump < 0.5
    said = f"columns have lengths {norms.min():.3f} to {norms.max():.3f}, the largest step is {jump:.2f}"
    return Check(
        "rotation", "ok" if ok else "FAIL", said, "rotations jump or are none: a flipped quaternion, wrong columns?"
    )


def held_back(episodes: Data, _: EnvSpec) -> Check:
    """How much of what was asked was not done."""
    both = [(x.requested, x.action) for x in episodes if x.requested is not None]
    if not both:
        return Check("held back", "skipped", "what was asked was not kept")
    share = float(np.concatenate([np.abs(a - b).max(-1) > 1e-3 for a, b in both]).mean())
    said = f"{100 * share:.0f} % of commands were not done as they were asked"
    return Check(
        "held back", "ok" if share < 0.2 else "warn", said, "slower steps, or `label=action.requested` if it was noise"
    )


def idle(episodes: Data, spec: EnvSpec) -> Check:
    positions = _part(episodes, spec, "position")
    if positions is None:
        return Check("idle", "skipped", "no position is in the state")
    still = [np.abs(np.diff(x, axis=0)).max(-1) < MOVES for x in positions]
    dead = [i for i, x in enumerate(still) if len(x) and x.all()]
    share = float(np.concatenate(still).mean()) if sum(map(len, still)) else 0.0
    said = f"{100 * share:.0f} % of steps without motion" + (f"; none at all in episodes {dead[:5]}" if dead else "")
    verdict: Literal["ok", "warn", "FAIL"] = "FAIL" if dead else "warn" if share > 0.3 else "ok"
    return Check(
        "idle", verdict, said, "leave out episodes and stretches in which nothing happens: policies learn to wait"
    )


def pictures(episodes: Data, spec: EnvSpec) -> Check:
    """Black ones, and cameras that show the same while the arm moves."""
    positions = _part(episodes, spec, "position")
    wrong = []
    for i, x in enumerate(episodes):
        for name, seen in x.pictures.items():
            if seen.mean(dtype=float) < 2:
                wrong.append(f"{name} black in episode {i}")
            elif positions is not None and len(seen) > 1:
                moves = np.abs(np.diff(positions[i], axis=0)).max(-1) > 1e-3
                same = np.array([np.array_equal(a, b) for a, b in pairwise(seen)])
                if moves.sum() >= SHORT and same[moves].mean() > 0.5:
                    wrong.append(f"{name} frozen in episode {i}")
    if not any(x.pictures for x in episodes):
        return Check("pictures", "skipped", "there are none")
    said = "; ".join(wrong[:5]) if wrong else "none black or frozen"
    return Check("pictures", "FAIL" if wrong else "ok", said, "look at the camera and leave these episodes out")


NO_MOTION = "no commands of the tool's motion, or no measured pose"
Pairs = list[tuple[Float[np.ndarray, "_ 3"], Float[np.ndarray, "_ 3"]]]


def _part(episodes: Data, spec: EnvSpec, name: str) -> list[np.ndarray] | None:
    if name not in dict(spec.proprio):
        return None
    return [x.state[:, spec.proprio_slice(name)] for x in episodes]


def _velocities(episodes: Data, spec: EnvSpec) -> Pairs | None:
    """What was commanded and what was measured along x, y and z, step by step."""
    positions = _part(episodes, spec, "position")
    if spec.command.kind != "ee_delta" or spec.action_dim != 7 or positions is None:
        return None
    return [(x.action[:-1, :3], np.diff(p, axis=0)) for x, p in zip(episodes, positions, strict=True)]


def _turns(episodes: Data, spec: EnvSpec) -> Pairs | None:
    columns = _part(episodes, spec, "rotation")
    if spec.command.kind != "ee_delta" or spec.action_dim != 7 or columns is None:
        return None
    made = []
    for x, both in zip(episodes, columns, strict=True):
        first, second = torch.from_numpy(both).float().split(3, -1)
        q = geometry.from_matrix(torch.stack([first, second, torch.linalg.cross(first, second)], -1))
        made.append((x.action[:-1, 3:6], geometry.turn_between(q[:-1], q[1:]).numpy()))
    return made


def _alike(made: Pairs, lag: int) -> float:
    """Correlation of all axes together, with motion taken so many steps later."""
    shifted = [(a[: len(a) - lag], v[lag:]) if lag >= 0 else (a[-lag:], v[:lag]) for a, v in made if len(a) > abs(lag)]
    if not shifted:
        return 0.0
    asked, moved = (np.concatenate(x) for x in zip(*shifted, strict=True))
    return _correlation(asked.ravel(), moved.ravel())


def _axes(name: str, made: Pairs) -> Check:
    best = max(range(3), key=lambda lag: _alike(made, lag))
    shifted = [(a[: len(a) - best], v[best:]) for a, v in made if len(a) > best]
    asked, moved = (np.concatenate(x) for x in zip(*shifted, strict=True))
    used = [i for i in range(3) if np.abs(asked[:, i]).max(initial=0.0) > MOVES]
    table = np.array([[_correlation(asked[:, i], moved[:, j]) for j in range(3)] for i in range(3)])
    wrong = [said for i in used if (said := _wrong(i, table[i]))]
    found = (
        "; ".join(wrong) if wrong else "each moves its own: " + ", ".join(f"{'xyz'[i]} {table[i, i]:.2f}" for i in used)
    )
    return Check(
        name, "FAIL" if wrong else "ok", found, "commands are of another frame, or have other signs, than is said"
    )


def _wrong(axis: int, row: Float[np.ndarray, "3"]) -> str:
    """What an axis does instead of its own; nothing where that is not clear."""
    most = int(np.abs(row).argmax())
    if most != axis and abs(row[most]) > 0.3 and abs(row[most]) > 2 * abs(row[axis]):
        return f"{'xyz'[axis]} acts as {'-' if row[most] < 0 else ''}{'xyz'[most]}"
    return f"{'xyz'[axis]} is inverted" if row[axis] < -0.2 else ""


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
