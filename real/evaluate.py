"""Evaluating policies on a robot, a twin or a simulator: `python -m real.evaluate policy=CHECKPOINT env=franka`."""

import json
import logging
import sys
from contextlib import ExitStack, closing
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from real import session
from real.attended import Attended
from real.board import Board, Quit, without_a_person
from real.page import Page
from real.preflight import Check, preflight
from real.runner import Runner
from real.terminal import Terminal
from vla.data.episodes import EpisodeWriter
from vla.identity import fingerprint
from vla.program import Figures, program
from vla.recipes.evaluate import player
from vla.run import Run, write_atomically

log = logging.getLogger(__name__)
OPERATORS = ("page", "terminal", "none")


def real_evaluate(cfg: DictConfig) -> Figures:
    """Every policy on every scene, blinded and in random order, under an operator; what was labelled is not repeated.

    The order follows from `chance`. Which letter stands for which policy is in `policies.json`, for after the session.
    """
    paths = {str(k): str(v) for k, v in cfg.policies.items()}
    _require_sense(cfg, paths)
    run = Run(cfg, "real_evaluate")
    names = session.letters(sorted(paths), cfg.chance)
    trials = session.schedule(sorted(names), range(cfg.seed, cfg.seed + cfg.episodes), cfg.chance)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg.env, resolve=True))
    with ExitStack() as stack:
        env = stack.enter_context(closing(instantiate(cfg.env)))
        board = Board(getattr(env, "stop", lambda _: None), without_a_person if cfg.operator == "none" else None)
        attended = Attended(env, board)
        players = {letter: player(cfg, paths[name], env.spec, run.device) for letter, name in names.items()}
        _operate(cfg, board, stack)
        said: dict[str, str] = getattr(env, "fingerprint", dict)()
        checks = preflight(env) if cfg.preflight else []
        board.show(checks=[vars(x) for x in checks])
        _require_passed(checks)
        run.restore({})
        write_atomically(
            run.dir / "policies.json", json.dumps({k: paths[v] for k, v in names.items()}, indent=1) + "\n"
        )
        sources = tuple(f"policy {letter}" for letter in sorted(names))
        writer = stack.enter_context(
            EpisodeWriter(run.dir / "data", env.spec, env=config, sources=sources, images=cfg.images)
        )
        runner = Runner(run.dir, attended, players, trials, writer, cfg.countdown)
        try:
            runner.play(alpha=cfg.stop_when_clear)
        except Quit:
            log.warning(f"ended by the operator; go on with resume={run.dir}")
        figures = {
            **session.figures({k: paths[v] for k, v in names.items()}, runner.results),
            "trials": len(trials),
            "left": len(session.left(trials, runner.results)),
            "checks": [vars(x) for x in checks],
            "fingerprint": fingerprint(config, said),
        }
        board.show(phase="done", figures={k: figures[k] for k in ("policies", "comparison", "left") if k in figures})
    return figures


def _require_sense(cfg: DictConfig, paths: dict[str, str]) -> None:
    if cfg.operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {cfg.operator!r}")
    if cfg.episodes < 1 or cfg.countdown < 0:
        raise ValueError(f"need episodes >= 1 and countdown >= 0, got {cfg.episodes} and {cfg.countdown}")
    if cfg.stop_when_clear is not None and (len(paths) != 2 or not 0 < cfg.stop_when_clear < 1):
        raise ValueError("stop_when_clear is a level between 0 and 1, of a comparison of two policies (against=...)")
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"policies must differ, got {sorted(paths.values())}")


def _operate(cfg: DictConfig, board: Board, stack: ExitStack) -> None:
    if cfg.operator == "page":
        page = stack.enter_context(closing(Page(board, **cfg.page)))
        sys.stderr.write(f"real_evaluate: open {page.url}\n")
    elif cfg.operator == "terminal":
        stack.enter_context(closing(Terminal(board)))


def _require_passed(checks: list[Check]) -> None:
    if wrong := [f"{x.name}: {x.figure}" for x in checks if not x.passed]:
        raise ValueError(f"checks before the first trial failed: {'; '.join(wrong)}. Mend it, or say preflight=false")


main = program("real_evaluate", real_evaluate, short={"policy": "policies.a", "against": "+policies.b"})

if __name__ == "__main__":
    main()
