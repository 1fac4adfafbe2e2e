"""A flow-matching head: the velocity from noise to a chunk is learned and followed (pi0, Black et al. 2024)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Beta

from policies.denoising import DenoisingPolicy, Features, Noisy
from vla import chance
from vla.models.denoisers import Denoiser, TimeEmbedding, UNet1D
from vla.models.encoder import Encoder
from vla.types import EnvSpec

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
