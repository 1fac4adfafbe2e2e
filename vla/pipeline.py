"""One policy for groups of environments: while it decides for one group, the environments of others move.

Whichever group is ready is decided for next, several at once where several wait. How many groups are worth it depends
on how long environments and policy take; `best_number` predicts it from what was measured.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vla.rollout import TRIES, UnderWay, decide, join
from vla.types import Action, Actor, Metrics, Observation, Rollout, Seeded, Step


@runtime_checkable
class Groups(Protocol):
    """Environments elsewhere, `sizes[g]` in group g, each group asked for one thing at a time."""

    sizes: Sequence[int]

    def reset(self, group: int, seed: int) -> None: ...
    def play(self, group: int, commands: Tensor, alive: Tensor) -> None: ...

    def ready(self, timeout: int | float | None) -> list[tuple[int, "Observation | Step | Lost"]]:
        """What groups answered meanwhile; waits for the first answer, at most `timeout` seconds."""
        ...

    def renew(self, group: int) -> None:
        """Put a new one in the place of a group that was lost."""
        ...


@dataclass(frozen=True)
class Lost:
    """Why a process is no more, as a sentence's end."""

    reason: str


MOST = 4  # groups that are tried: with more there is nothing left to hide


@dataclass
class Pace:
    """Where the time of a collection went from the first answer on: seconds in all, deciding and waiting."""

    seconds: float = 0.0
    deciding: float = 0.0
    waiting: float = 0.0
    calls: int = 0
    rows: int = 0
    rounds: int = 0

    def metrics(self) -> Metrics:
        """Of the policy's process: the share of the time it decided, rows per call, seconds per round of decisions."""
        return {
            "pipeline/deciding": self.deciding / max(self.seconds, 1e-9),
            "pipeline/rows_per_call": self.rows / max(self.calls, 1),
            "pipeline/round_seconds": self.seconds / max(self.rounds, 1),
        }


@dataclass
class Pipeline:
    """Plays one episode in every environment of all groups, those of group g from `seed` + all before it on.

    A group that is ready waits at most `deadline` seconds for others to be decided for together; with 0 only for the
    policy. `batch` is for decisions that do not depend, not even in their last bits, on how many are made at once: it
    is then always so many, the last ones padded. A group that is lost with its process begins its episodes anew, which
    are the same again; after TRIES such losses in a row a RuntimeError says why.
    """

    groups: Groups
    deadline: float = 0.0
    batch: int | None = None
    pace: Pace = field(default_factory=Pace)

    def play(self, make: Callable[[], Actor], *, seed: int, draw: int = 0) -> Rollout:
        """`make` gives the actor, or one for each group if it remembers what it decided before (`Seeded`)."""
        return _Play(self, make, seed, draw).run()


class _Play:
    def __init__(self, pipeline: Pipeline, make: Callable[[], Actor], seed: int, draw: int):
        self.groups, self.deadline, self.batch = pipeline.groups, pipeline.deadline, pipeline.batch
        self.pace = pipeline.pace
        number = range(len(self.groups.sizes))
        self.seeds = [seed + sum(self.groups.sizes[:g]) for g in number]
        self.draw = draw
        first = make()
        self.alone = isinstance(first, Seeded)
        self.actors = [first, *(make() if self.alone else first for _ in number[1:])]
        self.under_way: dict[int, UnderWay] = {}
        self.decided: dict[int, Action] = {}  # what a group is playing
        self.waiting: dict[int, float] = {}  # since when a group has been waiting for a decision
        self.busy = set(number)
        self.lost: Counter[int] = Counter()

    @torch.no_grad()
    def run(self) -> Rollout:
        begun = None
        for group in self.busy:
            self._begin(group)
        while self.busy or self.waiting:
            for group, answer in self._answers():
                self.busy.discard(group)
                self._take(group, answer)
            begun = begun or time.perf_counter()
            if self.waiting and (not self.busy or self._patience() <= 0):
                self._decide()
        self.pace.seconds += time.perf_counter() - (begun or 0.0)
        self.pace.rounds += max(len(x.played) for x in self.under_way.values())
        return join([self.under_way[g].rollout() for g in sorted(self.under_way)])

    def _begin(self, group: int) -> None:
        self.under_way.pop(group, None)
        actor = self.actors[group]
        if isinstance(actor, Seeded):
            actor.begin(self.seeds[group])
        self.groups.reset(group, self.seeds[group])

    def _answers(self) -> list[tuple[int, Observation | Step | Lost]]:
        if not self.busy:
            return []
        begun = time.perf_counter()
        answers = self.groups.ready(max(0.0, self._patience()) if self.waiting else None)
        self.pace.waiting += time.perf_counter() - begun
        return answers

    def _patience(self) -> float:
        """Seconds that whoever has been waiting longest will still wait."""
        return self.deadline - (time.perf_counter() - min(self.waiting.values()))

    def _take(self, group: int, answer: Observation | Step | Lost) -> None:
        if isinstance(answer, Lost):
            self.lost[group] += 1
            if self.lost[group] >= TRIES:
                raise RuntimeError(
                    f"the environments of episodes from {self.seeds[group]} on were lost {TRIES} times, the last time "
                    f"because their process {answer.reason}"
                )
            self.groups.renew(group)
            self.busy.add(group)
            self._begin(group)
            return
        if isinstance(answer, Observation):
            self.under_way[group] = UnderWay(answer, self.seeds[group], self.draw)
        else:
            self.under_way[group].add(self.decided.pop(group), answer)
        if self.under_way[group].alive.any():
            self.waiting[group] = time.perf_counter()

    def _decide(self) -> None:
        ready = sorted(self.waiting, key=self.waiting.__getitem__)
        self.waiting.clear()
        for some in [[group] for group in ready] if self.alone else [ready]:
            under_way = [self.under_way[g] for g in some]
            begun = time.perf_counter()
            obs = under_way[0].obs if len(some) == 1 else Observation.cat([x.obs for x in under_way])
            action = decide(self.actors[some[0]], obs, [s for x in under_way for s in x.streams], self.batch)
            self.pace.deciding += time.perf_counter() - begun
            self.pace.calls += 1
            self.pace.rows += len(obs)
            for group, part in zip(some, action.split([self.groups.sizes[g] for g in some]), strict=True):
                self.decided[group] = part
                self.busy.add(group)
                self.groups.play(group, part.commands, self.under_way[group].alive)


