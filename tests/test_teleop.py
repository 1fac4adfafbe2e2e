"""A person moves robots from a page in a real browser, and what they do is data; silence moves nothing."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from programs import run
from twins import franka, running

from real.attended import Attended
from real.board import Quit
from real.desk import Desk
from real.page import Page
from real.person import HUMAN, IDLE, POLICY, SILENCE, Input, Person
from real.recorder import SOURCES, About, Paced, Recorder, beside
from real.teleop import PAGE, main
from simulators.point import Homing, PointEnv
from vla import geometry
from vla.data.episodes import EpisodeWriter
from vla.data.frames import load_frames
from vla.recipes import sft
from vla.rollout import rollout
from vla.types import Command

HOST = "127.0.0.21"
STILL = {"axes": [0.0] * 6, "speed": 1.0, "tool_frame": False, "clutch": False}


def wide(**options):
    """A point with room and time to be pushed about."""
    return PointEnv(num_envs=1, **{"max_steps": 400, "ends_on_success": False, **options})


class Collecting:
    """A session that plays in a thread, with its page."""

    def __init__(self, out, env, policy=None, episodes=1, **about):
        self.person = Person(env.spec, policy)
        self.desk = Desk(getattr(env, "stop", lambda _: None), self.person)
        kept = beside(env.spec, policy=policy is not None)
        self.writer = EpisodeWriter(out, env.spec, sources=SOURCES, images="image", beside=kept)
        self.attended = Attended(env if hasattr(env, "home") else Paced(env), self.desk)
        self.desk.show(top_speed=1.0, policy="it" if policy else "")
        self.recorder = Recorder(self.attended, self.person, self.writer, episodes, 0, About(**about))
        self.page = Page(self.desk, port=0, page=PAGE)
        self.error = None
        self.playing = threading.Thread(target=self._play)
        self.playing.start()

    def _play(self):
        try:
            self.recorder.play()
        except BaseException as error:
            self.error = error

    def ended(self):
        self.playing.join(30)
        assert not self.playing.is_alive()
        assert self.error is None or isinstance(self.error, Quit)


@contextmanager
def collecting(*parts, **options):
    session = Collecting(*parts, **options)
    try:
        yield session
    finally:
        session.desk.aborted.set()
        session.desk.tell({"say": "quit"})
        session.playing.join(30)
        session.page.close()
        session.writer.lock.close()


def opened(browser, session):
    page = browser.new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(session.page.url)
    page.locator("[data-say=record]").wait_for()
    return page


def begin(page):
    page.locator("[data-say=record]").wait_for()
    page.keyboard.press("Enter")
    page.locator("[data-say=end]").wait_for()


def executed(session):
    return np.array([[float(x) for x in row["executed"].split()] for row in session.attended.rows])


def steps(session, count):
    """Until so many more have been made."""
    wanted = len(session.attended.rows) + count
    deadline = time.monotonic() + 20
    while len(session.attended.rows) < wanted:
        assert session.playing.is_alive(), session.error
        assert time.monotonic() < deadline, session.desk.state
        time.sleep(0.02)


def soon(session, said):
    """Until what was done last is so."""
    deadline = time.monotonic() + 20
    while not (session.attended.rows and said(executed(session)[-1])):
        assert session.playing.is_alive(), session.error
        assert time.monotonic() < deadline, executed(session)[-3:]
        time.sleep(0.02)


def test_held_keys_move_it_and_an_episode_with_its_label_is_kept(browser, tmp_path):
    about = {"operator": "ann", "scene": "desk 2", "paraphrases": ("go there",)}
    with collecting(tmp_path / "data", wide(), episodes=2, **about) as session:
        page = opened(browser, session)
        page.locator("#speed").fill("0.5")
        begin(page)
        page.keyboard.down("w")
        steps(session, 8)
        page.keyboard.up("w")
        steps(session, 4)
        page.keyboard.press("Enter")
        page.locator("#tag").fill("missed")
        page.locator("#note").fill("too far")
        page.locator("#failure").click()
        page.get_by_text("1 of 2 episodes").wait_for()
        begin(page)
        steps(session, 3)
        page.keyboard.press("Enter")
        page.locator("#success").wait_for()
        page.keyboard.press("1")
        session.ended()
    with EpisodeWriter(tmp_path / "data", wide().spec, images="image", beside=session.writer.description["beside"]):
        pass
    data = LeRobotDataset("local/data", root=tmp_path / "data")
    rows = data.hf_dataset.with_format("numpy")
    first = np.array(rows["episode_index"]) == 0
    pushed, done = np.array(rows["operator.input"])[first], np.array(rows["action"])[first]
    assert data.num_episodes == 2
    moving = pushed[:, 0] == 1
    assert 3 <= moving.sum() <= 14
    heard = done[moving & (pushed[:, -1] < SILENCE)]
    np.testing.assert_allclose(heard, [[0.1, 0]] * len(heard), atol=1e-6)
    np.testing.assert_allclose(done[~moving], 0)
    assert pushed[:, -1].min() >= 0  # seconds since it came
    between = np.diff(np.array(rows["capture.time"])[first].ravel())
    assert between.mean() > 0.095  # it keeps time: 10 Hz
    labels = [x["label"] for x in json.loads((tmp_path / "data" / "meta" / "armature.json").read_text())["attempts"]]
    expected = {
        "success": False,
        "tag": "missed",
        "note": "too far",
        "operator": "ann",
        "scene": "desk 2",
        "ended": "end",
    }
    assert labels[0].items() >= expected.items()
    assert labels[0]["paraphrases"] == ["go there"]
    assert (labels[0]["verdict"], labels[1]["success"], labels[1]["tag"]) == (False, True, "")


def test_a_page_that_dies_with_a_key_held_moves_nothing_any_more(browser, tmp_path):
    with collecting(tmp_path / "data", wide()) as session:
        page = opened(browser, session)
        begin(page)
        page.keyboard.down("d")
        soon(session, lambda done: done[1] < 0)
        page.close()
        closed = len(session.attended.rows)
        steps(session, 8)
        assert (executed(session)[closed + 4 :] == 0).all()  # 10 Hz: within four steps


def test_input_that_stops_coming_is_no_input_a_quarter_of_a_second_later(browser, tmp_path):
    """The page is there, but what it pushed last is old: its timer has stopped."""
    with collecting(tmp_path / "data", wide()) as session:
        page = opened(browser, session)
        begin(page)
        page.keyboard.down("w")
        soon(session, lambda done: done[0] > 0)
        page.evaluate("for (let i = 0; i < 1000; i++) clearInterval(i)")
        stopped = len(session.attended.rows)
        steps(session, 8)
        assert (executed(session)[stopped + 4 :] == 0).all()


def test_a_second_page_only_watches_but_can_stop_and_takes_the_place_of_the_first(browser, tmp_path):
    with collecting(tmp_path / "data", wide()) as session:
        page, other = opened(browser, session), opened(browser, session)
        other.get_by_text("another page operates").wait_for()
        other.keyboard.press("Enter")
        other.get_by_text("only watches, but can stop").wait_for()
        begin(page)
        other.locator("figure img").first.wait_for()
        other.keyboard.down("w")
        steps(session, 4)
        assert (executed(session) == 0).all()
        other.keyboard.press("Space")
        page.locator("#success").wait_for()  # it has ended
        page.close()
        other.get_by_text("Operate from here").click()
        other.locator("#discard").click()
        begin(other)
        other.keyboard.down("w")
        soon(session, lambda done: done[0] > 0)


def test_a_gamepad_and_a_finger_push_too(browser, tmp_path):
    with collecting(tmp_path / "data", wide()) as session:
        page = opened(browser, session)
        page.locator("#speed").fill("1")
        begin(page)
        pad = "navigator.getGamepads = () => [{axes: [0, -0.5, 0, 0], buttons: Array(16).fill({pressed: false})}]"
        page.evaluate(pad)
        soon(session, lambda done: done.tolist() == pytest.approx([0.1, 0]))  # half of 0.2 m
        page.evaluate("navigator.getGamepads = () => []")
        box = page.locator(".pad").first.bounding_box()
        page.mouse.move(box["x"] + 66, box["y"] + 66)
        page.mouse.down()
        page.mouse.move(box["x"] + 2, box["y"] + 66)
        soon(session, lambda done: done.tolist() == pytest.approx([0, 0.2 * 64 / 66], abs=0.01))
        page.mouse.up()
        soon(session, lambda done: done.tolist() == [0, 0])


def test_episodes_are_thrown_away_taken_back_and_skipped(browser, tmp_path):
    with collecting(tmp_path / "data", wide(), episodes=3) as session:
        page = opened(browser, session)

        def episode(key):
            begin(page)
            steps(session, 2)
            page.keyboard.press("Enter")
            page.locator("#success").wait_for()
            page.keyboard.press(key)

        episode("0")
        page.get_by_text("thrown away").wait_for()
        assert session.writer.num_episodes == 0
        episode("1")
        page.get_by_text("1 of 3 episodes").wait_for()
        page.locator("[data-say=record]").wait_for()
        page.keyboard.press("z")
        page.get_by_text("0 of 3 episodes").wait_for()
        page.get_by_text("taken back").wait_for()
        page.locator("[data-say=record]").wait_for()
        page.keyboard.press("n")
        episode("2")
        page.get_by_text("1 of 3 episodes, 0 successes").wait_for()
        episode("1")
        page.get_by_text("2 of 3 episodes, 1 successes").wait_for()
        assert [(x.seed, x.label["success"]) for x in session.writer.attempts] == [(1, False), (2, True)]


def test_a_person_corrects_a_policy_and_it_is_known_who_acted(browser, tmp_path):
    """A policy that only ever goes right; pushed left it gives way, and goes on by itself half a second later."""

    class Right(Homing):
        def act(self, obs):
            action = super().act(obs)
            return action.replace(commands=torch.tensor([0.0, -0.05]).repeat(1, self.horizon, 1))

    with collecting(tmp_path / "data", wide(), policy=Right(horizon=2)) as session:
        page = opened(browser, session)
        page.locator("#speed").fill("1")
        begin(page)
        steps(session, 4)
        page.keyboard.down("a")
        soon(session, lambda done: done[1] > 0.1)
        page.get_by_text("you act").wait_for()
        page.keyboard.up("a")
        steps(session, 12)
        page.get_by_text("the policy acts").wait_for()
        page.keyboard.press("t")
        steps(session, 8)
        page.keyboard.press("Enter")
        page.locator("#success").click()
        session.ended()
        label = session.writer.attempts[-1].label
        session.writer.close()
    rows = LeRobotDataset("local/data", root=tmp_path / "data").hf_dataset.with_format("numpy")
    who = np.array([SOURCES[int(x)] for x in np.array(rows["source"]).ravel()])
    action, meant = np.array(rows["action"]), np.array(rows["policy.action"])
    np.testing.assert_allclose(meant, [[0.0, -0.05]] * len(meant), atol=1e-6)
    np.testing.assert_allclose(action[who == POLICY], meant[who == POLICY], atol=1e-6)
    assert action[who == HUMAN, 1].max() == pytest.approx(0.2)
    assert (action[-4:] == 0).all()  # taken over, and nothing pushed
    turns = [x for x, _ in itertools.groupby(who)]
    assert turns == [POLICY, HUMAN, IDLE, POLICY, IDLE]
    assert (action[who == IDLE] == 0).all()
    assert label["interventions"] == 2
    assert label["human"] == (who == HUMAN).sum()


def test_what_is_not_on_disk_yet_can_be_kept_once_there_is_room(browser, tmp_path, monkeypatch):
    with collecting(tmp_path / "data", wide()) as session:
        page = opened(browser, session)
        begin(page)
        steps(session, 2)
        page.keyboard.press("Enter")
        with monkeypatch.context() as patch:

            def full(*_, **__):
                raise OSError(28, "No space left on device")

            patch.setattr(session.writer, "write", full)
            page.locator("#success").click()
            page.get_by_text("No space left on device. Make room").wait_for()
        page.locator("#success").click()
        session.ended()
        assert session.writer.num_episodes == 1


def test_the_twin_is_moved_by_hand_and_its_fault_is_shown_and_left(browser, tmp_path):
    with (
        running(HOST) as operator,
        closing(franka(HOST, driver={"silence": 60})) as env,
        collecting(tmp_path / "data", env, episodes=2) as session,
    ):
        page = browser.new_page()
        page.goto(session.page.url)
        page.get_by_text("Everyone is clear").click()
        page.locator("#speed").fill("1")
        begin(page)
        page.keyboard.down("s")
        soon(session, lambda done: done[0] == pytest.approx(-0.02, abs=2e-3))
        page.keyboard.up("s")
        page.keyboard.press("g")
        soon(session, lambda done: (done == 0).all())  # still, and closed
        operator.tell("user_stop", pressed=True)
        page.get_by_text("User Stop pressed!").wait_for()
        operator.tell("user_stop", pressed=False)
        page.get_by_text("let it move again").click()
        page.locator("#failure").click()
        page.get_by_text("1 of 2 episodes").wait_for()
        page.get_by_text("Everyone is clear").click()
        begin(page)
        page.keyboard.down("r")
        soon(session, lambda done: done[2] > 0.01)
        label = session.writer.attempts[0].label
        assert label["ended"].startswith("fault: libfranka")
        steps(session, 8)
        latent = session.attended.episode().action.latent
        assert np.median(np.diff(latent["capture.robot"].ravel().numpy())) == pytest.approx(1 / 15, abs=0.01)


@contextmanager
def started(command, errors, **options):
    """A program that does not outlive the test."""
    with open(errors, "w") as file:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, **options)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def said(errors, begins):
    """The first line that begins so, once it is there."""
    deadline = time.monotonic() + 100
    while True:
        for line in errors.read_text().splitlines():
            if line.startswith(begins):
                return line
        assert time.monotonic() < deadline, errors.read_text()[-2000:]
        time.sleep(0.1)


def test_one_command_and_a_browser_collect_pickcube_which_is_looked_through_and_learned(browser, tmp_path):
    """As the README has it, but for fewer and smaller episodes."""
    small = ["env.image_size=64", "env.drawing=light", "episodes=2", "images=image"]
    words = ["env=maniskill", f"out={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}", "page.port=0"]
    command = [sys.executable, "-m", "real.teleop", *words, *(f"+{x}" if x.startswith("env.") else x for x in small)]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}
    with started(command, tmp_path / "errors", cwd=PAGE.parents[1], env=where) as program:
        url = said(tmp_path / "errors", "teleop: open").split()[-1]
        page = browser.new_page()
        page.goto(url)
        for number in (1, 2):
            begin(page)
            page.keyboard.down("f")
            page.wait_for_function("state.step > 5")
            page.keyboard.up("f")
            page.keyboard.press("Enter")
            page.locator("#failure").wait_for()
            page.keyboard.press("2")
            page.get_by_text(f"{number} of 2 episodes").wait_for()
        with page.expect_popup() as opened:
            page.get_by_text("Look through the episodes").click()
        opened.value.get_by_text("2 of 2 episodes").wait_for()
        opened.value.wait_for_function("now === 0")
        opened.value.keyboard.press("Delete")
        opened.value.get_by_text("1 of 2 episodes").wait_for()
        page.get_by_role("button", name="Close").click()
        told = json.loads(program.communicate(timeout=60)[0].splitlines()[-1])
    assert (told["episodes"], told["success"]["k"]) == (2, 0)
    data = LeRobotDataset("local/data", root=tmp_path / "data")
    assert data.num_episodes == 2
    assert data[3]["observation.images.base_camera"].shape == (3, 64, 64)
    heights = np.array(data.hf_dataset.with_format("numpy")["action"])[:, 2]
    assert heights.min() < -0.001
    short = ["policy=gaussian", "steps=2", "algorithm.warmup_steps=1", "batch_size=4"]
    assert run(sft.main, f"data={tmp_path / 'data'}", *short, f"run_dir={tmp_path / 'sft'}")["program"] == "sft"


# -------- without a browser


def turned(spec, roll):
    obs = PointEnv(num_envs=1).reset(0)
    q = geometry.from_rotation_vector(torch.tensor([[roll, 0.0, 0.0]]))
    columns = [geometry.rotate(q, torch.eye(3)[i][None]) for i in (0, 1)]
    return obs.replace(proprio=torch.cat([torch.zeros(1, 3), *columns], -1))


def arm(clock, policy=None):
    from dataclasses import replace

    spec = replace(
        PointEnv(num_envs=1).spec,
        proprio=(("position", 3), ("rotation", 6)),
        command=Command("ee_delta", 7, max_translation=0.02, max_rotation=0.1),
    )
    return Person(spec, policy, clock=lambda: clock[0])


def test_pushes_are_steps_of_the_base_or_of_the_tool():
    person = arm([0.0])
    obs = turned(person.spec, np.pi)
    person.hear({**STILL, "axes": [0, 1, 1, 0, 0, 1], "speed": 0.5})
    straight = person.act(obs).commands[0, 0]
    half = 0.01 / np.sqrt(2)
    np.testing.assert_allclose(straight, [0, half, half, 0, 0, 0.05, 1], atol=1e-6)
    person.hear({**STILL, "axes": [0, 1, 1, 0, 0, 1], "speed": 0.5, "tool_frame": True})
    np.testing.assert_allclose(person.act(obs).commands[0, 0], [0, -half, -half, 0, 0, -0.05, 1], atol=1e-6)


def test_old_input_and_a_held_clutch_move_nothing_and_leave_the_gripper_alone():
    clock = [10.0]
    person = arm(clock)
    obs = turned(person.spec, 0.0)
    person.hear({**STILL, "axes": [1, 0, 0, 0, 0, 0]})
    person.grip(0.0)
    clock[0] += SILENCE - 0.01
    assert person.act(obs).commands[0, 0, 0] == pytest.approx(0.02)
    clock[0] += 0.02
    assert person.act(obs).commands[0, 0].tolist() == [0] * 7
    assert person.kept["operator.input"][0, -1].item() == pytest.approx(SILENCE + 0.01)
    person.hear({**STILL, "axes": [1, 0, 0, 0, 0, 0], "clutch": True})
    assert person.act(obs).commands[0, 0].tolist() == [0] * 7
    person.hear({**STILL, "axes": [1, 0, 0, 0, 0, 0]})
    person.silence()
    assert person.act(obs).commands[0, 0].tolist() == [0] * 7
    person.begin(0)
    assert person.act(obs).commands[0, 0, 6] == 1


def test_whoever_takes_over_keeps_what_the_policy_holds():
    """A policy that grips, in chunks of four; corrected, it looks anew at every step and plans from there."""
    asked = []

    class Grips:
        def act(self, obs):
            asked.append(obs)
            commands = torch.zeros(1, 4, 7)
            commands[..., 2] = torch.arange(4) / 1000 + len(asked)
            return Homing(4).act(PointEnv(num_envs=1).reset(0)).replace(commands=commands)

    clock = [0.0]
    person = arm(clock, Grips())
    obs = turned(person.spec, 0.0)
    played = [person.act(obs).commands[0, 0, 2].item() for _ in range(5)]
    assert played == pytest.approx([1, 1.001, 1.002, 1.003, 2])
    person.hear({**STILL, "axes": [1, 0, 0, 0, 0, 0]})
    first = person.act(obs).commands[0, 0]
    assert (person.source, first[6].item(), first[0].item()) == (HUMAN, 0.0, pytest.approx(0.02))
    assert person.meant[0, 2].item() == pytest.approx(3)
    clock[0] += 0.4  # not pushed any more, but not given back yet
    assert person.act(obs).commands[0, 0].tolist() == [0] * 7
    assert person.source == IDLE
    person.grip(0.0)
    assert person.act(obs).commands[0, 0].tolist() == [0] * 7
    assert person.source == HUMAN  # gripping takes a while
    clock[0] += 0.45
    person.act(obs)
    assert person.source == HUMAN
    clock[0] += 0.1
    assert person.act(obs).commands[0, 0, 2].item() == pytest.approx(6.001)
    assert person.source == POLICY


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"axes": [0, 0]}, "six numbers from -1 to 1"),
        ({"axes": [2, 0, 0, 0, 0, 0]}, "six numbers from -1 to 1"),
        ({"axes": [float("nan")] * 6}, "six numbers from -1 to 1"),
        ({"axes": None}, "an input has axes"),
        ({"speed": 0}, "share up to 1, got 0"),
        ({"speed": "fast"}, "fast"),
    ],
)
def test_what_is_no_input_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        Input.read({**STILL, **wrong}, 0.0)
    person = Person(PointEnv(num_envs=1).spec)
    desk = Desk(lambda _: None, person)
    with pytest.raises(ValueError, match="opening is from 0 to 1"):
        desk.tell({"say": "grip"})
    with pytest.raises(ValueError, match="say one of clear, record"):
        desk.tell({"say": "fly"})


def test_only_one_tool_is_moved_by_hand():
    with pytest.raises(ValueError, match=r"env\.num_envs=1"):
        Person(PointEnv(num_envs=2).spec)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_with_a_certificate_the_page_is_encrypted(browser, tmp_path):
    """As docs/teleop.md has it made; the page's own socket is encrypted too, or it would not know who operates."""
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(made.split(), cwd=tmp_path, check=True, capture_output=True)
    files = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with closing(Page(Desk(lambda _: None, Person(PointEnv(num_envs=1).spec)), port=0, page=PAGE, **files)) as served:
        assert served.url.startswith("https://")
        page = browser.new_page(ignore_https_errors=True)
        page.goto(served.url)
        page.wait_for_function("state.operates")
        with pytest.raises(Exception, match=r"ERR_EMPTY_RESPONSE|ERR_CONNECTION"):
            page.goto(served.url.replace("https", "http"))


