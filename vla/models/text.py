"""A small encoder of instructions, for policies that learn language from scratch."""

import re
import zlib
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAX_WORDS = 24


class TextEncoder(nn.Module):
    """An instruction as a vector: its words, each with its place, summed after a nonlinearity.

    The place goes in before the nonlinearity, so "red on green" is not "green on red". Words are looked up by a hash
    that is the same in every process, so there is no vocabulary to build or to ship; words beyond the 24th are ignored.
    Each distinct instruction is encoded once per batch.
    """

    def __init__(self, width: int = 64, buckets: int = 1024):
        super().__init__()
        self.width = width
        self.buckets = buckets
        self.word = nn.Embedding(buckets, width)
        self.place = nn.Embedding(MAX_WORDS, width)
        self.mix = nn.Linear(width, width)

    def forward(self, instructions: str | Iterable[str]) -> Float[Tensor, "batch width"]:
        instructions = [instructions] if isinstance(instructions, str) else list(instructions)
        distinct = {text: i for i, text in enumerate(dict.fromkeys(instructions))}
        device = self.mix.weight.device
        vectors = torch.stack([self._encode(words_of(text), device) for text in distinct])
        return vectors[torch.tensor([distinct[text] for text in instructions], device=device)]

    def _encode(self, words: list[str], device: torch.device) -> Float[Tensor, " width"]:
        rows = torch.tensor(
            [zlib.crc32(word.encode()) % self.buckets for word in words], device=device, dtype=torch.long
        )
        hidden = self.word(rows) + self.place.weight[: len(words)]
        return nn.functional.silu(self.mix(hidden)).sum(0) / max(len(words), 1) ** 0.5


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers, at most 24."""
    return re.findall(r"\w+", text.lower())[:MAX_WORDS]
