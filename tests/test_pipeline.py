"""Groups of environments and one policy: the same episodes however many groups there are and whatever befalls them."""

import copy
import queue
import random
import threading
import time
from functools import partial

import pytest
import torch

from policies.flow import FlowPolicy
from policies.gaussian import GaussianPolicy
from policies.residual import ResidualPolicy
from policies.token import TokenPolicy
from simulators.point import PointEnv
from vla import chance
from vla.collect import Group
from vla.messages import packed, unpacked
from vla.models.denoisers import UNet1D
from vla.models.state_mlp import StateMLP
from vla.pipeline import Lost, Measured, Pipeline, best_number, candidates, planned
from vla.rollout import Greedy, UnderWay, execute, rollout
from vla.types import Observation, Step

SPEC = PointEnv().spec


class Threads:
    """Groups in threads, each answering after a while drawn at random; the group `dies` loses some answers."""

    def __init__(self, sizes, dies=(), seconds=0.0):
        self.sizes = sizes
        self.envs = [PointEnv(n, max_steps=8) for n in sizes]
        self.told = [queue.Queue() for _ in sizes]
        self.answers = queue.Queue()
        self.lives = [0] * len(sizes)
        self.dies = list(dies)
        self.seconds = seconds
        self.most = 0  # answers that waited at once
        for group in range(len(sizes)):
            threading.Thread(target=self._serve, args=(group,), daemon=True).start()

    def reset(self, group, seed):
        self.told[group].put((self.lives[group], lambda env: env.reset(seed)))

    def play(self, group, commands, alive):
        self.told[group].put((self.lives[group], lambda env: execute(env, commands, alive)))

    def ready(self, timeout):
        try:
            got = [self.answers.get(timeout=timeout)]
        except queue.Empty:
            return []
        while not self.answers.empty():
            got.append(self.answers.get())
        self.most = max(self.most, len(got))
        return [(group, answer) for group, life, answer in got if life == self.lives[group]]

    def renew(self, group):
        self.lives[group] += 1
        self.envs[group] = PointEnv(self.sizes[group], max_steps=8)

    def _serve(self, group):
        source, count = random.Random(group), 0
        while True:
            life, order = self.told[group].get()
            time.sleep(self.seconds or 0.003 * source.random())
            count += 1
            answer = order(self.envs[group])
            self.answers.put((group, life, Lost("fell over") if (group, count) in self.dies else answer))


def small(name):
    gaussian, net = partial(GaussianPolicy, encoder=StateMLP), partial(UNet1D, channels=(16, 16), time_width=8)
    torch.manual_seed(0)
    made = {
        "token": lambda: TokenPolicy(SPEC, StateMLP, horizon=2, bins=8),
        "gaussian": lambda: gaussian(SPEC, horizon=2),
        "flow": lambda: FlowPolicy(SPEC, StateMLP, 2, net, steps=3, chain="sde"),
        "residual": lambda: ResidualPolicy(SPEC, gaussian(SPEC, horizon=2), gaussian, horizon=1),
    }[name]()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


def own(policy, greedy=False):
    def make():
        copied = copy.deepcopy(policy, {id(x): x for x in [*policy.parameters(), *policy.buffers()]})
        return Greedy(copied) if greedy else copied

    return make


def assert_same(a, b):
    assert torch.equal(a.valid, b.valid)
    for x, y in ((a.obs.proprio, b.obs.proprio), (a.action.commands, b.action.commands), (a.reward, b.reward)):
        assert torch.equal(x[a.valid], y[a.valid])
    assert torch.equal(a.action.log_prob[a.valid], b.action.log_prob[a.valid])
    assert torch.equal(a.obs.images["top"], b.obs.images["top"])


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", ["token", "gaussian", "flow"])
def test_episodes_are_the_same_bit_for_bit_however_many_groups_there_are(name, greedy):
    policy = small(name)
    alone = rollout(PointEnv(6, max_steps=8), own(policy, greedy)(), seed=5, draw=3, batch=4)
    for sizes in ([6], [2, 2, 2], [1, 5]):
        pipeline = Pipeline(Threads(sizes), deadline=0.002, batch=4)
        assert_same(pipeline.play(own(policy, greedy), seed=5, draw=3), alone)


