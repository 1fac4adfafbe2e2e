"""How much an observation is worth; each is built from the policy it judges.

With `per_command` there is a value for each command of the chunk that begins there: how much it is worth to be at the
moment before it, as far as can be told when the chunk begins (RLinf-VLA, 2025).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.models.encoder import Encoder
from vla.types import EnvSpec, Observation


class Critic(nn.Module):
    """Sees what the policy sees, with an encoder of its own."""

    def __init__(self, policy: nn.Module, encoder: Callable[[EnvSpec], Encoder], *, per_command: bool = False):
        super().__init__()
        self.encoder = encoder(cast(EnvSpec, policy.spec))
        self.size = values_of(policy, per_command=per_command)
        self.head = nn.Linear(self.encoder.width, math.prod(self.size))

    def forward(self, obs: Observation) -> Float[Tensor, "..."]:
        return self.head(self.encoder(obs.reshape(-1))).reshape(*obs.batch_size, *self.size)


class PrivilegedCritic(nn.Module):
    """Sees proprio and the true poses of `objects`, which only a simulator knows; cheaper and better than pixels."""

    def __init__(self, policy: nn.Module, objects: Sequence[str], width: int = 128, *, per_command: bool = False):
        super().__init__()
        self.objects = list(objects)
        self.size = values_of(policy, per_command=per_command)
        seen = cast(EnvSpec, policy.spec).proprio_dim + 7 * len(self.objects)
        middle = (nn.Linear(seen, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.net = nn.Sequential(*middle, nn.Linear(width, math.prod(self.size)))

    def forward(self, obs: Observation) -> Float[Tensor, "..."]:
        """ValueError names an object that the environment does not know."""
        poses: dict[str, Any] = {} if obs.privileged is None else dict(obs.privileged.items())
        missing = [name for name in self.objects if name not in poses]
        if missing:
            raise ValueError(f"the critic needs the pose of {missing[0]!r}, the environment knows only {sorted(poses)}")
        known = torch.cat([obs.proprio, *(poses[name] for name in self.objects)], -1)
        return self.net(known).reshape(*obs.batch_size, *self.size)


def values_of(policy: nn.Module, *, per_command: bool) -> tuple[int, ...]:
    """The shape of the values of one observation."""
    return (cast(int, policy.horizon),) if per_command else ()
