"""What a person says of episodes afterwards is kept beside them, followed by training, and can be taken back."""

import json
import logging
from contextlib import closing

import httpx
import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from programs import run

from real.review import ReviewPage
from real.reviewing import Reviewing
from simulators.point import Homing, PointEnv
from vla.data.episodes import EpisodeWriter
from vla.data.frames import load_column, load_frames
from vla.data.review import Review, Said
from vla.data.signals import episodes_of
from vla.recipes import apply_review, check_dataset, sft
from vla.rollout import rollout

LENGTH = 12


def recorded(out, image_size=16):
    """Three episodes of the toy that go on after they succeed, the second of them played twice."""
    env = PointEnv(num_envs=1, max_steps=LENGTH, ends_on_success=False, image_size=image_size)
    with EpisodeWriter(out, env.spec) as writer:
        for seed in (0, 1, 1):
            said = {"success": True, "verdict": True, "tag": "", "operator": "ann"}
            writer.write(rollout(env, Homing(1), seed=seed).episodes()[0], seed=seed, label=said)
    return out


@pytest.fixture
def data(tmp_path):
    return recorded(tmp_path / "data")


def test_training_follows_what_was_said_and_nothing_recorded_changes(data):
    before = load_frames(data)
    assert before.num_episodes == 3
    review = Review(data)
    review.say(0, Said(begin=2, end=9), LENGTH)
    review.say(0, Said(success=False), LENGTH)
    review.say(1, Said(removed=True), LENGTH)
    review.say(2, Said(instruction="go to the red spot", end=8), LENGTH)
    review.say(2, Said(success=True), LENGTH)
    after, times = load_frames(data), load_column(data, "capture.time")
    assert after.episode_start.tolist() == [0, 7, 15]
    whole, third = slice(2, 9), slice(2 * LENGTH, 2 * LENGTH + 8)
    for name in ("action", "proprio"):
        expected = torch.cat([getattr(before, name)[whole], getattr(before, name)[third]])
        torch.testing.assert_close(getattr(after, name), expected)
    np.testing.assert_array_equal(after.images["top"][:7], before.images["top"][whole])
    assert times[:7, 0] == pytest.approx([0.1 * x for x in range(2, 9)])
    assert after.success.tolist() == [False] * 7 + [False] * 7 + [True]
    assert {after.instructions[i] for i in after.task[7:]} == {"go to the red spot"}
    assert {after.instructions[i] for i in after.task[:7]} == {before.instructions[before.task[0]]}
    again = load_frames(data, as_recorded=True)
    torch.testing.assert_close(again.success, before.success)
    assert len(again) == 3 * LENGTH
    assert LeRobotDataset("local/data", root=data).num_frames == 3 * LENGTH


def test_what_was_said_last_is_taken_back_also_by_another_program(data):
    Review(data).say(0, Said(removed=True), LENGTH)
    Review(data).say(0, Said(note="shaky"), LENGTH)
    review = Review(data)
    assert review.of(0) == Said(removed=True, note="shaky")
    assert review.undo() == 0
    assert Review(data).of(0) == Said(removed=True)
    assert Review(data).undo() == 0
    assert len(load_frames(data)) == 3 * LENGTH
    with pytest.raises(ValueError, match="nothing to take back"):
        review.undo()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"begin": 5, "end": 5}, "12 frames cannot be cut to 5 up to 5"),
        ({"end": 13}, "cannot be cut to 0 up to 13"),
        ({"begin": -1}, "cannot be cut to -1 up to 12"),
        ({"begin": 2.0}, r"begin is int, got 2\.0"),
        ({"success": "yes"}, "success is bool, got 'yes'"),
        ({"deleted": True}, "of an episode one says removed, begin"),
        ({"instruction": " "}, "an episode has an instruction"),
    ],
)
def test_what_cannot_be_is_refused_and_not_kept(data, said, why):
    review = Review(data)
    with pytest.raises(ValueError, match=why):
        review.say(1, Said.read(said), LENGTH)
    assert not review.path.exists()


