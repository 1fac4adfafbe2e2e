"""Whether corrections by hand mend a policy (HG-DAgger, Kelly et al. 2019): `python -m benchmarks.corrections`.

A policy imitates a few demonstrations of the toy `point`. Somebody watches it on the page of `real.teleop`, in a real
browser, and pushes keys whenever it does not go to the target; who that is, is scripted, and knows where the target is.
Then the policy is trained anew, equally long, on demonstrations and corrections: on the person's steps alone, or on
the policy's as well; or on as many more episodes of the expert instead. Each is tested on the same held-out episodes;
rows go to `docs/corrections.csv` as they come.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import table
from benchmarks.heads import recipe
from real.attended import Attended
from real.board import Quit
from real.desk import Desk
from real.page import Page
from real.person import Person
from real.recorder import SOURCES, About, Paced, Recorder, beside
from real.teleop import PAGE
from simulators.point import PointEnv
from vla.data.episodes import EpisodeWriter
from vla.rollout import Greedy
from vla.run import load_policy
from vla.statistics import rate

TABLE = Path(__file__).parents[1] / "docs" / "corrections.csv"
RUNS = Path("runs/corrections")
ASTRAY = math.cos(math.radians(50))  # further than this from the way to the target, the person steps in
NEAR = 0.04  # m: along an axis this near they do not push
FIRST_CORRECTED = 1000  # seed
ARMS = ("alone", "human", "all", "more")
KEYS = (("w", "s"), ("a", "d"))  # forwards and back along each axis


@dataclass(frozen=True)
class Row:
    seed: int
    arm: str
    demonstrations: int
    corrected: int  # episodes
    human_share: float  # of the steps in them
    k: int
    n: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--demonstrations", type=int, default=3)
    parser.add_argument("--corrected", type=int, default=15, help="episodes")
    parser.add_argument("--steps", type=int, default=500, help="of training, in every arm")
    parser.add_argument("--episodes", type=int, default=100, help="held-out ones of each test")
    asked = parser.parse_args()
    for seed in tqdm([x for x in asked.seeds if x not in {row.seed for row in rows()}], desc="corrections"):
        table.write(TABLE, [*rows(), *measured(seed, asked)], Row)
    print(json.dumps({"program": "benchmarks.corrections", "arms": pooled()}))  # noqa: T201


def rows() -> list[Row]:
    return table.read(TABLE, Row)


def pooled() -> dict[str, Any]:
    there = rows()
    arms = dict.fromkeys(x.arm for x in there)
    return {a: rate(sum(x.k for x in there if x.arm == a), sum(x.n for x in there if x.arm == a)) for a in arms}


def measured(seed: int, asked: argparse.Namespace) -> list[Row]:
    place = RUNS / str(seed)
    shown, corrections = place / "demonstrations", place / "corrections"
    expert = ["env=point", f"seed={20_000 + 100 * seed}", "images=image", "env.num_envs=1", "expert.horizon=1"]
    recipe("demonstrate", place / "demonstrate", [*expert, f"episodes={asked.demonstrations}", f"out={shown}"])
    count = asked.demonstrations + asked.corrected
    recipe("demonstrate", place / "demonstrate_more", [*expert, f"episodes={count}", f"out={place / 'more_shown'}"])
    common = ["policy=gaussian", f"steps={asked.steps}", f"seed={seed}", "batch_size=64", "device=cpu"]
    recipe("sft", place / "alone", [f"data={shown}", *common])
    share = corrected(place / "alone", corrections, asked.corrected)
    both = f"data=[{shown},{corrections}]"
    recipe("sft", place / "human", [both, "without=[policy]", *common])
    recipe("sft", place / "all", [both, *common])
    recipe("sft", place / "more", [f"data={place / 'more_shown'}", *common])
    found = []
    for arm in ARMS:
        tested = ["env=point", f"policy={place / arm}", f"episodes={asked.episodes}", "videos=0"]
        seen = recipe("evaluate", place / f"test_{arm}", tested)
        shown_in, corrected_in = asked.demonstrations, asked.corrected * (arm in ("human", "all"))
        shown_in += asked.corrected * (arm == "more")
        found.append(Row(seed, arm, shown_in, corrected_in, round(share, 3), seen["k"], seen["n"]))
    return found


def corrected(policy: Path, out: Path, episodes: int) -> float:
    """Collect so many episodes with somebody at the page; the share of steps that were theirs."""
    env = PointEnv(num_envs=1)
    person = Person(env.spec, Greedy(load_policy(policy)))
    kept = beside(env.spec, policy=True)
    with EpisodeWriter(out, env.spec, sources=SOURCES, images="image", beside=kept) as writer:
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
            page.locator("#speed").fill("0.5")
            while playing.is_alive():
                _act(page, env, attended, person, desk.state)
        labels = [x.label or {} for x in writer.attempts]
    steps = torch.tensor([[x["human"], x["steps"]] for x in labels]).sum(0)
    return float(steps[0] / steps[1])


def _until_quit(recorder: Recorder) -> None:
    with contextlib.suppress(Quit):
        recorder.play()


def _act(page: Any, env: PointEnv, attended: Attended, person: Person, state: dict[str, Any]) -> None:
    """What somebody would do next who looks at the page."""
    if state["phase"] == "scene":
        page.keyboard.press("Enter")
        page.wait_for_timeout(50)
    elif state["phase"] == "label":
        page.keyboard.press("1" if state["verdict"] else "2")
        page.wait_for_timeout(50)
    elif state["phase"] == "running":
        way = env.targets[0, env.wanted[0]] - env.position[0]
        meant = person.meant[0]
        right = float(meant @ way / (meant.norm() * way.norm() + 1e-9)) if attended.rows else 1.0
        for (forwards, back), far in zip(KEYS, way.tolist(), strict=True):
            wanted = forwards if far > NEAR else back if far < -NEAR else ""
            for key in (forwards, back):
                (page.keyboard.down if key == wanted and right < ASTRAY else page.keyboard.up)(key)
        page.wait_for_timeout(20)
    else:
        page.wait_for_timeout(20)


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
