"""What every environment owes the rest of the platform, checked for each of them."""

import functools
import os
import signal

import pytest
import torch
from scenes import assets
from twins import standing

from real.franka import Franka
from simulators.batch import SceneBatch
from simulators.libero import libero
from simulators.maniskill import ManiSkillEnv, maniskill
from simulators.point import PointEnv
from simulators.robosuite import robosuite
from simulators.subprocess import SubprocessEnv
from vla.rollout import execute
from vla.types import ChunkEnv, RestartingEnv

SMALL = {"image_size": 16, "drawing": "light", "max_steps": 6}
SCENE = functools.partial(ManiSkillEnv, "PickCube-v1", **SMALL)
ENVS = {
    "point": lambda: PointEnv(num_envs=3, max_steps=6, num_targets=2),
    "maniskill in this process": lambda: SceneBatch(SCENE, 2),
    "maniskill in workers": lambda: SubprocessEnv(SCENE, 3, workers=2),
    "maniskill joint_delta": lambda: maniskill("PickCube-v1", 1, command="joint_delta", **SMALL),
    "maniskill joint_position": lambda: maniskill("PickCube-v1", 1, command="joint_position", **SMALL),
    "robosuite in this process": lambda: robosuite("Lift", 2, **SMALL),
    "robosuite in workers": lambda: robosuite("Stack", 3, workers=2, **SMALL),
    "robosuite joint_delta": lambda: robosuite("Lift", 1, command="joint_delta", **SMALL),
    "robosuite joint_position": lambda: robosuite("Lift", 1, command="joint_position", **SMALL),
    "libero in this process": lambda: libero("libero_object", 2, assets=assets(), **SMALL),
    "franka on its twin": lambda: standing("127.0.0.14", 1340, image_size=16, max_steps=6),
}


@pytest.fixture(scope="module", params=ENVS)
def env(request):
    env = ENVS[request.param]()
    yield env
    env.close()


def is_robot(env) -> bool:
    return isinstance(env, Franka)


def commands(env, horizon: int, seed: int = 0):
    """Small random commands around staying where one is."""
    rng = torch.Generator().manual_seed(seed)
    chunk = torch.rand(env.spec.num_envs, horizon, env.spec.action_dim, generator=rng) * 0.02 - 0.01
    if env.spec.command.kind == "joint_position":
        chunk[..., :-1] += env.reset(0).proprio[:, None, env.spec.proprio_slice("joint_position")]
    return chunk


def assert_same(a, b):
    torch.testing.assert_close(a.proprio, b.proprio, rtol=0, atol=0)
    torch.testing.assert_close(a.images.to_dict(), b.images.to_dict(), rtol=0, atol=0)
    torch.testing.assert_close(a.privileged.to_dict(), b.privileged.to_dict(), rtol=0, atol=0)
    assert a.instruction == b.instruction


def assert_alike(env, a, b):
    """The same; of a robot, whose clock does not wait for us, within millimetres, and a picture's noise."""
    if not is_robot(env):
        return assert_same(a, b)
    hand = env.spec.proprio_slice("gripper")
    places = torch.ones(env.spec.proprio_dim, dtype=torch.bool)
    places[hand] = False
    torch.testing.assert_close(a.proprio[:, places], b.proprio[:, places], rtol=0, atol=0.01)
    torch.testing.assert_close(a.proprio[:, hand], b.proprio[:, hand], rtol=0, atol=0.15)
    for name, x in a.images.items():
        assert (x.float() - b.images[name].float()).abs().mean() < 4
    torch.testing.assert_close(a.privileged["cube"], b.privileged["cube"], rtol=0, atol=0.01)
    return None


def test_the_same_seed_starts_and_continues_the_same_whatever_came_before(env):
    chunk = commands(env, 3)
    first, played = env.reset(7), execute(env, chunk, torch.ones(env.spec.num_envs, dtype=torch.bool))
    env.reset(8)
    execute(env, commands(env, 2, seed=1), torch.ones(env.spec.num_envs, dtype=torch.bool))
    assert_alike(env, env.reset(7), first)
    assert_alike(env, execute(env, chunk, torch.ones(env.spec.num_envs, dtype=torch.bool)).obs, played.obs)


def test_environment_i_starts_the_episode_of_seed_plus_i(env):
    if env.spec.num_envs < 2:
        pytest.skip("one copy")
    assert_same(env.reset(20)[1:2], env.reset(21)[:1])
    some, others = env.reset(20), env.reset(21)
    assert not torch.equal(some.proprio, others.proprio) or some.instruction != others.instruction


