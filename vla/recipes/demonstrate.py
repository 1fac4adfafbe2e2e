"""Recording demonstrations: `python -m vla.recipes.demonstrate env=point episodes=20 out=DIR`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vla.data.episodes import EpisodeWriter
from vla.data.noise import Noisy
from vla.rollout import rollout
from vla.statistics import rate
from vla.types import Actor, Env

CONFIGS = str(Path(__file__).parents[2] / "configs")


def demonstrate(cfg: DictConfig) -> dict[str, Any]:
    """Play the expert until `episodes` are in the dataset `out`; its earlier episodes count. Returns the figures.

    The success rate counts all episodes that were played, also those that were not kept.
    """
    if cfg.keep not in ("success", "all") or cfg.episodes < 1:
        raise ValueError(f"need keep=success or keep=all and episodes >= 1, got {cfg.keep} and {cfg.episodes}")
    env = instantiate(cfg.env)
    source = Path(cfg.expert._target_).suffix[1:]
    config = OmegaConf.to_container(cfg.env, resolve=True)
    with EpisodeWriter(cfg.out, env.spec, env=config, sources=(source,), images=cfg.images) as writer:
        expert = instantiate(cfg.expert)
        with tqdm(total=cfg.episodes, initial=writer.num_episodes, desc="demonstrate", unit="episode") as bar:
            while writer.num_episodes < cfg.episodes:
                play(env, expert, writer, cfg)
                bar.update(min(writer.num_episodes, cfg.episodes) - bar.n)
                bar.set_postfix(played=len(writer.attempts))
                if not writer.num_episodes and len(writer.attempts) >= cfg.give_up:
                    raise RuntimeError(
                        f"none of {len(writer.attempts)} episodes succeeded: is {source} the right expert?"
                    )
    env.close()
    success = rate(sum(x.success for x in writer.attempts), len(writer.attempts))
    frames = json.loads((Path(cfg.out) / "meta" / "info.json").read_text())["total_frames"]
    return {"success": success, "episodes": writer.num_episodes, "frames": frames, "out": str(cfg.out)}


def play(env: Env, expert: Actor, writer: EpisodeWriter, cfg: DictConfig) -> None:
    """One rollout: keep what is wanted of it, remember the rest as tried."""
    seed = cfg.seed if writer.next_seed is None else writer.next_seed
    actor = Noisy(expert, env.spec.command, scale=cfg.noise, **cfg.disturbance) if cfg.noise else expert
    for i, episode in enumerate(rollout(env, actor, seed=seed).episodes()):
        success = bool(episode.success.any())
        if writer.num_episodes < cfg.episodes and (success or cfg.keep == "all"):
            writer.write(episode, seed=seed + i)
        else:
            writer.skip(seed=seed + i, success=success)


@hydra.main(config_path=CONFIGS, config_name="demonstrate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    start = time.perf_counter()
    figures = demonstrate(cfg)
    summary = {"program": "demonstrate", "seconds": round(time.perf_counter() - start, 3), **figures}
    print(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main())
