"""Faults of datasets are found where they were put, and only there; a dataset of our own is fit to learn from."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import run

from policies.scripted import ScriptedExpert
from simulators.maniskill import maniskill
from simulators.point import Homing, PointEnv
from vla.data.checks import Episode, check
from vla.data.episodes import EpisodeWriter
from vla.recipes import check_dataset
from vla.rollout import rollout
from vla.types import Camera, Command, EnvSpec

LAYOUT = (("position", 3), ("rotation", 6), ("gripper", 1))
SPEC = EnvSpec(1, 10.0, 50, (Camera("eye", 8, 8),), LAYOUT, Command("ee_delta", 7, 0.05, 0.2))


def episode(number, lag=1, steps=40):
    """An arm that does each command `lag` steps later, without turning; its fingers move a fifth each step."""
    chance = np.random.default_rng(number)
    action = chance.uniform(-0.02, 0.02, (steps, 7))
    action[:, 3:6] = 0
    action[:, 6] = 1.0
    action[15:30, 6] = 0.0
    moved = np.concatenate([np.zeros((lag, 3)), action[: steps - lag, :3]])
    position = np.concatenate([np.zeros((1, 3)), moved.cumsum(0)[:-1]])
    opening = [1.0]
    for x in action[:-1, 6]:
        opening.append(opening[-1] + np.clip(x - opening[-1], -0.2, 0.2))
    turn = np.tile([1.0, 0, 0, 0, 1, 0], (steps, 1))
    state = np.concatenate([position, turn, np.array(opening)[:, None]], 1)
    pictures = chance.integers(0, 255, (steps, 8, 8, 3)).astype(np.uint8)
    success = np.arange(steps) == steps - 1
    return Episode(action, action.copy(), state, np.arange(steps) / 10, success, "go", {"eye": pictures})


def verdicts(episodes):
    return {x.name: x.verdict for x in check(episodes, SPEC)}


def good(count=6, **options):
    return [episode(i, **options) for i in range(count)]


def test_a_sound_dataset_is_ok():
    found = verdicts(good())
    assert found.pop("turns") == "ok"
    assert set(found.values()) == {"ok"}
    assert len(found) == 12


def inverted(x, axis):
    action = x.action.copy()
    action[:, axis] = 1 - action[:, axis] if axis == 6 else -action[:, axis]
    return replace(x, action=action, requested=action)


def swapped(x):
    action = x.action.copy()
    action[:, [0, 1]] = action[:, [1, 0]]
    return replace(x, action=action, requested=action)


def early(x):
    """Commands that come after their motion: shifted by four steps."""
    action = np.roll(x.action, 4, axis=0)
    return replace(x, action=action, requested=action)


def still(x):
    return replace(x, state=np.tile(x.state[:1], (len(x.state), 1)))


def with_nan(x):
    action = x.action.copy()
    action[3, 2] = np.nan
    return replace(x, action=action)


def turned_over(x):
    state = x.state.copy()
    state[20:, 3:9] *= -1
    return replace(x, state=state)


def frozen(x):
    return replace(x, pictures={"eye": np.repeat(x.pictures["eye"][:1], len(x.action), 0)})


ONE = {
    "numbers": (with_nan, "FAIL"),
    "duplicates": (lambda x: replace(x, action=good()[1].action), "FAIL"),
    "rotation": (turned_over, "FAIL"),
    "pictures": (frozen, "FAIL"),
    "lengths": (lambda x: episode(0, steps=4), "warn"),
    "labels": (lambda x: replace(x, instruction=" "), "FAIL"),
}


@pytest.mark.parametrize("name", ONE)
def test_one_bad_episode_is_enough(name):
    spoil, verdict = ONE[name]
    episodes = good()
    found = verdicts([spoil(episodes[0]), *episodes[1:]])
    assert found[name] == verdict


EVERY = {
    "axes": (lambda x: inverted(x, 1), "FAIL"),
    "gripper": (lambda x: inverted(x, 6), "FAIL"),
    "lag": (early, "FAIL"),
    "idle": (still, "FAIL"),
    "rate": (lambda x: replace(x, times=x.times * 2), "warn"),
    "held back": (lambda x: replace(x, requested=x.action * 3), "warn"),
}


@pytest.mark.parametrize("name", EVERY)
def test_what_is_wrong_in_all_episodes_is_found(name):
    spoil, verdict = EVERY[name]
    found = verdicts([spoil(x) for x in good()])
    assert found[name] == verdict


def test_it_is_said_what_an_axis_does_and_how_late_motion_is():
    said = {x.name: x.figure for x in check([swapped(x) for x in good()], SPEC)}
    assert said["axes"] == "x acts as y; y acts as x"
    late = {x.name: x for x in check(good(lag=5), SPEC)}
    assert (late["lag"].verdict, late["lag"].figure[:41]) == ("warn", "motion is most like its commands 5 steps ")


def test_what_a_dataset_does_not_have_is_skipped():
    spec = replace(SPEC, proprio=(("state", 10),))
    bare = [replace(x, requested=None, times=None, pictures={}) for x in good()]
    skipped = {x.name for x in check(bare, spec) if x.verdict == "skipped"}
    assert skipped == {"rate", "lag", "axes", "turns", "gripper", "rotation", "held back", "idle", "pictures"}


def test_demonstrations_of_the_simulator_pass_and_with_an_inverted_gripper_they_do_not(tmp_path, capsys):
    env = maniskill("PickCube-v1", num_envs=1, image_size=32, drawing="light")
    with EpisodeWriter(tmp_path / "data", env.spec, images="image") as writer:
        for seed in range(3):
            writer.write(rollout(env, ScriptedExpert("PickCube-v1"), seed=seed).episodes()[0], seed=seed)
    env.close()
    arguments = [f"data={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    found = {k: x["verdict"] for k, x in run(check_dataset.main, *arguments)["checks"].items()}
    assert set(found.values()) == {"ok"}, found
    path = next((tmp_path / "data" / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[:, 6] = 1 - actions[:, 6]
    column = pa.array(actions.tolist(), table.schema.field("action").type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    with pytest.raises(SystemExit) as ended:
        run(check_dataset.main, *arguments)
    assert ended.value.code == 2
    assert "is not fit to learn from: gripper" in capsys.readouterr().err
    checks = json.loads((tmp_path / "run" / "checks.json").read_text())
    assert [x["name"] for x in checks if x["verdict"] == "FAIL"] == ["gripper"]


def test_a_dataset_of_another_kind_of_robot_is_checked_for_what_it_has(tmp_path):
    env = PointEnv(num_envs=3)
    with EpisodeWriter(tmp_path / "data", env.spec, images="image") as writer:
        for i, played in enumerate(rollout(env, Homing(1), seed=0).episodes()):
            writer.write(played, seed=i)
    found = run(check_dataset.main, f"data={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}")["checks"]
    assert found["axes"]["verdict"] == "skipped"
    assert found["numbers"]["verdict"] == "ok"
