"""One chunk per observation, without chance: L1 regression (OpenVLA-OFT, Kim et al. 2025), or an actor for TD3."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn

from vla.algorithms.losses import unpadded_mean
from vla.data.normalise import Statistics
from vla.models.action_tokens import command_range
from vla.models.encoder import Encoder
from vla.models.normaliser import Normaliser
from vla.types import Action, EnvSpec, Observation


class DeterministicPolicy(nn.Module):
    """Commands are normalised by the data or, before there are any, by their limits. There are no factors to score."""

    def __init__(self, spec: EnvSpec, encoder: Callable[[EnvSpec], Encoder], horizon: int):
        super().__init__()
        self.spec = spec
        self.horizon = horizon
        self.encoder = encoder(spec)
        self.head = nn.Linear(self.encoder.width, horizon * spec.action_dim)
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)
        self.normaliser = Normaliser(spec.action_dim, floor=1e-3)
        self.normaliser.set_range(*command_range(spec.command))

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.encoder.set_statistics(proprio)
        self.normaliser.set(action.mean, action.std)

    def act(self, obs: Observation) -> Action:
        return certain(self.normaliser.inverse(self._predict(obs)), obs)

    mode = act

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch factors"]:
        """None: no decision of this policy was chance."""
        return torch.zeros(*obs.batch_size, 0)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The mean absolute error of normalised commands that are not padding."""
        loss = (self._predict(obs) - self.normaliser(chunk)).abs().mean(-1)
        return unpadded_mean(loss, padded)

    def _predict(self, obs: Observation) -> Float[Tensor, "*batch horizon action"]:
        return self.head(self.encoder(obs.reshape(-1))).reshape(*obs.batch_size, self.horizon, -1)


def certain(commands: Float[Tensor, "*batch horizon action"], obs: Observation) -> Action:
    """A decision in which nothing was chance."""
    nothing, none = TensorDict({}, obs.batch_size), commands.new_zeros(*obs.batch_size, 0)
    return Action(commands=commands, log_prob=none, latent=nothing, batch_size=obs.batch_size)
