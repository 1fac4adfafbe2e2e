"""How long decisions take: simulated in control steps, or measured while they are made in the background."""

import contextvars
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import torch

from vla.types import Action

MEASURED = "measured"
REMEMBERED = 5  # delays, the longest of which is what the next one is expected to be
ROUNDING = 1e-6  # of a step: seconds times Hz are seldom a whole number


@runtime_checkable
class Latency(Protocol):
    """What becomes of a decision once an observation is there. `planned` is its expected delay in control steps."""

    @property
    def planned(self) -> int: ...
    def start(self, decide: Callable[[], Action]) -> Future[Action]: ...
    def ready(self, decision: Future[Action], age: int) -> bool:
        """Whether it may be used `age` steps after its observation."""
        ...


class Simulated:
    """Always the same delay, so that the same seed plays the same episodes."""

    def __init__(self, delay: int):
        if delay < 0:
            raise ValueError(f"delay must be a number of control steps, at least 0, or {MEASURED}, got {delay}")
        self.planned = delay

    def start(self, decide: Callable[[], Action]) -> Future[Action]:
        decision: Future[Action] = Future()
        decision.set_result(decide())
        return decision

    def ready(self, decision: Future[Action], age: int) -> bool:
        return age >= self.planned


class Measured:
    """Decisions are made in a thread of their own, one after the other, and are ready when they are.

    `planned` is the longest of the last few, at least 1: a step is never waited for. `clock` is in seconds.
    """

    def __init__(self, control_hz: float, clock: Callable[[], float] = time.monotonic, pool: Executor | None = None):
        self.control_hz, self.clock = control_hz, clock
        self.pool = pool or ThreadPoolExecutor(1, thread_name_prefix="decisions")
        self.delays: deque[int] = deque([1], maxlen=REMEMBERED)

    @property
    def planned(self) -> int:
        return max(self.delays)

    def start(self, decide: Callable[[], Action]) -> Future[Action]:
        begun, context, differentiable = self.clock(), contextvars.copy_context(), torch.is_grad_enabled()

        def timed() -> Action:
            with torch.set_grad_enabled(differentiable):  # which belongs to a thread, as does where chance comes from
                action = context.run(decide).cpu()  # a GPU is done only now
            self.delays.append(max(1, math.ceil((self.clock() - begun) * self.control_hz - ROUNDING)))
            return action

        return self.pool.submit(timed)

    def ready(self, decision: Future[Action], age: int) -> bool:
        return decision.done()
