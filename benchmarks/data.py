"""Chunks read per second, side by side with LeRobotDataset and a DataLoader: `python -m benchmarks.data`."""

import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from simulators.point import Homing, PointEnv
from vla.data.chunks import Chunks
from vla.data.episodes import EpisodeWriter
from vla.data.frames import load_frames
from vla.rollout import rollout

EPISODES, BATCH, HORIZON, SECONDS = 32, 64, 8, 8.0
STORED: tuple[Literal["video", "image"], ...] = ("video", "image")
REPEATS = 64  # of the episodes in memory, or they would fit into the processor's cache


def main() -> None:
    """Both read the same episodes with one process: shuffled batches of pictures, state and padded chunks."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = {"program": "benchmarks.data"}
        for images in STORED:
            figures[images] = compare(record(Path(folder) / images, images))
            show(images, figures[images])
    sys.stdout.write(json.dumps(figures) + "\n")


def record(out: Path, images: Literal["video", "image"]) -> Path:
    """Episodes of 64-pixel pictures, stored as `video` or `image`."""
    env = PointEnv(num_envs=EPISODES, image_size=64, num_targets=2, max_steps=50)
    with EpisodeWriter(out, env.spec, images=images) as writer:
        for i, episode in enumerate(rollout(env, Homing(1), seed=0).episodes()):
            writer.write(episode, seed=i)
    return out


def compare(data: Path) -> dict[str, float]:
    """Samples per second of both, their ratio, and what reading everything into memory costs once, in seconds."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    first, frames = timed(lambda: load_frames(data))
    again, _ = timed(lambda: load_frames(data))
    ours = rate(iter(Chunks(frames.select([*range(EPISODES)] * REPEATS), HORIZON, BATCH)))
    times = {"action": [i / frames.spec.control_hz for i in range(HORIZON)]}
    dataset = LeRobotDataset("local/benchmark", root=data, delta_timestamps=times)
    theirs = rate(endless(dataset))
    return {
        "frames": len(frames),
        "first_load_seconds": round(first, 3),
        "cached_load_seconds": round(again, 3),
        "samples_per_second": round(ours),
        "lerobot_samples_per_second": round(theirs),
        "ratio": round(ours / theirs, 1),
    }


def show(images: str, figures: dict[str, float]) -> None:
    sys.stdout.write(
        f"{images}, 64 pixels, {figures['frames']} frames, batches of {BATCH} x {HORIZON} commands\n"
        f"  Chunks                      {figures['samples_per_second']:>9.0f} samples/s"
        f"   (loaded in {figures['first_load_seconds']} s, from the cache in {figures['cached_load_seconds']} s)\n"
        f"  LeRobotDataset + DataLoader {figures['lerobot_samples_per_second']:>9.0f} samples/s\n"
        f"  ratio                       {figures['ratio']:>9.1f}\n"
    )


def endless(dataset: Any) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)
    while True:
        yield from loader


def rate(batches: Iterator[Any]) -> float:
    """Samples per second after a first batch that is not counted."""
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - start)


def timed(function: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
