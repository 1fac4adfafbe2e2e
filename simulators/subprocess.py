"""One-scene simulators spread over worker processes, any of which may die, raise or hang without ending the work."""

import contextlib
import copy
import itertools
import logging
import os
import signal
import time
import traceback
import weakref
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.multiprocessing as mp
from jaxtyping import Float
from torch import Tensor

from simulators.batch import MakeScene, SceneBatch, require_part
from vla.messages import cat, packed, rows_of, unpacked
from vla.types import Observation, Step

ATTEMPTS = 3  # workers that may fail in a row at the same request before it is given up
log = logging.getLogger(__name__)


class SubprocessEnv:
    """`num_envs` scenes spread over `workers` processes that step at the same time, a `SceneBatch` in each.

    Pictures come back through shared memory, everything else is small and goes through a pipe. A worker that dies,
    raises or is silent for `timeout` seconds is killed and a new one started in its place. Its episodes are over: until
    the next reset their columns are `truncated` and `failed`, and show what was last seen of them. Starting and
    resetting are tried again instead, until ATTEMPTS workers have failed in a row: then a RuntimeError says which and
    why. A ValueError of the scene's constructor is raised as it is.
    """

    def __init__(self, make: MakeScene, num_envs: int, workers: int, timeout: float = 300.0):
        if not 1 <= workers <= num_envs:
            raise ValueError(f"workers must be from 1 to num_envs ({num_envs}), got {workers}")
        self.timeout = timeout
        self.sizes = _spread(num_envs, workers)
        self.workers = [_Worker(i, make, size) for i, size in enumerate(self.sizes)]
        try:
            spec, self._fingerprint = self._insist([("spec",)] * workers)[0]
            self.spec = replace(spec, num_envs=num_envs)
            for worker in self.workers:
                worker.share_pictures({camera.name: (camera.height, camera.width) for camera in self.spec.cameras})
        except BaseException:
            self.close()
            raise
        self.forms: dict[str, dict[str, Any]] = {}  # by method, what a scene answers: not all tell the same
        self.playing: set[int] = set()  # workers whose episodes were not lost since the last reset
        self.last: dict[str, Any]  # observed of all environments

    def first(self, num_envs: int) -> "SubprocessEnv":
        """`num_envs` environments on the same workers, evenly spread, which make no scene they do not need.

        Only one of the two is in use at a time: whichever was reset last.
        """
        require_part(num_envs, self.spec.num_envs)
        part = copy.copy(self)
        part.spec = replace(self.spec, num_envs=num_envs)
        part.sizes = _spread(num_envs, len(self.workers))
        return part

    def reset(self, seed: int) -> Observation:
        seeds = [seed + rows.start for rows in self._rows()]
        requests = [("reset", s, size) if size else None for s, size in zip(seeds, self.sizes, strict=True)]
        answers = self._insist(requests)
        used = [i for i, request in enumerate(requests) if request]
        self.playing = set(used)
        self.last = cat([self.workers[i].with_pictures(answers[i]) for i in used])
        return Observation.from_dict(self.last, batch_size=[self.spec.num_envs])

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        return self._advance("step", command)

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        return self._advance("play", chunk)

    def step_or_reset(self, orders: list[Float[Tensor, " action"] | int]) -> Step:
        """A worker that was replaced plays on once all its copies are told to begin an episode."""
        requests: list[tuple | None] = []
        for i, part in enumerate([orders[rows] for rows in self._rows()]):
            ready = i in self.playing or all(isinstance(order, int) for order in part)
            requests.append(("step_or_reset", part) if part and ready else None)
        return self._answered("step_or_reset", requests, [torch.zeros(n, self.spec.action_dim) for n in self.sizes])

    def fingerprint(self) -> dict[str, str]:
        return self._fingerprint

    def close(self) -> None:
        for worker in self.workers:
            worker.pipe.close()  # a worker that sees its pipe closed ends by itself
        deadline = time.monotonic() + 5
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.end()

    def _advance(self, method: str, command: Tensor) -> Step:
        parts = command.split(self.sizes)
        requests = [(method, part) if i in self.playing else None for i, part in enumerate(parts)]
        return self._answered(method, requests, [torch.zeros_like(part) for part in parts])

    def _answered(self, method: str, requests: list[tuple | None], still: list[Tensor]) -> Step:
        """What the workers answer; those that fail, or are not asked, have executed nothing: `still`."""
        answers = self._ask(requests)
        self.playing = {i for i, answer in enumerate(answers) if isinstance(answer, dict)}
        for i, answer in enumerate(answers):
            if isinstance(answer, _Failure):
                self.workers[i].start()  # to be ready at the next reset
        for i in self.playing:
            self.forms.setdefault(method, {name: x for name, x in answers[i].items() if name != "obs"})
            answers[i]["obs"] = self.workers[i].with_pictures(answers[i]["obs"])
            answers[i]["failed"] = torch.zeros(self.sizes[i], dtype=torch.bool)
        used = [i for i, size in enumerate(self.sizes) if size]
        told = cat([answers[i] if i in self.playing else self._lost(i, method, still[i]) for i in used])
        self.last = told["obs"]
        return Step.from_dict(told, batch_size=[self.spec.num_envs])

    def _lost(self, worker: int, method: str, still: Tensor) -> dict[str, Any]:
        """What a worker that is gone would have answered: nothing happened, and it is over."""
        rows = torch.zeros(len(still), dtype=torch.long)
        no = rows.bool()
        count = None if method == "step" else rows
        told = {"reward": rows.float(), "success": no, "terminated": no, "num_steps": count}
        if method in self.forms:
            told = {
                name: None if x is None else torch.zeros_like(x[:1])[rows] for name, x in self.forms[method].items()
            }
        obs = rows_of(self.last, self._rows()[worker])
        if method != "step":
            told["rewards"] = torch.zeros(still[..., 0].shape if method == "play" else (len(still), 1))
        return {**told, "obs": obs, "truncated": ~no, "executed": still, "failed": ~no}

    def _rows(self) -> list[slice]:
        """Which environments each worker has."""
        ends = list(itertools.accumulate(self.sizes))
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def _insist(self, requests: list[tuple | None]) -> list[Any]:
        """The answers to `requests`, one for each worker; those that fail are replaced and asked again."""
        answers = self._ask(requests)
        for attempt in range(1, ATTEMPTS + 1):
            failures = {i: x for i, x in enumerate(answers) if isinstance(x, _Failure)}
            if not failures:
                break
            worker, failure = next(iter(failures.items()))
            if failure.refusal is not None:
                raise failure.refusal
            if attempt == ATTEMPTS:
                raise RuntimeError(
                    f"simulator worker {worker} failed {ATTEMPTS} times in a row, the last time it {failure.reason}"
                )
            again = self._ask([request if i in failures else None for i, request in enumerate(requests)])
            answers = [new if i in failures else x for i, (x, new) in enumerate(zip(answers, again, strict=True))]
        return answers

    def _ask(self, requests: list[tuple | None]) -> list[Any]:
        """Each worker's answer to its request, or the `_Failure` after which it was ended."""
        for worker, request in zip(self.workers, requests, strict=True):
            if request is not None:
                worker.ask(request)
        deadline = time.monotonic() + self.timeout
        asked = zip(self.workers, requests, strict=True)
        return [None if request is None else worker.answer(deadline, self.timeout) for worker, request in asked]


