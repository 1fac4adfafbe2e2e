"""Disturbances are held, leave the gripper and the label alone, and show recoveries."""

import pytest
import torch
from tensordict import TensorDict

from simulators.point import Homing, PointEnv
from vla.data.noise import Noisy, largest
from vla.rollout import rollout
from vla.types import Action, Command, Observation

ARM = Command("ee_delta", 7, max_translation=0.05, max_rotation=0.2)


class Still:
    """Always asks for the same command."""

    def act(self, obs: Observation) -> Action:
        b = obs.batch_size
        commands = torch.full((*b, 1, 7), 0.01)
        return Action(commands, torch.zeros(*b, 0), TensorDict({}, b), batch_size=b)


def seen(num_envs: int) -> Observation:
    return Observation(TensorDict({}, [num_envs]), torch.zeros(num_envs, 1), ["x"] * num_envs, batch_size=[num_envs])


def disturbances(steps: int, num_envs: int = 1, **options) -> torch.Tensor:
    torch.manual_seed(0)
    actor = Noisy(Still(), ARM, **options)
    return torch.stack([actor.act(seen(num_envs)).commands[:, 0] - 0.01 for _ in range(steps)])


def test_each_disturbance_is_one_motion_held_for_so_many_steps():
    motion = disturbances(300, scale=0.5, probability=0.2, hold=3)[:, 0, 0]
    values, counts = torch.unique_consecutive(motion, return_counts=True)
    runs = list(zip(values.tolist(), counts.tolist(), strict=True))
    assert {count for value, count in runs[:-1] if value != 0} == {3}
    assert sum(value != 0 for value, _ in runs) > 20
    quiet = [count for value, count in runs if value == 0]
    assert max(quiet) > 3  # the actor has time to mend


def test_the_share_of_disturbed_steps_is_as_configured():
    """A quiet step begins with 1 / p - 1 quiet ones on average, then `hold` disturbed ones."""
    disturbed = (disturbances(400, num_envs=200, scale=1.0, probability=0.1, hold=4)[..., 0] != 0).float().mean()
    assert disturbed.item() == pytest.approx(4 / (4 + 9), abs=0.01)


def test_size_is_a_share_of_the_limits_and_the_gripper_is_left_alone():
    motion = disturbances(50, num_envs=400, scale=0.5, probability=1.0, hold=1)
    deviation = motion.flatten(0, 1).std(0)
    torch.testing.assert_close(deviation, torch.tensor([0.025] * 3 + [0.1] * 3 + [0.0]), rtol=0.03, atol=1e-6)
    assert motion.mean(dim=(0, 1)).abs().max() < 0.003


def test_environments_are_disturbed_independently():
    motion = disturbances(100, num_envs=2, scale=0.5, probability=0.1, hold=2)
    assert not torch.equal(motion[:, 0] != 0, motion[:, 1] != 0)


def test_the_label_is_what_the_expert_asked_for_and_the_environment_gets_the_rest():
    env = PointEnv(num_envs=8)
    played = rollout(env, Noisy(Homing(1), env.spec.command, scale=0.5, probability=0.5), seed=0)
    clean = Homing(1).act(played.obs).commands
    torch.testing.assert_close(played.action.latent["requested"][played.valid], clean[played.valid])
    torch.testing.assert_close(played.executed[played.valid], played.action.commands[played.valid].clamp(-0.2, 0.2))
    assert not torch.allclose(played.executed[played.valid], clean[played.valid], atol=0.1)


def test_the_same_seed_disturbs_the_same():
    env = PointEnv(num_envs=3)
    played = [
        rollout(env, Noisy(Homing(1), env.spec.command, scale=0.5, probability=0.5), seed=s).executed for s in (5, 5, 6)
    ]
    assert torch.equal(played[0], played[1])
    assert played[2].shape != played[0].shape or not torch.equal(played[0], played[2])


def test_commands_without_limits_cannot_be_disturbed():
    joints = largest(Command("joint_delta", 8, max_rotation=0.1))
    torch.testing.assert_close(joints, torch.tensor([0.1] * 7 + [0.0]))
    with pytest.raises(ValueError, match="without limits"):
        largest(Command("joint_position", 8))
    with pytest.raises(ValueError, match="scale >= 0"):
        Noisy(Still(), ARM, scale=-1.0)