def test_a_review_of_something_else_is_refused(data):
    (data / "review.json").write_text('[{"episode": 7, "said": {"removed": true}}]')
    with pytest.raises(ValueError, match="speaks of episode 7, and there are 3"):
        load_frames(data)
    (data / "review.json").write_text('{"no": "list"}')
    with pytest.raises(ValueError, match="is no review"):
        load_frames(data)
    (data / "review.json").write_text(
        "[" + ",".join(f'{{"episode": {i}, "said": {{"removed": true}}}}' for i in range(3)) + "]"
    )
    with pytest.raises(ValueError, match="leave nothing of 36 frames"):
        load_frames(data)


def test_recording_goes_on_beside_a_review(data):
    Review(data).say(1, Said(removed=True), LENGTH)
    recorded(data)
    assert load_frames(data, as_recorded=True).num_episodes == 6
    assert load_frames(data).num_episodes == 5


@pytest.mark.parametrize("image_size", [16, 64])  # below 64 pictures are kept exactly, from there on as video
def test_a_dataset_of_what_is_left_is_written_for_other_programs(tmp_path, image_size):
    data = recorded(tmp_path / "data", image_size)
    review = Review(data)
    review.say(0, Said(removed=True), LENGTH)
    review.say(1, Said(begin=3, success=False, tag="missed", instruction="go"), LENGTH)
    told = run(apply_review.main, f"data={data}", f"out={tmp_path / 'new'}", f"run_dir={tmp_path / 'run'}")
    assert told["episodes"] == 2
    new = LeRobotDataset("local/new", root=tmp_path / "new")
    assert (new.num_episodes, new.num_frames) == (2, LENGTH - 3 + LENGTH)
    ours, theirs = load_frames(data), load_frames(tmp_path / "new")
    for name in ("action", "proprio", "success", "reward", "episode_start"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name))
    for camera in ours.images:
        off = (theirs.images[camera].float() - ours.images[camera].float()).abs().mean()
        assert off < (1e-6 if image_size < 64 else 4)
    assert theirs.instructions[theirs.task[0]] == "go"
    done = np.array(new.hf_dataset.with_format("numpy")["next.done"]).ravel()
    assert np.flatnonzero(done).tolist() == [LENGTH - 4, 2 * LENGTH - 4]
    attempts = json.loads((tmp_path / "new" / "meta" / "armature.json").read_text())["attempts"]
    assert [(x["kept"], x["success"]) for x in attempts] == [(False, True), (True, False), (True, True)]
    assert attempts[1]["label"] == {
        "success": False,
        "verdict": True,
        "tag": "missed",
        "operator": "ann",
        "instruction": "go",
    }
    with pytest.raises(SystemExit):
        run(apply_review.main, f"data={data}", f"out={tmp_path / 'new'}", f"run_dir={tmp_path / 'run'}")
    assert not list(tmp_path.glob(".new*"))


def test_checks_and_training_run_on_what_is_left(data, tmp_path):
    """The second and third episode are the same, which is found until one of them is removed."""
    with pytest.raises(SystemExit):
        run(check_dataset.main, f"data={data}", f"run_dir={tmp_path / 'check'}")
    Review(data).say(2, Said(removed=True), LENGTH)
    told = run(check_dataset.main, f"data={data}", f"run_dir={tmp_path / 'again'}")
    assert not [x for x in logging.getLogger().handlers if isinstance(x, logging.FileHandler)]  # its log is closed
    assert (told["episodes"], told["frames"]) == (2, 2 * LENGTH)
    assert told["checks"]["duplicates"]["verdict"] == "ok"
    short = ["steps=2", "algorithm.warmup_steps=1", "batch_size=4", "policy=gaussian"]
    assert run(sft.main, f"data={data}", *short, f"run_dir={tmp_path / 'sft'}")["program"] == "sft"


# -------- in a browser


@pytest.fixture
def page(browser, data):
    with closing(ReviewPage(Reviewing(data), port=0)) as served:
        page = browser.new_page()
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(served.url)
        page.get_by_text("3 of 3 episodes").wait_for()
        page.wait_for_function("now === 0")
        yield page
        page.close()


def said(data):
    return Review(data).by_episode()