@dataclass(frozen=True)
class _Failure:
    """Why a worker was ended: what it did or said, and whether it was that its scene cannot be made as asked for."""

    reason: str
    refusal: ValueError | None = None


class _Worker:
    """A process with up to `size` scenes and the pictures it shares; after a failure none, until it is asked again."""

    def __init__(self, number: int, make: MakeScene, size: int):
        self.number, self.make, self.size = number, make, size
        self.pictures: dict[str, Tensor] = {}
        self.start()

    def start(self) -> None:
        context = mp.get_context("forkserver")  # of a process without threads that has done nothing but imports
        context.set_forkserver_preload(["tensordict"])  # and torch with it: seconds for each worker
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.make, self.size), daemon=True)
        self.process.start()
        theirs.close()
        self.end = weakref.finalize(self, _end, self.pipe, self.process, os.getpid())  # also at exit: it may hang
        if self.pictures:
            self._send_pictures()

    def share_pictures(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Give it memory for its pictures: camera name to height and width in pixels."""
        self.pictures = {
            name: torch.zeros(self.size, height, width, 3, dtype=torch.uint8).share_memory_()
            for name, (height, width) in sizes.items()
        }
        self._send_pictures()

    def ask(self, request: tuple) -> None:
        if not self.end.alive:
            self.start()
        with contextlib.suppress(OSError):  # it is gone; why, its answer says
            self.pipe.send_bytes(packed(request))

    def answer(self, deadline: float, timeout: float) -> Any:
        """Its answer, if it comes before `deadline` (in `time.monotonic()`); otherwise it is ended."""
        try:
            if self.pipe.poll(max(0.0, deadline - time.monotonic())):
                answer, error = unpacked(self.pipe.recv_bytes())  # our own child process
            else:
                answer, error = None, f"gave no answer for {timeout:g} s"
        except (EOFError, OSError):
            self.process.join(timeout=5)
            answer, error = None, f"died with exit code {self.process.exitcode}"
        if error is None:
            return answer
        self.end()
        if isinstance(error, ValueError):
            return _Failure(f"said: {error}", error)
        log.warning("simulator worker %d %s", self.number, error)
        return _Failure(error)

    def with_pictures(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Its pictures too: the shared ones, which it will draw over."""
        return {**obs, "images": {name: shared[: len(obs["proprio"])] for name, shared in self.pictures.items()}}

    def _send_pictures(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(("share", self.pictures))  # as file descriptors


def _end(pipe: Connection, process: BaseProcess, parent: int) -> None:
    """Kill a process, whatever it is doing, and leave no zombie. One that was forked off has nothing to end."""
    if os.getpid() == parent:
        pipe.close()
        process.kill()  # even if it is stopped or ignores SIGTERM
        process.join(timeout=5)


def _spread(num_envs: int, workers: int) -> list[int]:
    """How many environments each worker has; with fewer environments, none has more."""
    return [num_envs // workers + (i < num_envs % workers) for i in range(workers)]


def _serve(pipe: Connection, make: MakeScene, num_envs: int) -> None:
    """A worker's life: make a scene, then answer until the pipe closes. What goes wrong is its last answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    try:
        try:
            batch = part = SceneBatch(make, num_envs)
        except ValueError as error:  # how the environment was asked for
            pipe.send_bytes(packed((None, error)))
            return
        shared: dict[str, Tensor] = {}
        while True:
            answer: Any
            match unpacked(pipe.recv_bytes()):
                case ("share", pictures):
                    shared = pictures
                    continue
                case ("spec",):
                    answer = batch.spec, batch.fingerprint()
                case ("reset", seed, count):
                    part = batch.first(count)
                    answer = _without_pictures(part.reset(seed).to_dict(), shared)
                case (method, command):
                    answer = getattr(part, method)(command).to_dict()
                    answer["obs"] = _without_pictures(answer["obs"], shared)
            pipe.send_bytes(packed((answer, None)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception:  # whatever it was, the parent must hear of it
        pipe.send_bytes(packed((None, f"said:\n{traceback.format_exc()}")))


def _without_pictures(obs: dict[str, Any], shared: dict[str, Tensor]) -> dict[str, Any]:
    """Put the pictures into shared memory; the rest is small."""
    for name, pictures in shared.items():
        pictures[: len(obs["proprio"])].copy_(obs["images"][name])
    return {name: value for name, value in obs.items() if name != "images"}
