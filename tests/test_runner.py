"""Trials under an operator: on a page in a real browser, and alone on a twin, with everything recorded."""

import csv
import json
import re
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from programs import run
from twins import running

from real.attended import Attended
from real.board import Board, Quit
from real.evaluate import main
from real.page import Page
from real.runner import Runner
from real.safety import Fault
from real.session import Result, figures, schedule
from simulators.point import Homing, PointEnv
from vla.data.episodes import EpisodeWriter
from vla.sanity import ignorant

HOST = "127.0.0.13"


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Robot(PointEnv):
    """A point that can stop by itself, and be stopped."""

    def __init__(self, **options):
        super().__init__(num_envs=1, max_steps=6, num_targets=2, **options)
        self.faults, self.fault_at, self.homes, self.recovered = [""], None, 0, 0

    def home(self):
        if self.faults[0]:
            raise Fault(self.faults[0])
        self.homes += 1

    def stop(self, why):
        self.faults = [why]

    def recover(self):
        self.faults, self.recovered = [""], self.recovered + 1

    def step(self, command):
        step = super().step(command)
        if self.fault_at is not None and self.steps >= self.fault_at:
            self.faults, self.fault_at = ["cartesian_reflex"], None
        if self.faults[0]:
            step = step.replace(terminated=torch.tensor([True]), success=torch.tensor([False]))
        return step


class Person:
    """Says what is scripted for each phase, in turn; then success, and that all is well."""

    def __init__(self, **script):
        self.script, self.seen = {k: list(v) for k, v in script.items()}, []

    def __call__(self, state):
        self.seen.append(state["phase"])
        usual = {"clear": "clear", "scene": "ready", "fault": "recover", "label": "label"}
        default = {"say": usual[state["phase"]], "success": True}
        left = self.script.get(state["phase"])
        said = left.pop(0) if left else default
        if said["say"] == "quit":
            raise Quit
        return said


def session(tmp_path, env, person, episodes=2, **options):
    board = Board(getattr(env, "stop", lambda _: None), person)
    players = {"A": Homing(), "B": ignorant(env.spec)["random"]}
    writer = EpisodeWriter(tmp_path / "data", env.spec, sources=("policy A", "policy B"), images="image")
    trials = schedule("AB", range(10_000, 10_000 + episodes), 0)
    return Runner(tmp_path, Attended(env, board), players, trials, writer, seconds=0, **options)


def test_a_session_keeps_labels_steps_episodes_and_the_first_picture_of_each_scene(tmp_path):
    person = Person(label=[{"say": "label", "success": False, "progress": 30, "tag": "missed", "note": "far off"}])
    runner = session(tmp_path, PointEnv(num_envs=1, max_steps=6), person)
    runner.play()
    runner.writer.close()
    assert [x.success for x in runner.results] == [False, True, True, True]
    first = runner.results[0]
    assert (first.progress, first.tag, first.note, first.number) == (30, "missed", "far off", 1)
    assert person.seen == ["scene", "label"] * 4
    rows = table(tmp_path / "steps" / "trial_001_1.csv")
    assert len(rows) == first.steps
    assert all(float(x["seen"]) <= float(x["decided"]) <= float(x["observed"]) for x in rows)
    assert sorted(x.name for x in (tmp_path / "scenes").iterdir()) == ["10000_top.png", "10001_top.png"]
    data = LeRobotDataset("local/data", root=tmp_path / "data")
    assert data.num_episodes == 4
    assert data.num_frames == sum(x.steps for x in runner.results)


def test_what_was_labelled_is_not_played_again_and_an_end_loses_nothing(tmp_path):
    runner = session(tmp_path, PointEnv(num_envs=1, max_steps=6), Person(scene=[{"say": "ready"}, {"say": "quit"}]))
    with pytest.raises(Quit):
        runner.play()
    runner.writer.lock.close()  # as a kill would leave it
    again = session(tmp_path, PointEnv(num_envs=1, max_steps=6), Person())
    assert again.results == runner.results
    assert again.writer.num_episodes == 1
    again.play()
    assert [x.number for x in again.results] == [1, 2, 3, 4]
    again.writer.lock.close()