def test_observations_are_as_the_spec_says(env):
    obs, n = env.reset(0), env.spec.num_envs
    assert obs.proprio.shape == (n, env.spec.proprio_dim)
    assert set(obs.images.keys()) == {camera.name for camera in env.spec.cameras}
    for camera in env.spec.cameras:
        assert obs.images[camera.name].shape == (n, camera.height, camera.width, 3)
        assert obs.images[camera.name].dtype == torch.uint8
        assert obs.images[camera.name].float().std() > 1  # something is to be seen
    assert len(obs.instruction) == n
    assert all(isinstance(text, str) and text for text in obs.instruction)


def test_time_ends_an_episode_exactly_at_max_steps_and_only_truncates_it(env):
    env.reset(3)
    for t in range(env.spec.max_steps):
        step = env.step(commands(env, 1)[:, 0] if env.spec.command.kind != "joint_position" else hold(env, t))
        over = t + 1 == env.spec.max_steps
        assert not step.terminated.any()
        assert step.truncated.eq(over).all()


def hold(env, t):
    if t == 0:
        hold.target = commands(env, 1)[:, 0]
        env.reset(3)
    return hold.target


def test_observations_are_not_overwritten_later(env):
    first = env.reset(0)
    kept = first.clone()
    step = env.step(commands(env, 1)[:, 0] * 0 + 0.02)
    shown = step.obs.clone()
    env.step(commands(env, 1)[:, 0] * 0 + 0.02)
    env.reset(5)
    assert_same(first, kept)
    assert_same(step.obs, shown)


def test_a_chunk_in_one_call_is_the_same_as_its_commands_one_by_one(env):
    if not isinstance(env, ChunkEnv):
        pytest.skip("plays chunks command by command")
    chunk = commands(env, 4)
    env.reset(11)
    at_once = env.play(chunk)
    env.reset(11)
    steps = [env.step(command) for command in chunk.unbind(1)]
    assert_same(at_once.obs, steps[-1].obs)
    torch.testing.assert_close(at_once.executed, torch.stack([s.executed for s in steps], 1))
    torch.testing.assert_close(at_once.rewards, torch.stack([s.reward for s in steps], 1))
    torch.testing.assert_close(at_once.reward, at_once.rewards.sum(1))
    assert at_once.num_steps.eq(4).all()


def test_after_its_end_an_episode_neither_moves_nor_earns(env):
    if not isinstance(env, ChunkEnv):
        pytest.skip("columns may do anything after their end")
    chunk = commands(env, env.spec.max_steps)
    env.reset(2)
    last = env.play(chunk)
    after = env.play(chunk[:, :3])
    assert_same(after.obs, last.obs)
    assert after.reward.eq(0).all()
    assert after.num_steps.eq(0).all()
    assert after.executed.eq(0).all()


def test_a_killed_worker_costs_its_episodes_and_nothing_else(env):
    if not isinstance(env, SubprocessEnv):
        pytest.skip("plays in this process")
    chunk = commands(env, 2)
    first, played = env.reset(30), env.play(chunk)
    env.reset(30)
    os.kill(env.workers[0].process.pid, signal.SIGKILL)
    step = env.play(chunk)
    assert step.failed.tolist() == step.truncated.tolist() == [True, True, False]
    assert_same(step.obs[:2], first[:2])
    assert_same(step.obs[2:], played.obs[2:])
    assert_same(env.reset(30), first)
    assert_same(env.play(chunk).obs, played.obs)


def test_one_copy_begins_a_new_episode_while_the_others_go_on(env):
    if not isinstance(env, RestartingEnv) or env.spec.num_envs < 2:
        pytest.skip("copies begin together")
    chunk = commands(env, 3)
    env.reset(30)
    alone = [env.step(command) for command in chunk.unbind(1)]
    start = env.reset(90)[:1]
    env.reset(30)
    env.step(chunk[:, 0])
    step = env.step_or_reset([*chunk[:-1, 1], 90])
    assert_same(step.obs[-1:], start)
    assert_same(step.obs[:-1], alone[1].obs[:-1])
    assert step.reward[-1] == 0
    assert step.executed[-1].eq(0).all()
    assert not (step.success | step.terminated | step.truncated).any()
    torch.testing.assert_close(step.reward[:-1], alone[1].reward[:-1])
    assert_same(env.step(chunk[:, 2]).obs[:-1], alone[2].obs[:-1])
    for t in range(3, env.spec.max_steps + 1):
        over = env.step_or_reset(list(commands(env, 1)[:, 0])).truncated
        assert over[:-1].eq(t == env.spec.max_steps - 1).all() or t == env.spec.max_steps
    assert not over[-1]  # its time began later
