"""A diagonal Gaussian over the whole chunk."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from vla import chance
from vla.algorithms.losses import unpadded_mean
from vla.data.normalise import Statistics
from vla.models.action_tokens import command_range
from vla.models.encoder import Encoder
from vla.models.normaliser import Normaliser
from vla.types import Action, EnvSpec, Observation

MIN_STD = 0.02  # of normalised commands: keeps a likelihood finite where the data never vary


class GaussianPolicy(nn.Module):
    """Every number of the chunk is a factor; its standard deviation is learned and the same in every state.

    The sample is normalised: by the statistics of the data or, before there are any, so that the limits of a command
    are -1 and 1. `std` is where it starts. Commands are not clipped here; environments do that.
    """

    def __init__(self, spec: EnvSpec, encoder: Callable[[EnvSpec], Encoder], horizon: int, std: float = 0.5):
        super().__init__()
        if std <= MIN_STD:
            raise ValueError(f"std must be above {MIN_STD} (in normalised commands), got {std}")
        self.spec = spec
        self.horizon = horizon
        self.encoder = encoder(spec)
        self.head = nn.Linear(self.encoder.width, horizon * spec.action_dim)
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)
        self.log_std = nn.Parameter(torch.full((horizon, spec.action_dim), math.log(std - MIN_STD)))
        self.normaliser = Normaliser(spec.action_dim, floor=1e-3)
        self.normaliser.set_range(*command_range(spec.command))

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.encoder.set_statistics(proprio)
        self.normaliser.set(action.mean, action.std)

    def act(self, obs: Observation) -> Action:
        distribution = self._distribution(obs)
        noise = chance.normal(distribution.mean.flatten(0, -3)).view_as(distribution.mean)
        return self._action(distribution, distribution.mean + distribution.stddev * noise, obs)

    def mode(self, obs: Observation) -> Action:
        """The mean of the chunk."""
        distribution = self._distribution(obs)
        return self._action(distribution, distribution.mean, obs)

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch factors"]:
        return self._score(self._distribution(obs), action.latent["sample"]).flatten(-2)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The negative log-likelihood per number, averaged over those that are not padding."""
        loss = -self._score(self._distribution(obs), self._sample_of(chunk)).mean(-1)
        return unpadded_mean(loss, padded)

    def _distribution(self, obs: Observation) -> Normal:
        mean = self.head(self.encoder(obs.reshape(-1)))
        return Normal(mean.reshape(*obs.batch_size, self.horizon, -1), MIN_STD + self.log_std.exp())

    def _action(self, distribution: Normal, sample: Float[Tensor, "*batch horizon action"], obs: Observation) -> Action:
        return Action(
            commands=self._commands_of(sample),
            log_prob=self._score(distribution, sample).flatten(-2),
            latent=TensorDict({"sample": sample}, obs.batch_size),
            batch_size=obs.batch_size,
        )

    def _score(self, distribution: Normal, sample: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return distribution.log_prob(sample)

    def _commands_of(self, sample: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return self.normaliser.inverse(sample)

    def _sample_of(self, commands: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return self.normaliser(commands)


class SquashedGaussianPolicy(GaussianPolicy):
    """A Gaussian whose sample goes through tanh, so that commands stay within their range (SAC, Haarnoja et al. 2018).

    The range is that of the data or, before there are any, that of the command. Probabilities are those of the
    normalised commands, from -1 to 1; demonstrated ones count as at most 0.999.
    """

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.encoder.set_statistics(proprio)
        self.normaliser.set_range(action.low, action.high)

    def _score(self, distribution: Normal, sample: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        stretched = 2 * (math.log(2) - sample - softplus(-2 * sample))  # log of the derivative of tanh
        return distribution.log_prob(sample) - stretched

    def _commands_of(self, sample: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return self.normaliser.inverse(sample.tanh())

    def _sample_of(self, commands: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return self.normaliser(commands).clamp(-0.999, 0.999).atanh()
