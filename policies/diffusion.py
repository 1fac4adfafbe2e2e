"""A diffusion head: the noise in a noisy chunk is learned and taken out step by step (Diffusion Policy, 2023)."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from policies.denoising import DenoisingPolicy, Features, Noisy
from vla.models.denoisers import Denoiser, UNet1D
from vla.models.encoder import Encoder
from vla.types import EnvSpec


class DiffusionPolicy(DenoisingPolicy):
    """Trained on `levels` levels of noise of the squared-cosine schedule, played in `steps` of them.

    `eta` is the share of chance in a step: 0 is DDIM, without factors; 1 with `steps` equal to `levels` is DDPM. With
    chance, the last `num_scored` steps (all of them if None) are draws with a standard deviation of at least `min_std`
    of normalised commands, and each is a factor of the decision (DPPO, Ren et al. 2024). `mode` is DDIM.
    """

    kept: Tensor
    level: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder],
        horizon: int,
        denoiser: Denoiser = UNet1D,
        levels: int = 100,
        steps: int = 10,
        eta: float = 0.0,
        min_std: float = 0.1,
        num_scored: int | None = None,
    ):
        super().__init__(spec, encoder, horizon, denoiser, steps)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be from 0 (no chance) to 1, got {eta}")
        if levels % steps:
            raise ValueError(f"levels must be a multiple of steps, got {levels} and {steps}")
        if eta > 0 and min_std <= 0:
            raise ValueError(f"min_std must be positive where there is chance, got {min_std}")
        if num_scored is not None and not 1 <= num_scored <= steps:
            raise ValueError(f"num_scored must be from 1 to steps, got {num_scored} of {steps}")
        self.levels, self.eta, self.min_std = levels, eta, min_std
        self.num_scored = num_scored or steps
        schedule: Any = DDIMScheduler(levels, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
        schedule.set_timesteps(steps)
        self.register_buffer("kept", schedule.alphas_cumprod, persistent=False)  # of the chunk's variance
        self.register_buffer("level", schedule.timesteps.clone(), persistent=False)  # of each step

    @property
    def num_drawn(self) -> int:
        return self.num_scored if self.eta > 0 else 0

    def denoising_error(self, features: Features, clean: Noisy) -> Noisy:
        level = torch.randint(self.levels, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        kept = self.kept[level][:, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        return (self.denoiser(noisy, self._time(level), features) - noise).square()

    def steps_from(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> tuple[Noisy, Noisy, Noisy]:
        clean, noise, before, after = self._parts(features, noisy, index)
        fixed = after.sqrt() * clean + (1 - after).sqrt() * noise
        variance = self.eta**2 * (1 - after) / (1 - before) * (1 - before / after)
        mean = after.sqrt() * clean + (1 - after - variance).clamp(min=0).sqrt() * noise
        return fixed, mean, variance.sqrt().clamp(min=self.min_std).expand_as(mean)

    def _parts(self, features: Features, noisy: Noisy, index: Int[Tensor, " rows"]) -> tuple[Tensor, ...]:
        """The chunk and the noise that the denoiser sees in `noisy`, the chunk's variance before and after the step."""
        level = self.level[index]
        before = self.kept[level]
        later = level - self.levels // self.steps
        after = torch.where(later < 0, torch.ones_like(before), self.kept[later.clamp(min=0)])
        before, after = before[:, None, None], after[:, None, None]
        noise = self.denoiser(noisy, self._time(level), features)
        clean = ((noisy - (1 - before).sqrt() * noise) / before.sqrt()).clamp(-1, 1)
        noise = (noisy - before.sqrt() * clean) / (1 - before).sqrt()
        return clean, noise, before, after

    def _time(self, level: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return (level + 1) / self.levels
