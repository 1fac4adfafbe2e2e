"""What a person says of episodes afterwards. Nothing recorded changes: it is kept beside them, in `review.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vla.run import write_atomically

REVIEW = "review.json"


@dataclass(frozen=True)
class Said:
    """Of one episode; None is what nobody said anything about. It begins at frame `begin` and ends before `end`."""

    removed: bool | None = None
    begin: int | None = None
    end: int | None = None
    success: bool | None = None
    instruction: str | None = None
    tag: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError("an episode has an instruction, got an empty one")

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Said":
        """ValueError for what is not said of an episode."""
        kinds: dict[str, type] = {"removed": bool, "success": bool, "begin": int, "end": int}
        for name, value in told.items():
            kind = kinds.get(name, str)
            if name not in cls.__dataclass_fields__ or type(value) is not kind:
                known = ", ".join(cls.__dataclass_fields__)
                raise ValueError(f"of an episode one says {known}; {name} is {kind.__name__}, got {value!r}")
        return cls(**told)

    def also(self, more: "Said") -> "Said":
        return Said(**{**asdict(self), **{k: v for k, v in asdict(more).items() if v is not None}})

    def part(self, length: int) -> tuple[int, int]:
        """The frames that are left. ValueError if that is none, or more than there are."""
        begin = 0 if self.begin is None else self.begin
        end = length if self.end is None else self.end
        if not 0 <= begin < end <= length:
            raise ValueError(f"an episode of {length} frames cannot be cut to {begin} up to {end}")
        return begin, end


class Review:
    """All that was said of the dataset in `directory`, in order, so that the last can be taken back, also later.

    Raises ValueError for a file that says something else.
    """

    def __init__(self, directory: Path | str):
        self.path = Path(directory) / REVIEW
        self.history = self._read()

    def of(self, episode: int) -> Said:
        return self.by_episode().get(episode, Said())

    def by_episode(self) -> dict[int, Said]:
        said: dict[int, Said] = {}
        for episode, more in self.history:
            said[episode] = said.get(episode, Said()).also(more)
        return said

    def say(self, episode: int, said: Said, length: int) -> None:
        """On return it is on disk. ValueError for a cut that leaves nothing of the episode's `length`."""
        self.history = self._read()  # another page or program may have said something since
        self.of(episode).also(said).part(length)
        self._keep([*self.history, (episode, said)])

    def undo(self) -> int:
        """Take back what was said last; the episode it was about. ValueError if nothing was."""
        self.history = self._read()
        if not self.history:
            raise ValueError("there is nothing to take back")
        episode, _ = self.history[-1]
        self._keep(self.history[:-1])
        return episode

    def kept(self, lengths: Sequence[int]) -> Bool[Tensor, " frame"]:
        """Which frames of episodes of these lengths are left."""
        said = self.by_episode()
        if unknown := [x for x in said if not 0 <= x < len(lengths)]:
            raise ValueError(f"{self.path} speaks of episode {unknown[0]}, and there are {len(lengths)}: move it away")
        kept = []
        for i, length in enumerate(lengths):
            mine = said.get(i, Said())
            begin, end = mine.part(length)
            within = torch.arange(length)
            kept.append((within >= begin) & (within < end) & (not mine.removed))
        return torch.cat(kept) if kept else torch.zeros(0, dtype=torch.bool)

    def _read(self) -> list[tuple[int, Said]]:
        text = self.path.read_text() if self.path.exists() else "[]"
        try:
            return [(int(x["episode"]), Said.read(x["said"])) for x in json.loads(text)]
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.path} is no review: {error!r}. Mend it, or move it away") from error

    def _keep(self, history: list[tuple[int, Said]]) -> None:
        told = [{"episode": e, "said": {k: v for k, v in asdict(x).items() if v is not None}} for e, x in history]
        write_atomically(self.path, json.dumps(told, indent=1) + "\n")
        self.history = history


def relabelled(label: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """An attempt's label with what was said since; the simulator's own verdict stays."""
    named = ("success", "instruction", "tag", "note")
    return {**label, **{k: v for k in named if (v := getattr(said, k)) is not None}}
