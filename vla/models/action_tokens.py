"""Commands as tokens: each number is one of `bins` equal intervals, as in RT-2 (2023) and OpenVLA (2024)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.special import log_ndtr

from vla.data.normalise import Statistics
from vla.types import Command

MIN_RANGE = 1e-3  # m, rad or gripper opening: a number that never changed in the data still needs bins of some width


class ActionBins(nn.Module):
    """The code between commands and tokens; the ranges are buffers and travel with the weights.

    Token 0 is the lowest interval. Until `set_statistics`, a range is the command's own limit. `limits` says which
    statistics it becomes: the `extremes` of the data, or its `quantiles` (1st to 99th percentile, as OpenVLA), beyond
    which commands are clipped.
    """

    low: Tensor
    high: Tensor

    def __init__(self, command: Command, bins: int = 64, limits: str = "extremes"):
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        if limits not in ("extremes", "quantiles"):
            raise ValueError(f"limits must be 'extremes' or 'quantiles', got {limits!r}")
        self.bins = bins
        self.limits = limits
        low, high = command_range(command)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def set_statistics(self, action: Statistics) -> None:
        """Take the ranges from the data; ValueError if they are those of other commands."""
        low, high = (action.low, action.high) if self.limits == "extremes" else (action.q01, action.q99)
        if low.shape != self.low.shape:
            raise ValueError(f"statistics of {len(low)} numbers do not fit commands of {len(self.low)}")
        missing = (MIN_RANGE - (high - low)).clamp(min=0) / 2
        self.low.copy_(low - missing)
        self.high.copy_(high + missing)

    @property
    def width(self) -> Float[Tensor, " action"]:
        """That of one bin, in the command's units."""
        return (self.high - self.low) / self.bins

    def encode(self, commands: Float[Tensor, "*batch action"]) -> Int[Tensor, "*batch action"]:
        """The bin each number lies in; beyond the range, the outermost one."""
        return ((commands - self.low) / self.width).floor().clamp(0, self.bins - 1).long()

    def decode(self, tokens: Int[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """The centre of each bin."""
        return self.low + (tokens + 0.5) * self.width

    def clip(self, commands: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """The nearest commands within the range."""
        return torch.minimum(torch.maximum(commands, self.low), self.high)

    def edges(self) -> Float[Tensor, "action edges"]:
        """Where the bins begin and end."""
        return self.low[:, None] + torch.arange(self.bins + 1, device=self.low.device) * self.width[:, None]

    def log_mass(
        self, mean: Float[Tensor, "*batch action"], std: Float[Tensor, "#*batch action"]
    ) -> Float[Tensor, "*batch action bins"]:
        """The log-probability of each bin under a Gaussian; the outermost bins take the tails, so they sum to 1.

        Finite however far a bin is from the mean: computed from log-CDFs, in float64, on the side of the mean where
        they do not round to 1.
        """
        z = (self.edges().double() - mean.double()[..., None]) / std.double()[..., None]
        below, above = z[..., :-1].clone(), z[..., 1:].clone()
        below[..., 0], above[..., -1] = -math.inf, math.inf
        right = below > 0
        upper, lower = torch.where(right, -below, above), torch.where(right, -above, below)
        top = log_ndtr(upper)
        mass = top + torch.log(-torch.expm1(log_ndtr(lower) - top))
        return mass.log_softmax(-1).to(mean.dtype)


def command_range(command: Command) -> tuple[Float[Tensor, " action"], Float[Tensor, " action"]]:
    """The lowest and highest command worth giving: per number, the limits of one step; gripper 0 to 1."""
    translation, rotation = command.max_translation or 1.0, command.max_rotation or math.pi
    if command.kind == "ee_delta":
        arm = ([translation] * 3 + [rotation] * 3)[: command.size]
    else:
        arm = [rotation] * (command.size - 1)
    grippers = command.size - len(arm)
    low = [-x for x in arm] + [0.0] * grippers
    high = arm + [1.0] * grippers
    return torch.tensor(low), torch.tensor(high)
