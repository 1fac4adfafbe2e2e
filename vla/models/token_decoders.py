"""Two ways to turn features into the tokens of a chunk: all at once, or one after another."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Choice = Callable[[Float[Tensor, "*batch bins"]], Int[Tensor, "*batch"]]


class ParallelDecoder(nn.Module):
    """All tokens in one pass, independent of each other given the features (OpenVLA-OFT, Kim et al. 2025)."""

    def __init__(self, features: int, tokens: int, bins: int, width: int = 256):
        super().__init__()
        self.shape = (tokens, bins)
        self.net = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, tokens * bins))

    def forward(
        self, features: Float[Tensor, "batch features"], tokens: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens bins"]:
        """The logits; they do not depend on `tokens`."""
        return self.net(features).unflatten(-1, self.shape)

    def decode(
        self, features: Float[Tensor, "batch features"], choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        """The tokens that `choice` picks from the logits, and the logits."""
        logits = self(features)
        return choice(logits), logits


class AutoregressiveDecoder(nn.Module):
    """One token after another, each knowing those before it (RT-2, OpenVLA): a small recurrent network."""

    def __init__(self, features: int, tokens: int, bins: int, width: int = 192):
        super().__init__()
        self.tokens = tokens
        self.start = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.embed = nn.Embedding(bins + 1, width)  # the last row stands before the first token
        self.place = nn.Embedding(tokens, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(2 * width, bins)

    def forward(
        self, features: Float[Tensor, "batch features"], tokens: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens bins"]:
        """The logits of each token given the `tokens` before it; ValueError without them."""
        if tokens is None:
            raise ValueError(
                "an autoregressive head has no distribution without the tokens chosen before: pass `tokens`"
            )
        given = iter(tokens.unbind(-1))
        return self.decode(features, lambda logits: next(given))[1]

    def decode(
        self, features: Float[Tensor, "batch features"], choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        """The tokens that `choice` picks one by one, and the logits it saw."""
        context = state = self.start(features)
        token = torch.full((len(features),), self.embed.num_embeddings - 1, device=features.device)
        tokens, logits = [], []
        for i in range(self.tokens):
            state = self.cell(self.embed(token) + self.place.weight[i], state)
            logits.append(self.head(torch.cat([state, context], -1)))
            token = choice(logits[-1])
            tokens.append(token)
        return torch.stack(tokens, -1), torch.stack(logits, 1)
