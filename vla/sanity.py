"""Actors that know nothing, or are kept from knowing: what a policy must beat before its success means anything."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor

from vla.types import Action, Actor, EnvSpec, Observation, Seeded

UNRELATED = "fold the towel in half"
SALT = 7919  # or an environment that draws from its seed in the same way would be correlated with `Random`
UNLIMITED = (0.05, 0.1)  # metres and radians per step, where commands have no limits of their own


class Stay:
    """Does nothing, with the gripper open: no motion, or the present joint positions."""

    def __init__(self, spec: EnvSpec, horizon: int = 1):
        self.spec, self.horizon = spec, horizon

    def act(self, obs: Observation) -> Action:
        return _decision(obs, staying(obs, self.spec)[:, None].repeat(1, self.horizon, 1))


class Random:
    """Commands drawn uniformly within their limits, by a generator of each episode's own.

    So an episode is the same with any number of copies. Translation and rotation are each uniform in a ball, joints
    each in an interval (around where it is, if commands are positions), the gripper between closed and open.
    """

    def __init__(self, spec: EnvSpec, horizon: int = 1):
        self.spec, self.horizon = spec, horizon
        self.begin(0)

    def begin(self, seed: int) -> None:
        self.seed = seed
        self.generators: list[np.random.Generator] = []

    def act(self, obs: Observation) -> Action:
        while len(self.generators) < len(obs):
            self.generators.append(np.random.default_rng([SALT, self.seed + len(self.generators)]))
        drawn = [[self._draw(rng) for _ in range(self.horizon)] for rng in self.generators]
        base = staying(obs, self.spec)
        if _has_gripper(self.spec):
            base[:, -1] = 0
        return _decision(obs, base[:, None] + torch.from_numpy(np.asarray(drawn, dtype=np.float32)))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        command = self.spec.command
        reach, turn = command.max_translation or UNLIMITED[0], command.max_rotation or UNLIMITED[1]
        size = command.size - _has_gripper(self.spec)
        if command.kind == "ee_delta":
            motion = np.append(_in_ball(rng, min(size, 3), reach), _in_ball(rng, max(size - 3, 0), turn))
        else:
            motion = rng.uniform(-turn, turn, size)
        return np.append(motion, rng.uniform()) if _has_gripper(self.spec) else motion


class Blind:
    """An actor that is shown black pictures."""

    def __init__(self, actor: Actor):
        self.actor = actor
        if isinstance(actor, Seeded):
            self.begin = actor.begin

    def act(self, obs: Observation) -> Action:
        return self.actor.act(obs.replace(images=obs.images.apply(torch.zeros_like)))


class Told:
    """An actor that is told another `instruction` in place of each; an unrelated one where none is named."""

    def __init__(self, actor: Actor, instruction: Mapping[str, str]):
        self.actor, self.instruction = actor, instruction
        if isinstance(actor, Seeded):
            self.begin = actor.begin

    def act(self, obs: Observation) -> Action:
        return self.actor.act(obs.replace(instruction=[self.instruction.get(x, UNRELATED) for x in obs.instruction]))


def ignorant(spec: EnvSpec, horizon: int = 1) -> dict[str, Actor]:
    """The actors that look at nothing, by name."""
    return {"zero": Stay(spec, horizon), "random": Random(spec, horizon)}


def wrong_instructions(instructions: Sequence[str]) -> dict[str, str]:
    """For each text the next of the others, or an unrelated one if there is no other."""
    texts = sorted(set(instructions))
    return dict(zip(texts, texts[1:] + texts[:1] if len(texts) > 1 else [UNRELATED], strict=False))


def staying(obs: Observation, spec: EnvSpec) -> Float[Tensor, "env action"]:
    """The command that keeps the arm where it is, with the gripper open."""
    command = torch.zeros(len(obs), spec.action_dim)
    if spec.command.kind == "joint_position":
        command[:, :-1] = obs.proprio[:, spec.proprio_slice("joint_position")]
    if _has_gripper(spec):
        command[:, -1] = 1
    return command


def staying_after(last: Float[Tensor, "*batch action"], spec: EnvSpec) -> Float[Tensor, "*batch action"]:
    """The command after `last` that moves nothing, the gripper neither."""
    if spec.command.kind == "joint_position":
        return last
    still = torch.zeros_like(last)
    if _has_gripper(spec):
        still[..., -1] = last[..., -1]
    return still


def _in_ball(rng: np.random.Generator, axes: int, radius: float) -> np.ndarray:
    if axes == 0:
        return np.empty(0)
    direction = rng.normal(size=axes)
    return direction / np.linalg.norm(direction) * radius * rng.uniform() ** (1 / axes)


def _has_gripper(spec: EnvSpec) -> bool:
    return spec.command.kind != "ee_delta" or spec.action_dim == 7


def _decision(obs: Observation, commands: Float[Tensor, "env horizon action"]) -> Action:
    b = obs.batch_size
    return Action(commands=commands, log_prob=torch.zeros(*b, 0), latent=TensorDict({}, b), batch_size=b)
