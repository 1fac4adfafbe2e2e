"""OpenVLA-OFT's regression (Kim et al. 2025): all commands of a chunk from the hidden states of one parallel pass."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.adapters import LIBERO_UNIT, libero_proprio
from policies.adapters import mirrored as flip
from policies.deterministic import certain
from policies.vlm import layers_of
from vla.algorithms.losses import unpadded_mean
from vla.data.normalise import Statistics
from vla.models.openvla import BINS, DESCRIPTION, OpenVla
from vla.models.openvla_heads import L1Head, ProprioProjector, load_part
from vla.types import Action, EnvSpec, Observation


class OpenVlaL1Policy(nn.Module):
    """A checkpoint of `words` with its action head and, unless `proprio` is False, the projector of its proprio.

    Settings are those of `OpenVlaPolicy`. `fresh` begins new heads, to be trained. Numbers that the dataset's
    statistics do not scale, the gripper, are rounded to 0 or 1 when acting.
    """

    def __init__(
        self,
        spec: EnvSpec,
        words: Callable[[int], OpenVla],
        dataset: str,
        horizon: int = 8,
        unit: Sequence[float] = LIBERO_UNIT,
        *,
        proprio: bool = True,
        fresh: bool = False,
        mirrored: bool = False,
    ):
        super().__init__()
        if len(unit) != spec.action_dim:
            raise ValueError(f"unit has {len(unit)} numbers, commands have {spec.action_dim}")
        self.spec, self.horizon, self.mirrored = spec, horizon, mirrored
        self.words = words(BINS)
        self.action_head = L1Head(self.words.width, spec.action_dim)
        self.range = _Range(self.words.statistics(dataset), torch.tensor(list(unit)))
        self.proprio_range = _Range(self.words.statistics(dataset, "proprio")) if proprio else None
        self.proprio_projector = None
        if self.proprio_range is not None:
            libero_proprio(torch.zeros(1, spec.proprio_dim), spec)  # says now what it would say then
            self.proprio_projector = ProprioProjector(self.words.width, len(self.proprio_range.low))
        ours = (self.words.folder / DESCRIPTION).exists()  # then the weights come with the policy's
        if not (fresh or ours):
            load_part(self.action_head, self.words.folder, "action_head")
            if self.proprio_projector is not None:
                load_part(self.proprio_projector, self.words.folder, "proprio_projector")

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        """Those of the checkpoint stay: its heads mean nothing in others."""

    def act(self, obs: Observation) -> Action:
        numbers = self._predict(obs.reshape(-1))
        numbers = torch.where(self.range.scaled, numbers, (numbers > 0.5).float())
        return certain(self.range.inverse(numbers).reshape(*obs.batch_size, self.horizon, -1), obs)

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
        return unpadded_mean((self._predict(obs) - self.range(chunk)).abs().mean(-1), padded)

    def blocks(self) -> list[nn.Module]:
        """The layers of the pretrained model: what can be recomputed, or gathered from several GPUs, one by one."""
        return layers_of(self.words)

    def save_beside(self, directory: Path) -> None:
        """Write what the model is built from, besides its weights, so that a checkpoint needs nothing else."""
        self.words.save_beside(directory)

    def _predict(self, obs: Observation) -> Float[Tensor, "batch horizon action"]:
        shown = None
        if self.proprio_projector is not None and self.proprio_range is not None:
            state = self.proprio_range(libero_proprio(obs.proprio, self.spec))
            shown = self.proprio_projector(state.to(self.proprio_projector.fc1.weight.dtype))[:, None]
        seen = flip(obs) if self.mirrored else obs
        prompt = self.words.read(seen, [""] * len(obs.proprio), shown)
        states = self.words.places(prompt, self.horizon * self.spec.action_dim)
        states = states.reshape(len(states), self.horizon, -1).to(next(self.action_head.parameters()).dtype)
        return self.action_head(states).float()


class _Range(nn.Module):
    """From 1st to 99th percentile as -1 to 1, and no further; what is not scaled, only in other units."""

    low: Tensor
    high: Tensor
    scaled: Tensor
    unit: Tensor

    def __init__(self, known: dict[str, list[Any]], unit: Tensor | None = None):
        super().__init__()
        low, high = (torch.tensor(known[name]).float() for name in ("q01", "q99"))
        scaled = torch.tensor(known.get("mask", [True] * len(low)))
        unit = torch.ones_like(low) if unit is None else unit
        for name, value in (("low", low), ("high", high), ("scaled", scaled), ("unit", unit)):
            self.register_buffer(name, value)

    def forward(self, x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
        x = x / self.unit
        return torch.where(self.scaled, 2 * (x - self.low) / (self.high - self.low + 1e-8) - 1, x).clamp(-1, 1)

    def inverse(self, x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
        return self.unit * torch.where(self.scaled, (x + 1) / 2 * (self.high - self.low + 1e-8) + self.low, x)
