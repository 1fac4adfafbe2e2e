"""What PPO and GRPO go down, against numbers worked out on paper."""

import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from policies.critic import Critic
from policies.diffusion import DiffusionPolicy
from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from simulators.point import PointEnv
from vla.algorithms.grpo import GRPO
from vla.algorithms.losses import draw_clips, draw_discounts, executed_factors
from vla.algorithms.ppo import PPO
from vla.algorithms.surrogate import Surrogate
from vla.models.denoisers import UNet1D
from vla.models.state_mlp import StateMLP
from vla.rollout import rollout
from vla.types import Action, Observation, Rollout

SPEC = PointEnv().spec
SmallUNet = partial(UNet1D, channels=(16,))
Flow = partial(FlowPolicy, SPEC, StateMLP, 2, SmallUNet, steps=3)
Diffusion = partial(DiffusionPolicy, SPEC, StateMLP, 2, SmallUNet, levels=20, steps=4)
Gauss = partial(GaussianPolicy, SPEC, StateMLP, 2)


class Scored:
    """Whatever it decided, its log-probabilities are those it was made with."""

    def __init__(self, log_prob: torch.Tensor):
        self.scores = log_prob

    def act(self, obs):
        raise NotImplementedError

    def log_prob(self, obs, action):
        return self.scores


def decisions(log_prob: torch.Tensor, horizon: int) -> Rollout:
    n = len(log_prob)
    nothing = torch.zeros(n)
    return Rollout(
        obs=Observation(images=TensorDict({}, [n]), proprio=nothing[:, None], instruction=[""] * n, batch_size=[n]),
        action=Action(
            commands=torch.zeros(n, horizon, 1), log_prob=log_prob, latent=TensorDict({}, [n]), batch_size=[n]
        ),
        reward=nothing,
        success=nothing.bool(),
        terminated=nothing.bool(),
        valid=~nothing.bool(),
        num_steps=torch.full((n,), horizon),
        batch_size=[n],
    )


def judged(surrogate: Surrogate, ratio: list[float], advantage: list[float], horizon: int = 2):
    """Loss and figures of one decision whose factors have become so much likelier."""
    some = decisions(torch.full((1, len(ratio)), -1.0), horizon)
    policy = Scored(some.action.log_prob + torch.tensor([ratio]).log())
    return surrogate(policy, some, torch.tensor([advantage]), executed_factors(some))


# ---- the draws of a chain


def test_the_last_draw_is_worth_the_whole_advantage_and_earlier_ones_less_and_less():
    assert draw_discounts(3, 0.5).tolist() == [0.25, 0.5, 1.0]
    assert draw_discounts(3, 1.0).tolist() == [1.0, 1.0, 1.0]
    assert draw_discounts(3, 0.0).tolist() == [0.0, 0.0, 1.0]


def test_the_clip_grows_exponentially_from_the_first_draw_to_the_last():
    """DPPO goes from 0.001 to 0.01; halfway (e^1.5 - 1) / (e^3 - 1) = 1 / (e^1.5 + 1) = 0.1824 of the way."""
    assert (0.01 * draw_clips(3, 0.1)).tolist() == pytest.approx([0.001, 0.001 + 0.009 * 0.182426, 0.01], rel=1e-5)
    assert (0.01 * draw_clips(2, 0.1)).tolist() == pytest.approx([0.001, 0.01])
    assert draw_clips(4, 1.0).tolist() == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.05, 1.0, -(0.5 * 1.05 + 1.05) / 2, 0.0),
        (1.15, 1.0, -(0.5 * 1.1 + 1.15) / 2, 0.5),  # only the early draws have gone far enough
        (1.5, 1.0, -(0.5 * 1.1 + 1.2) / 2, 1.0),
        (0.75, -1.0, (0.5 * 0.85 + 0.75) / 2, 0.5),  # low and high shrink alike
        (1.5, -1.0, (0.5 * 1.5 + 1.5) / 2, 1.0),  # moved the wrong way: never clipped
    ],
)
def test_early_draws_gain_half_and_may_go_half_as_far_if_that_is_said(ratio, advantage, loss, clipped):
    """Two commands of one number, each drawn twice."""
    surrogate = Surrogate((0.3, 0.2), None, "factor", chain_discount=0.5, chain_clip=0.5, num_drawn=2)
    actual, told = judged(surrogate, [ratio] * 4, [advantage])
    assert actual.item() == pytest.approx(loss, abs=1e-6)
    assert told["clipped"] == clipped


