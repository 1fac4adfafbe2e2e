"""Disturbing an expert, so that demonstrations show how to recover."""

import torch
from jaxtyping import Float
from torch import Tensor

from vla.types import Action, Actor, Command, Observation


class Noisy:
    """Plays an actor's commands with disturbances; what the actor asked for is in `latent["requested"]`.

    At each decision a disturbance begins with `probability`: for `hold` decisions one random motion is added, whose
    standard deviation is `scale` times the largest command, per axis. In between the actor can mend what happened;
    noise drawn anew at each step would cancel itself and leave little to recover from. Learn from the requested
    commands, not from the executed ones (DART, 2017). The gripper is left alone. One instance plays one rollout.
    """

    def __init__(self, actor: Actor, command: Command, *, scale: float, probability: float = 0.1, hold: int = 4):
        if scale < 0 or not 0 <= probability <= 1 or hold < 1:
            raise ValueError(f"need scale >= 0, probability in [0, 1], hold >= 1: got {scale}, {probability}, {hold}")
        self.actor, self.probability, self.hold = actor, probability, hold
        self.deviation = scale * largest(command)
        self.motion: Float[Tensor, "env action"] | None = None

    def act(self, obs: Observation) -> Action:
        action = self.actor.act(obs)
        requested = action.commands
        num_envs = len(requested)
        if self.motion is None:
            self.left = torch.zeros(num_envs, dtype=torch.long)
            self.motion = torch.zeros_like(requested[:, 0])
        begins = (torch.rand(num_envs) < self.probability) & (self.left == 0)
        fresh = torch.randn_like(self.motion) * self.deviation
        self.motion = torch.where(begins[:, None], fresh, self.motion)
        self.left = torch.where(begins, self.hold, self.left)
        disturbed = requested + (self.motion * (self.left > 0)[:, None])[:, None]
        self.left = (self.left - 1).clamp(min=0)
        latent = action.latent.clone(recurse=False).set("requested", requested)
        return action.replace(commands=disturbed, latent=latent)


def largest(command: Command) -> Float[Tensor, " action"]:
    """The largest motion of each axis in one step; zero for the gripper. ValueError where there is none."""
    if command.kind == "ee_delta" and command.max_translation is not None:
        limits = [command.max_translation] * 3 + [command.max_rotation or 0.0] * 3 + [0.0]
        return torch.tensor(limits[: command.size])
    if command.kind == "joint_delta" and command.max_rotation is not None:
        return torch.tensor([command.max_rotation] * (command.size - 1) + [0.0])
    raise ValueError(f"cannot disturb commands without limits: {command}. Set noise=0.")
