"""OpenVLA's and OpenVLA-OFT's public checkpoints as policies with their own bins and statistics."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.adapters import LIBERO_UNIT
from policies.vlm import VlmPolicy
from vla.data.normalise import Statistics
from vla.models.action_tokens import ActionBins
from vla.models.openvla import BINS, OpenVla
from vla.types import EnvSpec


class OpenVlaPolicy(VlmPolicy):
    """`dataset` names whose statistics the tokens are in; `unit` is what 1 of its actions is in our commands.

    The default unit is that of LIBERO's and Bridge-like data in robosuite's controller: 5 cm, half a radian, and a
    gripper from 0, closed, to 1. Chunks longer than one command are asked for in parallel (OFT).
    """

    def __init__(
        self,
        spec: EnvSpec,
        words: Callable[[int], OpenVla],
        horizon: int,
        dataset: str,
        unit: Sequence[float] = LIBERO_UNIT,
        temperature: float = 1.0,
        *,
        mirrored: bool = False,
    ):
        if len(unit) != spec.action_dim:
            raise ValueError(f"unit has {len(unit)} numbers, commands have {spec.action_dim}")
        told = {"parallel": horizon > 1, "proprio": False, "mirrored": mirrored}
        super().__init__(spec, words, horizon, BINS, "quantiles", temperature, **told)
        known = self.words.statistics(dataset)
        scaled = torch.tensor(known.get("mask", [True] * len(unit)))
        low, high = (torch.tensor(known[name]).float() for name in ("q01", "q99"))
        units = torch.tensor(list(unit))
        self.bins = OpenVlaBins(spec, torch.where(scaled, low, -1.0) * units, torch.where(scaled, high, 1.0) * units)

    def set_statistics(self, proprio: Statistics, action: Statistics) -> None:
        """Those of the checkpoint stay: its tokens mean nothing in others."""


class OpenVlaBins(ActionBins):
    """255 bins of equal width; the 256th token, which training hardly ever used, means the highest bin too."""

    def __init__(self, spec: EnvSpec, low: Float[Tensor, " action"], high: Float[Tensor, " action"]):
        super().__init__(spec.command, BINS, "quantiles")
        self.low.copy_(low)
        self.high.copy_(high)

    @property
    def width(self) -> Float[Tensor, " action"]:
        return (self.high - self.low) / (BINS - 1)

    def encode(self, commands: Float[Tensor, "*batch action"]) -> Int[Tensor, "*batch action"]:
        return super().encode(commands).clamp(max=BINS - 2)

    def decode(self, tokens: Int[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        return super().decode(tokens.clamp(max=BINS - 2))

    def edges(self) -> Float[Tensor, "action edges"]:
        """The last bin has no width: of a Gaussian it gets what lies beyond the highest command."""
        return super().edges().minimum(self.high[:, None])
