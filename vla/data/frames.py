"""Reading a LeRobotDataset v3 whole into memory, decoded once."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vla.data.cache import cached
from vla.data.features import PICTURES
from vla.data.review import Review
from vla.data.tables import DESCRIPTION, column, lengths, numbers, read_description, read_info, read_table
from vla.rollout import TEST_SEEDS
from vla.types import Camera, Command, EnvSpec

COLUMNS = {"index", "task_index", "observation.state", "next.reward", "next.success", "next.terminated", "source"}


@dataclass(frozen=True)
class Frames:
    """All frames of a dataset, episode after episode: number i of episode e is `episode_start[e] + i`.

    `action` is what is to be learned, from the feature chosen when it was loaded. `reward`, `success` and `terminated`
    are those the action led to. `instructions[task[i]]` is the text of frame i.
    """

    spec: EnvSpec
    images: dict[str, UInt8[Tensor, "frame height width 3"]]
    proprio: Float[Tensor, "frame proprio"]
    action: Float[Tensor, "frame action"]
    reward: Float[Tensor, " frame"]
    success: Bool[Tensor, " frame"]
    terminated: Bool[Tensor, " frame"]
    task: Int[Tensor, " frame"]
    instructions: tuple[str, ...]
    episode_start: Int[Tensor, " episodes_and_end"]

    def __len__(self) -> int:
        return len(self.action)

    @property
    def num_episodes(self) -> int:
        return len(self.episode_start) - 1

    def succeeded(self) -> Bool[Tensor, " episode"]:
        """Whether each episode reached its goal at some time."""
        bounds = self.episode_start.tolist()
        return torch.stack([self.success[a:b].any() for a, b in pairwise(bounds)])

    def select(self, episodes: Sequence[int]) -> "Frames":
        """Only these episodes, in this order: a part for validation, or only what succeeded."""
        bounds = [self.episode_start[e : e + 2].tolist() for e in episodes]
        rows = torch.cat([torch.arange(a, b) for a, b in bounds] or [torch.arange(0)])
        named = ("proprio", "action", "reward", "success", "terminated", "task")
        return replace(
            self,
            images={name: pictures[rows] for name, pictures in self.images.items()},
            episode_start=torch.tensor([0, *(b - a for a, b in bounds)]).cumsum(0),
            **{name: getattr(self, name)[rows] for name in named},
        )

    def where(self, wanted: Bool[Tensor, " frame"]) -> "Frames":
        """Only these; an episode becomes several where frames between are left out, so that no chunk has a gap."""
        rows = wanted.nonzero().flatten()
        begins = torch.zeros(len(self) + 1, dtype=torch.bool)
        begins[self.episode_start] = True
        new = begins[:-1] | ~torch.cat([torch.zeros(1, dtype=torch.bool), wanted[:-1]])
        starts = new[rows].nonzero().flatten()
        named = ("proprio", "action", "reward", "success", "terminated", "task")
        return replace(
            self,
            images={name: pictures[rows] for name, pictures in self.images.items()},
            episode_start=torch.cat([starts, torch.tensor([len(rows)])]),
            **{name: getattr(self, name)[rows] for name in named},
        )


def load_frames(
    directory: Path | str,
    *,
    label: str = "action",
    command: Command | None = None,
    without: Sequence[str] = (),
    as_recorded: bool = False,
) -> Frames:
    """Read the dataset in `directory`. Its pictures are decoded once and kept below `directory/.cache`.

    `label` is the feature to learn: `action`, what was executed, or `action.requested`, what the actor asked for, which
    are not the same where an expert was disturbed. What was done by those named in `without` is left out (`policy` and
    `idle`: of corrections what a person did stays). What a person said of episodes since counts (`vla.data.review`),
    unless all is wanted `as_recorded`. A dataset of another origin does not say what its commands mean: tell by
    `command`. Raises FileNotFoundError where there is no dataset and ValueError naming what is missing in it.
    """
    directory = Path(directory)
    info = read_info(directory)
    _require_features(directory, info, label)
    spec = _read_spec(directory, info, label, command)
    keys = [key for key, x in info["features"].items() if x["dtype"] in ("video", "image")]
    table = read_table(directory / "data", "index", sorted(COLUMNS & set(info["features"]) | {label}))
    wanted = _by_others(table, directory, without)
    episodes = read_table(directory / "meta" / "episodes", "episode_index")
    pictures = cached(directory, {key: _Pictures(directory, info, key, episodes).read for key in keys})
    frames = len(table["index"])
    episode_rows = numbers(episodes["dataset_to_index"]).long().flatten()
    tasks = pd.read_parquet(directory / "meta" / "tasks.parquet")
    if [len(x) for x in pictures.values()] != [frames] * len(keys) or info["total_frames"] != frames:
        raise ValueError(f"{directory} is damaged: it says {info['total_frames']} frames and holds {frames}")
    everything = Frames(
        spec=spec,
        images={camera_name(key): torch.from_numpy(pictures[key]) for key in keys},
        proprio=numbers(table["observation.state"]),
        action=numbers(table[label]),
        reward=column(table, "next.reward", 0.0).float(),
        success=column(table, "next.success", 1.0).bool(),  # demonstrations, where nothing else is said
        terminated=column(table, "next.terminated", 0.0).bool(),
        task=column(table, "task_index", 0.0).long(),
        instructions=tuple(tasks.sort_values("task_index").index),
        episode_start=torch.cat([torch.zeros(1, dtype=torch.long), episode_rows]),
    )
    if not as_recorded:
        review = Review(directory)
        wanted &= review.kept(everything.episode_start.diff().tolist())
        everything = _relabelled(everything, review)
    if not wanted.any():
        raise ValueError(f"{directory}: without={list(without)} and its review leave nothing of {frames} frames")
    return everything if wanted.all() else everything.where(wanted)


def _relabelled(frames: Frames, review: Review) -> Frames:
    """A success is that of the last frame that is left of an episode."""
    success, task, instructions = frames.success.clone(), frames.task.clone(), list(frames.instructions)
    bounds = frames.episode_start.tolist()
    for episode, said in review.by_episode().items():
        first, end = bounds[episode : episode + 2]
        if said.success is not None:
            success[first:end] = False
            success[first + said.part(end - first)[1] - 1] = said.success
        if said.instruction is not None:
            if said.instruction not in instructions:
                instructions.append(said.instruction)
            task[first:end] = instructions.index(said.instruction)
    return replace(frames, success=success, task=task, instructions=tuple(instructions))


def _by_others(table: pa.Table, directory: Path, names: Sequence[str]) -> Bool[Tensor, " frame"]:
    """Which frames were done by somebody else than these; all of them where nobody of that name takes part."""
    known = read_description(directory).get("sources", [])
    codes = [i for i, name in enumerate(known) if name in names]
    return ~torch.isin(column(table, "source", -1.0).long(), torch.tensor(codes, dtype=torch.long))


def load_column(directory: Path, name: str, *, as_recorded: bool = False) -> Float[np.ndarray, "frame size"] | None:
    """One more feature of every frame that `load_frames` has, in 64 bits; None if the dataset does not have it."""
    if name not in read_info(directory)["features"]:
        return None
    rows = read_table(directory / "data", "index", ["index", name])[name].combine_chunks()
    flat = rows.flatten() if pa.types.is_nested(rows.type) else rows
    values = flat.to_numpy(zero_copy_only=False).reshape(len(rows), -1).astype(np.float64)
    return values if as_recorded else values[Review(directory).kept(lengths(directory)).numpy()]


def require_no_test_episodes(directory: Path | str) -> None:
    """ValueError if the dataset holds episodes to test on; where it does not say their seeds there is nothing to do."""
    directory = Path(directory)
    if "seed" not in read_info(directory)["features"]:
        return
    seeds = pc.unique(read_table(directory / "data", "index", ["index", "seed"])["seed"]).to_pylist()
    if known := sorted(set(seeds) & set(TEST_SEEDS)):
        raise ValueError(
            f"{directory} holds {len(known)} episodes to test on (seeds {known[0]} to {known[-1]}), which nothing may "
            f"be learned from: record demonstrations with seeds outside {TEST_SEEDS[0]} to {TEST_SEEDS[-1]}"
        )


class _Pictures:
    """The pictures of one camera, decoded from beginning to end."""

    def __init__(self, directory: Path, info: dict[str, Any], key: str, episodes: pa.Table):
        self.directory, self.info, self.key, self.episodes = directory, info, key, episodes

    def read(self) -> np.ndarray:
        if self.info["features"][self.key]["dtype"] == "image":
            column = read_table(self.directory / "data", "index", ["index", self.key])[self.key]
            return np.stack([_decode_picture(x["bytes"]) for x in column.to_pylist()])
        height, width = _height_width(self.info["features"][self.key])
        pictures = np.zeros((self.info["total_frames"], height, width, 3), dtype=np.uint8)
        for path, rows in self._films().items():
            _decode_film(path, float(self.info["fps"]), rows, pictures)
        return pictures

    def _films(self) -> dict[Path, dict[int, int]]:
        """For each video file, which of its frames is which frame of the dataset."""
        names = [f"videos/{self.key}/{x}" for x in ("chunk_index", "file_index", "from_timestamp")]
        columns = [self.episodes[x].to_pylist() for x in (*names, "dataset_from_index", "length")]
        films: dict[Path, dict[int, int]] = {}
        for chunk, file, time, row, length in zip(*columns, strict=True):
            name = self.info["video_path"].format(video_key=self.key, chunk_index=chunk, file_index=file)
            first = round(time * self.info["fps"])
            films.setdefault(self.directory / name, {}).update({first + i: row + i for i in range(length)})
        return films


def _decode_film(path: Path, fps: float, rows: dict[int, int], pictures: np.ndarray) -> None:
    missing = dict(rows)
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                row = missing.pop(round(frame.time * fps), None)
                if row is not None:
                    pictures[row] = frame.to_ndarray(format="rgb24")
    except (OSError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if missing:
        raise ValueError(f"{path} is damaged: {len(missing)} of {len(rows)} frames are not in it, {min(missing)} first")


def _decode_picture(encoded: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))


def _require_features(directory: Path, info: dict[str, Any], label: str) -> None:
    there = set(info["features"])
    missing = {"observation.state", label} - there
    if missing or not any(info["features"][x]["dtype"] in ("video", "image") for x in there):
        what = sorted(missing) or "any camera (video or image)"
        raise ValueError(f"{directory} lacks {what}; its features are {sorted(there)}")


def _read_spec(directory: Path, info: dict[str, Any], label: str, command: Command | None) -> EnvSpec:
    if described := read_description(directory):
        spec = EnvSpec.from_dict(described["spec"])
        if command is not None and command != spec.command:
            raise ValueError(f"{directory} has commands {spec.command}, not {command}")
        return spec
    if command is None:
        raise ValueError(
            f"{directory} was not recorded by Armature ({DESCRIPTION} is missing), so the meaning of its commands is "
            "unknown: say by command=Command(kind, size, max_translation, max_rotation, frame, gripper)"
        )
    shapes = {key: x["shape"] for key, x in info["features"].items()}
    if shapes[label] != [command.size]:
        raise ValueError(f"{directory} has {label} of shape {shapes[label]}, the given command has size {command.size}")
    pictures = {key: x for key, x in info["features"].items() if x["dtype"] in ("video", "image")}
    return EnvSpec(
        num_envs=1,
        control_hz=float(info["fps"]),
        max_steps=max(lengths(directory)),
        cameras=tuple(Camera(camera_name(key), *_height_width(x)) for key, x in pictures.items()),
        proprio=(("state", math.prod(shapes["observation.state"])),),
        command=command,
    )


def _height_width(feature: dict[str, Any]) -> tuple[int, int]:
    height, width, depth = feature["shape"]
    return (height, width) if depth == 3 else (width, depth)  # some datasets put the channels first


def camera_name(key: str) -> str:
    return key.removeprefix(PICTURES).removeprefix("observation.")
