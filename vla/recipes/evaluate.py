"""Honest evaluation on given episodes: `python -m vla.recipes.evaluate env=point policy=CHECKPOINT episodes=100`."""

from collections import Counter

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from vla import evaluation
from vla.checkpoint import Policy
from vla.evaluation import Episode, OnDevice
from vla.program import Figures, program
from vla.rollout import Greedy
from vla.run import Run, load_policy
from vla.types import Actor, EnvSpec, Rollout, require_agreement
from vla.video import save_film


def evaluate(cfg: DictConfig) -> Figures:
    """Play the episodes `seed .. seed + episodes - 1` and count successes; what was played before is not repeated."""
    if cfg.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {cfg.episodes}")
    run = Run(cfg, "evaluate")
    policy = None if cfg.policy.path == "expert" else load_policy(cfg.policy.path).to(run.device)
    env = instantiate(cfg.env)
    actor = _expert(cfg) if policy is None else _placed(policy, env.spec, run, greedy=cfg.greedy)
    run.restore({})
    done = evaluation.read_episodes(run.dir)[: cfg.episodes]
    lost: Counter[int] = Counter()
    with tqdm(total=cfg.episodes, initial=len(done), desc="evaluate", unit="episode") as bar:
        for first, batch in evaluation.play(
            env, actor, seed=cfg.seed + len(done), episodes=cfg.episodes - len(done), lost=lost
        ):
            new = evaluation.outcomes(batch, first)
            _save_films(run, batch, done, new, cfg.videos, env.spec.control_hz)
            done += new
            evaluation.write_episodes(run.dir, done)
            bar.update(len(new))
            bar.set_postfix(success=f"{sum(x.success for x in done)}/{len(done)}")
    env.close()
    solved = [x.steps for x in done if x.success]
    return {
        **evaluation.success_rate(done),
        "tasks": evaluation.per_task(done),
        "policy": str(cfg.policy.path),
        "seeds": [cfg.seed, cfg.seed + cfg.episodes - 1],
        "mean_return": sum(x.total_reward for x in done) / len(done),
        "mean_steps_to_success": sum(solved) / len(solved) if solved else None,
        **({"lost_episodes": lost.total()} if lost else {}),
    }


def _expert(cfg: DictConfig) -> Actor:
    if "expert" not in cfg:
        raise ValueError("this environment has no scripted expert (configs/expert): name a checkpoint as policy")
    return instantiate(cfg.expert)


def _placed(policy: Policy, spec: EnvSpec, run: Run, *, greedy: bool) -> Actor:
    require_agreement(policy.spec, spec)
    actor = Greedy(policy) if greedy else policy
    return actor if run.device.type == "cpu" else OnDevice(actor, run.device)


def _save_films(run: Run, batch: Rollout, done: list[Episode], new: list[Episode], most: int, hz: float) -> None:
    """The first successes and the first failures, `most` of each."""
    count = {end: sum(x.success is end for x in done) for end in (True, False)}
    for played, episode in zip(new, batch.episodes(), strict=True):
        if count[played.success] < most:
            end = "success" if played.success else "failure"
            save_film(run.dir / "videos" / f"seed_{played.seed}_{end}.mp4", episode, hz)
        count[played.success] += 1


main = program("evaluate", evaluate, short={"policy": "policy.path"})

if __name__ == "__main__":
    main()
