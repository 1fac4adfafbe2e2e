"""LIBERO: its files, its official states kept for tests, and nothing asked, downloaded or written."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import torch
from scenes import assets, scene

from policies.adapters import libero_proprio
from policies.scripted import ScriptedExpert
from simulators import libero as suites
from simulators.libero import libero
from simulators.libero_files import CHECKOUT, SUITES, initial_states, libero_assets, tasks_of
from vla.rollout import TEST_SEEDS, rollout


def test_there_are_130_tasks_each_with_50_official_states_and_a_sentence():
    tasks = {suite: tasks_of(suite) for suite in SUITES}
    assert [len(x) for x in tasks.values()] == [10, 10, 10, 10, 90]
    for task in [x for some in tasks.values() for x in some]:
        assert len(initial_states(task)) == 50
        assert np.isfinite(initial_states(task)).all()
        assert task.said
        assert task.named.islower() or any(word.isupper() for word in task.named.split())


def test_a_task_is_told_as_defined_or_as_its_name_has_it():
    task = tasks_of("libero_10", 0)[0]
    assert "SCENE" not in task.named
    assert "_" not in task.named
    bowl = tasks_of("libero_spatial", "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate")[0]
    assert bowl.named == "pick up the black bowl from table center and place it on the plate"
    assert bowl.said == "Pick the akita black bowl from table center and place it on the plate"


def test_importing_it_and_listing_tasks_asks_nothing_and_writes_nothing_home(tmp_path):
    code = "import simulators.libero; from simulators.libero_files import tasks_of; print(len(tasks_of('libero_90')))"
    env = {**os.environ, "HOME": str(tmp_path)} | {"PYTHONPATH": str(CHECKOUT)}
    env.pop("LIBERO_CONFIG_PATH", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)
    assert done.stdout.split() == ["90"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_assets_are_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"lacks articulated_objects.*download=FOLDER.*LIBERO_ASSETS"):
        libero_assets(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "libero_spacial"}, "no LIBERO suite 'libero_spacial'; there are libero_spatial"),
        ({"suite": "libero_goal", "task": 10}, "libero_goal has tasks 0 to 9, got 10"),
        ({"suite": "libero_goal", "task": "dance"}, "libero_goal has no task 'dance'"),
        ({"suite": "libero_goal", "language": "french"}, "language must be bddl"),
        ({"suite": "libero_goal", "num_envs": 0}, "num_envs must be at least 1"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        libero(**{"num_envs": 1, **options})


def test_tasks_that_move_a_thing_and_tasks_that_do_not_can_be_put_side_by_side():
    drawer = next(i for i, task in enumerate(tasks_of("libero_goal")) if task.said.startswith("Open the middle"))
    env = libero("libero_goal", 2, images=False, assets=assets())
    obs = env.reset(drawer)
    moves = obs.privileged["object_size"].any(-1).tolist()
    assert len(set(moves)) == 2, obs.instruction
    idle = moves.index(False)
    assert obs.privileged["object"][idle].eq(0).all()
    command = ScriptedExpert("LIBERO").act(obs).commands[:, 0]
    assert command[idle, :6].abs().max() < 1e-3  # the expert knows nothing to do there
    assert command[1 - idle, :3].abs().max() > 0.01
    env.close()


@pytest.fixture(scope="module")
def two_tasks():
    """Two copies of a suite without pictures: they are always at two different tasks."""
    env = libero("libero_object", 2, images=False, assets=assets(), settle=0)
    yield env
    env.close()
    suites.close_idle()


def test_test_seeds_start_from_the_official_states_in_turn_and_others_do_not(two_tasks):
    for episode in (0, 20):
        two_tasks.reset(TEST_SEEDS.start + episode)
        for i, copy in enumerate(two_tasks.scenes):
            official = initial_states(tasks_of("libero_object")[i])[episode // 10]
            np.testing.assert_allclose(copy.env.sim.get_state().flatten()[1:], official[1:], atol=1e-9)
    two_tasks.reset(40)
    states = initial_states(tasks_of("libero_object")[0])
    ours = two_tasks.scenes[0].env.sim.get_state().flatten()
    assert np.abs(states - ours)[:, 10:40].max(-1).min() > 1e-3  # a placement of its own


def test_copies_play_different_tasks_and_keep_their_simulators_between(two_tasks):
    obs = two_tasks.reset(0)
    assert len(set(obs.instruction)) == 2
    assert two_tasks.reset(1).instruction[0] == obs.instruction[1]
    built = {copy.env for copy in two_tasks.scenes}.union(*suites.IDLE.values())
    for seed in (0, 1, 0):
        two_tasks.reset(seed)
        assert {copy.env for copy in two_tasks.scenes} <= built  # taken up again, not built anew
    assert sum(map(len, suites.IDLE.values())) <= suites.KEPT


def test_a_place_is_told_in_the_same_form_for_every_task(two_tasks):
    told = two_tasks.reset(0).privileged
    assert {"object", "object_size", "object_depth", "place", "place_size"} <= set(told.keys())
    assert (told["object_size"] > 0.005).all()
    assert (told["object_size"] < 0.2).all()
    assert (told["place"][:, :3] - told["object"][:, :3]).norm(dim=-1).min() > 0.1


def test_an_episode_begins_settled():
    env = scene("libero", "libero_object:1", images=False)
    obs = env.reset(TEST_SEEDS.start)
    start = obs.privileged["object"].clone()
    rest = torch.tensor([[0.0] * 6 + [1.0]])
    moved = (env.step(rest).obs.privileged["object"] - start)[:, :3].norm()
    assert obs.proprio[0, env.spec.proprio_slice("gripper")] > 0.9  # ten steps with the gripper open
    assert moved < 1e-3
    env.close()


@pytest.mark.parametrize("task", ["libero_object:1", "libero_spatial:2"])
def test_the_expert_does_tasks_of_both_kinds_of_grasp(task):
    env = scene("libero", task, images=False)
    assert rollout(env, ScriptedExpert("LIBERO"), seed=TEST_SEEDS.start).success.any()
    env.close()


def test_proprio_is_told_to_public_checkpoints_as_their_data_have_it():
    """Against the simulator's own numbers, which LIBERO's recordings were made of."""
    quat2axisangle = pytest.importorskip("robosuite.utils.transform_utils").quat2axisangle
    with closing(libero("libero_spatial", 1, task=0, images=False, assets=assets(), base=True)) as env:
        env.reset(10_000)
        for t in range(20):
            turned = torch.tensor([[0.02, 0.01 * (-1) ** t, -0.01, 0.1, 0.15 * (-1) ** (t // 7), 0.1, t % 2]])
            obs = env.step(turned).obs
        simulator = env.scenes[0].env
        robot, data = simulator.robots[0], simulator.sim.data
        w, *xyz = data.body_xquat[simulator.sim.model.body_name2id(robot.robot_model.eef_name)]
        theirs = np.concatenate(
            [
                data.site_xpos[robot.eef_site_id],
                quat2axisangle(np.array([*xyz, w])),
                [data.get_joint_qpos(joint) for joint in robot.gripper.joints],
            ]
        )
        ours = libero_proprio(obs.proprio, env.spec)[0]
    torch.testing.assert_close(ours[:6], torch.from_numpy(theirs).float()[:6], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[6:], torch.from_numpy(theirs).float()[6:], atol=2e-3, rtol=0)  # of both the mean
