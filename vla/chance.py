"""Chance that belongs to an episode: what it draws does not depend on what is played beside it, or where.

Policies draw through this module. While `rollout` plays, every row draws from a stream of its own, which follows from
the episode's seed, the time it is played and the number of the decision; at all other times from torch's global one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

Stream = tuple[int, int, int]  # seed of the episode, the time it is played, number of the decision
_sources: ContextVar[list[tuple[Stream, torch.Generator]] | None] = ContextVar("sources", default=None)


@contextmanager
def drawing_from(streams: Sequence[Stream]) -> Iterator[None]:
    """Inside, row i of whatever is drawn comes from `streams[i]`."""
    token = _sources.set([(stream, torch.Generator().manual_seed(_mixed(stream))) for stream in streams])
    try:
        yield
    finally:
        _sources.reset(token)


def streams(rows: int) -> list[Stream]:
    """Where the chance of each row comes from, for who draws elsewhere; at other times begun by torch's global one."""
    sources = _sources.get()
    if sources is None:
        return [(seed, 0, 0) for seed in integers(2**31, rows).tolist()]
    return [stream for stream, _ in sources]


def normal(like: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
    """Standard normal numbers."""
    return _rows(like, lambda x, source: x.normal_(generator=source))


def integers(below: int, rows: int) -> Int[Tensor, " rows"]:
    """One number from 0 to `below - 1` per row, on the CPU."""
    return _rows(torch.empty(rows, dtype=torch.long), lambda x, source: x.random_(below, generator=source))


def choice(logits: Float[Tensor, "rows ... options"]) -> Int[Tensor, "rows ..."]:
    """One option in each place, each as probable as its logit says (the first of independent clocks to ring)."""
    logits = logits.float()
    clock = _rows(logits, lambda x, source: x.exponential_(generator=source))
    return (logits - clock.clamp_min(torch.finfo(torch.float32).tiny).log()).argmax(-1)


def _rows(like: Tensor, draw: Callable[[Tensor, torch.Generator | None], Tensor]) -> Tensor:
    sources = _sources.get()
    if sources is None:
        return draw(torch.empty_like(like), None)
    if len(sources) != len(like):
        raise ValueError(f"{len(like)} rows cannot draw from {len(sources)} streams: draw once for all rows of a batch")
    drawn = torch.empty(like.shape, dtype=like.dtype)  # on the CPU, so that it is the same for every device
    for row, (_, source) in zip(drawn.unbind(0) if drawn.ndim > 1 else drawn.split(1), sources, strict=True):
        draw(row, source)
    return drawn.to(like.device)


def _mixed(stream: Stream) -> int:
    """32 bits, all that torch makes use of, to each of which every bit of the three numbers matters (splitmix64)."""
    state = 0
    for number in stream:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 32