class Script(Desk):
    """Labels every episode at once, and otherwise says yes."""

    def wait(self, *wanted, meanwhile=None, every=0.1):
        return {"say": wanted[0], "success": True}


def collect(out, episodes, judges=True, **options):
    """Without a page, by somebody who only looks on."""
    env = wide(max_steps=3)
    env.judges = judges
    person = Person(env.spec)
    with EpisodeWriter(out, env.spec, sources=SOURCES, images="image", beside=beside(env.spec, policy=False)) as writer:
        desk = Script(lambda _: None, person)
        Recorder(Attended(env, desk), person, writer, episodes, 0, About(**options)).play()


@pytest.mark.parametrize("judges", [True, False])
def test_the_simulators_verdict_is_what_is_learned_from_and_a_persons_word_where_there_is_none(tmp_path, judges):
    collect(tmp_path, 2, judges=judges)
    frames = load_frames(tmp_path)
    assert frames.success.tolist() == [False, False, not judges] * 2
    labels = [x["label"] for x in json.loads((tmp_path / "meta" / "armature.json").read_text())["attempts"]]
    assert [(x["success"], x["verdict"]) for x in labels] == [(True, False if judges else None)] * 2


def test_sft_learns_from_what_was_collected_and_collecting_goes_on(tmp_path):
    collect(tmp_path / "data", 2)
    collect(tmp_path / "data", 4)
    assert LeRobotDataset("local/data", root=tmp_path / "data").num_episodes == 4
    summary = run(
        sft.main,
        f"data={tmp_path / 'data'}",
        "policy=gaussian",
        "steps=2",
        "algorithm.warmup_steps=1",
        "batch_size=4",
        f"run_dir={tmp_path / 'sft'}",
    )
    assert summary["program"] == "sft"


