"""An encoder that sees proprio alone, for policies without cameras."""

from jaxtyping import Float
from torch import Tensor, nn

from vla.data.normalise import Statistics
from vla.models.normaliser import Normaliser
from vla.types import EnvSpec, Observation


class StateMLP(nn.Module):
    """`std` is what numbers of proprio are divided by until there are statistics: many are a few centimetres."""

    def __init__(self, spec: EnvSpec, width: int = 64, std: float = 1.0):
        super().__init__()
        self.width = width
        self.normaliser = Normaliser(spec.proprio_dim)
        self.normaliser.std.fill_(std)
        self.net = nn.Sequential(nn.Linear(spec.proprio_dim, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())

    def set_statistics(self, proprio: Statistics) -> None:
        self.normaliser.set(proprio.mean, proprio.std)

    def forward(self, obs: Observation) -> Float[Tensor, "batch width"]:
        return self.net(self.normaliser(obs.proprio))
