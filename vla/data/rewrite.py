"""A dataset of what its review leaves, for programs that do not know reviews: LeRobot's, and others' readers."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.episodes import fill
from vla.data.frames import Frames, camera_name, load_frames
from vla.data.review import Review, relabelled
from vla.data.tables import DESCRIPTION, lengths, read_description, read_info, read_table


def rewrite(directory: Path, out: Path) -> int:
    """Write what is left of the dataset in `directory` into a new directory, which is whole or not there; its episodes.

    Films are encoded a second time. ValueError if `out` is there already, or if nothing was said of the dataset.
    """
    review = Review(directory)
    if not review.history:
        raise ValueError(f"{directory} has no review that could be applied: python -m real.review data={directory}")
    if out.exists():
        raise ValueError(f"{out} is there already: name a new directory")
    frames = load_frames(directory)
    os.environ.setdefault("SVT_LOG", "1")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    info = read_info(directory)
    described = {name: x for name, x in info["features"].items() if name not in KEPT_BY_LEROBOT}
    named = {name: {k: x[k] for k in ("dtype", "shape", "names")} for name, x in described.items()}
    shaped = {name: x | {"shape": tuple(x["shape"])} for name, x in named.items()}
    dataset = LeRobotDataset.create(f"local/{out.name}", info["fps"], shaped, root=part, video_backend="pyav")
    rows = _rows(directory, [x for x in shaped if shaped[x]["dtype"] not in ("video", "image")], review)
    bounds = frames.episode_start.tolist()
    fill(dataset, [_frames(frames, rows, shaped, a, b) for a, b in pairwise(bounds)])
    if told := read_description(directory):
        told["attempts"] = list(_attempts(told["attempts"], review))
        (part / DESCRIPTION).write_text(json.dumps(told, indent=1))
    part.rename(out)
    return frames.num_episodes


KEPT_BY_LEROBOT = {"index", "episode_index", "frame_index", "timestamp", "task_index"}


def _rows(directory: Path, names: list[str], review: Review) -> dict[str, np.ndarray]:
    """The other columns of all frames that are left."""
    table = read_table(directory / "data", "index", ["index", *names])
    kept = review.kept(lengths(directory)).numpy()
    return {name: np.stack([np.atleast_1d(x) for x in table[name].to_pylist()])[kept] for name in names}


def _frames(
    frames: Frames, rows: dict[str, np.ndarray], described: dict[str, Any], first: int, end: int
) -> Iterator[dict[str, Any]]:
    for i in range(first, end):
        said = {"next.success": frames.success[i : i + 1].numpy(), "next.done": np.array([i == end - 1])}
        values = {**{name: x[i] for name, x in rows.items()}, **{k: v for k, v in said.items() if k in described}}
        numbers = {k: v.astype(described[k]["dtype"]).reshape(described[k]["shape"]) for k, v in values.items()}
        films = [name for name, x in described.items() if x["dtype"] in ("video", "image")]
        seen = {name: frames.images[camera_name(name)][i].numpy() for name in films}
        yield {"task": frames.instructions[int(frames.task[i])], **numbers, **seen}


def _attempts(attempts: list[dict[str, Any]], review: Review) -> Iterator[dict[str, Any]]:
    """Those that a person removed were played all the same, and count as tries."""
    episode = -1
    for attempt in attempts:
        episode += attempt["kept"]
        said = review.of(episode) if attempt["kept"] else None
        if said is None:
            yield attempt
            continue
        success = attempt["success"] if said.success is None else said.success
        label = attempt.get("label")
        new = label if label is None else relabelled(label, said)
        yield {**attempt, "success": success, "kept": not said.removed, "label": new}
