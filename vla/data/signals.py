"""A dataset's episodes as numbers over time, to be checked and looked at."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from vla.data.checks import Episode
from vla.data.frames import Frames, load_column


def episodes_of(directory: Path, frames: Frames, *, as_recorded: bool = False) -> Iterator[Episode]:
    """`frames` must be those of `load_frames` with the same `as_recorded`."""
    requested, times = (
        load_column(directory, x, as_recorded=as_recorded) for x in ("action.requested", "capture.time")
    )
    action, state, success = (x.numpy() for x in (frames.action, frames.proprio, frames.success))
    for a, b in pairwise(frames.episode_start.tolist()):
        yield Episode(
            action=action[a:b],
            requested=None if requested is None else requested[a:b],
            state=state[a:b],
            times=None if times is None else times[a:b, 0],
            success=success[a:b],
            instruction=frames.instructions[int(frames.task[a])],
            pictures={name: np.asarray(x[a:b]) for name, x in frames.images.items()},
        )
