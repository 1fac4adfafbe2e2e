"""Points that fail when they are told to; in a file of their own, so that a worker that needs one starts quickly."""

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from simulators.point import PointEnv
from vla.types import Observation


class Fragile(PointEnv):
    """One point. It leaves a file `made_*` in `notes`, and what a file `<fault>_<seed>` says it does once.

    `killed_in_reset` and `raises_in_reset` it does in the reset with that seed, `killed`, `raises` and `hangs` before
    its third command.
    """

    def __init__(self, notes: Path):
        super().__init__(num_envs=1, max_steps=8)
        self.notes = notes
        (notes / f"made_{time.monotonic_ns()}_{os.getpid()}").touch()

    def reset(self, seed):
        self.seed = seed
        self._fail("killed_in_reset", "raises_in_reset")
        return super().reset(seed)

    def step(self, command):
        if self.steps == 2:
            self._fail("killed", "raises", "hangs")
        return super().step(command)

    def _fail(self, *faults: str) -> None:
        for fault in faults:
            note = self.notes / f"{fault}_{self.seed}"
            if not note.exists():
                continue
            note.unlink()
            if fault == "hangs":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault.startswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("the physics exploded")


class FragileGroup(PointEnv):
    """Points that do before their third command, once, what a file `<fault>_<seed>` in `notes` says of one of them.

    With `always` they do it every time.
    """

    def __init__(self, num_envs: int, notes: str, always: str = ""):
        super().__init__(num_envs=num_envs, max_steps=8)
        self.notes, self.always = Path(notes), always

    def reset(self, seed):
        self.seeds = range(seed, seed + self.spec.num_envs)
        return super().reset(seed)

    def step(self, command):
        for note in [self.notes / f"{fault}_{seed}" for fault in ("killed", "hangs") for seed in self.seeds]:
            if (self.steps == 2).all() and (note.exists() or note.name.startswith(self.always or "?")):
                note.unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGKILL if note.name.startswith("killed") else signal.SIGSTOP)
        return super().step(command)


class Unprivileged(PointEnv):
    """Points that tell nothing but what a policy may see."""

    def __init__(self, num_envs: int):
        super().__init__(num_envs=num_envs, max_steps=8)

    def _observe(self):
        obs = super()._observe()
        return Observation(
            images=obs.images, proprio=obs.proprio, instruction=obs.instruction, batch_size=obs.batch_size
        )


class Losing(PointEnv):
    """Loses the episodes whose seeds are in `lost`, so often as they are in there, in the command `after`."""

    def __init__(self, num_envs: int = 4, *, lost: Sequence[int] = (), after: int = 2, **options):
        super().__init__(num_envs=num_envs, **options)
        self.left, self.after = Counter(lost), after

    def reset(self, seed):
        self.seeds = range(seed, seed + self.spec.num_envs)
        return super().reset(seed)

    def step(self, command):
        step = super().step(command)
        failed = torch.tensor([bool((self.steps == self.after).all()) and self.left[seed] > 0 for seed in self.seeds])
        self.left -= Counter([seed for seed, lost in zip(self.seeds, failed.tolist(), strict=True) if lost])
        return step.replace(truncated=step.truncated | failed, failed=failed)


def without_a_display() -> PointEnv:
    """A scene that cannot be made."""
    raise OSError("no display")
