"""robosuite: tasks, arms, experts and refusals."""

import numpy as np
import pytest
import torch
from scenes import scene, settle, settled_pose

from policies.scripted import ScriptedExpert
from simulators.robosuite import ALIASES, INSTRUCTIONS, MAX_STEPS, SUCCESS, check_task, robosuite
from vla.rollout import rollout

EXPERTS = ("Lift", "Stack", "Can", "Square")


def test_every_task_says_what_to_do_and_when_it_is_done():
    assert INSTRUCTIONS.keys() == SUCCESS.keys()
    assert MAX_STEPS.keys() <= INSTRUCTIONS.keys()
    assert all(check_task(short) in INSTRUCTIONS for short in ALIASES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "TwoArmLift"}, "TwoArmLift needs two arms.*choose a task for one arm"),
        ({"task": "Lifd"}, "no robosuite task 'Lifd'; there are Lift, Stack"),
        ({"task": "Lift", "robot": "Baxter"}, "no robot 'Baxter' with one arm in robosuite; there are IIWA"),
        ({"task": "Lift", "reward": "shaped"}, "reward must be sparse or dense"),
        ({"task": "Lift", "cameras": ["left_eye"]}, "no camera left_eye; this scene has frontview"),
        ({"task": "Lift", "drawing": "fast"}, "drawing must be one of full, light"),
        ({"task": "Lift", "num_envs": 0}, "num_envs must be at least 1"),
    ],
)
def test_what_there_is_not_is_refused_saying_what_there_is(options, message):
    with pytest.raises(ValueError, match=message):
        robosuite(**{"num_envs": 1, **options})


@pytest.mark.parametrize("task", EXPERTS)
def test_experts_finish_their_tasks(task):
    env = scene("robosuite", task, images=False)
    assert rollout(env, ScriptedExpert(task), seed=500).success.any()
    env.close()


def test_a_success_ends_an_episode_only_if_asked_to():
    env = scene("robosuite", "Lift", images=False, ends_on_success=False, max_steps=40)
    episode = rollout(env, ScriptedExpert("Lift"), seed=500)
    assert episode.valid.sum() == 40
    assert episode.success.any()
    assert not episode.terminated.any()
    env.close()


def test_what_is_seen_after_a_command_is_of_the_last_moment():
    """MuJoCo's step leaves poses as they were before its last two milliseconds."""
    env = scene("robosuite", "Lift", images=False)
    env.reset(0)
    seen = env.step(torch.tensor([[0.05, 0.05, -0.05, 0.0, 0.0, 0.2, 0.0]])).obs
    env.env.sim.forward()
    assert torch.equal(env._observe().proprio, seen.proprio)
    env.close()


def test_a_dense_reward_grows_as_the_tool_nears_the_cube():
    env = scene("robosuite", "Lift", images=False, reward="dense")
    rewards = rollout(env, ScriptedExpert("Lift"), seed=500).reward[:, 0]
    assert rewards[12] > rewards[0] + 0.05
    env.close()


@pytest.mark.parametrize("robot", ["Panda", "Jaco"])
def test_a_control_step_is_robosuites_own_to_the_last_bit(robot):
    """Ours leaves out what is computed twice; from one state, both go to one state."""
    states = []
    for ours in (True, False):
        env = scene("robosuite", "Lift", images=False, robot=robot)
        env.reset(3)
        actions = np.array(
            [[0.5, -0.3, -1.0, 0.1, 0.2, 0.3, 1.0]] * 8 + [[1.0, 1, 1, 1, 1, 1, 1], [-1.0] * 6 + [1]] * 4
        )
        for action in actions:
            if ours:
                env.arm.controller.set_goal(action[:6])
                env.arm.advance(0.0)
            else:
                env.env.step(action)
        states.append(env.env.sim.get_state().flatten())
        env.close()
    assert np.array_equal(*states)


@pytest.mark.slow
@pytest.mark.parametrize("robot", ["IIWA", "UR5e", "Jaco", "Kinova3"])
def test_other_arms_move_and_grip_alike(robot):
    env = scene("robosuite", "Lift", robot=robot, images=False, max_steps=1000)
    start = settled_pose(env)
    for _ in range(4):
        env.step(torch.tensor([[0, 0.0125, 0, 0, 0, 0, 1.0]]))
    moved = settle(env).privileged["tcp"] - start
    torch.testing.assert_close(moved[0, :3], torch.tensor([0, 0.05, 0.0]), atol=0.006, rtol=0)
    assert settle(env, 1.0, 40).privileged["gripper"] > 0.85
    assert settle(env, 0.0, 40).privileged["gripper"] < 0.15
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_every_task_starts_moves_and_is_seen(task):
    env = scene("robosuite", task, image_size=32, drawing="light")
    start = env.reset(0)
    for _ in range(5):
        step = env.step(torch.tensor([[0, 0.01, 0.01, 0, 0, 0, 1.0]]))
    assert (step.obs.proprio - start.proprio).abs().max() > 0.01
    assert all(start.images[camera.name].float().std() > 1 for camera in env.spec.cameras)
    env.close()
