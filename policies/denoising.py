"""What diffusion and flow heads share: chunks drawn from noise step by step, scored by the steps that were chance."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal

from vla import chance
from vla.algorithms.losses import unpadded_mean
from vla.data.normalise import Statistics
from vla.models.action_tokens import command_range
from vla.models.denoisers import Denoiser
from vla.models.encoder import Encoder
from vla.models.normaliser import Normaliser
from vla.types import Action, EnvSpec, Observation

Noisy = Float[Tensor, "rows horizon action"]
Features = Any  # what the encoder makes of observations: rows that the denoiser understands, usually a tensor


class DenoisingPolicy(nn.Module):
    """`steps` steps lead from noise to a chunk; of these `num_drawn` in a row are Gaussian draws, the others fixed.

    The latent is the chain of states before and after each draw, and the number of the first; the factors are the
    numbers of each drawn state, those of one command together. The noise it begins with is the same for all
    parameters, so it is not scored. Without draws there are no factors: such a head learns by imitation only.

    Chunks are normalised by the extremes of the data to -1..1 or, before there are any, by the limits of the command.
    """

    origin: Tensor

    def __init__(
        self, spec: EnvSpec, encoder: Callable[[EnvSpec], Encoder], horizon: int, denoiser: Denoiser, steps: int
    ):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.spec = spec
        self.horizon = horizon
        self.steps = steps
        self.encoder = encoder(spec)
        self.denoiser = denoiser(self.encoder.width, spec.action_dim, horizon)
        self.normaliser = Normaliser(spec.action_dim, floor=1e-3)
        self.normaliser.set_range(*command_range(spec.command))
        noise = torch.randn(horizon, spec.action_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("origin", noise)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.encoder.set_statistics(proprio)
        self.normaliser.set_range(action.low, action.high)

    def act(self, obs: Observation) -> Action:
        features = self.encoder(obs.reshape(-1))
        noise = chance.normal(self.origin.expand(len(features), -1, -1))
        return self._denoise(obs, features, noise, self.first_drawn(len(features)), by_chance=True)

    def mode(self, obs: Observation) -> Action:
        """Without chance, from a noise that is always the same."""
        features = self.encoder(obs.reshape(-1))
        first = torch.full((len(features),), self.steps - self.num_drawn)
        return self._denoise(obs, features, self.origin.expand(len(features), -1, -1), first, by_chance=False)

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch factors"]:
        chain = action.latent["chain"].reshape(-1, self.num_drawn + 1, *self.origin.shape)
        first = action.latent["first"].reshape(-1)
        return self._score(self.encoder(obs.reshape(-1)), chain, first).reshape(*obs.batch_size, -1)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The squared error of the denoiser at a random time, averaged over numbers that are not padding."""
        clean = self.normaliser(chunk)
        if padded is not None:
            clean = torch.where(padded[..., None], clean[:, :1], clean)  # what it says must not reach the network
        loss = self.denoising_error(self.encoder(obs), clean).mean(-1)
        return unpadded_mean(loss, padded)

    def follow(self, obs: Observation, noise: Noisy) -> Float[Tensor, "rows horizon action"]:
        """The commands that this noise leads to without chance, differentiably; one row each, normalised."""
        features = self.encoder(obs.reshape(-1))
        for i in range(self.steps):
            noise = self.fixed_step(features, noise, torch.full((len(noise),), i, device=noise.device))
        return noise

    def commands_of(self, state: Noisy) -> Float[Tensor, "rows horizon action"]:
        """What the last state of a chain says to do."""
        return self.normaliser.inverse(state)

    @property
    def num_drawn(self) -> int:
        """How many steps of a decision are draws."""
        raise NotImplementedError

    def first_drawn(self, rows: int) -> Int[Tensor, " rows"]:
        """The number of the first step that is a draw, for each decision."""
        return torch.full((rows,), self.steps - self.num_drawn)

    def denoising_error(self, features: Features, clean: Noisy) -> Noisy:
        """Squared, of each number, at one random time per row."""
        raise NotImplementedError

    def steps_from(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> tuple[Noisy, Noisy, Noisy]:
        """The state after the step `index` (0: from pure noise) without chance, or the mean and deviation of a draw."""
        raise NotImplementedError

    def fixed_step(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> Noisy:
        """The state after a step without chance."""
        return self.steps_from(features, noisy, index)[0]

    def drawn_step(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> Normal:
        """The distribution of the state after a step that is a draw."""
        return Normal(*self.steps_from(features, noisy, index)[1:])

    def _denoise(
        self, obs: Observation, features: Features, noise: Noisy, first: Int[Tensor, " rows"], *, by_chance: bool
    ) -> Action:
        first = first.to(self.origin.device)
        states, scores = [noise], noise.new_zeros(len(first), self.num_drawn, self.horizon, self.spec.action_dim)
        for i in range(self.steps):
            index = torch.full_like(first, i)
            after, mean, std = self.steps_from(features, states[-1], index)
            if self.num_drawn:  # of all rows, so that none of them sees what others draw
                drawn = (first <= i) & (i < first + self.num_drawn)
                if by_chance:
                    after = torch.where(drawn[:, None, None], mean + std * chance.normal(mean), after)
                scores[drawn, i - first[drawn]] = self._played(Normal(mean, std).log_prob(after))[drawn]
            states.append(after)
        kept = first[:, None] + torch.arange(self.num_drawn + 1, device=first.device)
        chain = torch.stack(states, 1)[torch.arange(len(first), device=first.device)[:, None], kept]
        batch = obs.batch_size
        return Action(
            commands=self.commands_of(states[-1]).reshape(*batch, self.horizon, -1),
            log_prob=_by_command(scores).reshape(*batch, -1),
            latent=TensorDict({"chain": chain.reshape(*batch, *chain.shape[1:]), "first": first.reshape(batch)}, batch),
            batch_size=batch,
        )

    def _score(
        self, features: Features, chain: Float[Tensor, "rows states horizon action"], first: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows factors"]:
        rows, n = len(chain), self.num_drawn
        if n == 0:
            return chain.new_zeros(rows, 0)
        index = (first[:, None] + torch.arange(n, device=first.device)).flatten()
        before, after = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)
        scores = self._played(self.drawn_step(features.repeat_interleave(n, 0), before, index).log_prob(after))
        return _by_command(scores.unflatten(0, (rows, n)))

    def _played(self, scores: Noisy) -> Float[Tensor, "rows commands numbers"]:
        """Those of what is played: a network's chunk may be longer or wider."""
        return scores[:, : self.horizon, : self.spec.action_dim]


def _by_command(scores: Float[Tensor, "rows draws horizon action"]) -> Float[Tensor, "rows factors"]:
    return scores.transpose(1, 2).flatten(1)
