"""A policy that serves environments in other processes through Ray, and what else is Ray's own (with `vla.cluster`)."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from torch import Tensor, nn

from vla.collect import Group, OwnPolicy
from vla.messages import packed, unpacked
from vla.pipeline import Lost, Measured, Pace, Pipeline, Plan, best_number, candidates
from vla.types import EnvSpec, Metrics, Observation, Rollout, Seeded, Step

SEEN = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # simulators may draw, or run, on a GPU that they do not reserve
log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]


class Served:
    """A policy in this process that decides for environments in other ones, whichever of their groups is ready.

    The plan says how many groups or, where that is to be measured, how many at most: it is, once the policy is there.
    """

    def __init__(
        self,
        env: Mapping[str, Any],
        device: str = "cpu",
        batch: int | None = None,
        *,
        plan: Plan,
        deadline: int | float = 0.0,
        timeout: int | float = 300.0,
    ):
        self.config, self.batch, self.deadline, self.timeout = env, batch, deadline, timeout
        self.plan, self.num_envs = plan, int(env["num_envs"])
        self.own = OwnPolicy(device)
        self.scratch: Path | None = None
        self.told: Metrics = {}

    def open(self) -> EnvSpec:
        if not ray.is_initialized():
            self.scratch = start_ray(self.plan.groups)
        try:
            self._divide(1 if self.plan.chosen else self.plan.groups)
        except BaseException:
            if self.scratch is not None:
                stop_ray(self.scratch)
            raise
        return replace(self.groups.spec, num_envs=self.num_envs)

    def load(self, policy: nn.Module) -> None:
        self.own.load(policy)
        if self.plan.chosen:
            best, rounds = best_number(self._measure(), self.num_envs, self.plan.groups)
            self.told = {f"pipeline/predicted_{k}": seconds for k, seconds in rounds.items()}
            if best > 1:
                self.groups.close()
                self._divide(best)
        self.told["pipeline/groups"] = float(len(self.groups.sizes))

    def collect(self, weights: Mapping[str, Tensor], seed: int, *, greedy: bool = False, draw: int = 0) -> Rollout:
        self.own.update(weights)
        return self.pipeline.play(lambda: self.own.actor(greedy=greedy), seed=seed, draw=draw)

    def pace(self) -> Metrics:
        """Where the time went since this was last asked, and the seconds per round predicted for numbers of groups."""
        pace, self.pipeline.pace = self.pipeline.pace, Pace()
        return {**self.told, **pace.metrics()}

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self.groups.close()
        if self.scratch is not None:
            stop_ray(self.scratch)

    def _divide(self, groups: int) -> None:
        self.groups = RayGroups(self.config, [self.num_envs // groups] * groups, self.timeout)
        self.pipeline = Pipeline(self.groups, self.deadline, self.batch)

    def _measure(self) -> Measured:
        actor, decide = self.own.actor(greedy=False), {}
        numbers = [self.num_envs // k for k in candidates(self.num_envs, self.plan.groups)]
        obs = self.groups.first_observation()
        for n in numbers:
            begun = time.perf_counter()
            for _ in range(3):
                if isinstance(actor, Seeded):
                    actor.begin(0)
                actor.act(obs[:n])
            decide[n] = (time.perf_counter() - begun) / 3
        horizon = int(getattr(self.own.policy, "horizon", 1))
        play, message = self.groups.seconds(numbers, horizon)
        cores = os.cpu_count() or 1
        return Measured(play, decide, message, cores, shared=self.own.device.type == "cpu")


class RayGroups:
    """Groups in Ray processes. One that dies, or gives no answer for `timeout` seconds, is lost; `renew` makes another.

    What an environment raises is raised here.
    """

    def __init__(self, env: Mapping[str, Any], sizes: Sequence[int], timeout: int | float):
        self.env, self.sizes, self.timeout = env, sizes, timeout
        self.members = [self._make(size) for size in sizes]
        self.calls: dict[Any, tuple[int, float]] = {}  # of each: by whom, and when it is overdue
        self.spec: EnvSpec = wait([x.open.remote() for x in self.members])[0]

    def reset(self, group: int, seed: int) -> None:
        self._ask(group, self.members[group].reset.remote(seed))

    def play(self, group: int, commands: Tensor, alive: Tensor) -> None:
        self._ask(group, self.members[group].play.remote(packed((commands, alive))))

    def ready(self, timeout: int | float | None) -> list[tuple[int, Observation | Step | Lost]]:
        overdue = min(due for _, due in self.calls.values()) - time.monotonic()
        limit = max(0.0, overdue if timeout is None else min(timeout, overdue))
        done, _ = ray.wait(list(self.calls), timeout=limit)
        if done:
            done, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=0)
        late = [call for call, (_, due) in self.calls.items() if due <= time.monotonic() and call not in done]
        return [(self.calls[call][0], self._answer(call, late=call in late)) for call in [*done, *late]]

    def renew(self, group: int) -> None:
        ray.kill(self.members[group])
        self.members[group] = self._make(self.sizes[group])
        wait([self.members[group].open.remote()])

    def first_observation(self) -> Observation:
        """What the first group sees at the beginning of some episode."""
        return Observation.from_dict(unpacked(wait([self.members[0].reset.remote(0)])[0]), batch_size=[self.sizes[0]])

    def seconds(self, numbers: Sequence[int], horizon: int) -> tuple[dict[int, float], float]:
        """How long a chunk takes so many environments of the first group, and a message to it, one way."""
        member = self.members[0]
        play = {n: wait([member.seconds.remote(n, horizon)])[0] for n in numbers}
        begun = time.perf_counter()
        for _ in range(5):
            wait([member.pid.remote()])
        return play, (time.perf_counter() - begun) / 10

    def close(self) -> None:
        for member in self.members:
            ray.kill(member)

    def _make(self, size: int) -> Any:
        return cast(Any, ray.remote(num_cpus=1)(Group)).remote({**self.env, "num_envs": size})

    def _ask(self, group: int, call: Any) -> None:
        """In the place of what was asked before, which counts no more if a collection was broken off."""
        self.calls = {other: x for other, x in self.calls.items() if x[0] != group}
        self.calls[call] = (group, time.monotonic() + self.timeout)

    def _answer(self, call: Any, *, late: bool) -> Observation | Step | Lost:
        group, _ = self.calls.pop(call)
        answer = Lost(f"gave no answer for {self.timeout:g} s") if late else result(call)
        if isinstance(answer, Lost):
            log.warning("environments of group %d: their process %s; they begin anew", group, answer.reason)
            return answer
        told = unpacked(answer)
        kind = Step if "reward" in told else Observation
        return kind.from_dict(told, batch_size=[self.sizes[group]])


def start_ray(cpus: int, address: str | None = None, attempts: int = 4) -> Path | None:
    """Join the Ray at `address` or start one that no other program uses or finds; where that keeps sockets and logs.

    Processes import this checkout, and what is on PYTHONPATH. Their path of sockets must stay short, so it is not below
    the run directory. On a busy machine Ray gives up after 30 s, so it is tried again.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **SEEN}},
    }
    if address is not None:
        ray.init(address=address, **common)
        return None
    for attempt in range(attempts):
        scratch = Path(tempfile.mkdtemp(prefix="ray-"))
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(scratch), **common)
            break
        except Exception as error:  # Ray has no name for it
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)
            if "timed out during startup" not in str(error) or attempt == attempts - 1:
                raise
            log.warning("Ray did not start in time on this busy machine: trying again")
    return scratch


def stop_ray(scratch: Path | None) -> None:
    """Leave Ray; its processes end, and so does all of it that was started here."""
    ray.shutdown()
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def result(call: Any, timeout: int | float | None = None) -> Any:
    """What a call gave, or how its process was lost. What it raised is raised here."""
    try:
        return ray.get(call, timeout=timeout)
    except RayTaskError as error:
        raise error.cause from error
    except GetTimeoutError:
        return Lost(f"gave no answer for {timeout:g} s")
    except RayError as error:
        return Lost(f"died: {str(error).strip().splitlines()[-1]}")


def wait(calls: list[Any], timeout: int | float | None = None) -> list[Any]:
    """The results of calls none of whose processes may be lost: else RuntimeError."""
    answers = [result(call, timeout) for call in calls]
    for answer in answers:
        if isinstance(answer, Lost):
            raise RuntimeError(
                f"a process {answer.reason}. Out of memory? Use fewer workers or environments; with workers=0 "
                "everything runs in this process and shows its own messages."
            )
    return answers