def test_the_last_label_can_be_changed_and_a_void_trial_is_played_again(tmp_path):
    person = Person(
        label=[
            {"say": "label", "success": True},
            {"say": "label", "success": False, "void": True},
            {"say": "label", "success": False, "progress": 10},
        ],
        scene=[{"say": "ready"}, {"say": "undo"}],
    )
    runner = session(tmp_path, PointEnv(num_envs=1, max_steps=6), person, episodes=1)
    runner.play()
    runner.writer.lock.close()
    assert [(x.number, x.ended == "void", x.progress) for x in runner.results] == [
        *((1, True, 0), (1, False, 10), (2, False, 100)),
    ]
    assert (tmp_path / "steps" / "trial_001_2.csv").exists()
    assert figures({"A": "a", "B": "b"}, runner.results)["void"] == 1


def test_a_fault_ends_a_trial_as_what_it_is_and_the_operator_lets_the_robot_go_on(tmp_path):
    env = Robot()
    env.fault_at = 1
    person = Person()
    runner = session(tmp_path, env, person, episodes=1)
    runner.play()
    runner.writer.lock.close()
    first = runner.results[0]
    assert (first.ended, first.fault, first.solved) == ("fault", "cartesian_reflex", False)
    assert person.seen[:5] == ["clear", "scene", "fault", "label", "clear"]
    assert (env.homes, env.recovered) == (2, 1)


@pytest.mark.parametrize("at", [0, 2], ids=["at once", "later"])
def test_a_policy_that_does_not_answer_in_time_ends_its_trial_and_not_the_session(tmp_path, at):
    env, person = Robot(), Person()
    runner = session(tmp_path, env, person, episodes=1)
    calls = []

    class Late:
        def act(self, obs):
            calls.append(obs)
            if len(calls) == at + 1:
                raise TimeoutError("it did not decide within 0.5 s")
            return runner.policies["B"].act(obs)

    runner.policies["A"] = Late()
    runner.play()
    runner.writer.lock.close()
    late = next(x for x in runner.results if x.policy == "A")
    assert (late.ended, late.fault, late.steps) == ("fault", "it did not decide within 0.5 s", at)
    assert [x.ended for x in runner.results if x.policy == "B"] in (["time"], ["verdict"])
    assert env.recovered == 1


def test_no_more_is_played_than_is_needed_to_tell_two_policies_apart(tmp_path):
    class Knows(Person):
        def __call__(self, state):
            said = super().__call__(state)
            return {**said, "success": bool(state.get("verdict"))}

    runner = session(tmp_path, PointEnv(num_envs=1, max_steps=6), Knows(), episodes=40)
    runner.play(alpha=0.05)
    runner.writer.lock.close()
    told = figures({"A": "homing", "B": "random"}, runner.results)["comparison"]
    assert told["rejected_at"] == told["pairs"] < 20


def test_only_one_environment_is_attended_to():
    with pytest.raises(ValueError, match=r"env\.num_envs=1"):
        Attended(PointEnv(num_envs=2), Board())


class Slow(Robot):
    """Gives a browser the time to be pressed in."""

    def step(self, command):
        time.sleep(0.3)
        return super().step(command)


def test_an_operator_runs_a_session_on_the_page(tmp_path, browser):
    env = Slow()
    runner = session(tmp_path, env, None, episodes=1)
    with closing(Page(runner.board, port=0)) as served:
        playing = threading.Thread(target=runner.play)
        playing.start()
        page = browser.new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(error))
        page.goto(served.url)
        page.get_by_text("Everyone is clear").click()
        page.get_by_text("trial 1 of 2").wait_for()
        assert page.locator("img.reference").all() == [] or not page.locator("img.reference").first.is_visible()
        page.get_by_text("The scene is ready").click()
        page.locator("[data-say=abort]").wait_for()
        page.keyboard.press("Escape")
        page.locator("#failure").wait_for()
        page.locator("#reached").fill("60")
        page.locator("#tag").fill("gave up")
        page.locator("#note").fill("too slow")
        page.locator("#failure").click()
        page.get_by_text("Everyone is clear").click()
        page.locator("img.reference").first.wait_for()  # the picture of the same scene, laid over
        page.get_by_text("The scene is ready").click()
        page.locator("[data-say=abort]").wait_for()
        page.keyboard.press("Space")
        page.get_by_text("I have looked").wait_for()
        assert page.locator("#alert").inner_text() == "the operator stopped it"
        page.get_by_text("I have looked").click()
        page.locator("#intervened").check()
        page.locator("#success").click()
        playing.join(20)
        assert not playing.is_alive()
        assert faults == []
    runner.writer.lock.close()
    first, second = runner.results
    assert (first.ended, first.progress, first.tag, first.note) == ("abort", 60, "gave up", "too slow")
    assert (second.ended, second.success, second.intervened, second.solved) == ("abort", True, True, False)
    assert env.recovered == 1


