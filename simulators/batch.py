"""Several one-scene simulators in this process, stepped one after another, each made when it is first needed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vla.rollout import execute
from vla.types import Env, Observation, Replayable, Step

MakeScene = Callable[[], Env]


class SceneBatch:
    """`num_envs` scenes in this process. The first is made at once, for its spec, the others by the first `reset`.

    A scene is kept once it is made. One that cannot play chunks is given their commands one by one.
    """

    def __init__(self, make: MakeScene, num_envs: int):
        self.make = make
        self.scenes = [make()]
        self.spec = replace(self.scenes[0].spec, num_envs=num_envs)

    def first(self, num_envs: int) -> "SceneBatch":
        """The first `num_envs` scenes as a batch of their own, which never makes the others."""
        require_part(num_envs, self.spec.num_envs)
        part = copy.copy(self)  # with the same list of scenes
        part.spec = replace(self.spec, num_envs=num_envs)
        return part

    def reset(self, seed: int) -> Observation:
        return _together([scene.reset(seed + i) for i, scene in enumerate(self._in_use())])

    def step(self, command: Float[Tensor, "env action"]) -> Step:
        return _together([scene.step(c) for scene, c in zip(self._in_use(), command.split(1), strict=True)])

    def play(self, chunk: Float[Tensor, "env horizon action"]) -> Step:
        alive = torch.ones(1, dtype=torch.bool)
        return _together([execute(scene, c, alive) for scene, c in zip(self._in_use(), chunk.split(1), strict=True)])

    def fingerprint(self) -> dict[str, str]:
        return getattr(self.scenes[0], "fingerprint", dict)()

    def step_or_reset(self, orders: list[Float[Tensor, " action"] | int]) -> Step:
        return _together([_obey(scene, order) for scene, order in zip(self._in_use(), orders, strict=True)])

    def restore(self, states: Sequence[Any]) -> Observation:
        """Start episodes from native states, one per scene (`Replayable`)."""
        return _together([scene.restore(x) for scene, x in zip(self._replayable(), states, strict=True)])

    def translate(
        self, action: Float[Tensor, "env native"], controller: str, settings: Mapping[str, Any]
    ) -> Float[Tensor, "env action"]:
        scenes = zip(self._replayable(), action.split(1), strict=True)
        return torch.cat([scene.translate(own, controller, settings) for scene, own in scenes])

    def close(self) -> None:
        for scene in self.scenes:
            scene.close()

    def _in_use(self) -> list[Env]:
        while len(self.scenes) < self.spec.num_envs:
            self.scenes.append(self.make())
        return self.scenes[: self.spec.num_envs]

    def _replayable(self) -> list[Replayable]:
        return [cast(Replayable, scene) for scene in self._in_use()]


def require_counts(num_envs: int, workers: int) -> None:
    if num_envs < 1 or workers < 0:
        raise ValueError(f"num_envs must be at least 1 and workers at least 0, got {num_envs} and {workers}")


def require_part(num_envs: int, whole: int) -> None:
    if not 1 <= num_envs <= whole:
        raise ValueError(f"need from 1 to all {whole} environments, got {num_envs}")


def _together[Struct: (Observation, Step)](parts: list[Struct]) -> Struct:
    return parts[0] if len(parts) == 1 else type(parts[0]).cat(parts)  # even of one, `cat` takes a while


def _obey(scene: Env, order: Float[Tensor, " action"] | int) -> Step:
    if not isinstance(order, int):
        alive = torch.ones(1, dtype=torch.bool)
        step = execute(scene, order[None, None], alive)
        return step.replace(executed=step.executed[:, 0])
    never = torch.zeros(1, dtype=torch.bool)
    return Step(
        obs=scene.reset(order),
        reward=torch.zeros(1),
        rewards=torch.zeros(1, 1),
        success=never,
        terminated=never.clone(),
        truncated=never.clone(),
        executed=torch.zeros(1, scene.spec.action_dim),
        success_at_end=never.clone(),
        steps_to_success=torch.zeros(1, dtype=torch.long),
        num_steps=torch.zeros(1, dtype=torch.long),
        batch_size=[1],
    )
