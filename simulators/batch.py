"""Batches of one-scene simulators: several in this process, or spread over worker processes with shared pictures.

CPU simulators hold one scene each. `SceneBatch` steps several scenes one after another; `SubprocessEnv` runs one
`SceneBatch` per worker. Pictures come back through shared memory, everything else is small and goes through a pipe.
"""

import pickle
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, cast

import torch
import torch.multiprocessing as mp
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla.types import ChunkEnv, Observation, Replayable, Step

MakeScene = Callable[[], ChunkEnv]


class SceneBatch:
    """`num_envs` scenes in this process. Every scene is made once, when the batch is, and kept."""

    def __init__(self, make: MakeScene, num_envs: int):
        self.scenes = [make() for _ in range(num_envs)]
        self.spec = replace(self.scenes[0].spec, num_envs=num_envs)

    def reset(self, seed: int) -> Observation:
        return Observation.cat([scene.reset(seed + i) for i, scene in enumerate(self.scenes)])

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        return Step.cat([scene.step(c) for scene, c in zip(self.scenes, command.split(1), strict=True)])

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        return Step.cat([scene.play(c) for scene, c in zip(self.scenes, chunk.split(1), strict=True)])

    def restore(self, states: Sequence[Any]) -> Observation:
        """Start episodes from native states, one per scene (`Replayable`)."""
        return Observation.cat([scene.restore(x) for scene, x in zip(self._replayable(), states, strict=True)])

    def translate(
        self, action: Float[Tensor, "env native"], controller: str, settings: Mapping[str, Any]
    ) -> Float[Tensor, "env action"]:
        scenes = zip(self._replayable(), action.split(1), strict=True)
        return torch.cat([scene.translate(own, controller, settings) for scene, own in scenes])

    def close(self) -> None:
        for scene in self.scenes:
            scene.close()

    def _replayable(self) -> list[Replayable]:
        return [cast(Replayable, scene) for scene in self.scenes]


class SubprocessEnv:
    """`num_envs` scenes spread over `workers` processes that step at the same time.

    Worker processes are started once. One that dies, raises, or is silent for `timeout` seconds ends the environment
    with a RuntimeError that says which and why; a ValueError of the scene's constructor is raised as it is.
    """

    def __init__(self, make: MakeScene, num_envs: int, workers: int, timeout: float = 300.0):
        if not 1 <= workers <= num_envs:
            raise ValueError(f"workers must be from 1 to num_envs ({num_envs}), got {workers}")
        context = mp.get_context("spawn")
        self.timeout = timeout
        self.sizes = [num_envs // workers + (i < num_envs % workers) for i in range(workers)]
        self.pipes, self.processes = [], []
        for size in self.sizes:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, size), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        specs = [self._receive(i) for i in range(workers)]
        self.spec = replace(specs[0], num_envs=num_envs)
        self.pictures = {
            camera.name: torch.zeros(num_envs, camera.height, camera.width, 3, dtype=torch.uint8).share_memory_()
            for camera in self.spec.cameras
        }
        for pipe, *own in zip(self.pipes, *(x.split(self.sizes) for x in self.pictures.values()), strict=True):
            pipe.send(dict(zip(self.pictures, own, strict=True)))

    def reset(self, seed: int) -> Observation:
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        obs = Observation.cat(self._ask("reset", [seed + start for start in starts]))
        return self._with_pictures(obs)

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        step = Step.cat(self._ask("step", list(command.split(self.sizes))))
        return step.replace(obs=self._with_pictures(step.obs))

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        step = Step.cat(self._ask("play", list(chunk.split(self.sizes))))
        return step.replace(obs=self._with_pictures(step.obs))

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()  # a worker that sees its pipe closed ends by itself
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()

    def _ask(self, method: str, arguments: list[Tensor] | list[int]) -> list:
        for pipe, argument in zip(self.pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((method, argument)))
        return [self._receive(i) for i in range(len(self.pipes))]

    def _receive(self, worker: int):
        process = self.processes[worker]
        try:
            if not self.pipes[worker].poll(self.timeout):
                self.close()
                raise RuntimeError(f"simulator worker {worker} gave no answer for {self.timeout:g} s and was ended")
            answer, error = pickle.loads(self.pipes[worker].recv_bytes())  # our own child process
        except (EOFError, ConnectionResetError):
            process.join(timeout=5)
            raise RuntimeError(f"simulator worker {worker} died with exit code {process.exitcode}") from None
        if isinstance(error, ValueError):
            self.close()
            raise error
        if error is not None:
            raise RuntimeError(f"simulator worker {worker} failed:\n{error}")
        return answer

    def _with_pictures(self, obs: Observation) -> Observation:
        pictures = {name: shared.clone() for name, shared in self.pictures.items()}
        return obs.replace(images=TensorDict(pictures, obs.batch_size))


def _serve(pipe: Connection, make: MakeScene, num_envs: int) -> None:
    """A worker's life: make the scenes, say what they are, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    try:
        try:
            batch = SceneBatch(make, num_envs)
        except ValueError as error:  # how the environment was asked for
            pipe.send_bytes(pickle.dumps((None, error)))
            return
        pipe.send_bytes(pickle.dumps((batch.spec, None)))
        shared = pipe.recv()
        while True:
            method, argument = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps((_share_pictures(getattr(batch, method)(argument), shared), None)))
    except (EOFError, BrokenPipeError):
        return
    except Exception:  # whatever it was, the parent must hear of it
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))


def _share_pictures(answer: Observation | Step, shared: dict[str, Tensor]) -> Observation | Step:
    """Put the pictures into shared memory and the rest of the answer into a form that pickles small."""
    obs = answer if isinstance(answer, Observation) else answer.obs
    for name, picture in shared.items():
        picture.copy_(obs.images[name])
    bare = obs.replace(images=TensorDict({}, obs.batch_size))
    return bare if isinstance(answer, Observation) else answer.replace(obs=bare)
