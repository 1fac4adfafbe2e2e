"""How much an observation is worth; each is built from the policy it judges."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.models.encoder import Encoder
from vla.types import EnvSpec, Observation


class Critic(nn.Module):
    """Sees what the policy sees, with an encoder of its own."""

    def __init__(self, policy: nn.Module, encoder: Callable[[EnvSpec], Encoder]):
        super().__init__()
        self.encoder = encoder(cast(EnvSpec, policy.spec))
        self.head = nn.Linear(self.encoder.width, 1)

    def forward(self, obs: Observation) -> Float[Tensor, "*batch"]:
        return self.head(self.encoder(obs.reshape(-1))).reshape(obs.batch_size)


class PrivilegedCritic(nn.Module):
    """Sees proprio and the true poses of `objects`, which only a simulator knows; cheaper and better than pixels."""

    def __init__(self, policy: nn.Module, objects: Sequence[str], width: int = 128):
        super().__init__()
        self.objects = list(objects)
        size = cast(EnvSpec, policy.spec).proprio_dim + 7 * len(self.objects)
        self.net = nn.Sequential(
            nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, obs: Observation) -> Float[Tensor, "*batch"]:
        """ValueError names an object that the environment does not know."""
        poses: dict[str, Any] = {} if obs.privileged is None else dict(obs.privileged.items())
        missing = [name for name in self.objects if name not in poses]
        if missing:
            raise ValueError(f"the critic needs the pose of {missing[0]!r}, the environment knows only {sorted(poses)}")
        known = torch.cat([obs.proprio, *(poses[name] for name in self.objects)], -1)
        return self.net(known).squeeze(-1)
