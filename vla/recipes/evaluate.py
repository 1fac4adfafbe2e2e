"""Honest evaluation on given episodes: `python -m vla.recipes.evaluate env=point policy=CHECKPOINT episodes=100`."""

import json
import logging
import os
import sys
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vla import evaluation
from vla.checkpoint import Policy
from vla.comparison import compare, earlier_episodes
from vla.evaluation import Episode, OnDevice, Watcher
from vla.identity import fingerprint
from vla.program import Figures, program
from vla.remote import TOKEN, RemotePolicy, is_address
from vla.rollout import TEST_SEEDS, Greedy
from vla.run import Run, load_policy, write_atomically
from vla.sanity import Blind, Told, ignorant, wrong_instructions
from vla.types import Actor, Env, EnvSpec, Rollout, require_agreement
from vla.video import save_film

log = logging.getLogger(__name__)
NAMED = ("expert", "zero", "random")  # policies that are no checkpoint
ALL_FAILURES = "all_failures"


def evaluate(cfg: DictConfig) -> Figures:
    """Play the episodes `seed .. seed + episodes - 1` and count successes; what was played before is not repeated."""
    _require_sense(cfg)
    run = Run(cfg, "evaluate")
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg.env, resolve=True))
    earlier = None if cfg.against is None else earlier_episodes(Path(cfg.against), config, seeds)
    policy = load_policy(cfg.policy.path).to(run.device) if _is_checkpoint(cfg.policy.path) else None
    with ExitStack() as stack:
        env = stack.enter_context(closing(instantiate(cfg.env)))
        if is_address(cfg.policy.path):
            policy = stack.enter_context(closing(_served(cfg, cfg.policy.path, env.spec)))
        executed = instantiate(cfg.execution)(_named(cfg, cfg.policy.path, env.spec) if policy is None else policy)
        actor = executed if policy is None else _placed(executed, policy.spec, env.spec, run.device, cfg)
        said: dict[str, str] = getattr(env, "fingerprint", dict)()
        _require_same(run.dir, policy)
        run.restore({})
        task = said.get("task", "")
        watch = _films(run.dir / "videos", cfg.videos, env.spec.control_hz)
        lost: Counter[int] = Counter()
        done = evaluation.record(run.dir, env, actor, seeds, task=task, name="evaluate", watch=watch, lost=lost)
        checks = _sanity(run.dir, env, actor, policy, done, cfg) if cfg.sanity else None
    return {
        **evaluation.success_rates(done),
        "tasks": evaluation.per_task(done),
        "policy": str(cfg.policy.path),
        **({"served": policy.name} if isinstance(policy, RemotePolicy) else {}),
        "seeds": [seeds[0], seeds[-1]],
        "held_out": _held_out(seeds),
        "mean_return": sum(x.total_reward for x in done) / len(done),
        **evaluation.times_to_success(done),
        **({"lost_episodes": lost.total()} if lost else {}),
        **({"starved_commands": executed.starved} if getattr(executed, "starved", 0) else {}),
        **({"sanity": checks} if checks else {}),
        **({"against": {"run_dir": str(cfg.against), **compare(done, earlier)}} if earlier else {}),
        "fingerprint": fingerprint(config, said),
    }


def _require_sense(cfg: DictConfig) -> None:
    if cfg.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {cfg.episodes}")
    if cfg.sanity_episodes is not None and not 1 <= cfg.sanity_episodes <= cfg.episodes:
        raise ValueError(f"sanity_episodes must be from 1 to episodes={cfg.episodes}, got {cfg.sanity_episodes}")
    if cfg.videos != ALL_FAILURES and not (isinstance(cfg.videos, int) and cfg.videos >= 0):
        raise ValueError(f"videos must be a number of films or {ALL_FAILURES}, got {cfg.videos}")


def _held_out(seeds: range) -> bool:
    if seeds[0] in TEST_SEEDS and seeds[-1] in TEST_SEEDS:
        return True
    log.warning(
        f"episodes {seeds[0]} to {seeds[-1]} are not all held out: a policy may have learned from them. "
        f"Only {TEST_SEEDS[0]} to {TEST_SEEDS[-1]} are never learned from"
    )
    return False


def player(cfg: DictConfig, path: str, spec: EnvSpec, device: torch.device) -> Actor:
    """The policy of a checkpoint, an address or a name, executed as `cfg.execution` says."""
    if path in NAMED:
        return instantiate(cfg.execution)(_named(cfg, path, spec))
    policy = _served(cfg, path, spec) if is_address(path) else load_policy(path).to(device)
    return _placed(instantiate(cfg.execution)(policy), policy.spec, spec, device, cfg)


