"""Networks that say which way a noisy chunk should go: what diffusion and flow heads learn."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mish, pad

Denoiser = Callable[[int, int, int], nn.Module]  # of features, numbers per command, horizon


class TimeEmbedding(nn.Sequential):
    """How far the noise has gone (1: pure noise, 0: none) as sines of many wavelengths, then a small network."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 2 * width), nn.Mish(), nn.Linear(2 * width, width))
        self.width = width

    def forward(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        rates = torch.exp(torch.linspace(0, math.log(1000), self.width // 2, device=time.device))
        angles = time[:, None] * rates
        return super().forward(torch.cat([angles.sin(), angles.cos()], -1))


class UNet1D(nn.Module):
    """Convolutions along the chunk, shorter and wider and back (Diffusion Policy, Chi et al. 2023).

    Time and features scale and shift the channels of every block. Chunks that do not halve evenly are lengthened by
    their last command on the way in and cut on the way out.
    """

    def __init__(
        self, features: int, action: int, horizon: int, channels: tuple[int, ...] = (64, 128), time_width: int = 64
    ):
        super().__init__()
        if any(channel % 8 for channel in channels):
            raise ValueError(f"channels must be multiples of 8, got {tuple(channels)}")
        self.missing = -horizon % 2 ** (len(channels) - 1)
        self.time = TimeEmbedding(time_width)
        told = time_width + features
        sizes = [action, *channels]
        self.down = nn.ModuleList(_Block(a, b, told) for a, b in pairwise(sizes))
        self.shorten = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = _Block(channels[-1], channels[-1], told)
        self.up = nn.ModuleList(_Block(2 * b, a, told) for a, b in pairwise(channels))
        self.lengthen = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in channels[:-1])
        self.last = _Block(2 * channels[0], channels[0], told)
        self.out = nn.Conv1d(channels[0], action, 1)

    def forward(
        self,
        chunk: Float[Tensor, "batch horizon action"],
        time: Float[Tensor, " batch"],
        features: Float[Tensor, "batch features"],
    ) -> Float[Tensor, "batch horizon action"]:
        told = mish(torch.cat([self.time(time), features], -1))
        x = pad(chunk.transpose(1, 2), (0, self.missing), mode="replicate") if self.missing else chunk.transpose(1, 2)
        seen = []
        for i, block in enumerate(self.down):
            x = block(self.shorten[i - 1](x) if i else x, told)
            seen.append(x)
        x = self.middle(x, told)
        for block, lengthen in zip(list(self.up)[::-1], list(self.lengthen)[::-1], strict=True):
            x = lengthen(block(torch.cat([x, seen.pop()], 1), told))
        x = self.last(torch.cat([x, seen.pop()], 1), told)
        return self.out(x).transpose(1, 2)[:, : chunk.shape[1]]


class _Block(nn.Module):
    """Two normalised convolutions around a scale and a shift, past which the input also goes unchanged."""

    def __init__(self, before: int, after: int, told: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(before, after, 5, padding=2), nn.GroupNorm(8, after), nn.Mish())
        self.film = nn.Linear(told, 2 * after)
        self.second = nn.Sequential(nn.Conv1d(after, after, 5, padding=2), nn.GroupNorm(8, after), nn.Mish())
        self.past = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch before time"], told: Float[Tensor, "batch told"]
    ) -> Float[Tensor, "batch after time"]:
        scale, shift = self.film(told)[..., None].chunk(2, 1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.past(x)


class TransformerDenoiser(nn.Module):
    """One token per command, each attending to itself and those before it, to time and to the features.

    As the transformer of Diffusion Policy (Chi et al. 2023), without dropout, so that a decision can be scored again.
    """

    causal: Tensor

    def __init__(
        self, features: int, action: int, horizon: int, width: int = 128, num_layers: int = 4, num_heads: int = 4
    ):
        super().__init__()
        self.into = nn.Linear(action, width)
        self.place = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.time = TimeEmbedding(width)
        self.features = nn.Linear(features, width)
        layer = nn.TransformerDecoderLayer(width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, num_layers, nn.LayerNorm(width))
        self.out = nn.Linear(width, action)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(horizon), persistent=False)

    def forward(
        self,
        chunk: Float[Tensor, "batch horizon action"],
        time: Float[Tensor, " batch"],
        features: Float[Tensor, "batch features"],
    ) -> Float[Tensor, "batch horizon action"]:
        told = torch.stack([self.time(time), self.features(features)], 1)
        return self.out(self.layers(self.into(chunk) + self.place, told, tgt_mask=self.causal, tgt_is_causal=True))
