"""Commands as words: every number of the chunk is one token, drawn from a categorical distribution."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from tensordict import TensorDict
from torch import Tensor, nn

from vla import chance
from vla.algorithms.losses import unpadded_mean
from vla.data.normalise import Statistics
from vla.models.action_tokens import ActionBins
from vla.models.encoder import Encoder
from vla.models.token_decoders import AutoregressiveDecoder, Choice, ParallelDecoder
from vla.types import Action, EnvSpec, Observation

Decoder = Callable[[int, int, int], ParallelDecoder | AutoregressiveDecoder]  # of features, tokens, bins


class TokenHead(nn.Module):
    """`horizon * action` tokens per decision, in the order of the chunk; the factors are the tokens.

    Sampling and scoring are at `temperature`; the most likely decision and imitation do not depend on it.
    `soft_label_std` (in bins) lets imitation count near misses: the target is then a Gaussian around the demonstrated
    number instead of its bin alone.
    """

    def __init__(
        self,
        spec: EnvSpec,
        horizon: int,
        bins: int = 64,
        limits: str = "extremes",
        temperature: float = 1.0,
        soft_label_std: float = 0.0,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}; `mode` decides greedily")
        self.spec = spec
        self.horizon = horizon
        self.temperature = temperature
        self.soft_label_std = soft_label_std
        self.bins = ActionBins(spec.command, bins, limits)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        self.bins.set_statistics(action)

    def logits(
        self, obs: Observation, tokens: Int[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens bins"]:
        """Of every token, each after the given ones before it."""
        raise NotImplementedError

    def choose(
        self, obs: Observation, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        """The tokens that `choice` picks, and the logits it saw."""
        raise NotImplementedError

    def act(self, obs: Observation) -> Action:
        return self._decide(obs, lambda logits: chance.choice(logits / self.temperature))

    def mode(self, obs: Observation) -> Action:
        """The most likely token each time."""
        return self._decide(obs, lambda logits: logits.argmax(-1))

    def log_prob(self, obs: Observation, action: Action) -> Float[Tensor, "*batch tokens"]:
        tokens = action.latent["tokens"]
        return _pick(self.distribution(obs, tokens), tokens)

    def distribution(
        self, obs: Observation, tokens: Int[Tensor, "*batch tokens"] | None = None
    ) -> Float[Tensor, "*batch tokens bins"]:
        """The log-probability of every token at `temperature`, each after the given ones before it."""
        given = None if tokens is None else tokens.reshape(-1, tokens.shape[-1])
        logits = self.logits(obs.reshape(-1), given)
        return _split((logits.float() / self.temperature).log_softmax(-1), obs.batch_size)

    def imitation_loss(
        self,
        obs: Observation,
        chunk: Float[Tensor, "batch horizon action"],
        padded: Bool[Tensor, "batch horizon"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The cross-entropy of the demonstrated tokens, averaged over those that are not padding."""
        tokens = self.bins.encode(chunk).flatten(1)
        log_prob = self.logits(obs, tokens).float().log_softmax(-1)
        if self.soft_label_std > 0:
            label = self.bins.log_mass(self.bins.clip(chunk), self.soft_label_std * self.bins.width).exp().flatten(1, 2)
            loss = -(label * log_prob).sum(-1)
        else:
            loss = -_pick(log_prob, tokens)
        return unpadded_mean(loss, None if padded is None else padded.repeat_interleave(self.spec.action_dim, -1))

    def _decide(self, obs: Observation, choice: Choice) -> Action:
        batch = obs.batch_size
        tokens, logits = self.choose(obs.reshape(-1), choice)
        log_prob = _pick((logits.float() / self.temperature).log_softmax(-1), tokens)
        tokens = _split(tokens, batch)
        return Action(
            commands=self.bins.decode(tokens.unflatten(-1, (self.horizon, -1))),
            log_prob=_split(log_prob, batch),
            latent=TensorDict({"tokens": tokens}, batch),
            batch_size=batch,
        )


class TokenPolicy(TokenHead):
    """Tokens decoded from the features of a small encoder."""

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder],
        horizon: int,
        decoder: Decoder = ParallelDecoder,
        bins: int = 64,
        limits: str = "extremes",
        temperature: float = 1.0,
        soft_label_std: float = 0.0,
    ):
        super().__init__(spec, horizon, bins, limits, temperature, soft_label_std)
        self.encoder = encoder(spec)
        self.decoder = decoder(self.encoder.width, horizon * spec.action_dim, bins)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        super().set_statistics(proprio, action)
        self.encoder.set_statistics(proprio)

    def logits(
        self, obs: Observation, tokens: Int[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens bins"]:
        return self.decoder(self.encoder(obs), tokens)

    def choose(
        self, obs: Observation, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        return self.decoder.decode(self.encoder(obs), choice)


def _split(rows: Shaped[Tensor, "rows ..."], batch: torch.Size) -> Shaped[Tensor, "..."]:
    return rows.reshape(*batch, *rows.shape[1:])


def _pick(log_prob: Float[Tensor, "*batch bins"], tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    return log_prob.gather(-1, tokens[..., None]).squeeze(-1)
