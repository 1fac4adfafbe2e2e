"""Action tokens from a pretrained vision-language model (OpenVLA, Kim et al. 2024; OpenVLA-OFT, 2025)."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from policies.adapters import mirrored as flip
from policies.critic import values_of
from policies.token import TokenHead
from vla.data.normalise import Statistics
from vla.models.normaliser import Normaliser
from vla.models.token_decoders import Choice
from vla.models.vlm import Words
from vla.types import EnvSpec, Observation

WORDS = 256  # proprio is told as whole numbers below that


class VlmPolicy(TokenHead):
    """`words` is a model that reads observations and writes tokens, made for so many bins (`vla.models.vlm`).

    `parallel` asks for all tokens of a chunk in one pass (as OFT), otherwise they are written one by one (as OpenVLA).
    Proprio is told in words, as whole numbers (as pi0.5), unless `proprio` is False. Pictures are seen as they are, or
    `mirrored`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        words: Callable[[int], Words],
        horizon: int,
        bins: int = 256,
        limits: str = "quantiles",
        temperature: float = 1.0,
        *,
        parallel: bool = True,
        proprio: bool = True,
        mirrored: bool = False,
    ):
        super().__init__(spec, horizon, bins, limits, temperature)
        self.num_tokens = horizon * spec.action_dim
        self.parallel, self.mirrored = parallel, mirrored
        self.normaliser = Normaliser(spec.proprio_dim) if proprio else None
        self.words: Any = words(bins)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        super().set_statistics(proprio, action)
        if self.normaliser is not None:
            self.normaliser.set(proprio.mean, proprio.std)

    def logits(
        self, obs: Observation, tokens: Int[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens bins"]:
        if self.parallel:
            return self.words.parallel(self._read(obs), self.num_tokens)
        if tokens is None:
            raise ValueError("tokens written one by one have no distribution without those before: pass `tokens`")
        return self.words.after(self._read(obs), tokens)

    def choose(
        self, obs: Observation, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        if self.parallel:
            logits = self.words.parallel(self._read(obs), self.num_tokens)
            return choice(logits), logits
        return self.words.write(self._read(obs), self.num_tokens, choice)

    def hidden(self, obs: Observation) -> Float[Tensor, "batch width"]:
        """What a critic may judge by: the last layer's state at the end of the prompt."""
        return self.words.hidden(self._read(obs))

    def save_beside(self, directory: Path) -> None:
        """Write what the model is built from, besides its weights, so that a checkpoint needs nothing else."""
        self.words.save_beside(directory)

    def blocks(self) -> list[nn.Module]:
        """The layers of the pretrained model: what can be recomputed, or gathered from several GPUs, one by one."""
        return layers_of(self.words)

    def _read(self, obs: Observation) -> Mapping[str, Tensor]:
        return self.words.read(flip(obs) if self.mirrored else obs, self._told(obs))

    def _told(self, obs: Observation) -> list[str]:
        if self.normaliser is None:
            return [""] * len(obs.proprio)
        share = (self.normaliser(obs.proprio) / 6 + 0.5).clamp(0, 1)  # three standard deviations to either side
        numbers = (share * (WORDS - 1)).round().long().tolist()
        return [f"State: {' '.join(map(str, row))}." for row in numbers]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model of transformers, each of which is called by itself."""
    return [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer)]


class HiddenCritic(nn.Module):
    """Values from the policy's own hidden state, which learns nothing from it (pi_RL, 2025)."""

    def __init__(self, policy: VlmPolicy, width: int = 256, *, per_command: bool = False):
        super().__init__()
        self.policies = [policy]  # in a list, so that its weights are not also the critic's
        self.size = values_of(policy, per_command=per_command)
        values = nn.Linear(width, math.prod(self.size))
        self.head = nn.Sequential(nn.Linear(policy.words.width, width), nn.SiLU(), values)

    def forward(self, obs: Observation) -> Float[Tensor, "..."]:
        with torch.no_grad():
            hidden = self.policies[0].hidden(obs.reshape(-1))
        return self.head(hidden.float()).reshape(*obs.batch_size, *self.size)
