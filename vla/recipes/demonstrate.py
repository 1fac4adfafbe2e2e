"""Recording demonstrations: `python -m vla.recipes.demonstrate env=point episodes=20 out=DIR`."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vla.data.episodes import EpisodeWriter
from vla.data.noise import Noisy
from vla.program import Figures, program
from vla.rollout import TEST_SEEDS, complete, require_no_test_seed, rollout
from vla.statistics import rate
from vla.types import Actor, Env, Rollout


def demonstrate(cfg: DictConfig) -> Figures:
    """Play the expert until `episodes` are in the dataset `out`; those that are there already count.

    The success rate is over all episodes that were played for this dataset, also those that were not kept. Those that
    were lost with their simulator are no attempts: they are played again. Episodes to test on are never recorded:
    ValueError if the seeds reach them.
    """
    if cfg.keep not in ("success", "all") or cfg.episodes < 1:
        raise ValueError(f"need keep=success or keep=all and episodes >= 1, got {cfg.keep} and {cfg.episodes}")
    if "expert" not in cfg:
        raise ValueError("this environment has no scripted expert (configs/expert): record it by teleoperation")
    config = cast(dict[str, Any], OmegaConf.to_container(cfg.env, resolve=True))
    source = cfg.expert._target_.rpartition(".")[2]
    expert = instantiate(cfg.expert)
    lost: Counter[int] = Counter()
    with (
        closing(instantiate(cfg.env)) as env,
        EpisodeWriter(cfg.out, env.spec, env=config, sources=(source,), images=cfg.images) as writer,
        tqdm(total=cfg.episodes, initial=writer.num_episodes, desc="demonstrate", unit="episode") as bar,
    ):
        if missing := max(0, cfg.episodes - writer.num_episodes):
            batches = -(-missing // env.spec.num_envs)
            _require_training_seeds(_next_seed(writer, cfg), batches * env.spec.num_envs)
        while writer.num_episodes < cfg.episodes:
            _play(env, expert, writer, cfg, lost)
            bar.update(writer.num_episodes - bar.n)
            bar.set_postfix(played=len(writer.attempts))
            if not writer.num_episodes and len(writer.attempts) >= cfg.give_up:
                raise ValueError(f"none of {len(writer.attempts)} episodes succeeded: {source} cannot do {config}")
    return {
        "success": rate(sum(x.success for x in writer.attempts), len(writer.attempts)),
        "episodes": writer.num_episodes,
        "frames": json.loads((Path(cfg.out) / "meta" / "info.json").read_text())["total_frames"],
        "out": str(cfg.out),
        **({"lost_episodes": lost.total()} if lost else {}),
    }


def _play(env: Env, expert: Actor, writer: EpisodeWriter, cfg: DictConfig, lost: Counter[int]) -> None:
    """One rollout, of seeds that were not tried yet: keep what is wanted of it, remember the rest as tried."""
    seed = _next_seed(writer, cfg)
    _require_training_seeds(seed, env.spec.num_envs)

    def play() -> Rollout:
        actor = Noisy(expert, env.spec.command, scale=cfg.noise, **cfg.disturbance) if cfg.noise else expert
        return rollout(env, actor, seed=seed)

    for i, episode in enumerate(complete(play(), play, seed=seed, lost=lost).episodes()):
        success = bool(episode.success.any())
        if writer.num_episodes < cfg.episodes and (success or cfg.keep == "all"):
            writer.write(episode, seed=seed + i)
        else:
            writer.skip(seed=seed + i, success=success)


def _next_seed(writer: EpisodeWriter, cfg: DictConfig) -> int:
    return max(cfg.seed, writer.next_seed or 0)


def _require_training_seeds(first: int, count: int) -> None:
    require_no_test_seed(range(first, first + count), f"demonstrate from another seed, for example {TEST_SEEDS.stop}")


main = program("demonstrate", demonstrate)

if __name__ == "__main__":
    main()
