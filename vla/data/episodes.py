"""Recording episodes as a LeRobotDataset v3, so that a kill at any moment loses at most the unfinished episode."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import av
import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from vla.data.features import columns, features, instruction
from vla.data.review import REVIEW
from vla.data.tables import DESCRIPTION, read_description
from vla.identity import identity
from vla.priority import ordinary
from vla.types import EnvSpec, Rollout, require_agreement

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Attempt:
    """An episode that was played: its seed, how it ended, whether it was kept, and what a person said of it."""

    seed: int
    success: bool
    kept: bool
    label: Mapping[str, Any] | None = None


class EpisodeWriter:
    """Writes episodes played one command per decision into the directory `out`; `close` makes the dataset of them.

    LeRobot's own writer leaves an unreadable dataset when it is killed. So a finished episode is first kept as a file
    of its own below `out/.unfinished`, and the dataset is built from those files by `close` and put in place at once. A
    writer that opens `out` again goes on: with the episodes of an interrupted one, or adding to a finished dataset.

    `sources` names who may act (`expert`, `human`, a policy): `source` of a frame is an index into it. `image` pictures
    are exact, `video` ones small; cameras below 64 pixels are always `image`. `beside` names what else is kept of each
    decision: parts of its latent, and their numbers. Raises ValueError if `out` holds something else, or episodes of an
    environment that means something else.
    """

    def __init__(
        self,
        out: Path | str,
        spec: EnvSpec,
        *,
        env: Mapping[str, Any] | None = None,
        sources: Sequence[str] = ("expert",),
        images: Literal["video", "image"] = "video",
        beside: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        if spec.control_hz != round(spec.control_hz):
            raise ValueError(f"LeRobotDataset needs a whole number of frames per second, got {spec.control_hz} Hz")
        if images not in ("video", "image"):
            raise ValueError(f"images must be 'video' or 'image', got {images!r}")
        self.out, self.spec, self.sources, self.work = Path(out), spec, tuple(sources), Path(out) / UNFINISHED
        _require_ours(self.out)
        self.lock = _lock(self.work)
        _install(self.out)
        staged = self.work / DESCRIPTION.name
        described = json.loads(staged.read_text()) if staged.exists() else read_description(self.out) or None
        self.description = _describe(spec, env, sources, images, beside, described, self.out)
        _write_atomically(staged, json.dumps(self.description, indent=1))
        self.attempts = [Attempt(**x) for x in self.description["attempts"]]
        self.num_finished = sum(x.kept for x in self.attempts)  # those in the dataset already
        self.attempts += [Attempt(**json.loads(_metadata(path)["attempt"])) for path in self._staged()]
        self.attempts += _read_lines(self.work / "attempts.jsonl")

    @property
    def num_episodes(self) -> int:
        """The episodes kept so far, those of earlier writers included."""
        return sum(x.kept for x in self.attempts)

    @property
    def next_seed(self) -> int | None:
        """The seed after the last that was tried; None at the beginning."""
        return max(x.seed for x in self.attempts) + 1 if self.attempts else None

    def write(
        self,
        episode: Rollout,
        *,
        seed: int,
        source: str | Sequence[str] | None = None,
        times: Float[Tensor, " time"] | None = None,
        label: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep an element of `Rollout.episodes()`: on return it is safe on disk.

        `times` says when each frame was seen, in seconds (a host's monotonic clock); without it, simulation time.
        `source` is who acted, in the whole episode or frame by frame; without it, the first of this writer's `sources`.
        """
        frames = columns(episode, self.spec, self.description.get("beside", {}))
        length = len(frames["action"])
        if times is None:
            times = torch.arange(length, dtype=torch.float64) / self.spec.control_hz
        who = [source or self.sources[0]] * length if source is None or isinstance(source, str) else source
        if unknown := set(who) - set(self.sources):
            raise ValueError(f"source {sorted(unknown)} is none of {self.sources}: name all sources to the writer")
        codes = torch.tensor([self.description["sources"].index(name) for name in who])
        frames |= {"capture.time": times.double(), "source": codes, "seed": torch.full((length,), seed)}
        if wrong := {k: len(v) for k, v in frames.items() if len(v) != length}:
            raise ValueError(f"the episode has {length} frames, but {wrong}: give one value per executed command")
        attempt = Attempt(seed, success=bool(episode.success.any()), kept=True, label=label)
        metadata = {"task": instruction(episode), "attempt": json.dumps(asdict(attempt))}
        path = self.work / f"episode_{self.num_episodes:06d}.safetensors"
        part = path.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in frames.items()}, part, metadata)
        _settle(part, path)
        self.attempts.append(attempt)

    def undo(self) -> Attempt:
        """Take back the episode written last, if it is not part of a dataset yet. ValueError if there is none."""
        staged = self._staged()
        if not staged:
            raise ValueError("there is no episode to take back that was not put into the dataset already")
        staged[-1].unlink()
        last = max(i for i, x in enumerate(self.attempts) if x.kept)
        return self.attempts.pop(last)

    def skip(self, *, seed: int, success: bool) -> None:
        """Remember that an episode was played but not kept: success rates count all that were tried."""
        attempt = Attempt(seed, success, kept=False)
        with open(self.work / "attempts.jsonl", "a") as file:
            file.write("\n" + json.dumps(asdict(attempt)))  # a torn line cannot spoil the next one
        self.attempts.append(attempt)

    def close(self) -> None:
        """Make the dataset of all episodes kept so far. With none at all, only the attempts are remembered."""
        if self.lock.closed:
            return
        described = json.dumps({**self.description, "attempts": [asdict(x) for x in self.attempts]}, indent=1)
        if self._staged():
            target = self.work / "dataset"
            self._build(target)
            (target / DESCRIPTION).write_text(described)
            target.rename(self.work / "ready")
            _install(self.out)
        elif self.num_finished:
            _write_atomically(self.out / DESCRIPTION, described)
        if self.num_episodes:
            shutil.rmtree(self.work)
        self.lock.close()

    def __enter__(self) -> "EpisodeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After an error the episodes stay as they are; the next writer on `out` finishes them."""
        self.close() if kind is None else self.lock.close()

    def _build(self, target: Path) -> None:
        os.environ.setdefault("SVT_LOG", "1")  # or the encoder prints its settings for each episode
        import datasets
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        av.logging.set_libav_level(av.logging.ERROR)
        shutil.rmtree(target, ignore_errors=True)
        name = f"local/{self.out.name}"
        if self.num_finished:
            shutil.copytree(self.out, target, ignore=shutil.ignore_patterns(UNFINISHED, ".cache", REVIEW))
            dataset = LeRobotDataset.resume(name, root=target, video_backend="pyav")
        else:
            described = features(self.spec, self.description["images"], self.description.get("beside", {}))
            fps = round(self.spec.control_hz)
            dataset = LeRobotDataset.create(name, fps, described, root=target, video_backend="pyav")
        datasets.disable_progress_bars()  # one per episode; opening a dataset turns them on again
        fill(dataset, [_read_staged(path) for path in self._staged()])

    def _staged(self) -> list[Path]:
        return sorted(self.work.glob("episode_*.safetensors"))


