"""Supervised fine-tuning: `python -m vla.recipes.sft data=DIR policy=token steps=1000`."""

import time

from hydra.utils import instantiate
from omegaconf import DictConfig

from vla.checkpoint import initial_policy
from vla.data.chunks import Chunks, statistics
from vla.data.frames import load_frames, require_no_test_episodes
from vla.program import Figures, program
from vla.run import Run, read_metrics


def sft(cfg: DictConfig) -> Figures:
    """Imitate the chunks of a dataset. A new policy takes its normalisation from it, one from `init` keeps its own."""
    run = Run(cfg, "sft")
    require_no_test_episodes(cfg.data)
    frames = load_frames(cfg.data, label=cfg.label)
    policy, config = initial_policy(cfg.policy, cfg.init, frames.spec)
    if cfg.init is None:
        policy.set_statistics(*statistics(frames))
    policy.to(run.device)
    algorithm = instantiate(cfg.algorithm, _partial_=True)(policy=policy)
    batches = Chunks(frames, policy.horizon, cfg.batch_size, seed=cfg.seed, shift=cfg.shift)
    parts = {**algorithm.parts, "batches": batches}

    first = run.restore(parts)
    start = time.perf_counter()
    for step in run.loop(first):
        metrics = algorithm.update(next(batches))
        run.log(step, {**metrics, "epoch": batches.epoch})
        run.show(loss=metrics["sft_loss"])
        if run.due(step, cfg.save_every):
            run.save(step, parts, config)
    seconds = time.perf_counter() - start
    run.close()

    losses = [row["sft_loss"] for row in read_metrics(run.dir)]
    return {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "samples_per_second": round((cfg.steps - first) * cfg.batch_size / seconds, 1) if first < cfg.steps else None,
        "steps": cfg.steps,
        "frames": len(frames),
        "epochs": round(batches.epoch, 2),
        "checkpoint": str(run.last_checkpoint()),
    }


main = program("sft", sft)

if __name__ == "__main__":
    main()