def test_episodes_are_cut_relabelled_removed_and_put_back_from_the_keyboard(page, data):
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("[")
    page.get_by_text("frames 2 to 11 are left").wait_for()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("]")
    page.get_by_text("frames 2 to 8 are left").wait_for()
    page.keyboard.press("2")
    page.get_by_text("2 succeed").wait_for()
    page.locator("#tag").fill("missed")
    page.locator("#tag").press("Enter")
    page.get_by_text("Episode 0, missed").wait_for()
    assert said(data) == {0: Said(begin=2, end=9, success=False, tag="missed")}
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("now === 1")
    page.keyboard.press("Delete")
    page.get_by_text("2 of 3 episodes").wait_for()
    page.reload()
    page.get_by_text("2 of 3 episodes, 19 frames").wait_for()
    page.get_by_text("frames 2 to 8 are left").wait_for()
    page.keyboard.press("z")
    page.get_by_text("3 of 3 episodes, 31 frames").wait_for()
    assert load_frames(data).episode_start.tolist() == [0, 7, 19, 31]


def test_pictures_and_numbers_shown_are_those_recorded(page, data):
    frames = load_frames(data)
    episode = next(iter(episodes_of(data, frames)))
    page.keyboard.press("ArrowRight")
    shown = page.evaluate(
        """async () => {
          const image = document.querySelector("#views img"); await image.decode()
          const size = [image.naturalWidth, image.naturalHeight]
          const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
          [canvas.width, canvas.height] = size
          pen.drawImage(image, 0, 0)
          return { size, data: [...pen.getImageData(0, 0, ...size).data] }
        }"""
    )
    picture = np.array(shown["data"], dtype=float).reshape(*shown["size"], 4)[..., :3]
    distances = [np.abs(picture - x).mean() for x in episode.pictures["top"].astype(float)]
    assert int(np.argmin(distances)) == 1
    assert min(distances) < 6  # JPEG
    np.testing.assert_allclose(page.evaluate("signals.action"), episode.action.T, atol=1e-5)
    assert page.evaluate("signals.succeeds") == episode.success.tolist()
    assert page.evaluate("signals.times") == pytest.approx([0.1 * x for x in range(LENGTH)])


def test_it_plays_at_the_rate_it_was_recorded_at_and_only_what_is_left(page):
    page.evaluate("say({ begin: 3, end: 8 })")
    page.get_by_text("frames 3 to 7 are left").wait_for()
    page.keyboard.press("Space")
    page.wait_for_function("playing && frame >= 3")
    page.wait_for_function("!playing && frame === 7")


def test_flags_and_statistics_are_shown(page):
    page.locator("#list button").nth(2).click()
    page.get_by_text("duplicates: the same commands as episode 1").wait_for()
    assert [x.count("duplicates") for x in page.locator("#list button").all_inner_texts()] == [0, 0, 1]
    page.keyboard.press("s")
    page.get_by_text("ways from above").wait_for()
    assert page.evaluate("sum.success.k") == 3
    drawn = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some(x => x > 0)"
    assert all(page.eval_on_selector_all("#numbers canvas", f"all => all.map({drawn})"))


def test_other_sites_and_those_without_the_token_get_nothing(data):
    with (
        closing(ReviewPage(Reviewing(data), host="0.0.0.0", port=0)) as served,
        httpx.Client(base_url=served.url.replace("0.0.0.0", "127.0.0.1").partition("?")[0]) as client,
    ):
        assert [client.get(x).status_code for x in ("/", "/review", "/review/dataset")] == [403] * 3
        asked = {"token": served.token}
        assert client.get("/review/dataset", params=asked).json()["left"] == 3
        foreign = {"origin": "http://elsewhere.example"}
        answer = client.post("/review/say/0", params=asked, json={"removed": True}, headers=foreign)
        assert answer.status_code == 403
        answer = client.post("/review/say/0", params=asked, json={"removed": True, "deleted": True})
        assert answer.status_code == 400
        assert "of an episode one says removed, begin" in answer.json()["detail"]
        answer = client.get("/review/episode/9", params=asked)
        assert (answer.status_code, answer.json()["detail"]) == (400, "there is no episode 9: they are 0 to 2")
        assert not said(data)
        assert client.post("/review/say/0", params=asked, json={"removed": True}).json()["episodes"][0]["removed"]
