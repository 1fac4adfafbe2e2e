"""Ways to execute what a policy decides: whole chunks, averages of chunks, or the next chunk made during the last.

Each is a wrapped policy with the policy's `act` and `mode`. All but `Synchronous` give one command per call, and
remember: `begin` starts other episodes.
"""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla.latency import MEASURED, Latency, Measured, Simulated
from vla.rollout import Greedy
from vla.sanity import staying_after
from vla.types import Action, Actor, Observation, Seeded

SCHEDULES = ("zeros", "ones", "linear", "exp")


@runtime_checkable
class Guidable(Actor, Protocol):
    """A policy whose chunk can go on from one that is being played: `previous` is what is left of that from now on.

    `weights`, from 0 to 1, say how much to keep of each of these commands, `max_guidance` bounds how hard one step
    pulls. `act_along` draws as `act` does, `mode_along` decides as `mode`.
    """

    def act_along(
        self,
        obs: Observation,
        previous: Float[Tensor, "*batch left action"],
        weights: Float[Tensor, " left"],
        max_guidance: float,
    ) -> Action: ...

    def mode_along(
        self,
        obs: Observation,
        previous: Float[Tensor, "*batch left action"],
        weights: Float[Tensor, " left"],
        max_guidance: float,
    ) -> Action: ...


class Synchronous:
    """The first `execute` commands of each chunk, or all of them, and then the next decision. The world waits for it,
    or the arm does.
    """

    def __init__(self, policy: Actor, execute: int | None = None):
        most: Any = getattr(policy, "horizon", execute)
        if execute is not None and not 1 <= execute <= most:
            raise ValueError(f"execute must be from 1 to the {most} commands of a chunk, got {execute}")
        self.policy, self.horizon = policy, execute or most
        self.execute = execute
        if isinstance(policy, Seeded):
            self.begin = policy.begin

    def act(self, obs: Observation) -> Action:
        return self._first(self.policy.act(obs))

    def mode(self, obs: Observation) -> Action:
        return self._first(Greedy(self.policy).act(obs))

    def _first(self, action: Action) -> Action:
        return action if self.execute is None else _plain(action.commands[..., : self.execute, :])


class Ensembled:
    """Decides at every step, and plays the mean of all that was ever said about it (ACT, Zhao et al. 2023).

    What was said i-th has the weight exp(-decay i), the oldest first: a larger `decay` trusts older decisions more.
    Rotation vectors and grippers are averaged as plain numbers.
    """

    horizon = 1

    def __init__(self, policy: Actor, decay: float = 0.01):
        if not math.isfinite(decay):
            raise ValueError(f"decay must be a finite number, got {decay}")
        self.policy, self.decay = policy, decay
        self.said: deque[Tensor] = deque()

    def begin(self, seed: int) -> None:
        """Other episodes are played from now on."""
        self.said.clear()
        if isinstance(self.policy, Seeded):
            self.policy.begin(seed)

    def act(self, obs: Observation) -> Action:
        return self._mean(obs, self.policy.act(obs))

    def mode(self, obs: Observation) -> Action:
        return self._mean(obs, Greedy(self.policy).act(obs))

    def _mean(self, obs: Observation, action: Action) -> Action:
        if self.said:
            _require_same_rows(self.said[-1], obs)
        self.said.append(action.commands.detach())
        if len(self.said) > self.said[0].shape[-2]:
            self.said.popleft()
        newest = len(self.said) - 1
        due = torch.stack([chunk[..., newest - i, :] for i, chunk in enumerate(self.said)], -1)
        weights = torch.exp(-self.decay * torch.arange(len(self.said), device=due.device, dtype=due.dtype))
        return _plain((due @ (weights / weights.sum()))[..., None, :])


@dataclass
class _Decision:
    """One that is made, or being made; the command that is due now is the one of number `age`."""

    future: Future[Action]
    age: int = 0  # control steps since its observation

    @property
    def commands(self) -> Float[Tensor, "*batch horizon action"]:
        return self.future.result().commands.detach()