REST = {"progress": 50, "intervened": False, "note": "", "fault": "", "steps": 10, "late": 0, "cut": 0}
REST |= {"decision_ms": 5.0, "began": "today"}


def test_the_page_ends_with_what_was_found(browser):
    results = [
        Result(k, k // 2, "AB"[k % 2], "time", k % 2 == 0, None, tag=["", "<missed>"][k % 2], **REST) for k in range(12)
    ]
    told = figures({"A": "runs/<a>", "B": "runs/b"}, results)
    board = Board()
    with closing(Page(board, port=0)) as served:
        page = browser.new_page()
        page.goto(served.url)
        board.show(phase="done", figures={**told, "left": 3})
        page.locator("#figures td").first.wait_for()
        rows = [x.locator("td").all_inner_texts() for x in page.locator("#figures tr").all()[1:]]
        said = page.locator("#comparison").inner_text()
    assert rows == [
        ["runs/<a>", "6 of 6", "61 % to 100 %", "50 %", "0", "0", "0", ""],
        ["runs/b", "0 of 6", "0 % to 39 %", "50 %", "0", "0", "0", "<missed> 6"],
    ]
    assert "6 scenes that both played, 6 were solved by runs/<a> alone and 0 by runs/b alone (p = 0.031)" in said
    assert "runs/<a> is the better one with probability 100 %. 3 trials are left: go on with resume=." in said


def test_a_page_of_another_site_is_not_listened_to(browser):
    heard = []
    board = Board(heard.append)
    with closing(Page(board, port=0)) as served:
        address = served.url.replace("http", "ws") + "socket"
        page = browser.new_page()
        page.goto("data:text/html,elsewhere")
        said = """address => new Promise(done => {
            const socket = new WebSocket(address)
            socket.onopen = () => socket.send('{"say": "stop"}')
            socket.onclose = event => done(event.code)
            setTimeout(() => done(0), 3000)
        })"""
        assert page.evaluate(said, address) in (4003, 1006)
        page.goto(served.url)
        assert page.evaluate(said, address) == 0
    assert heard == ["the operator stopped it"]


def test_who_is_not_on_this_machine_needs_the_token():
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with closing(Page(Board(), host="0.0.0.0", port=0)) as served:
        assert re.search(r"\?token=\w", served.url)
        address = served.url.replace("0.0.0.0", "127.0.0.1")
        assert b"Evaluation" in urlopen(address).read()
        with pytest.raises(HTTPError, match="403"):
            urlopen(address.partition("?")[0])


@pytest.fixture(scope="module")
def twin():
    with running(HOST, "--cameras", "1340", "--image-size", "64") as operator:
        yield operator


def test_two_policies_are_compared_on_the_twin_through_cameras_driver_and_wire(twin, tmp_path):
    """A whole A/B evaluation: checks before it, two scenes, the scripted expert against one that does nothing."""
    summary = run(
        main,
        "env=twin",
        f"env.hosts=[{HOST}]",
        "env.max_steps=45",
        "env.driver.stale=1.0",
        "policy=expert",
        "against=zero",
        "episodes=2",
        "operator=none",
        "countdown=0",
        "images=image",
        f"run_dir={tmp_path / 'run'}",
    )
    assert {name: (x["k"], x["n"]) for name, x in summary["policies"].items()} == {"expert": (2, 2), "zero": (0, 2)}
    assert summary["comparison"]["pairs"] == 2
    assert all(x["passed"] for x in summary["checks"])
    assert {x["name"].split()[0] for x in summary["checks"]} >= {"robot", "camera", "commands", "dry", "hand"}
    rows = table(tmp_path / "run" / "steps" / "trial_001_1.csv")
    times = np.array([float(x["robot.robot_time"]) for x in rows])
    assert np.median(np.diff(times)) == pytest.approx(1 / 15, abs=0.01)
    assert all(float(x["robot.success_rate"]) == 1.0 for x in rows[2:])
    assert len(json.loads((tmp_path / "run" / "policies.json").read_text())) == 2
    data = LeRobotDataset("local/data", root=tmp_path / "run" / "data")
    assert data.num_episodes == 4
    assert data.meta.features["observation.images.hand_camera"]["shape"] == (64, 64, 3)
