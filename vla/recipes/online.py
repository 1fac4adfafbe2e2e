"""Learning from one's own episodes, by RL or distillation: `python -m vla.recipes.online env=point policy=token`."""

import functools
from collections import Counter
from contextlib import closing
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from vla.algorithms.together import alike, from_first, together
from vla.checkpoint import Policy, initial_policy, policy_config
from vla.cluster import Collectors
from vla.collect import Collector, Fleet, OneProcess
from vla.evaluation import Episode, outcomes, summarise
from vla.pipeline import planned
from vla.program import Figures, program
from vla.rollout import TEST_SEEDS, complete, join
from vla.run import Run, find_device, read_metrics
from vla.serving import Served
from vla.statistics import rate
from vla.types import Algorithm, EnvSpec, Metrics, RewardModel, Rollout
from vla.video import save_film

PLACEMENTS = ("colocated", "served", "hybrid")
SEEDS_PER_RUN = 1_000_000  # training episodes of the run with seed s are numbered from (s + 1) million on


def online(cfg: DictConfig) -> Figures:
    """Play with the current weights, learn from it, and now and then test greedily on the same held-out episodes."""
    if cfg.init is not None:
        with open_dict(cfg):
            cfg.policy = OmegaConf.create(policy_config(cfg.init, cfg.init_with))
    if cfg.sharded:
        raise ValueError(
            "sharded=true is for supervised fine-tuning: what plays needs all weights, use processes alone"
        )
    run = Run(cfg, "online")
    seeds = training_seeds(cfg)
    with closing(_fleet(cfg, run)) as fleet:
        hz = fleet.spec.control_hz
        policy, config, algorithm = _learner(cfg, fleet.spec, run.device)
        reward_model = instantiate(cfg.reward)
        with together(cfg.processes, _help, cfg):
            first = run.restore(algorithm.parts)
            from_first((fleet.spec, first))
            alike(algorithm.parts)
            if first == 0 and cfg.test_every:
                run.log(0, summarise(test(fleet, policy, run, 0, cfg), "test"))
            begin = functools.partial(Played, fleet, policy, seeds, getattr(algorithm, "group", 1))
            ahead = None
            for step in run.loop(first):
                played = ahead or begin(step, version=step - 1)
                episodes, lost = played.get()
                metrics: Metrics = fleet.pace()
                if cfg.overlap and step < cfg.steps:  # with the weights of before this update
                    ahead = begin(step + 1, version=step - 1)
                episodes = rewarded(episodes, reward_model)
                from_first((episodes, torch.get_rng_state()))
                metrics |= {**summarise(outcomes(episodes, played.seed, hz), "train"), **algorithm.update(episodes)}
                metrics |= {"train/lost": float(lost)} if lost else {}
                metrics |= {"train/staleness": step - 1.0 - played.version} if cfg.overlap else {}
                if run.due(step, cfg.test_every):
                    metrics |= summarise(test(fleet, policy, run, step, cfg), "test")
                run.log(step, metrics)
                run.show(**{name: x for name, x in metrics.items() if name.endswith("/success")})
                if run.due(step, cfg.save_every):
                    run.save(step, algorithm.parts, config)
    run.close()
    return _figures(run)


def _learner(cfg: DictConfig, spec: EnvSpec, device: torch.device) -> tuple[Policy, dict[str, Any], Algorithm]:
    policy, config = initial_policy(cfg.policy, cfg.init, spec, cfg.init_with)
    policy.to(device)
    return policy, config, instantiate(cfg.algorithm, _partial_=True)(policy=policy)


def _help(cfg: DictConfig) -> None:
    """What the other processes do: the same updates with the same episodes, of which only the first one knows more."""
    spec, first = from_first(None)
    _, _, algorithm = _learner(cfg, spec, find_device(cfg.device))
    alike(algorithm.parts)
    for _ in range(first, cfg.steps):
        episodes, chance = from_first(None)
        torch.set_rng_state(chance)
        algorithm.update(episodes)


class Played:
    """The episodes of a step, begun with the policy as it is now; each is played `group` times."""

    def __init__(self, fleet: Fleet, policy: Policy, seeds: range, group: int, step: int, version: int):
        self.fleet, self.policy, self.version = fleet, policy, version
        self.seed = seeds[(step - 1) * fleet.spec.num_envs]
        self.pending = [fleet.start(policy, self.seed, draw=draw) for draw in range(group)]

    def get(self) -> tuple[Rollout, int]:
        """First all of them once, then all again; and how many were lost: only if all were, they are played again.

        Their `version` is the number of updates that the policy had had.
        """
        lost: Counter[int] = Counter()
        played = []
        for draw, pending in enumerate(self.pending):
            episodes = pending.get()
            if len(episodes.lost()) == episodes.shape[1]:
                again = functools.partial(_played, self.fleet, self.policy, self.seed, draw=draw)
                episodes = complete(episodes, again, seed=self.seed, lost=lost)
            played.append(episodes)
        episodes = join(played) if len(played) > 1 else played[0]
        version = torch.full(episodes.shape, self.version)
        return episodes.replace(version=version), lost.total() + len(episodes.lost())


