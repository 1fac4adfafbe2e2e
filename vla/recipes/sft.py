"""Supervised fine-tuning: `python -m vla.recipes.sft data=DIR policy=token steps=1000`."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from vla.algorithms.memory import free_bytes, training_bytes
from vla.algorithms.sft import SFT
from vla.algorithms.together import alike, from_first, rank_and_count, together
from vla.checkpoint import Policy, initial_policy
from vla.data.chunks import ChunkBatch, Chunks, Mixture, chunks_at, last_frames, statistics
from vla.data.frames import Frames, load_frames, require_no_test_episodes
from vla.evaluation import outcomes, play, summarise
from vla.program import Figures, program
from vla.rollout import Greedy
from vla.run import Run, due, find_device, read_metrics
from vla.types import Env, Metrics, require_agreement

log = logging.getLogger(__name__)
VALIDATED = 512  # frames at most, so that a look at the loss costs little


def sft(cfg: DictConfig) -> Figures:
    """Imitate the chunks of one or several datasets.

    A new policy takes its normalisation from them, one from `init` keeps its own.
    """
    _require_sense(cfg)
    run = Run(cfg, "sft")
    work = Work(cfg, run.device)
    if isinstance(work.algorithm, SFT):
        _tell_memory(work.algorithm, _rows(work.shown[0], work.policy.horizon, 1), cfg, run.device)
    first = run.restore(work.parts)
    start = time.perf_counter()
    env_of = closing(instantiate(cfg.env)) if cfg.test_every else nullcontext()
    with env_of as env, together(cfg.processes, _help, cfg):
        if env is not None:
            require_agreement(work.policy.spec, env.spec)
        from_first(first)
        alike(work.parts)
        if cfg.sharded:
            work.algorithm.shard()
        for step in run.loop(first):
            metrics = work.learn(validate=run.due(step, cfg.validate_every))
            if env is not None and run.due(step, cfg.test_every):
                metrics |= test(env, work.policy, cfg.test_seed, cfg.test_episodes)
            run.log(step, metrics)
            run.show(loss=metrics["sft_loss"])
            if run.due(step, cfg.save_every):
                run.save(step, work.parts, work.config)
    seconds = time.perf_counter() - start
    run.close()
    learned = {"frames": sum(map(len, work.shown)), "epochs": round(work.batches.epoch, 2)}
    return {**_figures(run, cfg, first, seconds), **learned}


class Work:
    """What is learned from what: the same in every process that takes part."""

    def __init__(self, cfg: DictConfig, device: torch.device):
        weights = weights_of(cfg.data)
        datasets = [_split(load(name, cfg.label, cfg.get("without", ())), cfg.validation) for name in weights]
        self.shown = [x for x, _ in datasets]
        for other in self.shown[1:]:
            require_agreement(self.shown[0].spec, other.spec)
        self.policy, self.config = initial_policy(cfg.policy, cfg.init, self.shown[0].spec, cfg.init_with)
        if cfg.init is None:
            self.policy.set_statistics(*statistics(*self.shown))
        self.policy.to(device)
        self.algorithm = instantiate(cfg.algorithm, _partial_=True)(policy=self.policy)
        if not isinstance(self.algorithm, SFT) and (cfg.validation or cfg.processes > 1):
            raise ValueError(f"{type(self.algorithm).__name__} has no validation and learns in one process only")
        self.unseen = [_rows(x, self.policy.horizon, VALIDATED) for _, x in datasets if len(x)]
        streams = [
            Chunks(x, self.policy.horizon, cfg.batch_size, seed=cfg.seed + i, shift=cfg.shift, colour=cfg.colour)
            for i, x in enumerate(self.shown)
        ]
        mixed = Mixture(streams, list(weights.values()), cfg.batch_size, seed=cfg.seed)
        self.batches = streams[0] if len(streams) == 1 else mixed

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.algorithm.parts, "batches": self.batches}

    def learn(self, *, validate: bool) -> Metrics:
        """One step."""
        metrics: Metrics = {**self.algorithm.update(next(self.batches)), "epoch": self.batches.epoch}
        if validate and self.unseen:
            metrics["validation_loss"] = sum(self.algorithm.validate(x) for x in self.unseen) / len(self.unseen)
        return metrics


def _help(cfg: DictConfig) -> None:
    """What the other processes do: the same steps from the same state, without a directory."""
    rank, _ = rank_and_count()
    work = Work(cfg, find_device(cfg.device))
    first = from_first(None)
    alike(work.parts)
    if cfg.sharded:
        work.algorithm.shard()
    torch.manual_seed(cfg.seed + rank)  # noise is to differ
    for step in range(first + 1, cfg.steps + 1):
        work.learn(validate=cfg.sharded and due(step, cfg.validate_every, cfg.steps))
        if cfg.sharded and due(step, cfg.save_every, cfg.steps):
            for part in work.parts.values():  # in the order in which `Run.save` asks for them
                part.state_dict()


def weights_of(data: str | ListConfig | DictConfig) -> dict[str, float]:
    """The datasets to learn from: one, several alike, or several with weights."""
    plain = OmegaConf.to_container(data) if not isinstance(data, str) else data
    if isinstance(plain, Mapping):
        return {str(name): float(weight) for name, weight in plain.items()}
    return dict.fromkeys([plain] if isinstance(plain, str) else [str(x) for x in plain or []], 1.0)


def load(directory: Path | str, label: str, without: Sequence[str] = ()) -> Frames:
    """A dataset that holds no test episodes, less what was done by those named in `without`."""
    require_no_test_episodes(directory)
    return load_frames(directory, label=label, without=list(without))


@torch.no_grad()
def test(env: Env, policy: Policy, seed: int, episodes: int) -> Metrics:
    """Greedy episodes in the simulator."""
    policy.eval()
    played = [
        outcome
        for first, batch in play(env, Greedy(policy), seed=seed, episodes=episodes)
        for outcome in outcomes(batch, first, env.spec.control_hz)
    ]
    policy.train()
    return summarise(played, "test")


def _require_sense(cfg: DictConfig) -> None:
    if not 0 <= cfg.validation < 1:
        raise ValueError(f"validation must be a share of the episodes from 0 up to 1, got {cfg.validation}")
    if cfg.test_every and not cfg.get("env"):
        raise ValueError(f"test_every={cfg.test_every} needs a simulator to test in: name one with env=")
    if cfg.sharded and (cfg.processes == 1 or cfg.test_every):
        raise ValueError(
            f"sharded=true is for several processes and cannot play on the way: got processes={cfg.processes}, "
            f"test_every={cfg.test_every}; evaluate its checkpoints afterwards"
        )


def _split(frames: Frames, validation: float) -> tuple[Frames, Frames]:
    """What to learn from, and the last episodes, not to be learned from; ValueError if that leaves nothing."""
    kept = round(validation * frames.num_episodes)
    if validation and not 0 < kept < frames.num_episodes:
        raise ValueError(
            f"validation={validation} of {frames.num_episodes} episodes leaves none to validate or to learn from"
        )
    first = frames.num_episodes - kept
    return (frames if not kept else frames.select(range(first))), frames.select(range(first, frames.num_episodes))


def _rows(frames: Frames, horizon: int, count: int) -> ChunkBatch:
    """So many frames, evenly from all of them."""
    index = torch.linspace(0, len(frames) - 1, min(count, len(frames))).long()
    return chunks_at(frames, index, horizon, last_frames(frames))


def _tell_memory(algorithm: SFT, one: ChunkBatch, cfg: DictConfig, device: torch.device) -> None:
    """Say how much memory it will take, before it takes it."""
    need = training_bytes(algorithm, one, -(-cfg.batch_size // (algorithm.accumulate * cfg.processes)))
    if cfg.sharded:
        need = {name: size if name == "activations" else size // cfg.processes for name, size in need.items()}
    told = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in need.items())
    log.info(f"memory for training: {sum(need.values()) / 2**30:.2f} GiB ({told})")
    if (free := free_bytes(device)) < sum(need.values()):
        log.warning(
            f"that is more than the {free / 2**30:.2f} GiB free on {device}: take a smaller batch_size, "
            "algorithm.accumulate=4, algorithm.recompute=true, policy.lora_rank=16 or a smaller policy"
        )


def _figures(run: Run, cfg: DictConfig, first: int, seconds: float) -> Figures:
    rows = read_metrics(run.dir)
    validated = [row["validation_loss"] for row in rows if "validation_loss" in row]
    tested = [(row["step"], row["test/success"]) for row in rows if "test/success" in row]
    return {
        "loss_first": rows[0]["sft_loss"],
        "loss_last": rows[-1]["sft_loss"],
        **({"validation_loss": validated[-1]} if validated else {}),
        **({"test": [{"step": step, "success": share} for step, share in tested]} if tested else {}),
        "samples_per_second": round((cfg.steps - first) * cfg.batch_size / seconds, 1) if first < cfg.steps else None,
        "steps": cfg.steps,
        "checkpoint": str(run.last_checkpoint()),
    }


main = program("sft", sft)

if __name__ == "__main__":
    main()
