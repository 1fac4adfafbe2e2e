"""Collecting demonstrations and corrections by hand: `python -m real.teleop env=maniskill out=DIR`, and a browser."""

import contextlib
import getpass
import json
import logging
import math
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from real.attended import Attended
from real.board import Quit
from real.desk import Desk
from real.page import Page
from real.person import Person
from real.recorder import SOURCES, About, Paced, Recorder, beside
from vla.data.episodes import EpisodeWriter
from vla.program import Figures, program
from vla.recipes.evaluate import player
from vla.run import find_device
from vla.statistics import rate
from vla.types import Env

log = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("teleop.html")
GONE = 10.0  # seconds without a page, after which nobody looks through what was recorded


def teleop(cfg: DictConfig) -> Figures:
    """A person acts until the dataset `out` has `episodes`; what is there already counts.

    With `policy` it acts, and the person corrects it. ValueError for what cannot be moved by hand.
    """
    if cfg.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {cfg.episodes}")
    config = cast(dict[str, Any], OmegaConf.to_container(_by_hand(cfg), resolve=True))
    with closing(instantiate(config)) as env:
        policy = None if cfg.corrected is None else player(cfg, str(cfg.corrected), env.spec, find_device(cfg.device))
        person = Person(env.spec, policy)
        kept = beside(env.spec, policy=policy is not None)
        desk = Desk(getattr(env, "stop", lambda _: None), person)
        paced: Env = env if hasattr(env, "home") else Paced(env)
        with (
            closing(instantiate(cfg.hand)(person)) if cfg.get("hand") else contextlib.nullcontext(),
            EpisodeWriter(cfg.out, env.spec, env=config, sources=SOURCES, images=cfg.images, beside=kept) as writer,
            closing(Page(desk, **cfg.page, page=PAGE, review=Path(cfg.out))) as page,
        ):
            sys.stderr.write(f"teleop: open {page.url}\n")
            hz = env.spec.control_hz
            desk.show(control_hz=hz, top_speed=(env.spec.command.max_translation or 0.0) * hz)  # m/s
            desk.show(policy="" if cfg.corrected is None else str(cfg.corrected))
            said: Any = OmegaConf.to_container(cfg.paraphrases)
            about = About(cfg.operator or getpass.getuser(), cfg.scene, said)
            recorder = Recorder(Attended(paced, desk), person, writer, cfg.episodes, cfg.seed, about)
            try:
                recorder.play()
            except Quit:
                log.warning(f"ended by the operator; the same command goes on with {cfg.out}")
            desk.show(phase="writing")
            writer.close()
            _look_through(desk, page)
        return _figures(writer, str(cfg.out))


def _look_through(desk: Desk, page: Page) -> None:
    """While somebody is there, until they say that it is enough."""
    seen = -math.inf

    def there() -> None:
        nonlocal seen
        now = time.monotonic()
        seen = now if page.operator is not None else seen
        if now - seen > GONE:
            raise Quit

    desk.show(phase="done")
    with contextlib.suppress(Quit):
        there()
        desk.wait("quit", meanwhile=there)


def _by_hand(cfg: DictConfig) -> DictConfig:
    """The environment for one person: a single copy, and time enough."""
    one = {"num_envs": 1} if "num_envs" in cfg.env else {}
    return cast(DictConfig, OmegaConf.merge({"max_steps": cfg.max_steps}, cfg.env, one))


def _figures(writer: EpisodeWriter, out: str) -> Figures:
    labels = [x.label or {} for x in writer.attempts if x.kept]
    steps = sum(x.get("human", 0) for x in labels)
    info = Path(out) / "meta" / "info.json"
    return {
        "episodes": len(labels),
        "success": rate(sum(bool(x.get("success")) for x in labels), len(labels)),
        "frames": json.loads(info.read_text())["total_frames"] if info.exists() else 0,
        "human_frames": steps,
        "interventions": sum(x.get("interventions", 0) for x in labels),
        "out": out,
    }


main = program("teleop", teleop, short={"policy": "corrected"})

if __name__ == "__main__":
    main()