def test_each_instruction_has_its_own_paraphrases(tmp_path):
    instruction = PointEnv(num_envs=1).reset(0).instruction[0]
    collect(tmp_path, 1, paraphrases={instruction: ["there"], "dance": ["jump"]})
    label = json.loads((tmp_path / "meta" / "armature.json").read_text())["attempts"][0]["label"]
    assert label["paraphrases"] == ["there"]


def test_seeds_to_test_on_are_not_collected(tmp_path):
    env = wide(max_steps=3)
    person = Person(env.spec)
    with EpisodeWriter(tmp_path, env.spec, sources=SOURCES, beside=beside(env.spec, policy=False)) as writer:
        recorder = Recorder(Attended(env, Script(lambda _: None, person)), person, writer, 1, 10_000, About())
        with pytest.raises(ValueError, match="kept for tests: collect from another seed"):
            recorder.play()


def test_a_simulator_takes_its_time():
    env = Paced(wide(max_steps=5))
    began = time.monotonic()
    rollout(env, Person(env.spec), seed=0)
    assert time.monotonic() - began > 0.49  # 5 steps at 10 Hz


KILLED = """
import sys; sys.path[:0] = sys.argv[2:]
from test_teleop import collect
collect(sys.argv[1], 10_000)
"""


@pytest.mark.parametrize("number", range(3))
def test_a_kill_at_any_moment_loses_no_finished_episode(tmp_path, number):
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(here), str(here.parent)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    work = tmp_path / "data" / ".unfinished"
    deadline = time.monotonic() + 100
    while len(list(work.glob("episode_*.safetensors"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(np.random.default_rng(number).uniform(0, 0.3))
    finished = len(list(work.glob("episode_*.safetensors")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list(work.glob("episode_*.safetensors")))
    assert there >= finished
    collect(tmp_path / "data", there + 1)
    data = LeRobotDataset("local/data", root=tmp_path / "data")
    assert (data.num_episodes, data.num_frames) == (there + 1, 3 * (there + 1))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["env=point"], "out=... is required"),
        (["env=point", "out=data", "episodes=0"], "episodes must be at least 1"),
        (["env=maniskill", "out=data", "+env.command=joint_delta", "env.images=false"], "ee_delta commands"),
        (["env=point", "out=data", "page.certificate=nowhere.pem"], "page.certificate=nowhere.pem"),
        (["env=point", "out=data", "policy=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_collected_is_one_line(tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["teleop", *words, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
