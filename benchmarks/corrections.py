"""Whether corrections by hand mend a policy (HG-DAgger, Kelly et al. 2019): `python -m benchmarks.corrections`.

A policy imitates a few demonstrations. Somebody watches it on the page of `real.teleop`, in a real browser, and takes
over whenever it goes astray; who that is, is scripted, and knows where things are: at the toy `point` they push keys
towards the target, at ManiSkill's PickCube the sticks of a gamepad as the scripted expert would go. Then the policy is
trained anew, equally long, on demonstrations and corrections: on the person's steps alone, or on the policy's as well;
or on as many more episodes of the expert instead. Each is tested on the same held-out episodes; rows go to
`docs/corrections.csv` as they come.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tqdm import tqdm

from benchmarks import table
from benchmarks.heads import recipe
from policies.scripted import ScriptedExpert
from real.attended import Attended
from real.board import Quit
from real.desk import Desk
from real.page import Page
from real.person import Person
from real.recorder import SOURCES, About, Paced, Recorder, beside
from real.teleop import PAGE
from vla.data.episodes import EpisodeWriter
from vla.geometry import limit_norm
from vla.program import CONFIGS
from vla.rollout import Greedy
from vla.run import load_policy
from vla.statistics import rate

TABLE = Path(__file__).parents[1] / "docs" / "corrections.csv"
RUNS = Path("runs/corrections")


@dataclass(frozen=True)
class Task:
    """Overrides: of what plays, of who demonstrates, and of what learns."""

    env: tuple[str, ...]
    expert: tuple[str, ...] = ()
    learns: tuple[str, ...] = ()


TASKS = {
    "point": Task(("env=point", "env.num_envs=1")),
    "PickCube-v1": Task(
        (
            *("env=maniskill", "env.num_envs=1", "+env.poses_told=true", "+env.image_size=64", "+env.drawing=light"),
            "+env.max_steps=100",
        ),
        ("noise=0.3",),
        ("policy.horizon=2", "label=action.requested"),
    ),
}
ASTRAY = math.cos(math.radians(50))  # further than this from the way to go, the person steps in
NEAR = 0.04  # m: along an axis this near they do not push
FAR = 0.01  # m: a step shorter than this has no direction worth a correction
SPEED = 0.4  # share of the longest step: what is pushed arrives two or three steps after what was seen
PATIENCE = 5  # steps in a row that decide whether to take over, or to give back
FIRST_CORRECTED = 1000  # seed
ARMS = ("alone", "human", "all", "more")
KEYS = (("w", "s"), ("a", "d"))  # forwards and back along each axis


@dataclass(frozen=True)
class Row:
    env: str
    seed: int
    arm: str
    demonstrations: int
    corrected: int  # episodes
    human_share: float  # of the steps in them
    k: int
    n: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=TASKS, default="point")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--demonstrations", type=int, default=3)
    parser.add_argument("--corrected", type=int, default=15, help="episodes")
    parser.add_argument("--steps", type=int, default=500, help="of training, in every arm")
    parser.add_argument("--episodes", type=int, default=100, help="held-out ones of each test")
    asked = parser.parse_args()
    there = {row.seed for row in rows() if row.env == asked.env}
    for seed in tqdm([x for x in asked.seeds if x not in there], desc="corrections"):
        table.write(TABLE, [*rows(), *measured(seed, asked)], Row)
    print(json.dumps({"program": "benchmarks.corrections", "arms": pooled(asked.env)}))  # noqa: T201


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled(env: str) -> dict[str, Any]:
    there = [x for x in rows() if x.env == env]
    arms = dict.fromkeys(x.arm for x in there)
    return {a: rate(sum(x.k for x in there if x.arm == a), sum(x.n for x in there if x.arm == a)) for a in arms}


def measured(seed: int, asked: argparse.Namespace) -> list[Row]:
    place, task = RUNS / asked.env / str(seed), TASKS[asked.env]
    shown, corrections = place / "demonstrations", place / "corrections"
    expert = [*task.env, *task.expert, f"seed={20_000 + 100 * seed}", "images=image", "expert.horizon=1"]
    recipe("demonstrate", place / "demonstrate", [*expert, f"episodes={asked.demonstrations}", f"out={shown}"])
    count = asked.demonstrations + asked.corrected
    recipe("demonstrate", place / "demonstrate_more", [*expert, f"episodes={count}", f"out={place / 'more_shown'}"])
    common = ["policy=gaussian", *task.learns, f"steps={asked.steps}", f"seed={seed}", "batch_size=64", "device=cpu"]
    recipe("sft", place / "alone", [f"data={shown}", *common])
    share = corrected(task.env, place / "alone", corrections, asked.corrected)
    both = f"data=[{shown},{corrections}]"
    recipe("sft", place / "human", [both, "without=[policy,idle]", *common])
    recipe("sft", place / "all", [both, "without=[idle]", *common])
    recipe("sft", place / "more", [f"data={place / 'more_shown'}", *common])
    found = []
    for arm in ARMS:
        tested = [*task.env, f"policy={place / arm}", f"episodes={asked.episodes}", "videos=0"]
        seen = recipe("evaluate", place / f"test_{arm}", tested)
        shown_in, corrected_in = asked.demonstrations, asked.corrected * (arm in ("human", "all"))
        shown_in += asked.corrected * (arm == "more")
        found.append(Row(asked.env, seed, arm, shown_in, corrected_in, round(share, 3), seen["k"], seen["n"]))
    return found


def corrected(scene: Sequence[str], policy: Path, out: Path, episodes: int) -> float:
    """Collect so many episodes with somebody at the page; the share of steps that were theirs."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        config = cast(dict[str, Any], OmegaConf.to_container(compose("teleop", [*scene, f"out={out}"]).env))
    with closing(instantiate(config)) as env:
        person = Person(env.spec, Greedy(load_policy(policy)))
        kept = beside(env.spec, policy=True)
        with EpisodeWriter(out, env.spec, env=config, sources=SOURCES, images="image", beside=kept) as writer:
            desk = Desk(lambda _: None, person)
            desk.show(control_hz=env.spec.control_hz, top_speed=1.0, policy=str(policy))
            attended = Attended(Paced(env), desk)
            recorder = Recorder(attended, person, writer, episodes, FIRST_CORRECTED, About("scripted"))
            playing = threading.Thread(target=_until_quit, args=(recorder,))
            with closing(Page(desk, port=0, page=PAGE)) as served, _browser() as browser:
                page = browser.new_page()
                page.goto(served.url)
                playing.start()
                page.wait_for_function("document.getElementById('share').textContent")
                act = (
                    _pushes_keys(page, env, attended, person)
                    if "env=point" in scene
                    else _has_a_gamepad(page, attended, person)
                )
                while playing.is_alive():
                    _attend(page, desk.state, act)
            labels = [x.label or {} for x in writer.attempts]
    steps = torch.tensor([[x["human"], x["steps"]] for x in labels]).sum(0)
    return float(steps[0] / steps[1])


