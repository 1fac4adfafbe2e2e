"""Actors that know nothing or are kept from knowing: what they command, and that copies do not change an episode."""

import math

import pytest
import torch
from tensordict import TensorDict

from simulators.point import Homing, PointEnv
from vla.rollout import rollout
from vla.sanity import UNRELATED, Blind, Random, Stay, Told, wrong_instructions
from vla.types import Action, Command, EnvSpec, Observation


class Noting:
    """An actor that stays, and keeps what it was shown."""

    def __init__(self, spec):
        self.stay, self.shown = Stay(spec), []

    def act(self, obs: Observation) -> Action:
        self.shown.append(obs)
        return self.stay.act(obs)


def spec(kind: str, size: int, **limits) -> EnvSpec:
    proprio = (("gripper", 1), ("joint_position", size - 1)) if kind == "joint_position" else (("position", 3),)
    return EnvSpec(4, 20.0, 10, (), proprio, Command(kind, size, **limits))


def observation(spec: EnvSpec, envs: int = 4) -> Observation:
    proprio = torch.arange(envs * spec.proprio_dim).float().reshape(envs, -1) / 10
    return Observation(TensorDict({}, [envs]), proprio, ["do it"] * envs, batch_size=[envs])


def test_staying_is_no_motion_with_the_gripper_open():
    for kind, size in (("ee_delta", 7), ("joint_delta", 8)):
        commands = Stay(spec(kind, size, max_rotation=0.1), horizon=3).act(observation(spec(kind, size))).commands
        assert commands.shape == (4, 3, size)
        assert commands[..., :-1].eq(0).all()
        assert commands[..., -1].eq(1).all()


def test_staying_in_joint_positions_is_where_the_joints_are():
    joints = spec("joint_position", 8)
    obs = observation(joints)
    commands = Stay(joints).act(obs).commands
    assert torch.equal(commands[:, 0, :-1], obs.proprio[:, 1:])  # the first number is the gripper's
    assert commands[..., -1].eq(1).all()


def test_a_point_that_stays_does_not_move():
    env = PointEnv(num_envs=3, max_steps=4)
    episodes = rollout(env, Stay(env.spec), seed=0)
    assert torch.equal(episodes.obs.proprio[0], episodes.obs.proprio[-1])


def test_random_commands_fill_their_limits_evenly():
    arm = spec("ee_delta", 7, max_translation=0.05, max_rotation=0.2)
    commands = Random(arm, horizon=1000).act(observation(arm)).commands.flatten(0, 1)
    for part, limit in ((commands[:, :3], 0.05), (commands[:, 3:6], 0.2)):
        radius = part.norm(dim=-1) / limit
        assert radius.max() <= 1
        assert (radius**3).mean() == pytest.approx(0.5, abs=0.02)  # the volume within a radius is uniform in a ball
        assert part.mean(0).abs().max() < 0.05 * limit
    assert (commands[:, 6].min(), commands[:, 6].max()) == pytest.approx((0, 1), abs=0.01)
    assert commands[:, 6].mean() == pytest.approx(0.5, abs=0.02)


def test_random_joint_positions_are_around_where_the_joints_are():
    joints = spec("joint_position", 8)
    obs = observation(joints)
    motion = Random(joints, horizon=500).act(obs).commands[..., :-1] - obs.proprio[:, None, 1:]
    assert motion.abs().max() == pytest.approx(0.1, abs=0.005)
    assert motion.std() == pytest.approx(0.1 / math.sqrt(3), abs=0.003)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_random_episodes_do_not_depend_on_the_number_of_copies(copies):
    six = PointEnv(num_envs=6, max_steps=5)
    together = rollout(six, Random(six.spec), seed=40).executed
    few = PointEnv(num_envs=copies, max_steps=5)
    actor = Random(few.spec)
    apart = [rollout(few, actor, seed=40 + i).executed for i in range(0, 6, copies)]
    assert torch.equal(torch.cat(apart, 1), together)
    assert not torch.equal(together[:, 0], together[:, 1])


def test_random_commands_are_not_those_of_another_seed_nor_the_draws_of_the_environment():
    env = PointEnv(num_envs=200, max_steps=1)
    episodes = rollout(env, Random(env.spec), seed=0)
    start, first = episodes.obs.proprio[0, :, 0], episodes.executed[0, :, 0, 0]
    assert torch.corrcoef(torch.stack([start, first]))[0, 1].abs() < 0.2
    assert not torch.equal(first, rollout(env, Random(env.spec), seed=1000).executed[0, :, 0, 0])


def test_the_blind_see_black_and_all_else():
    env = PointEnv(num_envs=2, max_steps=2)
    actor = Noting(env.spec)
    episodes = rollout(env, Blind(actor), seed=0)
    assert all(obs.images["top"].eq(0).all() for obs in actor.shown)
    assert torch.equal(actor.shown[1].proprio, episodes.obs.proprio[1])
    assert episodes.obs.images["top"].float().std() > 1  # the episode itself keeps what was to be seen


def test_what_is_told_is_never_what_is_wanted():
    env = PointEnv(num_envs=16, max_steps=2, num_targets=2)
    wanted = env.reset(0).instruction
    assert len(set(wanted)) == 2
    actor = Noting(env.spec)
    episodes = rollout(env, Told(actor, wrong_instructions(wanted)), seed=0)
    assert all(a != b for a, b in zip(actor.shown[0].instruction, wanted, strict=True))
    assert set(actor.shown[0].instruction) == set(wanted)
    assert episodes.obs[0].instruction == wanted


def test_without_another_instruction_an_unrelated_one_is_told():
    assert wrong_instructions(["a", "b", "c", "b"]) == {"a": "b", "b": "c", "c": "a"}
    assert wrong_instructions(["a", "a"]) == {"a": UNRELATED}
    env = PointEnv(num_envs=2, max_steps=2)
    actor = Noting(env.spec)
    rollout(env, Told(actor, {}), seed=0)
    assert actor.shown[0].instruction == [UNRELATED, UNRELATED]


def test_an_actor_kept_from_nothing_acts_as_before():
    env = PointEnv(num_envs=4, max_steps=6)
    plain, told = rollout(env, Homing(2), seed=3), rollout(env, Told(Blind(Homing(2)), {}), seed=3)
    assert torch.equal(plain.executed, told.executed)  # the expert neither looks nor listens