def rewarded(episodes: Rollout, model: RewardModel) -> Rollout:
    """With the reward of the model, which knows none of single commands unless it is the environment's own."""
    reward = model(episodes)
    return episodes if reward is episodes.reward else episodes.replace(reward=reward, rewards=None)


def training_seeds(cfg: DictConfig) -> range:
    """The episodes to learn from. ValueError if a test episode may be one of them, or of those others learn from."""
    first = SEEDS_PER_RUN * (cfg.seed + 1)
    seeds = range(first, first + max(cfg.steps, 1) * cfg.env.num_envs)
    last_test = cfg.test_seed + cfg.test_episodes - 1
    if cfg.seed < 0 or cfg.steps < 1 or cfg.test_episodes < 1 or seeds[-1] >= 2**32:
        raise ValueError(
            "need seed from 0 to 4000, steps >= 1 and test_episodes >= 1, "
            f"got {cfg.seed}, {cfg.steps} and {cfg.test_episodes}"
        )
    if cfg.test_seed not in TEST_SEEDS or last_test not in TEST_SEEDS:
        raise ValueError(
            f"test episodes {cfg.test_seed} to {last_test} may overlap training episodes {first} to {seeds[-1]} or "
            f"demonstrations: only {TEST_SEEDS[0]} to {TEST_SEEDS[-1]} are never learned from; choose another test_seed"
        )
    return seeds


def test(fleet: Fleet, policy: Policy, run: Run, step: int, cfg: DictConfig) -> list[Episode]:
    """The test episodes, played greedily; the first few are filmed."""
    played: list[Episode] = []
    lost: Counter[int] = Counter()
    seeds = range(cfg.test_seed, cfg.test_seed + cfg.test_episodes, fleet.spec.num_envs)
    for seed, pending in [(seed, fleet.start(policy, seed, greedy=True)) for seed in seeds]:
        again = functools.partial(_played, fleet, policy, seed, greedy=True)
        batch = complete(pending.get(), again, seed=seed, lost=lost)[:, : cfg.test_episodes - len(played)]
        new = outcomes(batch, seed, fleet.spec.control_hz)
        for outcome, episode in list(zip(new, batch.episodes(), strict=True))[: max(0, cfg.videos - len(played))]:
            end = "success" if outcome.success else "failure"
            path = run.dir / "videos" / f"step_{step:06d}_seed_{outcome.seed}_{end}.mp4"
            save_film(path, episode, fleet.spec.control_hz)
        played += new
    return played


def _played(fleet: Fleet, policy: Policy, seed: int, **how: Any) -> Rollout:
    return fleet.start(policy, seed, **how).get()


def _fleet(cfg: DictConfig, run: Run) -> Fleet:
    """Who plays, as `configs/launch` says."""
    env = cast(dict[str, Any], OmegaConf.to_container(cfg.env, resolve=True))
    if cfg.placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {cfg.placement!r}")
    if cfg.workers == 0:
        return OneProcess(Collector(env, str(run.device), cfg.batch))
    if cfg.placement == "hybrid":
        plan = planned(env["num_envs"], cfg.workers, 1)
        waits = {"deadline": cfg.deadline, "timeout": cfg.timeout}
        return OneProcess(Served(env, str(run.device), cfg.batch, plan=plan, **waits))
    servers = cfg.servers if cfg.placement == "served" else 0
    how = {"gpus": cfg.gpus, "batch": cfg.batch, "deadline": cfg.deadline, "timeout": cfg.timeout}
    return Collectors(env, workers=cfg.workers, servers=servers, address=cfg.address, **how)


def _figures(run: Run) -> Figures:
    rows = read_metrics(run.dir)
    train, test = _over_time(rows, "train"), _over_time(rows, "test")
    return {
        "train": train,
        "test": test,
        "final": test[-1] if test else train[-1],
        "episodes": sum(x["n"] for x in train),
        "env_steps": round(sum(row["train/steps"] * row["train/episodes"] for row in rows if "train/steps" in row)),
        "checkpoint": str(run.last_checkpoint()),
    }


def _over_time(rows: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    known = [row for row in rows if f"{prefix}/success" in row]
    counts = [(row["step"], row[f"{prefix}/success"], row[f"{prefix}/episodes"]) for row in known]
    return [{"step": step, **rate(round(share * n), round(n))} for step, share, n in counts]


main = program("online", online)

if __name__ == "__main__":
    main()
