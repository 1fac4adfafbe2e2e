"""PPO that is drawn to an adviser: what is added to its loss, how often the adviser is asked, and that it helps."""

import math
from functools import partial

import pytest
import torch

from policies.critic import Critic
from policies.deterministic import DeterministicPolicy
from policies.gaussian import GaussianPolicy
from policies.teacher import advised_by_checkpoint
from policies.token import TokenPolicy
from simulators.point import Homing, PointEnv
from vla.algorithms.ppo import PPO
from vla.algorithms.rpd import RPD
from vla.models.state_mlp import StateMLP
from vla.rollout import Greedy, rollout
from vla.types import Actor, Command

SPEC = PointEnv().spec
HELD_OUT = 10**6
critic = partial(Critic, encoder=StateMLP)


def gauss(seed=0):
    torch.manual_seed(seed)
    return GaussianPolicy(SPEC, StateMLP, 2)


class Asked(Homing):
    """How often it was asked, about how many states."""

    def __init__(self, horizon=2):
        super().__init__(horizon)
        self.states = []

    def act(self, obs):
        self.states.append(len(obs))
        return super().act(obs)


class Astray(Homing):
    """Goes the right way, turned by so many degrees: an adviser that is worth something, and can be passed."""

    def __init__(self, horizon, degrees):
        super().__init__(horizon)
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        self.turn = torch.tensor([[c, -s], [s, c]])

    def act(self, obs):
        action = super().act(obs)
        return action.replace(commands=action.commands @ self.turn.T)


def success(actor: Actor) -> float:
    return rollout(PointEnv(num_envs=100), actor, seed=HELD_OUT).success.any(0).float().mean().item()


def test_without_weight_an_update_is_that_of_ppo():
    played = rollout(PointEnv(num_envs=8), gauss(), seed=0)
    trained = []
    for make in (PPO, partial(RPD, adviser=lambda _: Homing(2), weight=0.0)):
        policy = gauss()
        algorithm = make(policy, critic, epochs=2, minibatch=16)
        torch.manual_seed(1)
        algorithm.update(played)
        trained.append(policy.state_dict())
    assert all(torch.equal(x, trained[1][n]) for n, x in trained[0].items())


@pytest.mark.parametrize("distance", ["mse", "l1", "nll"])
def test_what_is_added_to_the_loss_is_the_distance_to_the_advice_where_commands_were_executed(distance):
    policy = gauss()
    played = rollout(PointEnv(num_envs=8, max_steps=7), policy, seed=0)  # their last chunk is half executed
    algorithm = RPD(policy, critic, lambda _: Homing(2), distance=distance, minibatch=4)
    decisions = played[played.valid]
    advice, executed = algorithm._more(decisions)
    algorithm.progress.updates = 1
    found, told = algorithm._guide(decisions, advice, executed)
    meant, wanted = policy.mode(decisions.obs).commands, Homing(2).act(decisions.obs).commands
    off = (meant - wanted) / 0.2  # the limits of a command
    by_hand = {"mse": off.square(), "l1": off.abs()}
    if distance == "nll":
        expected = policy.imitation_loss(decisions.obs, wanted, ~executed).mean()
    else:
        expected = by_hand[distance].mean(-1)[executed].mean()
    assert executed.sum() == decisions.num_steps.sum()
    assert executed.float().mean() < 1
    torch.testing.assert_close(found, expected)
    assert told["advice_distance"] == pytest.approx(expected.item())
    gradient = torch.autograd.grad(found, policy.head.weight)[0]
    assert gradient.abs().max() > 0


def test_the_adviser_is_asked_once_per_state_and_update_however_many_epochs_there_are():
    policy, adviser = gauss(), Asked()
    algorithm = RPD(policy, critic, lambda _: adviser, epochs=5, minibatch=16)
    played = rollout(PointEnv(num_envs=8), policy, seed=0)
    algorithm.update(played)
    assert sum(adviser.states) == played.valid.sum()
    assert max(adviser.states) <= 16


def test_the_pull_fades_along_half_a_cosine_and_ends():
    policy = gauss()
    algorithm = RPD(policy, critic, lambda _: Homing(2), weight=2.0, until=4, epochs=1)
    told = [algorithm.update(rollout(PointEnv(num_envs=8), policy, seed=8 * i))["advice_weight"] for i in range(6)]
    assert told == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0])
    steady = RPD(policy, critic, lambda _: Homing(2), weight=0.5)
    told = [steady.update(rollout(PointEnv(num_envs=8), policy, seed=8 * i))["advice_weight"] for i in range(2)]
    assert told == [0.5, 0.5]


@pytest.mark.parametrize("until", [None, 12])
def test_a_mediocre_adviser_is_passed_sooner_than_reward_alone_gets_there(until):
    """Success is told at the end only; the adviser misses most targets."""
    adviser = Astray(2, degrees=50)
    reached = {}
    for name, options in {"ppo": {"weight": 0.0}, "rpd": {"weight": 0.3, "until": until}}.items():
        policy = gauss()
        algorithm = RPD(policy, critic, lambda _: adviser, lr=3e-3, epochs=4, minibatch=128, **options)
        env = PointEnv(num_envs=64)
        for i in range(8):
            algorithm.update(rollout(env, policy, seed=64 * i))
        reached[name] = success(Greedy(policy))
    assert reached["rpd"] > reached["ppo"] + 0.2
    assert reached["rpd"] > success(adviser) + 0.2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"weight": -1.0}, r"weight >= 0 and until >= 1 \(or null\), got -1\.0"),
        ({"until": 0}, "got 1.0 and 0"),
        ({"distance": "kl"}, "one of mse, l1, nll, got 'kl'"),
    ],
)
def test_wrong_settings_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        RPD(gauss(), critic, lambda _: Homing(2), **options)


def test_an_adviser_that_does_not_fit_is_refused():
    policy = gauss()
    played = rollout(PointEnv(num_envs=8), policy, seed=0)
    with pytest.raises(ValueError, match="chunks of 1 commands, the student of 2"):
        RPD(policy, critic, lambda _: Homing(1)).update(played)
    tokens = TokenPolicy(SPEC, StateMLP, 2, bins=8)
    with pytest.raises(TypeError, match="no gradient: use distance=nll"):
        RPD(tokens, critic, lambda _: Homing(2)).update(rollout(PointEnv(num_envs=8), tokens, seed=0))


def test_a_checkpoint_advises_if_its_commands_mean_the_same(monkeypatch):
    student = gauss()
    teacher = DeterministicPolicy(SPEC, StateMLP, 4)
    monkeypatch.setattr("policies.teacher.load_policy", lambda _: teacher)
    obs = PointEnv(num_envs=3).reset(0)
    assert torch.equal(advised_by_checkpoint(student, "it").act(obs).commands, teacher.mode(obs).commands)
    algorithm = RPD(student, critic, partial(advised_by_checkpoint, directory="it"))
    assert algorithm.update(rollout(PointEnv(num_envs=8), student, seed=0))["advice_distance"] > 0
    from dataclasses import replace

    other = replace(SPEC, command=Command("ee_delta", 2, 0.1, None))
    monkeypatch.setattr("policies.teacher.load_policy", lambda _: DeterministicPolicy(other, StateMLP, 4))
    with pytest.raises(ValueError, match=r"the teacher in it gives commands ee_delta.* max 0\.1 m.* student ee_delta"):
        advised_by_checkpoint(student, "it")