def test_chance_does_not_depend_on_company_only_the_last_bits_do():
    policy = small("token")
    alone = rollout(PointEnv(6, max_steps=8), policy, seed=5)
    played = Pipeline(Threads([2, 2, 2])).play(lambda: policy, seed=5)
    torch.testing.assert_close(played.action.commands, alone.action.commands)
    other = rollout(PointEnv(6, max_steps=8), policy, seed=6)
    torch.testing.assert_close(other.action.commands[0, :5], alone.action.commands[0, 1:])
    assert not torch.equal(rollout(PointEnv(6), policy, seed=5, draw=1).action.commands[0], alone.action.commands[0])


def test_chunks_that_wait_are_kept_for_each_group():
    policy = small("residual")
    alone = rollout(PointEnv(6, max_steps=8), own(policy)(), seed=5)
    played = Pipeline(Threads([2, 2, 2], [(1, 4)])).play(own(policy), seed=5)
    torch.testing.assert_close(played.action.commands, alone.action.commands)
    assert policy.waiting is None


@pytest.mark.parametrize("dies", [[(1, 1)], [(0, 3), (2, 2)], [(2, 1), (2, 4)]])
def test_a_lost_group_begins_the_same_episodes_anew(dies):
    policy = small("gaussian")
    alone = rollout(PointEnv(6, max_steps=8), policy, seed=5, batch=2)
    groups = Threads([2, 2, 2], dies)
    assert_same(Pipeline(groups, batch=2).play(lambda: policy, seed=5), alone)
    assert sum(groups.lives) == len(dies)


def test_a_group_that_is_lost_again_and_again_is_an_error_with_its_reason():
    with pytest.raises(RuntimeError, match=r"episodes from 7 on were lost 3 times.*fell over"):
        Pipeline(Threads([2, 2], [(1, n) for n in range(1, 9)])).play(lambda: small("token"), seed=5)


def test_a_slow_group_holds_up_no_other():
    """The second group answers nothing before the first has played all its episodes."""

    class Biased(Threads):
        def ready(self, timeout):
            got = [x for x in super().ready(timeout) if x[0] == 0 or self.late.append(x)]
            if self.played == 4 and self.late:
                got, self.late = [*got, *self.late], []
            return got

        def play(self, group, commands, alive):
            self.played += group == 0
            super().play(group, commands, alive)

        late, played = [], 0

    policy = small("token")
    assert_same(
        Pipeline(Biased([2, 2]), batch=2).play(lambda: policy, seed=5),
        rollout(PointEnv(4, max_steps=8), policy, seed=5, batch=2),
    )


def test_what_environments_do_not_tell_is_not_told_by_their_processes_either():
    """Without privileged state, the first observation and later ones have the same parts and go into one rollout."""
    group = Group({"_target_": "fragile.Unprivileged", "num_envs": 2})
    group.open()
    under_way = UnderWay(Observation.from_dict(unpacked(group.reset(0)), batch_size=[2]), 0)
    policy = small("token")
    while under_way.alive.any():
        action = policy.act(under_way.obs)
        told = unpacked(group.play(packed((action.commands, under_way.alive))))
        under_way.add(action, Step.from_dict(told, batch_size=[2]))
    assert under_way.rollout().shape == (5, 2)
    assert under_way.rollout().obs.privileged is None


def test_with_patience_those_who_wait_are_decided_for_together():
    patient = Pipeline(Threads([1] * 4), deadline=5.0)
    patient.play(lambda: small("token"), seed=0)
    assert patient.pace.calls == patient.pace.rounds == 4
    assert patient.pace.rows == 16
    assert patient.pace.metrics()["pipeline/rows_per_call"] == 4


