"""A flow-matching head: the velocity from noise to a chunk is learned and followed (pi0, Black et al. 2024)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Beta

from policies.denoising import DenoisingPolicy, Features, Noisy
from policies.realtime import State, guided_velocity, lengthened
from vla import chance
from vla.models.denoisers import Denoiser, TimeEmbedding, UNet1D
from vla.models.encoder import Encoder
from vla.types import Action, EnvSpec, Observation

CHAINS = ("ode", "sde", "noise")


class FlowPolicy(DenoisingPolicy):
    """Time runs from 1, noise, to 0, the chunk: `x_t = t noise + (1 - t) chunk`, velocity `noise - chunk`.

    `chain` says where chance comes in besides the first noise, which is what makes a decision one that can be scored:
    `ode` nowhere; `sde` in one step, drawn anew for each decision, that keeps the marginals (Flow-SDE of pi_RL, 2025),
    as loud as `noise`; `noise` in every step, with a standard deviation learned within `spread`, of normalised
    commands (Flow-Noise of pi_RL; ReinFlow, 2025). `mode` follows the velocity alone.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder],
        horizon: int,
        denoiser: Denoiser = UNet1D,
        steps: int = 10,
        chain: str = "ode",
        noise: float = 0.5,
        spread: tuple[float, float] = (0.08, 0.16),
    ):
        super().__init__(spec, encoder, horizon, denoiser, steps)
        if chain not in CHAINS:
            raise ValueError(f"chain must be one of {', '.join(CHAINS)}, got {chain!r}")
        if chain == "sde" and steps < 2:
            raise ValueError("an sde chain needs at least 2 steps, got 1: a single step can be chain=noise")
        if not 0 < spread[0] < spread[1]:
            raise ValueError(f"spread must be two growing positive standard deviations, got {tuple(spread)}")
        self.chain, self.noise, self.spread = chain, noise, tuple(spread)
        if chain == "noise":
            self.loudness = Loudness(self.encoder.width)

    def act_along(
        self,
        obs: Observation,
        previous: Float[Tensor, "*batch left action"],
        weights: Float[Tensor, " left"],
        max_guidance: float = 5.0,
    ) -> Action:
        """A chunk from new noise that goes on from `previous`, the commands left of another one from now on.

        `weights` say from 0 to 1 how much it must keep of each. The velocity alone is followed, whatever the `chain`:
        nobody can score such a decision.
        """
        noise = chance.normal(self.origin.expand(obs.numel(), -1, -1))
        return self._along(obs, noise, previous, weights, max_guidance)

    def mode_along(
        self,
        obs: Observation,
        previous: Float[Tensor, "*batch left action"],
        weights: Float[Tensor, " left"],
        max_guidance: float = 5.0,
    ) -> Action:
        """As `act_along`, from a noise that is always the same."""
        return self._along(obs, self.origin.expand(obs.numel(), -1, -1), previous, weights, max_guidance)

    @property
    def num_drawn(self) -> int:
        return {"ode": 0, "sde": 1, "noise": self.steps}[self.chain]

    def first_drawn(self, rows: int) -> Int[Tensor, " rows"]:
        return chance.integers(self.steps, rows) if self.chain == "sde" else super().first_drawn(rows)

    def denoising_error(self, features: Features, clean: Noisy) -> Noisy:
        """Times nearer to noise are drawn more often, as pi0 does: Beta(1.5, 1)."""
        time = 0.999 * Beta(1.5, 1.0).sample((len(clean),)).to(clean) + 0.001
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, time[:, None, None])
        return (self.denoiser(noisy, time, features) - (noise - clean)).square()

    def steps_from(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> tuple[Noisy, Noisy, Noisy]:
        velocity = self.denoiser(noisy, self._time(index), features)
        fixed = noisy - velocity / self.steps
        if self.chain == "noise":
            return fixed, fixed, self._learned_std(features, index)[:, None, None].expand_as(fixed)
        delta = 1 / self.steps
        time = self._time(index)[:, None, None]
        early = time.clamp(max=1 - delta)  # at pure noise the formula is infinite
        std = self.noise * (early / (1 - early)).sqrt() * math.sqrt(delta)
        chunk, noise = noisy - velocity * time, noisy + velocity * (1 - time)
        mean = chunk * (1 - time + delta) + noise * (time - delta - std.square() / (2 * time))
        return fixed, mean, std.expand_as(mean)

    def guided_step(
        self,
        features: Features,
        noisy: Noisy,
        index: Int[Tensor, " rows"],
        target: Noisy,
        weights: Float[Tensor, "horizon action"],
        max_guidance: float,
    ) -> Noisy:
        """The state after a step that also leads towards `target`."""
        time = self._time(index)
        velocity = guided_velocity(
            lambda x: self.denoiser(x, time, features), noisy, time, target, weights, max_guidance
        )
        return noisy - velocity / self.steps

    def state_of(self, commands: Float[Tensor, "rows left action"]) -> Float[Tensor, "rows left action"]:
        """What the last state of a chain would be that says these."""
        return self.normaliser(commands)

    @torch.no_grad()
    def _along(
        self,
        obs: Observation,
        state: State,
        previous: Float[Tensor, "*batch left action"],
        weights: Float[Tensor, " left"],
        max_guidance: float,
    ) -> Action:
        features, batch = self.encoder(obs.reshape(-1)), obs.batch_size
        known = self.state_of(previous.reshape(-1, *previous.shape[-2:]).to(state))
        target, mask = lengthened(known, weights, state)
        for i in range(self.steps):
            index = torch.full((len(state),), i, device=state.device)
            state = self.guided_step(features, state, index, target, mask, max_guidance)
        return Action(
            commands=self.commands_of(state).reshape(*batch, self.horizon, -1),
            log_prob=state.new_zeros(*batch, 0),
            latent=TensorDict({}, batch),
            batch_size=batch,
        )

    def _time(self, index: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return 1 - index / self.steps

    def _learned_std(self, features: Features, index: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        low, high = (math.log(x) for x in self.spread)
        share = (1 + self.loudness(features.detach(), self._time(index)).tanh()) / 2
        return (low + (high - low) * share).exp()


class Loudness(nn.Module):
    """How much chance a step may have here and now, one number without bounds."""

    def __init__(self, features: int, time_width: int = 32):
        super().__init__()
        self.time = TimeEmbedding(time_width)
        self.net = nn.Sequential(
            nn.Linear(features + time_width, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def forward(self, features: Features, time: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return self.net(torch.cat([features, self.time(time)], -1)).squeeze(-1)