def _is_checkpoint(path: str) -> bool:
    return path not in NAMED and not is_address(path)


def _served(cfg: DictConfig, address: str, spec: EnvSpec) -> RemotePolicy:
    try:
        return RemotePolicy(address, spec, cfg.deadline, os.environ.get(TOKEN), pictures=cfg.pictures)
    except OSError as error:
        raise ValueError(f"policy={address}: {error}") from error


def _require_same(directory: Path, policy: Policy | None) -> None:
    """What an address serves may have changed since this evaluation was begun; a checkpoint's name says it."""
    if not isinstance(policy, RemotePolicy):
        return
    place = directory / "served.json"
    before = json.loads(place.read_text()) if place.exists() else policy.name
    if before != policy.name:
        raise ValueError(f"{policy.url} served {before} when this began, and now {policy.name}: start a new run")
    write_atomically(place, json.dumps(before) + "\n")


def _named(cfg: DictConfig, name: str, spec: EnvSpec) -> Actor:
    return ignorant(spec)[name] if name in ignorant(spec) else _expert(cfg, spec)


def _expert(cfg: DictConfig, spec: EnvSpec) -> Actor:
    if "expert" not in cfg:
        raise ValueError("this environment has no scripted expert (configs/expert): name a checkpoint as policy")
    if spec.command.kind != "ee_delta":
        raise ValueError(f"scripted experts decide ee_delta commands, and this environment takes {spec.command}")
    return instantiate(cfg.expert)


def _placed(executed: Actor, trained: EnvSpec, spec: EnvSpec, device: torch.device, cfg: DictConfig) -> Actor:
    """The policy, executed in some way, as it is to act."""
    require_agreement(trained, spec)
    actor: Actor = Greedy(executed) if cfg.greedy else executed
    return actor if device.type == "cpu" else OnDevice(actor, device)


def _films(directory: Path, videos: int | str, hz: float) -> Watcher:
    """The first successes and the first failures, so many of each; or every failure."""
    most = {True: 0, False: sys.maxsize} if videos == ALL_FAILURES else dict.fromkeys((True, False), int(videos))

    def watch(batch: Rollout, done: list[Episode], new: list[Episode]) -> None:
        count = {end: sum(x.success is end for x in done) for end in (True, False)}
        for played, episode in zip(new, batch.episodes(), strict=True):
            if count[played.success] < most[played.success]:
                end = "success" if played.success else "failure"
                save_film(directory / f"seed_{played.seed}_{end}.mp4", episode, hz)
            count[played.success] += 1

    return watch


def _sanity(directory: Path, env: Env, actor: Actor, policy: Policy, done: list[Episode], cfg: DictConfig) -> Figures:
    """The first of the same episodes, played by actors that know nothing, know less, or know all.

    Each row's episodes are in `sanity/<row>`. Only a policy that sees or reads has rows `blind` and
    `wrong_instruction`; what was told for which instruction is in `told`, fixed when the row is begun.
    """
    count = cfg.sanity_episodes or min(cfg.episodes, 20)
    seeds = range(cfg.seed, cfg.seed + count)
    rows = {**ignorant(env.spec, getattr(policy, "horizon", 1)), **_expert_row(cfg, env.spec)}
    figures: Figures = {"policy": evaluation.success_rates(done[:count])}
    if policy is not None:
        figures["told"] = _told(directory / "sanity" / "told.json", done)
        rows["wrong_instruction"] = Told(actor, figures["told"])
        rows |= {"blind": Blind(actor)} if env.spec.cameras else {}
    for name, other in rows.items():
        if name != cfg.policy.path:
            played = evaluation.record(directory / "sanity" / name, env, other, seeds, name=name)
            figures[name] = evaluation.success_rates(played)
    return figures


def _told(path: Path, done: list[Episode]) -> dict[str, str]:
    """Wrong instructions for the texts of the episodes; what was told before an interruption stays."""
    before = json.loads(path.read_text()) if path.exists() else {}
    told = {**wrong_instructions([x.instruction for x in done]), **before}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(told, indent=1) + "\n")
    return told


def _expert_row(cfg: DictConfig, spec: EnvSpec) -> dict[str, Actor]:
    """Nothing where there is no expert, or none for this task."""
    try:
        return {"expert": _expert(cfg, spec)}
    except (ValueError, InstantiationException) as error:
        reason = error.__cause__ or error
        if not isinstance(reason, ValueError):
            raise
        log.warning(f"no row of an expert: {reason}")
        return {}


main = program("evaluate", evaluate, short={"policy": "policy.path"})

if __name__ == "__main__":
    main()
