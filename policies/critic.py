"""How much an observation is worth; each is built from the policy it judges."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.types import EnvSpec, Observation


class Critic(nn.Module):
    """Sees what the policy sees, with an encoder of its own."""

    def __init__(self, policy: nn.Module, encoder: Callable[[EnvSpec], nn.Module]):
        super().__init__()
        self.encoder = encoder(policy.spec)
        self.head = nn.Linear(self.encoder.width, 1)

    def forward(self, obs: Observation) -> Float[Tensor, "*batch"]:
        return self.head(self.encoder(obs.reshape(-1))).reshape(obs.batch_size)


class PrivilegedCritic(nn.Module):
    """Sees proprio and the true poses of `objects`, which only a simulator knows; cheaper and better than pixels."""

    def __init__(self, policy: nn.Module, objects: Sequence[str], width: int = 128):
        super().__init__()
        self.objects = list(objects)
        size = policy.spec.proprio_dim + 7 * len(self.objects)
        self.net = nn.Sequential(
            nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, obs: Observation) -> Float[Tensor, "*batch"]:
        """ValueError names an object that the environment does not know."""
        known = [] if obs.privileged is None else list(obs.privileged.keys())
        missing = [name for name in self.objects if name not in known]
        if missing:
            raise ValueError(f"the critic needs the pose of {missing[0]!r}, the environment knows only {known}")
        return self.net(torch.cat([obs.proprio, *(obs.privileged[name] for name in self.objects)], -1)).squeeze(-1)