@pytest.mark.parametrize(
    ("play", "decide", "cores", "shared", "best"),
    [
        ({8: 0.4, 1: 0.05}, {8: 0.4, 1: 0.05}, 8, False, 2),  # both in proportion: two hide each other
        ({8: 0.4, 1: 0.4}, {8: 0.1, 1: 0.1}, 1, False, 1),  # a simulator that takes as long for few: splitting costs
        ({8: 0.1, 1: 0.1}, {8: 0.4, 1: 0.4}, 8, False, 1),  # a policy that takes as long for few
        ({8: 0.8, 1: 0.1}, {8: 0.1, 1: 0.1}, 8, False, 4),  # one core each: four groups move at once
        ({8: 0.4, 1: 0.05}, {8: 0.4, 1: 0.05}, 1, True, 1),  # one core for all: nothing can overlap
    ],
)
def test_the_number_of_groups_follows_from_what_was_measured(play, decide, cores, shared, best):
    assert best_number(Measured(play, decide, 0.0, cores, shared), 8, 4)[0] == best


def test_rounds_are_predicted_as_on_paper():
    measured = Measured({4: 0.4, 8: 0.8}, {4: 0.1, 8: 0.2}, 0.01, cores=1, shared=False)
    assert measured.round(1, 8) == pytest.approx(1.02)  # one after the other, and two messages
    assert measured.round(2, 8) == pytest.approx(0.8)  # the simulator is busy all the time
    apart = Measured({4: 0.4, 8: 0.8}, {4: 0.1, 8: 0.2}, 0.01, cores=2, shared=False)
    assert apart.round(2, 8) == pytest.approx(0.52)  # both groups move at once: one group's way round
    assert candidates(12, 5) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("workers", "servers", "said"), [(3, 0, "workers=3"), (0, 0, "workers=0"), (4, 3, "servers=3")]
)
def test_what_cannot_be_spread_is_refused(workers, servers, said):
    with pytest.raises(ValueError, match=said):
        planned(8, workers, servers)


def test_processes_are_counted():
    assert (planned(8, 4, 0).members, planned(8, 4, 0).share, planned(8, 4, 0).cpus) == (4, 2, 4)
    served = planned(8, 4, 2)
    assert (served.members, served.share, served.groups, served.cpus) == (2, 4, 2, 6)


def test_what_is_drawn_for_a_row_is_its_own():
    streams = [(7, 0, 0), (8, 0, 0), (7, 1, 0), (7, 0, 1)]
    like = torch.zeros(4, 3, 2)
    with chance.drawing_from(streams):
        drawn, more = chance.normal(like), chance.normal(like)
    with chance.drawing_from(streams[::-1]):
        turned = chance.normal(like)
    assert torch.equal(drawn, turned.flip(0))
    assert len({tuple(x.flatten().tolist()) for x in [*drawn, *more]}) == 8
    with pytest.raises(ValueError, match="3 rows cannot draw from 4 streams"), chance.drawing_from(streams):
        chance.normal(like[:3])


def test_options_are_chosen_as_often_as_their_logits_say():
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])
    with chance.drawing_from([(seed, 0, 0) for seed in range(5000)]):
        chosen = chance.choice(share.log().expand(5000, 4, 4))
        whole = chance.integers(3, 5000)
    for place in chosen.unbind(1):
        counts = torch.bincount(place, minlength=4)
        assert ((counts / 5000 - share).abs() < 4 * (share * (1 - share) / 5000).sqrt()).all()
    assert (torch.bincount(whole) / 5000 - 1 / 3).abs().max() < 0.03
    together = torch.corrcoef(chosen.float().T)
    assert (together - torch.eye(4)).abs().max() < 0.08
    with chance.drawing_from([(0, draw, t) for draw in range(50) for t in range(100)]):
        noise = chance.normal(torch.zeros(5000, 2)).view(50, 100, 2)
    assert abs(noise.mean()) < 0.05
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.05  # one decision after another
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.05  # one time after another
