"""One episode as a public file tells it, before it means anything to us."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray


@dataclass(frozen=True)
class Recording:
    """What was seen and measured where no simulator can play it again: one row per frame, upright RGB pictures.

    `position` is in metres and `rotation` a rotation vector in radians, in a fixed frame; `width` is between the
    fingers, in metres.
    """

    images: Mapping[str, UInt8[ndarray, "time height width 3"]]
    position: Float[ndarray, "time 3"]
    rotation: Float[ndarray, "time 3"]
    width: Float[ndarray, "time 1"]


@dataclass(frozen=True)
class Source:
    """An episode in its file's own numbers: `actions[t]` was taken at `states[t]`.

    `start` is what the simulator's `restore` begins it from; `states` are native arrays (or mappings of them), whose
    first axis is time. `controller` names what the actions meant, with its `settings`. Success and seed are None where
    the file does not say; `author` is who acted, `env` the simulator's own name of the task.
    """

    name: str
    author: str
    actions: Float[ndarray, "time native"] | None = None
    controller: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    env: str | None = None
    instruction: str | None = None
    success: bool | None = None
    seed: int | None = None
    start: Any = None
    states: Any = None
    recording: Recording | None = None

    @property
    def num_steps(self) -> int:
        """Commands in the episode."""
        if self.actions is not None:
            return len(self.actions)
        return len(self.recording.position) - 1 if self.recording is not None else 0


def require_aligned(source: Source, num_states: int) -> None:
    """ValueError unless there is a state before each action (and at most one after the last), all finite."""
    steps = source.num_steps
    if steps < 1:
        raise ValueError(f"{source.name} has no actions: leave it out of the file")
    if num_states not in (steps, steps + 1):
        raise ValueError(f"{source.name} has {num_states} states for {steps} actions: need {steps} or {steps + 1}")
    if source.actions is not None and not np.isfinite(source.actions).all():
        raise ValueError(f"{source.name} has actions that are not finite: leave it out of the file")
