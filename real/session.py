"""An evaluation by trials: who plays which scene when, what came of it, and what may be concluded so far."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla.run import write_atomically
from vla.statistics import better, mcnemar, rate, sequential

# By the simulator's verdict, by itself, by the robot or its driver, by the operator; void: it does not count.
ENDS = ("verdict", "time", "fault", "abort", "void")


@dataclass(frozen=True)
class Trial:
    """`policy` is a letter: which policy that is, is not told before the end. The scene is that of `seed`."""

    number: int
    seed: int
    policy: str


@dataclass(frozen=True)
class Result:
    """What is kept of a trial. `success` is the operator's word, `verdict` the simulator's where there is one."""

    number: int
    seed: int
    policy: str
    ended: str
    success: bool
    verdict: bool | None
    progress: int  # 0 to 100
    intervened: bool  # somebody helped: no success, and counted apart
    tag: str  # of a failure, in the operator's words: missed, dropped, ...
    note: str
    fault: str
    steps: int
    late: int  # commands that came after their time
    cut: int  # commands that a limit made smaller
    decision_ms: float  # the longest that the policy took
    began: str  # time of the day

    def __post_init__(self) -> None:
        if self.ended not in ENDS:
            raise ValueError(f"a trial ends by one of {', '.join(ENDS)}, got {self.ended!r}")
        if not 0 <= self.progress <= 100:
            raise ValueError(f"progress is from 0 to 100, got {self.progress}")

    @property
    def counts(self) -> bool:
        return self.ended != "void"

    @property
    def solved(self) -> bool:
        return self.success and not self.intervened and self.ended != "fault"


def schedule(policies: Sequence[str], seeds: Sequence[int], chance: int) -> list[Trial]:
    """Every policy on every scene, scene by scene, so that pairs can be compared; within a scene in random order."""
    draw = random.Random(chance)
    turns = [(seed, policy) for seed in seeds for policy in draw.sample(list(policies), len(policies))]
    return [Trial(number, *turn) for number, turn in enumerate(turns, 1)]


def letters(names: Sequence[str], chance: int) -> dict[str, str]:
    """Which letter stands for which name."""
    hidden = random.Random(f"letters {chance}").sample(list(names), len(names))
    return {chr(ord("A") + i): name for i, name in enumerate(hidden)}


def left(trials: Sequence[Trial], results: Iterable[Result]) -> list[Trial]:
    """The trials that have no result that counts."""
    done = {x.number for x in results if x.counts}
    return [x for x in trials if x.number not in done]


def figures(names: dict[str, str], results: Sequence[Result], alpha: float = 0.05) -> dict[str, Any]:
    """Per policy its rate, and of two policies what their pairs say."""
    counted = [x for x in results if x.counts]
    policies = {name: _figures([x for x in counted if x.policy == letter]) for letter, name in names.items()}
    found: dict[str, Any] = {"policies": policies, "void": len(results) - len(counted)}
    if len(names) == 2:
        found["comparison"] = _comparison(list(names.items()), counted, alpha)
    return found


def pairs(first: str, second: str, results: Iterable[Result]) -> list[int]:
    """Scene by scene in the order played: 1 if only the first policy solved it, -1 if only the second, or 0."""
    solved: dict[int, dict[str, bool]] = {}
    for x in results:
        if x.counts:
            solved.setdefault(x.seed, {})[x.policy] = x.solved
    return [x[first] - x[second] for x in solved.values() if first in x and second in x]


def save(path: Path, results: Sequence[Result]) -> None:
    """One line of JSON each; the file is replaced as a whole."""
    write_atomically(path, "".join(json.dumps(asdict(x)) + "\n" for x in results))


def load(path: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _figures(results: Sequence[Result]) -> dict[str, Any]:
    n = len(results)
    return {
        **rate(sum(x.solved for x in results), n),
        "faults": sum(x.ended == "fault" for x in results),
        "aborts": sum(x.ended == "abort" for x in results),
        "interventions": sum(x.intervened for x in results),
        "mean_progress": round(sum(x.progress for x in results) / n, 1) if n else None,
        "disagreements": sum(x.verdict is not None and x.verdict != x.success for x in results),
        "failures": _tags(results),
    }


def _tags(results: Sequence[Result]) -> dict[str, int]:
    tags = [x.tag or "untagged" for x in results if not x.solved]
    return {tag: tags.count(tag) for tag in sorted(set(tags))}


def _comparison(names: list[tuple[str, str]], results: Sequence[Result], alpha: float) -> dict[str, Any]:
    (a, first), (b, second) = names
    outcomes = pairs(a, b, results)
    wins, losses = outcomes.count(1), outcomes.count(-1)
    k = [sum(x.solved for x in results if x.policy == letter) for letter in (a, b)]
    n = [sum(x.policy == letter for x in results) for letter in (a, b)]
    return {
        "first": first,
        "second": second,
        "pairs": len(outcomes),
        "only_first": wins,
        "only_second": losses,
        "p": mcnemar(wins, losses),
        "alpha": alpha,
        **sequential(outcomes, alpha),
        "first_is_better": better((k[0], n[0]), (k[1], n[1])),
    }
