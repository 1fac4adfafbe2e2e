"""Numbers brought to mean 0 and standard deviation 1, by statistics that travel with the weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normaliser(nn.Module):
    """`(x - mean) / std` and back. Until `set` is called it leaves numbers as they are.

    `floor` is the smallest standard deviation it divides by, so that a joint that barely moved in the data does not
    become the loudest input when it moves later.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, floor: float = 1e-2):
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set(self, mean: Float[Tensor, " size"], std: Float[Tensor, " size"]) -> None:
        if mean.shape != self.mean.shape:
            raise ValueError(f"statistics of {len(mean)} numbers do not fit {len(self.mean)}: were they of other data?")
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=self.floor))

    def set_range(self, low: Float[Tensor, " size"], high: Float[Tensor, " size"]) -> None:
        """So that these become -1 and 1."""
        self.set((low + high) / 2, (high - low) / 2)

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        return (x - self.mean) / self.std

    def inverse(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        return x * self.std + self.mean