@dataclass(frozen=True)
class Plan:
    """`members` processes have the policy; each is to play `share` environments, in so many other processes (`groups`)
    or, with 0, in its own."""

    members: int
    share: int
    groups: int
    chosen: bool = False  # `groups` is the most there may be: how many, a measurement decides

    @property
    def cpus(self) -> int:
        return self.members * (1 + self.groups)


def planned(num_envs: int, workers: int | str, servers: int) -> Plan:
    """ValueError if that cannot be spread evenly. With `auto` workers each server measures how many are best."""
    if workers == "auto" and servers > 0 and num_envs % servers == 0:
        share = num_envs // servers
        return Plan(servers, share, max(candidates(share, MOST)), chosen=True)
    if not isinstance(workers, int):
        raise ValueError(f"workers must be a number or, where a policy serves (placement), auto; got {workers!r}")
    if workers < 1 or num_envs % workers:
        raise ValueError(f"env.num_envs={num_envs} cannot be spread evenly over workers={workers}: change one")
    if servers < 0 or (servers and workers % servers):
        raise ValueError(f"workers={workers} cannot be spread evenly over servers={servers}: change one")
    members = servers or workers
    return Plan(members, num_envs // members, workers // servers if servers else 0)


@dataclass(frozen=True)
class Measured:
    """Seconds that a chunk takes `play` environments and `decide` the policy, by how many, and a message one way."""

    play: Mapping[int, float]
    decide: Mapping[int, float]
    message: float
    cores: int
    shared: bool  # whether the policy needs the same cores

    def round(self, groups: int, num_envs: int) -> float:
        """Seconds until every environment has played a chunk: what is busiest decides, or one group's way round."""
        play, decided = (_at(x, num_envs / groups) for x in (self.play, self.decide))
        work = groups * (play + decided if self.shared else play) / min(self.cores, groups + self.shared)
        return max(work, groups * decided, play + decided + 2 * self.message)


def candidates(num_envs: int, most: int) -> list[int]:
    """Numbers of groups that `num_envs` can be divided into evenly."""
    return [k for k in range(1, min(most, num_envs) + 1) if num_envs % k == 0]


def best_number(measured: Measured, num_envs: int, most: int) -> tuple[int, dict[int, float]]:
    """The number of groups with the shortest round, and the seconds predicted for each; more only if 3 % better."""
    rounds = {k: measured.round(k, num_envs) for k in candidates(num_envs, most)}
    best = 1
    for k, seconds in rounds.items():
        if seconds < 0.97 * rounds[best]:
            best = k
    return best, rounds


def _at(known: Mapping[int, float], n: float) -> float:
    """Between what was measured, in proportion; beyond, like the nearest."""
    below = max((x for x in known if x <= n), default=min(known))
    above = min((x for x in known if x >= n), default=max(known))
    share = 0.0 if above == below else (n - below) / (above - below)
    return (1 - share) * known[below] + share * known[above]
