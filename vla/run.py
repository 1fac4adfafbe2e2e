"""What every learning program needs around its loop: a directory, a log, checkpoints to go on from."""

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tqdm import tqdm

from vla.checkpoint import CHECKPOINTS, checkpoints, load_policy, save_policy
from vla.identity import identity
from vla.types import Metrics

__all__ = ["Run", "load_policy", "save_policy"]

# What may differ between a run and its continuation: how long and how watched, not what is learned.
MAY_CHANGE = {
    "run_dir", "resume", "steps", "episodes", "workers", "placement", "servers", "gpus", "deadline", "timeout",
    "address", "device", "save_every", "keep_last", "test_every", "test_episodes", "videos", "sanity",
    "sanity_episodes", "against",
}  # fmt: skip


class Run:
    """One run in `cfg.run_dir`: `config.yaml`, `metrics.jsonl`, TensorBoard, `checkpoints/step_000010/`.

    A step is numbered by how many updates lie before it: 0 is before the first. With `cfg.resume` the run goes on from
    its last checkpoint; on a CPU it then equals one that was never interrupted, bit for bit. Raises ValueError if the
    directory holds another run, or if the run to resume was configured differently.
    """

    def __init__(self, cfg: DictConfig, name: str):
        config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        self.name = name
        self.dir = Path(cfg.run_dir)
        self.steps = int(cfg.get("steps", 0))
        self.keep_last = int(cfg.get("keep_last", 3))
        self.device = find_device(cfg.get("device", "cpu"))
        _prepare(self.dir, config, resume=cfg.get("resume") is not None)
        seed_everything(cfg.seed)
        self._config = OmegaConf.to_yaml(OmegaConf.create(config))
        self._metrics = self.dir / "metrics.jsonl"
        self._board: Any = None

    def restore(self, parts: Mapping[str, Any]) -> int:
        """Begin: load the last checkpoint into `parts`, if there is one; return the step to go on from.

        The log is cut back to that step, and the random state is as it was then. Call it when all that can be refused
        has been: from here on the directory is this run's.
        """
        write_atomically(self.dir / "config.yaml", self._config)
        write_atomically(self.dir / "identity.json", json.dumps(identity(), indent=1) + "\n")
        last = self.last_checkpoint()
        state = None if last is None else torch.load(last / "state.pt", map_location="cpu", weights_only=True)
        kept = [row for row in read_metrics(self.dir) if state and row["step"] <= state["step"]]
        if self._metrics.exists():
            write_atomically(self._metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if last is None or state is None:
            return 0
        for name, part in parts.items():
            part.load_state_dict(_policy_weights(last) if name == "policy" else state["parts"][name])
        _set_random_state(state["random"])
        return state["step"]

    def loop(self, start: int) -> Iterator[int]:
        """The steps `start + 1 .. steps`, with a progress bar on stderr."""
        with tqdm(total=self.steps, initial=start, desc=self.name, unit="step", mininterval=0.5) as self._bar:
            for step in range(start + 1, self.steps + 1):
                yield step
                self._bar.update()

    def due(self, step: int, every: int) -> bool:
        """Whether `step` is one of every so many, or the last; never if `every` is 0."""
        return due(step, every, self.steps)

    def log(self, step: int, metrics: Metrics) -> None:
        """Add one line to `metrics.jsonl`, and the same to TensorBoard. One call per step."""
        with open(self._metrics, "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._tensorboard(step).add_scalar(name, value, step)

    def show(self, **figures: float) -> None:
        """Put figures beside the progress bar."""
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()}, refresh=False)

    def save(self, step: int, parts: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
        """Write a checkpoint of `parts` (one of them `policy`, made from `config`); only the last few are kept.

        It is written beside its place and then moved there, so a checkpoint is whole or absent.
        """
        place = self.dir / CHECKPOINTS / f"step_{step:06d}"
        part = place.with_name(".unfinished")
        shutil.rmtree(part, ignore_errors=True)
        save_policy(part / "policy", parts["policy"], config, {"program": self.name, "step": step})
        others = {name: x.state_dict() for name, x in parts.items() if name != "policy"}
        torch.save({"step": step, "parts": others, "random": _random_state()}, part / "state.pt")
        _flush(part)
        if self._board is not None:
            self._board.flush()
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
        for old in checkpoints(self.dir)[: -self.keep_last]:
            shutil.rmtree(old)
        return place

    def last_checkpoint(self) -> Path | None:
        return checkpoints(self.dir)[-1] if checkpoints(self.dir) else None

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _tensorboard(self, step: int) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import

            self._board = SummaryWriter(str(self.dir / "tensorboard"), purge_step=step)
        return self._board


def due(step: int, every: int, steps: int) -> bool:
    """Whether `step` is one of every so many, or the last of `steps`; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == steps)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without one that was torn by an interruption; none if there is no log."""
    path = Path(directory) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def find_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU where there is none. ValueError for a GPU that is not there."""
    torch.backends.cudnn.allow_tf32 = False  # decisions are scored again: rounded, they would look like others
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: this machine has no usable GPU; use device=cpu or device=auto")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python, for what draws from their global states."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- third-party code draws from the global state
    random.seed(seed)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that after an interruption either the old or the new one is there, whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def _prepare(directory: Path, config: dict[str, Any], *, resume: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    before = directory / "config.yaml"
    if not before.exists():
        if resume:
            raise FileNotFoundError(f"resume={directory}: there is no run (no config.yaml); name its directory")
        return
    if not resume:
        raise ValueError(f"run_dir={directory} holds a run already: resume={directory} goes on, or name another one")
    then = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(before)))
    changed = [key for key in sorted(then.keys() | config.keys()) if then.get(key) != config.get(key)]
    if changed := [key for key in changed if key not in MAY_CHANGE]:
        differences = "; ".join(f"{key} was {then.get(key)}, now {config.get(key)}" for key in changed)
        raise ValueError(f"resume={directory}: the run was configured differently: {differences}. Start a new run")


def _policy_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "policy" / "model.safetensors")


def _random_state() -> dict[str, Any]:
    """The states of all global generators, in types that load without unpickling anything else."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, keys.tolist(), *rest],
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    random.setstate(state["python"])


def _flush(directory: Path) -> None:
    """Let the files reach the disk before the directory gets its final name."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
