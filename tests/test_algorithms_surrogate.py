"""What PPO and GRPO go down, against numbers worked out on paper."""

import copy
import math
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from policies.critic import Critic
from policies.diffusion import DiffusionPolicy
from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from simulators.point import PointEnv
from vla.algorithms.grpo import GRPO
from vla.algorithms.losses import draw_clips, draw_discounts, executed_factors
from vla.algorithms.ppo import PPO
from vla.algorithms.rescoring import rescored
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
CRITIC = partial(Critic, encoder=StateMLP)


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


@pytest.mark.parametrize("algorithm", [GRPO, partial(PPO, critic=CRITIC)])
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


# ---- episodes that older weights played


def weighed(granularity: str, advantage: list[float], **settings):
    """Of one decision of two commands, since it was made 3 and 1/2 times as likely; the advantages it then has."""
    surrogate = Surrogate(granularity=granularity, decoupled=True, **settings)
    some = decisions(torch.full((1, 2), -1.0), horizon=2)
    policy = Scored(some.action.log_prob + torch.tensor([[3.0, 0.5]]).log())
    counts = executed_factors(some)
    centred, better, told = surrogate.centred(policy, some, torch.tensor([advantage]), counts, 1, torch.device("cpu"))
    assert torch.equal(centred.action.log_prob, policy.scores)
    assert (some.action.log_prob == -1).all()
    return better[0].tolist(), told


@pytest.mark.parametrize(
    ("granularity", "advantage", "max_weight", "weighed_by", "kl", "capped"),
    [
        ("command", [1.0], 2.0, [2.0, 0.5], (3 - 1 - math.log(3) + 0.5 - 1 + math.log(2)) / 2, 0.5),
        ("factor", [1.0], 4.0, [3.0, 0.5], (3 - 1 - math.log(3) + 0.5 - 1 + math.log(2)) / 2, 0.0),
        ("command", [1.0, -4.0], 2.0, [2.0, -2.0], (3 - 1 - math.log(3) + 0.5 - 1 + math.log(2)) / 2, 0.5),
        ("chunk", [-2.0], 2.0, [-3.0], 0.5 - math.log(1.5), 0.0),
        ("chunk", [-2.0], 1.0, [-2.0], 0.5 - math.log(1.5), 1.0),
    ],
)
def test_what_has_become_likelier_weighs_more_up_to_a_bound(granularity, advantage, max_weight, weighed_by, kl, capped):
    actual, told = weighed(granularity, advantage, max_weight=max_weight)
    assert actual == pytest.approx(weighed_by)
    assert told == pytest.approx({"staleness_kl": kl, "capped": capped}, abs=1e-6)


class Guess(nn.Module):
    """Decides on one number around what it has learned, with a standard deviation of 1."""

    def __init__(self, mean: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))

    def act(self, obs):
        raise NotImplementedError

    def log_prob(self, obs, action):
        return -(action.latent["number"] - self.mean).square() / 2


class Indifferent(nn.Module):
    """Every state is worth nothing."""

    def forward(self, obs):
        return torch.zeros(len(obs))


def stale_episodes() -> Rollout:
    """Two of one decision each, by a policy around 0: 3/2 earned 1 and 0 earned nothing."""
    number = torch.tensor([[1.5], [0.0]])
    ended = decisions(-number.square() / 2, horizon=1)
    ended.action.latent["number"] = number
    ended.terminated[:] = True
    ended.reward[0] = 1.0
    after = ended.clone()
    after.valid[:] = False
    return torch.stack([ended, after])


ALONE = {
    "grpo": (partial(GRPO, group=2, advantage="mean", keep=None), 0.5),
    "ppo": (partial(PPO, critic=lambda policy: Indifferent()), 1.0),  # with normalised advantages
}