def fill(dataset: Any, episodes: Sequence[Iterator[dict[str, Any]]]) -> None:
    """Append episodes, each an iterator over its frames, to a LeRobotDataset, and finish it."""
    for frames in tqdm(episodes, desc="writing the dataset", unit="episode"):
        for frame in frames:
            dataset.add_frame(frame)
        with ordinary():
            dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    shutil.rmtree(dataset.root / "images", ignore_errors=True)


def _read_staged(path: Path) -> Iterator[dict[str, Any]]:
    with safe_open(path, "numpy") as file:
        task = file.metadata()["task"]
        columns = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    for i in range(len(columns["action"])):
        yield {"task": task, **{key: np.atleast_1d(values[i]) for key, values in columns.items()}}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "numpy") as file:
        return file.metadata()


def _read_lines(path: Path) -> list[Attempt]:
    attempts = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            attempts.append(Attempt(**json.loads(line)))
        except json.JSONDecodeError:  # torn by a kill, or the empty first line
            continue
    return attempts


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a new or empty directory for the dataset")
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if there and not (out / UNFINISHED).exists() and not (out / DESCRIPTION).exists():
        raise ValueError(f"{out} holds {there[:5]}, not an Armature dataset: name a new or empty directory")


def _lock(work: Path) -> Any:
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = open(work / "lock", "w")  # noqa: SIM115 (held until the writer closes)
    except OSError as error:
        raise PermissionError(f"cannot write into {work.parent}: {error}. Name another directory.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{work.parent} is being written by another process: wait for it or name another") from None
    return file


def _install(out: Path) -> None:
    """Put a dataset that is ready in its place. Repeating it after an interruption completes it."""
    ready = out / UNFINISHED / "ready"
    for part in sorted(ready.iterdir()) if ready.exists() else []:
        shutil.rmtree(out / part.name, ignore_errors=True)
        part.rename(out / part.name)
    if ready.exists():
        for path in [*ready.parent.glob("episode_*"), *ready.parent.glob("*.json*")]:
            path.unlink()
        ready.rmdir()


def _describe(
    spec: EnvSpec,
    env: Mapping[str, Any] | None,
    sources: Sequence[str],
    images: str,
    beside: Mapping[str, Sequence[str]],
    earlier: dict[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    """What `meta/armature.json` says; what an earlier writer of the same dataset fixed stays."""
    if earlier is None:
        envs = [dict(env)] if env else []
        fixed = {"spec": spec.to_dict(), "images": images, "sources": list(sources), "attempts": []}
        fixed |= {"beside": {k: list(v) for k, v in beside.items()}} if beside else {}
        return {"format": 1, **fixed, "envs": envs, "identity": identity()}
    try:
        require_agreement(EnvSpec.from_dict(earlier["spec"]), spec)
    except ValueError as error:
        raise ValueError(f"{out} holds episodes of another environment, name another directory: {error}") from error
    if (before := earlier.get("beside", {})) != (now := {k: list(v) for k, v in beside.items()}):
        raise ValueError(f"{out} keeps {before} beside its episodes, and this writer {now}: name another directory")
    envs = earlier["envs"] + ([dict(env)] if env and dict(env) not in earlier["envs"] else [])
    names = earlier["sources"] + [name for name in sources if name not in earlier["sources"]]
    return {**earlier, "envs": envs, "sources": names, "identity": identity()}


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    _settle(part, path)


def _settle(part: Path, path: Path) -> None:
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