class Asynchronous:
    """Plays a chunk on while the next is made: command k of a chunk is for the k-th step after its observation.

    A decision is asked for as soon as `execute` steps (half the chunk if None) have passed since the last
    observation, and its chunk takes over when it is ready: `delay` control steps later, or, if that is `measured`,
    when a thread in the background has made it. Only for the first one of an episode everything waits. `guided`
    chunks go on from what is left of the one before (real-time chunking, Black, Galliker and Levine 2025), of which
    they must keep what is played before they are ready, and less and less of the rest (`schedule`).

    If a chunk is used up and no other is ready, the arm is told to stay; `starved` counts such steps.
    """

    horizon = 1

    def __init__(
        self,
        policy: Actor,
        execute: int | None = None,
        delay: int | str | Latency = 0,
        *,
        guided: bool = False,
        schedule: str = "exp",
        max_guidance: float = 5.0,
    ):
        self.policy: Any = policy
        self.latency = _latency(delay, policy)
        self.execute = _checked(execute, self.latency, policy)
        if guided and not isinstance(policy, Guidable):
            raise ValueError(
                f"guided needs a policy that can go on from a chunk (`act_along`, `mode_along`), such as a flow; "
                f"{type(policy).__name__} cannot: use guided=false"
            )
        soft_mask(0, 1, schedule)
        if max_guidance <= 0:
            raise ValueError(f"max_guidance must be positive, got {max_guidance}: guided=false is without guidance")
        self.guided, self.schedule, self.max_guidance = guided, schedule, max_guidance
        self.starved = 0
        self.last: Tensor | None = None  # command
        self.playing: _Decision | None = None
        self.waiting: _Decision | None = None

    def begin(self, seed: int) -> None:
        """Other episodes are played from now on; what is still being decided for the last ones is waited for."""
        waiting, self.playing, self.waiting, self.last = self.waiting, None, None, None
        if waiting is not None:
            waiting.future.result()
        if isinstance(self.policy, Seeded):
            self.policy.begin(seed)

    def act(self, obs: Observation) -> Action:
        return self._command(obs, self.policy.act, "act_along")

    def mode(self, obs: Observation) -> Action:
        return self._command(obs, Greedy(self.policy).act, "mode_along")

    def _command(self, obs: Observation, free: Callable[[Observation], Action], along: str) -> Action:
        if self.playing is None:
            self.playing = _Decision(self.latency.start(lambda: free(obs)))
        _require_same_rows(self.playing.commands, obs)
        self._take_over()
        if self.waiting is None and self.playing.age >= self.execute:
            left = self.playing.commands[..., self.playing.age :, :]
            self.waiting = _Decision(self.latency.start(self._decision(obs, left, free, along)))
            self._take_over()
        self.last = self._due(self.playing)
        for decision in (self.playing, self.waiting):
            if decision is not None:
                decision.age += 1
        return _plain(self.last.to(obs.proprio.device)[..., None, :])

    def _take_over(self) -> None:
        if self.waiting is not None and self.latency.ready(self.waiting.future, self.waiting.age):
            self.playing, self.waiting = self.waiting, None

    def _due(self, decision: _Decision) -> Float[Tensor, "*batch action"]:
        if decision.age < decision.commands.shape[-2]:
            return decision.commands[..., decision.age, :]
        self.starved += 1
        assert self.last is not None  # of the chunk that is used up
        return staying_after(self.last, self.policy.spec)

    def _decision(
        self,
        obs: Observation,
        left: Float[Tensor, "*batch left action"],
        free: Callable[[Observation], Action],
        along: str,
    ) -> Callable[[], Action]:
        if not self.guided or left.shape[-2] == 0:
            return lambda: free(obs)
        weights = soft_mask(self.latency.planned, left.shape[-2], self.schedule)
        return lambda: getattr(self.policy, along)(obs, left, weights, self.max_guidance)


def soft_mask(committed: int, left: int, schedule: str = "exp") -> Float[Tensor, " left"]:
    """How much a new chunk must keep of the `left` commands of the one before.

    1 for the first `committed`, which will be played anyway; then `zeros` 0, `ones` 1, `linear` evenly less, so that it
    would be 0 after the last, or `exp`, the paper's: where that is c, c (e^c - 1) / (e - 1).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    place, committed = torch.arange(left), min(committed, left)
    if schedule == "ones":
        return torch.ones(left)
    if schedule == "zeros":
        return (place < committed).float()
    linear = ((left - place) / (left - committed + 1)).clamp(max=1)
    return linear if schedule == "linear" else linear * linear.expm1() / (math.e - 1)


def _latency(delay: int | str | Latency, policy: Actor) -> Latency:
    if isinstance(delay, int):
        return Simulated(delay)
    if not isinstance(delay, str):
        return delay
    if delay != MEASURED:
        raise ValueError(f"delay must be a number of control steps or {MEASURED}, got {delay!r}")
    spec = getattr(policy, "spec", None)
    if spec is None:
        raise ValueError(
            f"delay={MEASURED} needs a policy that knows its control rate, {type(policy).__name__} does not"
        )
    return Measured(spec.control_hz)


def _checked(execute: int | None, latency: Latency, policy: Actor) -> int:
    horizon, delay = getattr(policy, "horizon", None), latency.planned
    if horizon is None:
        raise ValueError(f"{type(policy).__name__} has no `horizon`: only chunks of a known length can be played")
    execute = max(horizon // 2, 1) if execute is None else execute
    if not max(delay, 1) <= execute <= horizon - delay:
        raise ValueError(
            f"with delay {delay} and chunks of horizon {horizon}, execute must be from {max(delay, 1)} (delay) to "
            f"{horizon - delay} (horizon - delay), got {execute}: give another one, a shorter delay or longer chunks"
        )
    return execute


def _require_same_rows(chunk: Float[Tensor, "*batch horizon action"], obs: Observation) -> None:
    if chunk.shape[:-2] != obs.batch_size:
        raise ValueError(
            f"a chunk is being played in episodes of shape {tuple(chunk.shape[:-2])}, now there are "
            f"{tuple(obs.batch_size)}: call `begin` before other episodes"
        )


def _plain(commands: Float[Tensor, "*batch horizon action"]) -> Action:
    """Commands that nobody can score."""
    batch = commands.shape[:-2]
    return Action(
        commands=commands, log_prob=commands.new_zeros(*batch, 0), latent=TensorDict({}, batch), batch_size=batch
    )