@pytest.mark.parametrize("name", ALONE)
def test_an_update_with_stale_episodes_is_the_one_worked_out_on_paper(name):
    """Around 1 by now, it would decide e and 1/sqrt(e) times as likely as they were played; e is cut to 2.

    The slopes of the log-probabilities are 1/2 and -1. A step of 1/2 makes the ratios e^(1/8) and e^(-5/8), both past
    a clip of 0.1, so the second epoch has nothing to go down.
    """
    make, size = ALONE[name]
    policy = Guess(1.0)
    settings = {"lr": 0.5, "clip": 0.1, "granularity": "chunk", "max_grad_norm": 1e9, "decoupled": True}
    told = make(policy, epochs=1, **settings).update(stale_episodes())
    less = math.exp(-0.5)
    assert policy.mean.grad.item() == pytest.approx(-size / 2 * (2 * 0.5 + less * 1), abs=1e-6)
    assert policy.mean.item() == pytest.approx(1.5, abs=1e-6)  # Adam's first step is as long as its learning rate
    assert told["policy_loss"] == pytest.approx(-size / 2 * (2 - less), abs=1e-6)
    assert told["staleness_kl"] == pytest.approx((math.e - 1 - 1 + less - 1 + 0.5) / 2, abs=1e-6)
    assert (told["capped"], told["kl"], told["clipped"]) == (0.5, 0.0, 0.0)

    policy = Guess(1.0)
    told = make(policy, epochs=2, **settings).update(stale_episodes())
    assert policy.mean.grad.item() == 0.0
    first, second = -size / 2 * (2 - less), -size / 2 * (2 * 1.1 - less * 0.9)
    assert told["policy_loss"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert told["clipped"] == 0.5


@pytest.mark.parametrize("name", ALONE)
def test_near_the_policy_that_played_nothing_is_left_to_learn_from_stale_episodes(name):
    policy = Guess(1.0)
    algorithm = ALONE[name][0](policy, clip=0.1, granularity="chunk", epochs=1)
    with pytest.raises(RuntimeError, match="other probabilities"):
        algorithm.update(stale_episodes())
    algorithm.scores_checked = True
    assert algorithm.update(stale_episodes())["clipped"] == 1.0
    assert policy.mean.grad.item() == 0.0


FRESH = {
    "ppo": (Gauss, partial(PPO, critic=CRITIC, epochs=2)),
    "ppo of a chain": (partial(Flow, chain="noise"), partial(PPO, critic=CRITIC, granularity="factor", chain_clip=0.5)),
    "ppo of commands": (
        Gauss,
        partial(PPO, critic=partial(CRITIC, per_command=True), granularity="command", dual_clip=3.0),
    ),
    "grpo": (Gauss, partial(GRPO, group=2, keep=None, epochs=2)),
}


def both_ways(name: str, policy: nn.Module, played: Rollout) -> list[tuple[dict, dict]]:
    """What an ordinary and a decoupled update tell, and the weights they lead to."""
    results = []
    for decoupled in (False, True):
        student = copy.deepcopy(policy)
        torch.manual_seed(3)
        told = FRESH[name][1](student, lr=1e-3, minibatch=16, decoupled=decoupled).update(played)
        results.append((told, student.state_dict()))
    return results


@pytest.mark.parametrize("name", FRESH)
def test_with_episodes_of_the_same_weights_it_is_the_ordinary_update(name):
    """To the last bit where a score is the same alone and among others; a chain is played draw by draw."""
    policy = FRESH[name][0]()
    played = rollout(PointEnv(num_envs=8), policy, seed=0)
    (ordinary, _), (told, _) = both_ways(name, policy, played)
    assert told.pop("staleness_kl") == pytest.approx(0.0, abs=1e-6)
    assert told.pop("capped") == 0.0
    assert told == pytest.approx(ordinary, rel=1e-5, abs=1e-6)

    played.action.log_prob[played.valid] = rescored(policy, played[played.valid], 16, torch.device("cpu"))
    (ordinary, weights), (told, others) = both_ways(name, policy, played)
    assert {**ordinary, "staleness_kl": 0.0, "capped": 0.0} == told
    assert all(torch.equal(x, others[n]) for n, x in weights.items())


@pytest.mark.parametrize("name", ALONE)
def test_scores_that_are_no_numbers_and_weights_that_spoil_fresh_decisions_are_refused(name):
    make = ALONE[name][0]
    with pytest.raises(RuntimeError, match="no finite probability"):
        make(Guess(math.nan), decoupled=True).update(stale_episodes())
    with pytest.raises(ValueError, match="max_weight must be at least 1"):
        make(Guess(1.0), decoupled=True, max_weight=0.5)
    policy = Flow(chain="ode")
    with pytest.raises(ValueError, match="FlowPolicy decides without chance"):
        make(policy, decoupled=True).update(rollout(PointEnv(num_envs=2), policy, seed=0))