def test_factors_are_the_numbers_of_a_commands_first_draw_then_of_its_second():
    surrogate = Surrogate(0.9, None, "factor", chain_discount=0.0, num_drawn=2)
    ratio = [1.0, 1.1, 1.2, 1.3]
    assert judged(surrogate, ratio, [1.0], horizon=2)[0].item() == pytest.approx(-(1.1 + 1.3) / 4)
    assert judged(surrogate, ratio, [1.0], horizon=1)[0].item() == pytest.approx(-(1.2 + 1.3) / 4)
    per_command = judged(surrogate, ratio, [1.0, -2.0], horizon=2)[0]
    assert per_command.item() == pytest.approx(-(1.1 - 2 * 1.3) / 4)


@pytest.mark.parametrize("make", [partial(Flow, chain="noise"), partial(Diffusion, eta=1.0, num_scored=3)])
def test_with_a_discount_of_nothing_only_the_last_draw_of_a_real_chain_teaches(make):
    policy = make()
    played = rollout(PointEnv(num_envs=3), policy, seed=0)
    played = played[played.valid]
    told = {}
    for discount in (0.0, 1.0):
        surrogate = Surrogate(0.2, None, "factor", chain_discount=discount, num_drawn=policy.num_drawn)
        for name, states in {"as played": [], "first": [0], "middle": [1], "last": [-1]}.items():
            some = played.clone()
            some.action.latent["chain"][:, states] += 0.02
            loss, _ = surrogate(policy, some, torch.ones(len(some), 1), executed_factors(some))
            told[discount, name] = loss.item()
    assert told[0.0, "as played"] == pytest.approx(-1 / 3, abs=1e-5)
    assert told[0.0, "first"] == told[0.0, "middle"] == told[0.0, "as played"] != told[0.0, "last"]
    assert len({told[1.0, name] for name in ("as played", "first", "middle", "last")}) == 4


@pytest.mark.parametrize("algorithm", [GRPO, partial(PPO, critic=partial(Critic, encoder=StateMLP))])
def test_weighing_draws_is_refused_where_they_cannot_be_told_apart(algorithm):
    wanted = {"chain_discount": 0.9, "chain_clip": 0.5, "granularity": "factor"}
    surrogate = algorithm(Flow(chain="noise"), **wanted).surrogate
    assert (surrogate.chain_discount, surrogate.chain_clip, surrogate.num_drawn) == (0.9, 0.5, 3)
    for granularity in ("command", "chunk"):
        with pytest.raises(ValueError, match=f"a ratio per {granularity} sums: they need granularity 'factor'"):
            algorithm(Flow(chain="noise"), **{**wanted, "granularity": granularity})
    for policy, draws in ((Gauss(), 1), (Flow(chain="sde"), 1), (Flow(chain="ode"), 0), (Diffusion(), 0)):
        with pytest.raises(ValueError, match=f"this policy makes {draws}: they need several"):
            algorithm(policy, **wanted)
    for wrong in ({"chain_discount": 1.1}, {"chain_clip": 0.0}, {"chain_clip": math.nan}):
        with pytest.raises(ValueError, match="chain_discount must be from 0 to 1 and chain_clip above 0 and up to 1"):
            algorithm(Flow(chain="noise"), **{**wanted, **wrong})
