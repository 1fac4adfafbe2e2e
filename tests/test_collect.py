"""Episodes collected elsewhere are the ones that would be played here, with the weights that were sent."""

import copy

import pytest
import ray
import torch
from fragile import Losing

from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla import cluster
from vla.cluster import Collectors
from vla.collect import Collector, OneProcess, changing
from vla.evaluation import outcomes, summarise
from vla.models.state_mlp import StateMLP
from vla.rollout import join, rollout
from vla.serving import wait

pytestmark = pytest.mark.timeout(400)  # Ray starts five processes, slowly where cores are few or busy
ENV = {"_target_": "simulators.point.PointEnv", "num_envs": 4, "max_steps": 6}


def make_policy():
    return TokenPolicy(PointEnv().spec, StateMLP, horizon=2, bins=8)


def perturb(policy):
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p))


def assert_played_by(policy, episodes):
    made = episodes[episodes.valid]
    torch.testing.assert_close(policy.log_prob(made.obs, made.action), made.action.log_prob)


@pytest.fixture(scope="module")
def fleet():
    with Collectors(ENV, workers=2) as collectors:
        yield collectors
        assert collectors.scratch.exists()
    assert not collectors.scratch.exists()
    assert not ray.is_initialized()


def test_workers_play_the_same_episodes_as_one_process(fleet):
    policy = make_policy()
    here = OneProcess(Collector(ENV)).start(policy, 100).get()
    there = fleet.start(policy, 100).get()
    assert fleet.spec.num_envs == 4
    torch.testing.assert_close(there.obs[0].proprio, here.obs[0].proprio, rtol=0, atol=0)
    assert (there.obs[0].images["top"] == here.obs[0].images["top"]).all()
    greedy = rollout(PointEnv(4, max_steps=6), _Mode(policy), seed=100)
    torch.testing.assert_close(fleet.start(policy, 100, greedy=True).get().reward, greedy.reward)


def test_workers_play_with_the_weights_of_the_moment_they_were_started(fleet):
    policy = make_policy()
    fleet.start(policy, 0).get()
    perturb(policy)
    then = copy.deepcopy(policy)
    pending = fleet.start(policy, 0)
    perturb(policy)
    assert_played_by(then, pending.get())


def test_the_same_seed_and_weights_play_the_same_episodes(fleet):
    policy = make_policy()
    first, again = (fleet.start(policy, 7).get() for _ in range(2))
    assert (first.action.commands == again.action.commands).all()
    other = fleet.start(policy, 8).get()
    assert not torch.equal(first.obs[0].proprio, other.obs[0].proprio)


def test_what_an_environment_says_in_a_worker_is_said_here(fleet):
    bad = ray.remote(Collector).options(num_cpus=0).remote({**ENV, "num_targets": 9})
    with pytest.raises(ValueError, match="num_targets must be from 1 to 2, got 9"):
        wait([bad.open.remote()])


def test_a_dead_worker_is_one_clear_error(fleet):
    lost = ray.remote(Collector).options(num_cpus=0).remote(ENV)
    wait([lost.open.remote()])
    ray.kill(lost)
    with pytest.raises(RuntimeError, match="a process died"):
        wait([lost.open.remote()])


@pytest.mark.parametrize("workers", [0, 3, 8])
def test_environments_that_cannot_be_spread_are_refused_at_once(workers, monkeypatch):
    monkeypatch.setattr(cluster, "start_ray", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=f"num_envs=4 cannot be spread evenly over workers={workers}"):
        Collectors(ENV, workers=workers)


def test_one_process_plays_with_the_weights_of_now_and_leaves_the_policy_alone():
    policy = make_policy().train()
    alone = OneProcess(Collector(ENV))
    alone.start(policy, 0)
    perturb(policy)
    state = torch.get_rng_state()
    assert_played_by(policy, alone.start(policy, 0).get())
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)


def test_one_process_can_be_greedy():
    policy = make_policy()
    alone = OneProcess(Collector(ENV))
    expected = rollout(PointEnv(4, max_steps=6), _Mode(policy), seed=3)
    torch.testing.assert_close(alone.start(policy, 3, greedy=True).get().reward, expected.reward)


def test_frozen_weights_are_sent_once_buffers_always():
    policy = make_policy()
    policy.encoder.net[0].weight.requires_grad_(requires_grad=False)
    names = set(changing(policy))
    assert "encoder.net.0.weight" not in names
    assert {"encoder.net.0.bias", "bins.low"} <= names
    alone = OneProcess(Collector(ENV))
    alone.start(policy, 0)
    assert_played_by(policy, alone.start(policy, 0).get())


def test_weights_of_another_policy_are_refused():
    worker = Collector(ENV)
    worker.open()
    worker.load(make_policy())
    with pytest.raises(ValueError, match="does not have: nonsense"):
        worker.collect({"nonsense": torch.zeros(1)}, 0)


def test_another_draw_begins_alike_and_goes_elsewhere():
    alone = OneProcess(Collector(ENV))
    policy = TokenPolicy(alone.spec, StateMLP, 2)
    first, again, other = (alone.start(policy, 5, draw=draw).get() for draw in (1, 1, 2))
    torch.testing.assert_close(first.action.commands, again.action.commands, rtol=0, atol=0)
    torch.testing.assert_close(first.obs.proprio[0], other.obs.proprio[0], rtol=0, atol=0)
    assert not torch.equal(first.action.commands[0], other.action.commands[0])
    assert not torch.equal(alone.start(policy, 5).get().action.commands[0], first.action.commands[0])


def test_joining_repeats_the_last_row_of_what_ended_earlier():
    policy = make_policy()
    short = rollout(PointEnv(2, max_steps=4), policy, seed=0)
    long = rollout(PointEnv(3, max_steps=10), policy, seed=0)
    both = join([short, long])
    assert both.shape == (6, 5)  # 5 decisions of 2 commands, and the row they ended in
    assert both.valid.sum() == short.valid.sum() + long.valid.sum()
    torch.testing.assert_close(both.reward[:3, :2], short.reward)
    torch.testing.assert_close(both.reward[:, 2:], long.reward)
    assert not both.valid[2:, :2].any()
    assert (both.reward[2:, :2] == 0).all()
    assert (both.obs.proprio[3:, :2] == short.obs.proprio[2]).all()
    assert [list(row) for row in both.obs.instruction] == [["reach the red target"] * 5] * 6


def test_lost_episodes_are_told_apart_when_workers_are_joined():
    policy = make_policy()
    parts = [rollout(Losing(num_envs=2, lost=[1]), policy, seed=0), rollout(Losing(num_envs=2), policy, seed=2)]
    both = join(parts)
    assert both.lost() == [1]
    kept = outcomes(both, 0, 10.0)
    assert [x.seed for x in kept] == [0, 2, 3]
    assert summarise(kept, "train")["train/episodes"] == 3


class _Mode:
    def __init__(self, policy):
        self.act = policy.mode
