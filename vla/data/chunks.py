"""Batches of chunks for supervised learning: an observation and the commands that followed it."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from tensordict import TensorClass, TensorDict
from torch import Tensor

from vla.data.frames import Frames
from vla.data.normalise import Statistics
from vla.types import Observation


class ChunkBatch(TensorClass["shadow"]):  # type: ignore[type-arg]  # `chunk` is also a method of tensors
    """What to learn from: `chunk[:, i]` is the command i steps after `obs`, or `padded` beyond the episode's end."""

    obs: Observation
    chunk: Float[Tensor, "batch horizon action"]  # type: ignore[assignment]
    padded: Bool[Tensor, "batch horizon"]


class Chunks:
    """An endless stream of batches from `frames`: every epoch is a fresh permutation of all frames.

    Batches have always the same size and may reach into the next epoch. A chunk never crosses into another episode: its
    rest repeats the last command, marked as padded. With `shift`, pictures are moved at random by up to so many pixels,
    with `colour` their brightness and contrast change by up to such a share. The stream is a function of the seed and
    of the number of frames given out, `position`, which is its whole state.
    """

    def __init__(
        self, frames: Frames, horizon: int, batch_size: int, *, seed: int = 0, shift: int = 0, colour: float = 0.0
    ):
        if not len(frames):
            raise ValueError("the dataset has no frames: record episodes first")
        if horizon < 1 or batch_size < 1 or shift < 0:
            raise ValueError(f"need horizon >= 1, batch_size >= 1, shift >= 0, got {horizon}, {batch_size}, {shift}")
        if not 0 <= colour < 1:
            raise ValueError(f"colour must be a share from 0 up to 1, got {colour}")
        self.frames, self.horizon, self.batch_size, self.seed = frames, horizon, batch_size, seed
        self.shift, self.colour = shift, colour
        self.position = 0
        self.last = last_frames(frames)
        self._order = (-1, torch.empty(0, dtype=torch.long))

    @property
    def epoch(self) -> float:
        """How many times the data have been given out."""
        return self.position / len(self.frames)

    def __iter__(self) -> "Chunks":
        return self

    def __next__(self) -> ChunkBatch:
        return self.take(self.batch_size)

    def take(self, count: int) -> ChunkBatch:
        """The next so many frames."""
        batch = chunks_at(self.frames, self._next_indices(count), self.horizon, self.last)
        if self.shift:
            rng = np.random.default_rng([self.seed, 1, self.position])
            offset = torch.from_numpy(rng.integers(-self.shift, self.shift, (count, 2), endpoint=True))
            for name in self.frames.images:
                batch.obs.images[name] = shifted(batch.obs.images[name], offset)
        if self.colour:
            rng = np.random.default_rng([self.seed, 2, self.position])
            change = torch.from_numpy(rng.uniform(1 - self.colour, 1 + self.colour, (count, 2)).astype(np.float32))
            for name in self.frames.images:
                batch.obs.images[name] = recoloured(batch.obs.images[name], change)
        self.position += count
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "position": self.position, "frames": len(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another stream stopped. ValueError if that one ran over other data."""
        if state["frames"] != len(self.frames):
            raise ValueError(
                f"the run was over {state['frames']} frames, now there are {len(self.frames)}: start afresh"
            )
        self.seed, self.position = state["seed"], state["position"]
        self._order = (-1, self._order[1])

    def _next_indices(self, count: int) -> Int[Tensor, " batch"]:
        parts, position, missing = [], self.position, count
        while missing:
            epoch, start = divmod(position, len(self.frames))
            part = self._permutation(epoch)[start : start + missing]
            parts.append(part)
            position, missing = position + len(part), missing - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Int[Tensor, " frame"]:
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._order = (epoch, torch.from_numpy(rng.permutation(len(self.frames))))
        return self._order[1]


class Mixture:
    """Batches of `batch_size` rows, each from one of several streams, drawn by `weights` (need not sum to 1).

    How often a stream's frames are seen thus follows from its weight alone, not from its size.
    """

    def __init__(self, streams: Sequence[Chunks], weights: Sequence[float], batch_size: int, *, seed: int = 0):
        if len(streams) != len(weights) or not streams or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"need one weight for each of {len(streams)} datasets, none negative, got {list(weights)}")
        self.streams, self.batch_size, self.seed, self.position = list(streams), batch_size, seed, 0
        self.shares = np.array(weights, dtype=float) / sum(weights)

    @property
    def epoch(self) -> float:
        """How many times as many frames as there are have been given out."""
        return self.position / sum(len(x.frames) for x in self.streams)

    def __iter__(self) -> "Mixture":
        return self

    def __next__(self) -> ChunkBatch:
        rng = np.random.default_rng([self.seed, 3, self.position])
        counts = rng.multinomial(self.batch_size, self.shares)
        self.position += self.batch_size
        parts = [stream.take(int(count)) for stream, count in zip(self.streams, counts, strict=True) if count]
        return ChunkBatch.cat(parts) if len(parts) > 1 else parts[0]

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "streams": [x.state_dict() for x in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another mixture of the same data stopped."""
        self.position = state["position"]
        for stream, there in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(there)


def last_frames(frames: Frames) -> Int[Tensor, " frame"]:
    """Of each frame, the last one of its episode."""
    return torch.repeat_interleave(frames.episode_start[1:] - 1, frames.episode_start.diff())


def chunks_at(frames: Frames, index: Int[Tensor, " batch"], horizon: int, last: Int[Tensor, " frame"]) -> ChunkBatch:
    """The observations at `index` and the commands from there on, up to `last`, the last frame of the same episode."""
    steps = index[:, None] + torch.arange(horizon)
    end = last[index, None]
    b = [len(index)]
    obs = Observation(
        images=TensorDict({name: pictures[index] for name, pictures in frames.images.items()}, b),
        proprio=frames.proprio[index],
        instruction=[frames.instructions[i] for i in frames.task[index].tolist()],
        batch_size=b,
    )
    return ChunkBatch(obs=obs, chunk=frames.action[steps.minimum(end)], padded=steps > end, batch_size=b)


def shifted(
    pictures: UInt8[Tensor, "batch height width 3"], offset: Int[Tensor, "batch 2"]
) -> UInt8[Tensor, "batch height width 3"]:
    """Each picture moved down and right by its `offset` in pixels; the border is repeated (DrQ, 2020)."""
    number = functools.partial(torch.arange, device=pictures.device)
    height, width = pictures.shape[1:3]
    rows = (number(height) - offset[:, :1]).clamp(0, height - 1)
    columns = (number(width) - offset[:, 1:]).clamp(0, width - 1)
    return pictures[number(len(pictures))[:, None, None], rows[:, :, None], columns[:, None, :]]


def recoloured(
    pictures: UInt8[Tensor, "batch height width 3"], change: Float[Tensor, "batch 2"]
) -> UInt8[Tensor, "batch height width 3"]:
    """Each picture with its brightness and its contrast multiplied by the two numbers of `change`."""
    brightness, contrast = (x[:, None, None, None] for x in change.unbind(-1))
    bright = pictures.float() * brightness
    middle = bright.mean((1, 2, 3), keepdim=True)
    return (middle + (bright - middle) * contrast).round().clamp(0, 255).byte()


def statistics(*frames: Frames) -> tuple[Statistics, Statistics]:
    """Those of proprio and of the commands to be learned, over all frames of all datasets."""
    return Statistics.of(torch.cat([x.proprio for x in frames])), Statistics.of(torch.cat([x.action for x in frames]))