def _until_quit(recorder: Recorder) -> None:
    with contextlib.suppress(Quit):
        recorder.play()


def _attend(page: Any, state: dict[str, Any], act: Callable[[], None]) -> None:
    """What somebody would do next who looks at the page."""
    if state["phase"] == "scene":
        page.keyboard.press("Enter")
    elif state["phase"] == "label":
        page.keyboard.press("1" if state["verdict"] else "2")
    elif state["phase"] == "running":
        act()
    page.wait_for_timeout(20 if state["phase"] == "running" else 50)


def _pushes_keys(page: Any, env: Any, attended: Attended, person: Person) -> Callable[[], None]:
    """Towards the target of the toy."""
    page.locator("#speed").fill("0.5")

    def act() -> None:
        way = env.targets[0, env.wanted[0]] - env.position[0]
        meant = person.meant[0]
        right = float(meant @ way / (meant.norm() * way.norm() + 1e-9)) if attended.rows else 1.0
        for (forwards, back), far in zip(KEYS, way.tolist(), strict=True):
            wanted = forwards if far > NEAR else back if far < -NEAR else ""
            for key in (forwards, back):
                (page.keyboard.down if key == wanted and right < ASTRAY else page.keyboard.up)(key)

    return act


def _has_a_gamepad(page: Any, attended: Attended, person: Person) -> Callable[[], None]:
    """As the expert of PickCube would go. They take over, and give back, when it was so for some steps in a row."""
    page.evaluate("window.pad = {axes: [0, 0, 0, 0], buttons: []}; navigator.getGamepads = () => [window.pad]")
    page.locator("#speed").fill(str(SPEED))
    limits = person.spec.command.max_translation or 0.0, person.spec.command.max_rotation or 0.0
    expert = ScriptedExpert("PickCube-v1", 1, *limits)
    looked, so, gripped = 0, 0, -PATIENCE

    def act() -> None:
        nonlocal looked, so, gripped
        if attended.played is None or len(attended.rows) == looked:
            return
        looked = len(attended.rows)
        would, meant = expert.act(attended.played.obs).commands[0, 0], person.meant[0]
        if looked <= 1:
            so, gripped = 0, -PATIENCE
        so = so + 1 if _astray(meant, would) != person.taken else 0
        if so >= PATIENCE:
            page.keyboard.press("t")
            so = 0
        if not person.taken:
            page.evaluate("window.pad.axes = [0, 0, 0, 0]")
            return
        x, y, z = limit_norm(would[:3] / limits[0] / SPEED, 1.0).tolist()
        turn = (would[5] / limits[1] / SPEED).clamp(-1, 1).item()
        page.evaluate("x => { window.pad.axes = x }", [-y, -x, -turn, -z])
        if abs(would[6].item() - person.opening) > 0.5 and looked - gripped >= PATIENCE:
            page.keyboard.press("g")
            gripped = looked

    return act


def _astray(meant: torch.Tensor, would: torch.Tensor) -> bool:
    """Whether a policy goes another way than the expert would, or holds its fingers otherwise."""
    far = would[:3].norm() > FAR and float(torch.cosine_similarity(meant[:3], would[:3], dim=0)) < ASTRAY
    return bool(far) or abs(meant[6].item() - would[6].item()) > 0.5


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("benchmarks.corrections: there is no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


if __name__ == "__main__":
    main()
