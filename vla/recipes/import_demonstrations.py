"""Public demonstrations as our episodes: `python -m vla.recipes.import_demonstrations source=FILE.h5 out=DIR`."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vla.data.episodes import EpisodeWriter
from vla.data.importers import formats
from vla.data.importers.recording import as_episode, drift, spec_of
from vla.data.importers.source import Source
from vla.data.replay import Replay
from vla.program import Figures, program
from vla.rollout import rollout
from vla.statistics import rate
from vla.types import Replayable

DRIFT = (1e-3, 1e-3)  # metres and radians: beyond it, commands do not tell where the recording went


def import_demonstrations(cfg: DictConfig) -> Figures:
    """Play every episode of `source` again in `env` and keep those that succeed; recordings are taken as they are.

    ValueError, and no dataset, if the share that succeeds is more than `tolerance` below the source's own.
    """
    sources = formats.read(cfg.source)
    first = next(sources, None)
    if first is None:
        raise ValueError(f"{cfg.source} holds no episodes")
    if first.recording is not None:
        figures = _take(cfg, chain([first], sources), first)
    else:
        figures = _replay(cfg, [first, *sources])
    frames = json.loads((Path(cfg.out) / "meta" / "info.json").read_text())["total_frames"]
    return {**figures, "frames": frames, "out": str(cfg.out)}


def _replay(cfg: DictConfig, sources: Sequence[Source]) -> Figures:
    config = cast(dict[str, Any], OmegaConf.to_container(cfg.env, resolve=True))
    _require_same_task(sources, config.get("task"))
    steps = max(config.get("max_steps") or 0, *(x.num_steps for x in sources))
    authors = tuple(dict.fromkeys(x.author for x in sources))
    with closing(instantiate(cfg.env, num_envs=1, max_steps=steps)) as env:
        if not isinstance(env, Replayable):
            raise ValueError(f"{config['_target_']} cannot play recorded episodes here: choose another env, workers=0")
        replay = Replay(env, sources)
        with EpisodeWriter(cfg.out, env.spec, env=config, sources=authors, images=cfg.images) as writer:
            shortened = _play(replay, writer)
            played = sum(x.success for x in writer.attempts)
            _require_success(played, sources, shortened, cfg.tolerance)
    known = [x.success for x in sources if x.success is not None]
    return {
        "source": rate(sum(known), len(known)),
        "replay": rate(played, len(sources)),
        "episodes": writer.num_episodes,
        "commands_changed_by_limits": shortened,
    }


def _play(replay: Replay, writer: EpisodeWriter) -> int:
    """Play what was not played before; returns how many commands the environment's limits changed."""
    seeds = [i if x.seed is None else x.seed for i, x in enumerate(replay.sources)]
    done = len(writer.attempts)
    if Counter(x.seed for x in writer.attempts) != Counter(seeds[:done]):
        raise ValueError(f"{writer.out} holds episodes of another source: name another directory")
    shortened = 0
    for i in tqdm(range(done, len(seeds)), desc="import", initial=done, total=len(seeds), unit="episode"):
        (episode,) = rollout(replay, replay, seed=i).episodes()
        shortened += int(replay.shortened.sum())
        if episode.success.any():
            writer.write(episode, seed=seeds[i], source=replay.sources[i].author)
        else:
            writer.skip(seed=seeds[i], success=False)
    return shortened


def _require_success(played: int, sources: Sequence[Source], shortened: int, tolerance: float) -> None:
    """A source that does not say how it ended is taken for a success: it was called a demonstration."""
    n = len(sources)
    wanted = sum(x.success is not False for x in sources)
    why = f"; {shortened} commands were beyond the environment's limits: raise env.max_translation, env.max_rotation"
    said = f"{played} of {n} episodes succeed when played again, in the source {wanted} did{why if shortened else ''}"
    if (wanted - played) / n > tolerance:
        raise ValueError(f"{said}. If the rest is worth having, say tolerance={(wanted - played) / n + 0.005:.2f}")
    if not played:
        raise ValueError(f"{said}: there is nothing to import")


def _require_same_task(sources: Sequence[Source], task: str | int | None) -> None:
    for source in sources:
        if isinstance(task, str) and source.env not in (None, task):
            raise ValueError(f"{source.name} is of the task {source.env}, not {task}: say env.task={source.env}")


def _take(cfg: DictConfig, sources: Sequence[Source] | chain[Source], first: Source) -> Figures:
    """Recordings, from what was seen and measured; nothing can be played again, but their poses must be met."""
    said = cfg.recording
    if not said.instruction or not said.control_hz or said.gripper_width <= 0:
        raise ValueError(
            f"{cfg.source} does not say what was to be done or how fast: give recording.instruction='...' and "
            "recording.control_hz=... (UMI: 60), and the open gripper's width as recording.gripper_width (metres)"
        )
    assert first.recording is not None
    spec = spec_of(first.recording, control_hz=float(said.control_hz))
    worst = (0.0, 0.0)
    with EpisodeWriter(cfg.out, spec, sources=(first.author,), images=cfg.images) as writer:
        done = writer.num_episodes
        for i, source in enumerate(tqdm(sources, desc="import", unit="episode")):
            if i < done:
                continue
            recording = source.recording
            assert recording is not None
            episode = as_episode(
                recording, instruction=said.instruction, max_width=said.gripper_width, success=said.success
            )
            off = drift(episode, recording)
            worst = (max(worst[0], off[0]), max(worst[1], off[1]))
            if worst[0] > DRIFT[0] or worst[1] > DRIFT[1]:
                raise ValueError(
                    f"the commands of {source.name} end {off} m, rad off its poses: are they poses at all?"
                )
            writer.write(episode, seed=i)
    return {"episodes": writer.num_episodes, "drift_metres": worst[0], "drift_radians": worst[1]}


main = program("import_demonstrations", import_demonstrations)

if __name__ == "__main__":
    main()
